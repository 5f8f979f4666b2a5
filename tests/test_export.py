"""Exported models, loaded by plain open_clip and plain peft in a process of their own without this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import bench
from bench import export as command
from bench.compute import export as exporting
from bench.compute import plain
from bench.compute.execute import execute
from bench.config.errors import UserError
from bench.conformance import tiny
from bench.core.model import DualEncoder
from bench.store import folder, record
from methods import get
from tests.test_run import make_run

CAPTIONS = ["red land beside blue land", "the left is green"]

# What a model card tells others to do; sys.argv: the folder, the backbone's folder or "", a picture, captions.
PLAIN = """
import json, sys
import open_clip, torch
from PIL import Image
out, base, picture, *captions = sys.argv[1:]
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:" + (base or out))
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, out)
else:  # the file alone, with a model of open_clip's own list
    with open(out + "/open_clip_config.json") as config, open(sys.argv[3] + ".json", "w") as own:
        json.dump(json.load(config)["model_cfg"], own)
    open_clip.add_model_config(sys.argv[3] + ".json")
    name = sys.argv[3].rpartition("/")[2]
    model = open_clip.create_model(name, pretrained=out + "/open_clip_model.safetensors")
model = model.eval()
tokens = open_clip.get_tokenizer("local-dir:" + (base or out))(captions)
with torch.no_grad():
    image = preprocess(Image.open(picture).convert("RGB"))[None]
    once = model.encode_image(image, normalize=True), model.encode_text(tokens, normalize=True)
    if base:
        model = model.merge_and_unload()
    twice = model.encode_image(image, normalize=True), model.encode_text(tokens, normalize=True)
assert not {"bench", "methods"} & sys.modules.keys()
print(json.dumps([torch.cat(each).tolist() for each in (once, twice)]))
"""


def in_another_process(out: Path, base: Path | str, picture: Path) -> np.ndarray:
    """(2, 3, dim): of the picture and the captions, as loaded, and with peft's adapter merged."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, str(out), str(base), str(picture), *CAPTIONS],
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        cwd=out,
    )
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]))


def finished(root: Path, run_dir: Path, method: dict, **train) -> Path:
    result = execute(make_run(root, run_dir, method, **{"epochs": 1, "lr": 3e-3, **train}))
    assert result.error is None, result.error
    return run_dir


@pytest.fixture(scope="module")
def lora(root, tmp_path_factory) -> Path:
    targets = ["attn.q", "attn.v", "mlp.c_fc"]
    method = {"name": "lora", "rank": 3, "alpha": 5.0, "targets": targets}
    return finished(root, tmp_path_factory.mktemp("runs") / "lora", method)


@pytest.fixture(scope="module")
def backbone(root, tmp_path_factory) -> Path:
    run_dir = finished(root, tmp_path_factory.mktemp("runs") / "zero", {"name": "zero_shot"})
    out = run_dir.with_name("backbone")
    assert command.main([str(run_dir), str(out)]) == 0
    return out


@pytest.mark.parametrize("form", ["peft", "open_clip"])
def test_lora_in_a_process_without_this_package(lora, backbone, root, tmp_path, form):
    adapted = bench.load(lora, "cpu")
    picture = tmp_path / "picture"
    shutil.copyfile(root / "0.png", picture)
    own = torch.cat([adapted.encode_images([picture]), adapted.encode_texts(CAPTIONS)]).numpy()
    out = tmp_path / "out"
    assert command.main([str(lora), str(out), "--format", form]) == 0
    found = in_another_process(out, backbone if form == "peft" else "", picture)
    assert np.abs(found - own).max() < 1e-5
    plain_ = bench.load(backbone.with_name("zero"), "cpu")
    frozen = torch.cat([plain_.encode_images([picture]), plain_.encode_texts(CAPTIONS)]).numpy()
    assert np.abs(found - frozen).max() > 1e-3  # what was trained is in it


