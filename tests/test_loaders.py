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
from bench.config.settings import BackboneSettings, DatasetSettings, TrainSettings
from bench.core import inputs
from bench.core.inputs import Inputs
from bench.core.train import TrainBatches
from bench.core.weights import load_backbone


@contextlib.contextmanager
def training(root: Path, workers: int, augment: str = "harma") -> Iterator[TrainBatches]:
    """The training batches of the small dataset: 24 pictures with 2 captions, in 6 batches of 8."""
    dataset = data.load(DatasetSettings(name="ucm", root=str(root), split="karpathy"))
    settings = TrainSettings(batch_size=8, workers=workers, augment=augment)
    backbone = load_backbone(BackboneSettings(model="tiny-clip", weights="random"))
    with contextlib.closing(Inputs(dataset, backbone, settings, torch.device("cpu")).train_batches(seed=3)) as batches:
        yield batches


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


@pytest.mark.parametrize("augment", ["none", "clip"])  # stored with 64 and with 73 pixels a side
def test_a_worker_is_sent_a_path_and_no_pixels(root: Path, datasets: list[Any], augment: str):
    with training(root, workers=0, augment=augment) as batches:
        pictures(batches, epoch=1)
    [dataset] = datasets
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
