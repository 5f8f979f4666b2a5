"""Ceilings and duplicates: against brute force, on the real annotations, and with planted copies."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.config.errors import UserError
from bench.config.settings import CaptionSettings, DatasetSettings
from bench.core.evaluate import score
from bench.data import identity, load
from bench.data.__main__ import main
from bench.data.annotations import Item, read
from bench.data.audit import audit
from bench.data.duplicates import KS, ceilings, numbered, words
from bench.data.similar import EDGE, near
from bench.demo import world

REAL = Path(__file__).resolve().parents[2] / "shared" / "annotations"


# --- captions and ceilings --------------------------------------------------------------------------------------------


def test_words_are_without_case_and_punctuation():
    assert words(" Two  planes, at an_airport.") == "two planes at an airport"
    assert words("Zwei Flüge") == "zwei flüge"
    assert numbered([Item("a", ("A river.", "a lake")), Item("b", ("a river",))]) == [0, 1, 0]


HAND = {
    "one caption of two images": [Item("a", ("x",)), Item("b", ("x", "y"))],
    "an image that has it twice": [Item("a", ("x", "x")), Item("b", ("x", "y")), Item("c", ("y",))],
    "three alike": [Item("a", ("x",)), Item("b", ("x",)), Item("c", ("x",))],
}


@pytest.mark.parametrize("name", HAND)
def test_no_ranking_exceeds_the_ceiling_and_one_reaches_it(name):
    """All rankings of the images for each caption, and of the captions for each image."""
    items = HAND[name]
    most = ceilings(items)
    captions = [(words(text), image) for image, item in enumerate(items) for text in item.captions]
    reached = 0
    for text in {text for text, _ in captions}:
        owners = [image for other, image in captions if other == text]
        orders = itertools.permutations(range(len(items)))
        reached += max(sum(image == order[0] for image in owners) for order in orders)
    assert most["t2i_r1"] == pytest.approx(100 * reached / len(captions))
    best = 0.0
    for image in range(len(items)):
        copies = {text: [owner == image for other, owner in captions if other == text] for text, _ in captions}
        best += max(sum(each) / len(each) for each in copies.values())
    assert most["i2t_r1"] == pytest.approx(100 * best / len(items))


@pytest.mark.parametrize(
    ("folder", "layout", "name", "expected"),
    [
        ("ucm_precomp", "precomp", "ucm", (38.3, 84.8, 100)),
        ("rsicd_precomp", "precomp", "rsicd", (93.1, 99.2, 99.8)),
        ("rsitmd_pir", "pir", "rsitmd", (99.8, 100, 100)),
    ],
)
def test_ceilings_of_the_real_splits(folder, layout, name, expected):
    if not REAL.is_dir():
        pytest.skip("the annotations of the real datasets are not on this machine")
    items = read(layout, name, REAL / folder)["test"]
    most = ceilings(items)
    copies = {}
    for image, item in enumerate(items):
        for text in map(words, item.captions):
            copies.setdefault(text, []).append(image)
    total = sum(map(len, copies.values()))
    for k, rounded in zip(KS, expected, strict=True):
        brute = sum(sum(sorted((owners.count(i) for i in set(owners)), reverse=True)[:k]) for owners in copies.values())
        assert most[f"t2i_r{k}"] == pytest.approx(100 * brute / total)
        assert round(most[f"t2i_r{k}"], 1) == rounded


def test_an_identical_caption_of_another_image_is_right_where_it_is_said():
    # Images 0 and 1 share the caption "x" (texts 0 and 2 are encoded apart); image 1 has "y" too.
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    caption_text, caption_image, said = torch.arange(3), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    i2t, t2i = score(images, texts, caption_text, caption_image)
    assert (i2t.above.tolist(), t2i.above.tolist()) == ([2, 1], [1, 0, 1])
    i2t, t2i = score(images, texts, caption_text, caption_image, said)
    assert (i2t.above.tolist(), t2i.above.tolist()) == ([1, 0], [0, 0, 1])


# --- planted copies ---------------------------------------------------------------------------------------------------


def scene(seed: int, size: int = 120) -> Image.Image:
    """Fields, roads and roofs at random, with texture."""
    rng = np.random.default_rng(seed)
    pixels = np.full((size, size, 3), rng.integers(60, 200, 3), float)
    for _ in range(14):
        x, y = rng.integers(0, size, 2)
        w, h = rng.integers(6, size // 2, 2)
        pixels[y : y + h, x : x + w] = rng.integers(20, 235, 3)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8))


def recompressed(image: Image.Image, quality: int = 40) -> Image.Image:
    held = io.BytesIO()
    image.save(held, "JPEG", quality=quality)
    return Image.open(io.BytesIO(held.getvalue())).convert("RGB")


COPIES = {
    "recompressed": recompressed,
    "smaller": lambda image: image.resize((64, 64)),
    "larger, not square": lambda image: image.resize((256, 230)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "cropped at a corner": lambda image: image.crop((6, 6, 120, 120)),
    "cropped at a side": lambda image: image.crop((0, 0, 114, 120)),
    "cropped around": lambda image: image.crop((6, 6, 114, 114)),
    "cropped, mirrored and recompressed": lambda image: recompressed(
        image.crop((0, 3, 117, 117)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), 60
    ),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """20 training scenes; the test set has 10 others, a copy of a training scene for each of COPIES, and one file."""
    root = tmp_path_factory.mktemp("planted")
    rows = [("train", f"train{n}.png", scene(n), f"scene {n} with a road") for n in range(20)]
    rows += [("test", f"own{n}.png", scene(100 + n), f"another scene {n}") for n in range(10)]
    rows += [("val", f"val{n}.png", scene(200 + n), f"a third <b>scene</b> {n}") for n in range(3)]
    rows += [("test", f"copy{n}.png", COPIES[name](scene(n)), f"copy {n}") for n, name in enumerate(COPIES)]
    rows.append(("test", "same.png", scene(19), "Scene 3: with a ROAD."))
    with (root / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title", "split"])
        for split, name, image, caption in rows:
            image.save(root / name)
            writer.writerow([name, caption, split])
    return root


def test_every_planted_copy_is_found_and_nothing_else(planted, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["audit", f"captions={planted},title=planted", "--out", str(out)]) == 1
    with (out / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = {frozenset((row["image_1"], row["image_2"])): row["what"] for row in rows}
    expected = {frozenset((f"train{n}.png", f"copy{n}.png")): "near-duplicate" for n in range(len(COPIES))}
    assert pairs == expected | {frozenset(("train19.png", "same.png")): "same file"}
    table = (out / "table.csv").read_text()
    assert "identical caption,planted test,planted train,1,5.0" in table
    assert "10 training images are duplicates" in capsys.readouterr().out
    page = (out / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 * len(pairs)
    assert "http" not in page.replace("http-equiv", "")

    excluded = out / "exclude-planted.txt"
    names = [line for line in excluded.read_text().splitlines() if not line.startswith("#")]
    assert sorted(names) == sorted([*(f"train{n}.png" for n in range(len(COPIES))), "train19.png"])
    settings = CaptionSettings(name="captions", root=str(planted), exclude=str(excluded))
    assert len(load(settings).train) == 10
    again = tmp_path / "again"
    assert audit([settings.model_copy(update={"title": "planted"})], again, lambda _: None) == 0


def test_captions_are_escaped_on_the_page(tmp_path):
    shared = [f"a <script>river</script> {n}" for n in range(3)]
    images = [
        {"filename": f"{n}.png", "split": split, "sentences": [{"raw": each} for each in shared]}
        for n, split in enumerate(("train", "val", "test"))
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    said: list[str] = []
    settings = DatasetSettings(name="sydney", root=str(tmp_path))
    assert audit([settings], tmp_path / "out", said.append) == 0  # captions alone are no proof
    assert said[0] == "3 of 3 pictures are missing or broken, and are compared by captions alone"
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;river" in page
    assert "3 captions in common" in page


def test_the_demo_world_has_no_false_alarm():
    """Among 48 of its scenes, which are drawn of few shapes; none is a copy. All 1,056: docs/protocol.md."""
    pictures = [np.asarray(world.scene(0, n)[1].resize((EDGE, EDGE), Image.Resampling.BILINEAR)) for n in range(48)]
    copy = np.ascontiguousarray(pictures[7][:, ::-1])
    assert [(pair.first, pair.second, pair.turn) for pair in near([*pictures, copy])] == [(7, 48, "mirrored")]


# --- exclude ----------------------------------------------------------------------------------------------------------


def test_excluded_images_are_part_of_the_identity_by_their_names(planted, tmp_path):
    def settings(text: str | None, file: str = "list.txt") -> CaptionSettings:
        if text is not None:
            (tmp_path / file).write_text(text)
        exclude = None if text is None else str(tmp_path / file)
        return CaptionSettings(name="captions", root=str(planted), exclude=exclude)

    whole = identity(settings(None))
    one = identity(settings("# why\ntrain1.png\n"))
    assert one != whole
    assert identity(settings("train1.png\n", "moved.txt")) == one
    assert identity(settings("train2.png\n")) != one
    dataset = load(settings("train1.png\n"))
    assert "train1.png" not in [item.image for item in dataset.train]
    assert len(dataset.train) == 19


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train1.png\ntrian2.png\n", r"'trian2\.png' \(did you mean 'train2\.png'\?\)"),
        ("own1.png\n", r"'own1\.png' \(it is in test\)"),
        ("".join(f"train{n}.png\n" for n in range(20)), "names every training image"),
        (None, "no file"),
    ],
)
def test_a_wrong_list_says_what_is_wrong(planted, tmp_path, text, message):
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        load(CaptionSettings(name="captions", root=str(planted), exclude=str(tmp_path / "list.txt")))