# --- all methods, on tiny models that are perturbed instead of trained ------------------------------------------------


def perturbed(method: dict, model: DualEncoder) -> DualEncoder:
    """The model with the method attached and moved off its start."""
    settings = {key: value for key, value in method.items() if key != "name"}
    get(method["name"])(**settings).attach(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def embeddings(clip: torch.nn.Module) -> torch.Tensor:
    pairs = tiny.batch()
    return torch.cat([clip.encode_image(pairs.images, normalize=True), clip.encode_text(pairs.tokens, normalize=True)])


ATTENTION = ("attn.q", "attn.k", "attn.v")
MLP = ("mlp.c_fc", "mlp.c_proj")
MERGEABLE = [
    {"name": "lora", "rank": 2, "targets": (*ATTENTION, "attn.out", *MLP)},
    {"name": "peft", "type": "LORA", "r": 2, "use_dora": True},
    {"name": "peft", "type": "VERA", "r": 4},
    {"name": "peft", "type": "LORA", "r": 2, "init_lora_weights": "pissa"},
    {"name": "ssf"},
]


@pytest.mark.parametrize("kind", tiny.CLASSES)
@pytest.mark.parametrize("method", [*MERGEABLE, {"name": "full_finetune"}, {"name": "bitfit"}], ids=str)
def test_a_merged_model_fits_plain_open_clip(method, kind):
    model, like = perturbed(method, tiny.backbone(kind)), tiny.backbone(kind).clip
    before = embeddings(model.clip)
    if not get(method["name"]).trains_backbone:
        settings = {key: value for key, value in method.items() if key != "name"}
        with torch.no_grad():
            get(method["name"])(**settings).merge(model)
    assert (embeddings(like) - before).abs().max() > 1e-3
    like.load_state_dict(plain.packed_state(model.clip, like))
    assert (embeddings(like) - before).abs().max() < 1e-5


PEFT = [
    {"name": "lora", "rank": 2, "targets": ATTENTION},
    {"name": "lora", "rank": 3, "targets": ("attn.k",), "towers": "text", "scaling": "sqrt"},
    {"name": "lora", "rank": 2, "targets": ("attn.v", *MLP)},
    {"name": "lora", "rank": 2, "targets": MLP},
    {"name": "peft", "type": "LORA", "r": 2, "use_dora": True, "targets": MLP},
    {"name": "peft", "type": "IA3", "targets": ("mlp.c_proj",), "feedforward_modules": ["mlp.c_proj"]},
    {"name": "peft", "type": "LOKR", "r": 2, "towers": "image", "targets": MLP},
    {"name": "peft", "type": "LORA", "r": 2, "init_lora_weights": "gaussian"},
]


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(("CLIP", method) for method in PEFT),
        ("CustomTextCLIP", PEFT[2]),
        ("SigLIP", PEFT[2]),
        ("SigLIP", {"name": "lora", "rank": 2, "targets": ("attn.q", "attn.out"), "towers": "image"}),
    ],
    ids=str,
)
def test_a_peft_folder_fits_plain_open_clip(kind, method, tmp_path):
    model, like = perturbed(method, tiny.backbone(kind)), tiny.backbone(kind).clip
    before = embeddings(model.clip)
    plain.write_peft(model.clip, like, tmp_path, "tiny")
    loaded = plain.with_peft(like, tmp_path).eval()
    for _ in range(2):  # the library merges and unmerges attention in each forward pass
        assert (embeddings(loaded) - before).abs().max() < 1e-5
    assert (embeddings(loaded.merge_and_unload()) - before).abs().max() < 1e-5


REFUSED = [
    ({"name": "lora", "rank": 2, "targets": ("attn.q", "attn.out")}, "adds twice"),
    ({"name": "peft", "type": "LORA", "r": 2, "use_dora": True}, "no DoRA for attention"),
    ({"name": "peft", "type": "VERA", "r": 4}, "no VERA for attention"),
    ({"name": "peft", "type": "VERA", "r": 4, "targets": ("mlp.c_fc",)}, "can't write it from here"),
    ({"name": "ssf"}, "no tuner of the peft library"),
]


