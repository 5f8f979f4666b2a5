"""The built-in demo: worlds that are the same everywhere, and the tiny CLIP that ships with the project."""

from __future__ import annotations

import hashlib
import itertools
import json
import re

import open_clip
import pytest
import torch

from bench import demo
from bench.config.backbones import model_config
from bench.config.settings import BackboneSettings
from bench.core.weights import load_backbone
from bench.demo import general, pretrain, things, tiny_clip, world

# The shipped weights. After `python -m bench.demo.pretrain` these are the two lines to renew, with VERSION untouched.
WEIGHTS_SHA256 = "8d28565c7cab1561c434fa104dcac71e8f032a4fde4ee87f91fdfd0dd71901aa"
ZERO_SHOT_BAND = (23.5, 26.5)  # mean recall on the test split, percent; chance is 2.5


def words(captions) -> set[str]:
    return set(re.findall(r"[a-z]+", " ".join(captions).lower()))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "world"
    world.build(root)
    return root


def test_the_world_is_what_a_dataset_should_be(built):
    images = json.loads((built / "dataset.json").read_text())["images"]
    names = [entry["filename"] for entry in images]
    assert len(set(names)) == len(names) == sum(world.SPLITS.values())
    assert all((built / name).is_file() for name in names)
    for split, count in world.SPLITS.items():
        chosen = [entry for entry in images if entry["split"] == split]
        assert len(chosen) == count
        assert {entry["label"] for entry in chosen} == set(world.CLASSES)
    for entry in images:
        captions = [sentence["raw"] for sentence in entry["sentences"]]
        assert len(captions) == 5
        assert all(words([caption]) for caption in captions)


def test_same_seed_same_scene_other_seed_another():
    label, picture, captions = world.scene(0, 7)
    again, other = world.scene(0, 7), world.scene(1, 7)
    assert (again[0], again[1].tobytes(), again[2]) == (label, picture.tobytes(), captions)
    assert other[1].tobytes() != picture.tobytes()


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.build(tmp_path / "world", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_captions_crowd_inside_a_class():
    """Near-duplicates: two captions of one class share more words than two of different classes."""
    said = [(label, words(captions)) for label, _, captions in (world.scene(0, index) for index in range(96))]
    overlap = {True: [], False: []}
    for (one, a), (other, b) in itertools.combinations(said, 2):
        overlap[one == other].append(len(a & b) / len(a | b))
    inside, across = (sum(values) / len(values) for values in (overlap[True], overlap[False]))
    assert inside > 1.5 * across


@pytest.fixture(scope="module")
def told() -> list[str]:
    """Captions of the general world."""
    return [caption for index in range(1000) for caption in general.scene(0, index, pretrain.SENTENCES)[1]]


def test_the_general_world_knows_the_demos_words_but_not_its_sentences(told, built):
    """As CLIP has read "airport" long before: what the demo's captions say must be known, and none of them seen."""
    images = json.loads((built / "dataset.json").read_text())["images"]
    captions = [sentence["raw"] for entry in images for sentence in entry["sentences"]]
    unknown = words(captions) - words(told)
    assert len(unknown) <= 4, unknown
    assert words(told) - words(captions)
    assert not {plain(caption) for caption in captions} & {plain(caption) for caption in told}


def plain(caption: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", caption.lower()))


def test_a_general_scene_is_the_same_for_the_same_numbers_alone():
    picture, captions = general.scene(0, 7)
    again, other = general.scene(0, 7), general.scene(1, 7)
    assert (again[0].tobytes(), again[1]) == (picture.tobytes(), captions)
    assert picture.size == (64, 64)
    assert other[0].tobytes() != picture.tobytes()


def test_general_scenes_show_every_place_and_thing(told):
    said = " ".join(told).lower()
    for noun in [*things.THINGS, "airport", "harbour", "farmland", "roundabout", "railway", "desert", "oil depot"]:
        assert noun in said, noun


def test_articles_fit(told):
    assert not [caption for caption in told if re.search(r"\ba [aeio]|\ban [^aeio]", caption.lower())]


def test_captions_fit_the_context_with_the_demos_prompts():
    tokenizer = open_clip.SimpleTokenizer(context_length=pretrain.CONTEXT)
    tokens = tokenizer([caption for index in range(320) for caption in world.scene(0, index)[2]])
    assert int((tokens != 0).sum(dim=1).max()) <= pretrain.CONTEXT - 4  # what demo.yaml's coop adds


def test_shipped_weights_are_these_and_small():
    assert hashlib.sha256(demo.WEIGHTS.read_bytes()).hexdigest() == WEIGHTS_SHA256
    assert demo.WEIGHTS.stat().st_size <= 8 * 2**20


def test_every_word_of_the_demo_has_an_embedding():
    weight = tiny_clip.state_dict(demo.WEIGHTS)[tiny_clip.EMBEDDING]
    tokenizer = open_clip.SimpleTokenizer(context_length=pretrain.CONTEXT)
    used = tokenizer([caption for index in range(320) for caption in world.scene(0, index)[2]]).unique()
    assert (weight[used].abs().sum(dim=1) > 0).all()


def test_zero_shot_score_is_in_its_band():
    low, high = ZERO_SHOT_BAND
    assert low < pretrain.zero_shot(demo.WEIGHTS) < high


def test_the_tiny_clip_is_an_open_clip_model_like_vit_b_32():
    loaded = load_backbone(BackboneSettings(model="tiny-clip", weights="demo"))
    assert type(loaded.model.clip) is open_clip.CLIP
    assert len(loaded.model.image_blocks.list) == 6
    assert len(loaded.model.text_blocks.list) == 4


def test_packing_is_undone_by_loading(tmp_path):
    torch.manual_seed(0)
    state = {"logit_scale": torch.tensor(2.5), tiny_clip.EMBEDDING: torch.randn(3, 4).half().float()}
    tiny_clip.pack(state, torch.tensor([5, 7, 49407]), tmp_path / "w.safetensors")
    loaded = tiny_clip.state_dict(tmp_path / "w.safetensors")
    assert torch.equal(loaded[tiny_clip.EMBEDDING][[5, 7, 49407]], state[tiny_clip.EMBEDDING])
    assert int(loaded[tiny_clip.EMBEDDING].count_nonzero()) == 12
    assert loaded["logit_scale"] == 2.5


def test_the_pretrainings_text_tower_is_open_clips():
    torch.manual_seed(0)
    clip = open_clip.CLIP(**model_config("tiny-clip"))
    ids = open_clip.SimpleTokenizer(context_length=pretrain.CONTEXT)(["an airport", "two red boats near a pier"])
    with torch.inference_mode():
        short = pretrain.encode_text(clip, ids[:, : int((ids != 0).sum(dim=1).max())])
        assert torch.allclose(short, clip.encode_text(ids), atol=1e-6)


def test_pretraining_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "demo_captions", lambda: ["an airport"])
    state, known = pretrain.train(scenes=64, steps=3, batch=32, lr=1e-3, device=torch.device("cpu"))
    assert state[tiny_clip.EMBEDDING].shape == (len(known), 128)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
