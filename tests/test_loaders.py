"""The loaders of training pictures: what their workers are sent, how long they live, and that no number hangs on it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bench import data
from bench.config.errors import UserError
from bench.config.settings import BackboneSettings, DatasetSettings, TrainSettings
from bench.core import inputs
from bench.core.inputs import Inputs
from bench.core.train import TrainBatches
from bench.core.weights import load_backbone
from bench.data import transforms


@contextlib.contextmanager
def training(root: Path, workers: int, augment: str = "harma", views: int | None = None) -> Iterator[TrainBatches]:
    """The training batches of the small dataset: 24 pictures with 2 captions, in 6 batches of 8."""
    with contextlib.closing(reading(root, workers, augment, views).train_batches(seed=3)) as batches:
        yield batches


def reading(root: Path, workers: int, augment: str, views: int | None) -> Inputs:
    """What reads the small dataset. Its image tower is not frozen."""
    dataset = data.load(DatasetSettings(name="ucm", root=str(root), split="karpathy"))
    settings = TrainSettings(batch_size=8, workers=workers, augment=augment, views=views)
    backbone = load_backbone(BackboneSettings(model="tiny-clip", weights="random"))
    return Inputs(dataset, backbone, settings, torch.device("cpu"))


def pictures(batches: TrainBatches, epoch: int, skip: int = 0) -> Tensor:
    """All that an epoch gives, as one tensor."""
    found = list(batches.open(epoch, skip))
    return torch.cat([torch.cat([each.images.flatten(), each.tokens.flatten().float()]) for each in found])


def workers_now() -> set[int | None]:
    """The ids of this process's children."""
    return {child.pid for child in multiprocessing.active_children()}


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The datasets that loaders are made with."""
    found: list[Any] = []

    class Recording(DataLoader):
        def __init__(self, dataset: Any, **settings: Any) -> None:
            found.append(dataset)
            super().__init__(dataset, **settings)

    monkeypatch.setattr(inputs, "DataLoader", Recording)
    return found


# Stored with 64 and with 73 pixels a side, and augmented before.
@pytest.mark.parametrize(("augment", "views"), [("none", None), ("clip", None), ("clip", 2)])
def test_a_worker_is_sent_a_path_and_no_pixels(root: Path, datasets: list[Any], augment: str, views: int | None):
    with training(root, workers=0, augment=augment, views=views) as batches:
        pictures(batches, epoch=1)
    dataset = datasets[-1]
    sent = pickle.dumps(dataset)
    assert dataset.pixels.nbytes >= 24 * 64 * 64 * 3
    assert len(sent) < 2_000
    assert str(dataset.pixels.filename).encode() in sent
    received = pickle.loads(sent)
    assert (received.pixels == dataset.pixels).all()
    assert not received.pixels.flags.writeable


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_pictures_are_the_same_whatever_starts_the_workers(root: Path, method: str):
    with training(root, workers=0) as batches:
        expected = [pictures(batches, 1), pictures(batches, 2), pictures(batches, 2, skip=4)]
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        with training(root, workers=2) as batches:
            found = [pictures(batches, 1), pictures(batches, 2), pictures(batches, 2, skip=4)]
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert len(expected[0]) == 3 * len(expected[2])  # whole, and without the first 4 of 6 batches
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert (expected[0] - expected[1]).abs().mean() > 0.1  # another order and other crops in another epoch


def test_workers_live_through_epochs_and_end_with_the_training(root: Path):
    others = workers_now()
    with training(root, workers=2) as batches:
        seen = []
        for epoch in (1, 2, 3):
            feed = batches.open(epoch, 0)
            next(feed)
            seen.append(workers_now() - others)
            list(feed)
            seen.append(workers_now() - others)
        assert len(seen[0]) == 2
        assert all(each == seen[0] for each in seen)
    assert workers_now() == others


def test_workers_end_when_an_epoch_is_broken_off(root: Path):
    others = workers_now()
    with training(root, workers=2) as batches:
        feed = batches.open(1, 0)
        next(feed)
        pids = workers_now() - others
        feed.close()
    assert len(pids) == 2
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_draws_one_number_from_the_default_generator(root: Path, workers: int):
    """As a loader of its own would: training's own random numbers come after it, and must not move."""
    torch.manual_seed(5)
    torch.empty((), dtype=torch.int64).random_()
    expected = torch.get_rng_state()
    with training(root, workers) as batches:
        for epoch in (1, 2):
            torch.manual_seed(5)
            list(batches.open(epoch, 0))
            assert torch.equal(torch.get_rng_state(), expected)


