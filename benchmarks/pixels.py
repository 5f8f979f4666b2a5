"""`pixels`: training and test pictures from the cache beside a pipeline of Pillow that decodes each time. One core."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from bench.data.pixels import prepare, prepare_to_crop
from bench.data.transforms import PRESETS, StoredPairs, TrainPairs, ViewPairs, normalise
from benchmarks.measure import Row, alternate, check_equal, copy_rate

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TARGET = 10
VIEWS = 8


def rows(*, pictures: int = 64, size: int = 224, edge: int = 256, rounds: int = 5) -> list[Row]:
    """A batch of drawn TIFF pictures (`edge` x `edge`, as RSITMD's files) as normalised floats; seconds a batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="petl-benchmark-") as name:
            return _rows(Path(name), pictures, size, edge, rounds)
    finally:
        torch.set_num_threads(threads)


def _rows(folder: Path, pictures: int, size: int, edge: int, rounds: int) -> list[Row]:
    rng = np.random.default_rng(0)
    names = [f"{number}.tif" for number in range(pictures)]
    for name in names:
        small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((edge, edge)).save(folder / name)
    # Each float is written once, from bytes that are read once; a copy reads as much as it writes.
    limit = pictures * 3 * size * size * (4 + 1) / copy_rate()
    found = []
    for augment, views in (("none", None), ("clip", None), ("harma", None), ("harma", VIEWS)):
        pairs = _stored(folder, names, size, augment)
        ours = _batch(pairs if views is None else _views(folder, pairs, views), pictures)
        theirs = _decoded(folder, names, size, augment)
        if augment == "none":
            check_equal("pixels", ours().flatten().tolist(), theirs().flatten().tolist(), 1e-6)
        else:
            assert ours().shape == theirs().shape == (pictures, 3, size, size)  # random: only their shape is the same
        timings = alternate(ours, theirs, rounds)
        rate = pictures / timings[0].median
        what = f"{pictures} pictures, augment {augment}{f', views: {views}' if views else ''}"
        baseline = (
            "Pillow: decode, resize" + {"none": "", "clip": ", crop", "harma": ", crop, flip, RandAugment"}[augment]
        )
        facts = {"pictures a second and core": rate}
        found.append(Row(what, timings[0], baseline, timings[1], TARGET, limit, facts))
    return found


def _stored(folder: Path, names: list[str], size: int, augment: str) -> TrainPairs:
    preset = PRESETS[augment]
    before = os.environ.get("PETL_BENCH_CACHE")
    os.environ["PETL_BENCH_CACHE"] = str(folder / "cache")
    try:
        pixels: np.ndarray
        if preset.scale is None:
            pixels, sizes = prepare(folder, names, preset.edge(size), preset.resize), None
        else:
            pixels, sizes = prepare_to_crop(folder, names, preset.edge(size), preset.resize)
    finally:
        del os.environ["PETL_BENCH_CACHE"]
        if before is not None:
            os.environ["PETL_BENCH_CACHE"] = before
    return TrainPairs(pixels, sizes, augment, size, seed=0)


def _views(folder: Path, pairs: TrainPairs, views: int) -> ViewPairs:
    """Fixed views, as a run keeps them that trains its image tower."""
    places = [(view, image, image, 0) for image in range(len(pairs.pixels)) for view in range(views)]
    pictures = pairs.__getitems__(places)[0].numpy()
    pictures.tofile(folder / "views.u8")
    return ViewPairs(np.memmap(folder / "views.u8", np.uint8, "r", shape=pictures.shape), views)


def _batch(pairs: StoredPairs, pictures: int) -> Callable[[], Float32[Tensor, "batch 3 size size"]]:
    places = [(number % VIEWS, number, number, 0) for number in range(pictures)]
    return lambda: normalise(pairs.__getitems__(places)[0], MEAN, STD)


def _decoded(
    folder: Path, names: list[str], size: int, augment: str
) -> Callable[[], Float32[Tensor, "batch 3 size size"]]:
    """The released pipelines' transforms, on Pillow's images."""
    bicubic = v2.InterpolationMode.BICUBIC
    steps: list[Callable] = {
        "none": [v2.Resize(size, bicubic), v2.CenterCrop(size)],
        "clip": [v2.RandomResizedCrop(size, (0.9, 1.0), interpolation=bicubic)],
        "harma": [
            v2.RandomResizedCrop(size, (0.5, 1.0), interpolation=bicubic),
            v2.RandomHorizontalFlip(),
            *[v2.RandomApply([v2.RandAugment(1, 7)], p=0.5)] * 2,  # as many operations as released, of torchvision's
        ],
    }[augment]
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose([*steps, *end])

    def batch() -> Float32[Tensor, "batch 3 size size"]:
        found = []
        for name in names:
            with Image.open(folder / name) as image:
                found.append(transform(image.convert("RGB")))
        return torch.stack(found)

    return batch
