"""Two more drawn datasets: the demo world through haze, and a test set of the general world that no model has seen."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from bench.demo import general, world

HAZE_SEED = 1  # the demo world has 0
GENERAL_SEED = 1  # pre-training has 0: none of these scenes was seen in it
GENERAL_SCENES = 200
CAPTIONS = 5
HAZE = (196, 202, 210)
Scene = tuple[str, str, str | None, Image.Image, list[str]]  # name, split, label, picture, captions


def hazy(picture: Image.Image) -> Image.Image:
    """A picture as by a coarser sensor through haze: two thirds of the resolution, paler, and blueish."""
    coarse = picture.resize((picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.BOX)
    coarse = coarse.resize(picture.size, Image.Resampling.BILINEAR)
    return Image.blend(coarse, Image.new("RGB", picture.size, HAZE), 0.4)


def haze_scenes() -> Iterator[Scene]:
    """Other scenes of the demo world, as many, through haze."""
    splits = [split for split, number in world.SPLITS.items() for _ in range(number)]
    for index, split in enumerate(splits):
        label, picture, captions = world.scene(HAZE_SEED, index)
        yield f"{label}_{index:04d}", split, label, hazy(picture), captions


def general_scenes() -> Iterator[Scene]:
    """Scenes of the general world that pre-training has not seen."""
    for index in range(GENERAL_SCENES):
        picture, captions = general.scene(GENERAL_SEED, index, CAPTIONS)
        yield f"general_{index:04d}", "test", None, picture, captions


def build_haze(root: Path) -> None:
    """Write the hazy world to `root` as `write` does."""
    write(root, haze_scenes())


def build_general(root: Path) -> None:
    """Write the general world's test set to `root` as `write` does."""
    write(root, general_scenes())


def write(root: Path, scenes: Iterator[Scene]) -> None:
    """Write root/images/*.png and root/dataset.json (Karpathy's layout), which appear whole or not at all."""
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        (work / "images").mkdir()
        entries = []
        for name, split, label, picture, captions in scenes:
            filename = f"images/{name}.png"
            picture.save(work / filename)
            entry = {"filename": filename, "split": split, "sentences": [{"raw": raw} for raw in captions]}
            entries.append(entry | ({"label": label} if label else {}))
        (work / "dataset.json").write_text(json.dumps({"images": entries}, indent=1) + "\n", encoding="utf-8")
        work.chmod(0o755)
        try:
            work.replace(root)
        except OSError:  # another process was faster
            if not (root / "dataset.json").is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