def test_no_more_workers_than_cores(root, monkeypatch):
    """torch would warn of more; the default is 4, and a small machine has 2."""
    monkeypatch.setattr(inputs, "cpu_cores", lambda: 1)
    before = workers_now()
    with training(root, workers=4) as batches:
        next(batches.open(1, 0))
        assert len(workers_now() - before) == 1


# --- fixed views of a tower that is trained ---------------------------------------------------------------------------


@pytest.fixture
def augmentations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """An empty cache; the pictures that are augmented."""
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "cache"))
    found: list[Any] = []
    augmented = transforms.augmented
    monkeypatch.setattr(transforms, "augmented", lambda *args: found.append(args) or augmented(*args))
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_fixed_views_are_augmented_once_and_read_by_all(root: Path, tmp_path: Path, augmentations: list, workers: int):
    with training(root, workers, views=3) as batches:
        first = [pictures(batches, epoch) for epoch in (1, 2)]
    if not workers:
        assert len(augmentations) == 3 + 24 * 3  # the first picture's views are in the file's name
    [file] = (tmp_path / "cache" / "pixels").glob("*-64-harma-3.u8")
    assert file.stat().st_size == 24 * 3 * 3 * 64 * 64
    augmentations.clear()
    written = file.stat().st_mtime_ns
    with training(root, workers, views=3) as batches:
        assert all(torch.equal(pictures(batches, epoch), first[epoch - 1]) for epoch in (1, 2))
    assert len(augmentations) == 3
    assert file.stat().st_mtime_ns == written
    file.write_bytes(file.read_bytes()[:-1])  # a damaged one is made again
    with training(root, workers, views=3) as batches:
        assert torch.equal(pictures(batches, 1), first[0])


def test_fixed_views_are_the_pictures_of_their_places(root: Path, augmentations: list):
    """Those that loaders gave before views were kept: of seed 0, with the view in the epoch's place."""
    inputs = reading(root, workers=0, augment="harma", views=3)
    with contextlib.closing(inputs.train_batches(seed=3)) as batches:
        got = torch.cat([batch.images for batch in batches.open(2, 0)])
    pixels, sizes = inputs.training_pixels()
    pairs = transforms.TrainPairs(pixels, sizes, "harma", 64, seed=0)
    drawn = transforms.epoch_pairs(inputs.items("train"), "all", 3, 2).tolist()
    views = transforms.view_numbers(48, 3, 3, 2).tolist()
    expected = pairs.__getitems__([(view, image, image, 0) for view, (image, _) in zip(views, drawn, strict=True)])[0]
    assert set(views) == {0, 1, 2}
    assert torch.equal(got, inputs.to_tensor(expected))


def test_fixed_views_are_kept_for_each_number_and_augmentation(root: Path, tmp_path: Path, augmentations: list):
    for augment, views in (("harma", 2), ("harma", 3), ("clip", 2)):
        with training(root, 0, augment, views) as batches:
            pictures(batches, 1)
    names = sorted(file.name.split("-", 1)[1] for file in (tmp_path / "cache" / "pixels").glob("*-64-*-?.u8"))
    assert names == ["64-clip-2.u8", "64-harma-2.u8", "64-harma-3.u8"]


def test_random_numbers_do_not_depend_on_who_makes_the_views(root: Path, augmentations: list):
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        with training(root, workers=0, views=2) as batches:
            list(batches.open(1, 0))
        states.append(torch.get_rng_state())
    assert len(augmentations) == 2 + 24 * 2 + 2
    assert torch.equal(*states)


def test_views_that_cannot_be_written_are_a_users_matter(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inputs = reading(root, workers=0, augment="harma", views=2)
    inputs.training_pixels()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="can't write the pixel cache"):
        inputs.train_batches(seed=0)