@pytest.mark.parametrize(("method", "why"), REFUSED, ids=str)
def test_what_plain_peft_cannot_hold_is_refused(method, why, tmp_path):
    with pytest.raises(UserError, match=why):
        plain.write_peft(perturbed(method, tiny.backbone()).clip, tiny.backbone().clip, tmp_path, "tiny")


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harma(root, tmp_path_factory) -> Path:
    method = {"name": "harma", "bottleneck": 16, "heads": 4}
    return finished(root, tmp_path_factory.mktemp("runs") / "harma", method, captions="clip")


def test_an_adapter_folder_is_loaded_under_any_name(harma, root, tmp_path):
    out = tmp_path / "any name"
    assert command.main([str(harma), str(out), "--license", "cc-by-4.0"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", folder.ADAPTER, folder.RESULT]
    own, found = (bench.load(each, "cpu").encode_images([root / "0.png"]) for each in (harma, out))
    assert torch.equal(own, found)


def test_the_card_says_what_it_is_and_shows_no_path(harma, root, tmp_path):
    out = tmp_path / "a `card` <b>"
    exporting.export(harma, out, "adapter", "cc-by-4.0")
    text = (out / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "cc-by-4.0"
    assert f"| mean recall | {record.read(harma).metrics.test.mean_recall:.2f} |" in text
    assert "bottleneck: 16" in text
    assert "# a \\`card\\` \\<b\\>" in text
    assert str(root) not in text
    assert str(tmp_path) not in text


def test_what_a_method_cannot_be_is_one_message(harma, lora, backbone, tmp_path, capsys):
    for run, form, words in [
        (harma, "open_clip", "modules that can't be merged into the backbone's weights; it can be exported as adapter"),
        (harma, "peft", "harma is no tuner of the peft library; it can be exported as adapter"),
        (tmp_path, "auto", "holds no finished run"),
    ]:
        assert command.main([str(run), str(tmp_path / "out"), "--format", form]) == 2
        assert words in capsys.readouterr().err
    assert command.main([str(lora), str(backbone)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_an_export_that_gives_other_embeddings(lora, tmp_path, monkeypatch):
    packed_state = plain.packed_state

    def swapped(clip, like):
        state = packed_state(clip, like)
        name = "visual.transformer.resblocks.0.attn.in_proj_weight"
        return state | {name: torch.cat(state[name].chunk(3)[::-1]).contiguous()}

    monkeypatch.setattr(plain, "packed_state", swapped)
    with pytest.raises(UserError, match="the embeddings of what was written differ"):
        exporting.export(lora, tmp_path / "out", "open_clip")
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_given_by_path_and_checked(lora, backbone, tmp_path):
    weights = backbone / exporting.WEIGHTS
    assert torch.equal(*(bench.load(lora, "cpu", each).encode_texts("a river") for each in (None, str(weights))))
    other = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="trained on other weights"):
        bench.load(lora, "cpu", str(tmp_path / "other.safetensors"))


def test_an_interpolated_run_is_exported_at_its_share(root, tmp_path):
    run_dir = make_run(root, tmp_path / "mixed", {"name": "lora", "rank": 2}, epochs=1)
    settings = yaml.safe_load((run_dir / folder.RUN).read_text()) | {"evaluation": {"interpolate": [0.5]}}
    (run_dir / folder.RUN).write_text(yaml.safe_dump(settings))
    assert execute(run_dir).error is None
    done = exporting.export(run_dir, tmp_path / "out")
    assert done.format == "open_clip"
    assert done.difference < 1e-5
    with pytest.raises(UserError, match="interpolated with the backbone"):
        exporting.export(run_dir, tmp_path / "peft", "peft")
