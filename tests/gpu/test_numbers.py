"""Every method on the device: the CPU's numbers, bf16 within a stated distance, the same numbers again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import methods
from bench.config.errors import Stopped
from bench.config.settings import TrainSettings
from bench.conformance import suite
from bench.conformance.subject import Subject, built
from bench.conformance.tiny import batch, eval_set
from bench.core import state
from bench.core.evaluate import counts
from bench.core.model import DualEncoder, Features
from bench.core.state import StateFiles
from bench.core.train import Batch, TrainBatches, fit
from methods import losses
from tests.gpu.device import (
    DEVICE,
    dropout_of_the_cpu,
    largest_difference,
    needs_cuda,
    put,
    put_split,
    require_device,
    trained,
)
from tests.test_batched import every_picture

require_device()

FLOAT32 = 1e-4  # features, loss and gradients, over the larger of 1 and their largest value
BF16 = 0.03  # of the entries of unit vectors; bf16 has 8 significant bits; on the CPU the largest difference is 0.007
Note = Callable[[str, object], None]

ALL = [each for name in methods.names() for each in suite.method_subjects(methods.get(name))]
# Losses and loop do not depend on the class of the backbone.
TRAINED = [each for each in ALL if each.kind == "CLIP" and each.method is not None and each.method.trains]
LOSSES = [each for name in losses.names() for each in suite.loss_subjects(losses.get(name))]


def label(subject: Subject) -> str:
    return f"{subject.label.replace(' ', '-')}-{subject.kind}"


def with_hmmc(subject: Subject) -> Subject:
    """The subject with the loss whose second view draws a dropout mask in every step, on the device."""
    return Subject(subject.label, subject.kind, subject.method, built(losses.get("hmmc"), {}))


def step(subject: Subject, model: DualEncoder, data: Batch) -> dict[str, Tensor]:
    """Features, loss and gradients of a batch in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = model(data.images, data.tokens, subject.loss.second_view)
        value = subject.loss(features, data.image_ids, model)
        for penalty in model.penalties:
            value = value + penalty()
    if value.requires_grad:
        value.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"image": features.image, "text": features.text, "loss": value} | gradients


def compare(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float, note: Note) -> None:
    """Fail if any of the tensors differs by more than the tolerance; the largest difference goes into the table."""
    assert one.keys() == other.keys()
    differences = {name: largest_difference(one[name], other[name]) for name in one}
    note("difference", max(differences.values()))
    note("tolerance", tolerance)
    far = {name: difference for name, difference in differences.items() if not difference <= tolerance}
    assert not far, f"{len(far)} of {len(one)} tensors differ, such as {next(iter(far.items()))}"


# --- the CPU's numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [*ALL, *LOSSES], ids=label)
def test_features_loss_and_gradients_in_float32(subject: Subject, record_property: Note, monkeypatch):
    """With the same dropout masks on both devices."""
    monkeypatch.setattr(F, "dropout", dropout_of_the_cpu)
    here = step(subject, subject.attached(perturbed=True, train=True), batch())
    there = step(subject, subject.attached(perturbed=True, train=True).to(DEVICE), put(batch()))
    compare(here, there, FLOAT32, record_property)


@pytest.mark.parametrize("subject", ALL, ids=label)
def test_features_in_bf16(subject: Subject, record_property: Note, monkeypatch):
    """Under autocast, as in training, against float32 on the same device."""
    monkeypatch.setattr(F, "dropout", dropout_of_the_cpu)
    model, data = subject.attached(perturbed=True).to(DEVICE), put(batch())
    found: list[Features] = []
    for bf16 in (False, True):
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            found.append(model(data.images, data.tokens))
    exact, rounded = ({"image": each.image, "text": each.text} for each in found)
    compare(exact, rounded, BF16, record_property)


@pytest.mark.parametrize("size", [64, 224])
def test_augmented_pictures(size: int, record_property: Note):
    """Every operation, flip and kind of crop in a batch on the device, against the CPU's pictures, in grey levels."""
    got, expected = every_picture(size, DEVICE)
    levels = int((got.cpu().int() - expected.int()).abs().max())
    record_property("difference", levels)
    record_property("tolerance", 1)
    assert levels <= 1


def test_ranks_of_the_same_embeddings(record_property: Note):
    """Sixteenths have exact products: counts and ties are the CPU's, one by one."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randint(-8, 9, (each, 32), generator=generator) / 16 for each in (60, 200))
    caption_text, caption_image = torch.randint(200, (300,), generator=generator), torch.arange(300) // 5
    given = (image, text, caption_text, caption_image)
    i2t, t2i, _ = counts(*given)
    assert bool(i2t[1].any())  # some are tied
    found = counts(*(each.to(DEVICE) for each in given))
    compare({"i2t": i2t, "t2i": t2i}, {"i2t": found[0], "t2i": found[1]}, 0.0, record_property)


# --- the same numbers again -------------------------------------------------------------------------------------------


def train(subject: Subject, folder: Path, stop_after: int | None = None) -> dict[str, Tensor]:
    """What is trained after one epoch of four steps in the core's own loop, in bf16; Stopped after so many steps."""
    model = subject.attached(seed=4).to(DEVICE)
    asked = itertools.count(1)

    def batches(epoch: int, skip: int) -> Generator[Batch, None, None]:
        yield from (put(batch(index)) for index in range(skip, 4))

    fit(
        model,
        loss=subject.loss,
        batches=TrainBatches(batches, per_epoch=4),
        validation=put_split(eval_set()),
        settings=TrainSettings(epochs=1, batch_size=4, lr=1e-2, warmup=0.0, precision="bf16"),
        seed=0,
        files=StateFiles(folder / "state.pt"),
        should_stop=lambda: stop_after is not None and next(asked) >= stop_after,
    )
    return trained(model)


@pytest.mark.parametrize("subject", TRAINED, ids=label)
def test_same_seed_same_numbers(subject: Subject, record_property: Note, tmp_path: Path):
    first, second = (train(with_hmmc(subject), tmp_path / name) for name in folders(tmp_path, "first", "second"))
    compare(first, second, 0.0, record_property)


@pytest.mark.parametrize("subject", TRAINED, ids=label)
def test_stopped_and_resumed_equals_uninterrupted(subject: Subject, record_property: Note, tmp_path: Path):
    """With the random state of the device, which draws the dropout masks of each step."""
    folders(tmp_path, "whole", "cut")
    whole = train(with_hmmc(subject), tmp_path / "whole")
    with pytest.raises(Stopped):
        train(with_hmmc(subject), tmp_path / "cut", stop_after=2)
    torch.manual_seed(99)
    compare(whole, train(with_hmmc(subject), tmp_path / "cut"), 0.0, record_property)


@needs_cuda
def test_the_random_state_of_cuda_matters(tmp_path: Path, monkeypatch):
    """Resumed with the CPU's random state alone, the numbers are others: the check above can fail."""
    [subject] = [with_hmmc(each) for each in TRAINED if each.label == "bitfit"]
    folders(tmp_path, "whole", "cut")
    whole = train(subject, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(subject, tmp_path / "cut", stop_after=2)
    monkeypatch.setattr(state, "set_random_state", lambda states, device: torch.set_rng_state(states[0]))
    resumed = train(subject, tmp_path / "cut")
    assert all(torch.isfinite(resumed[name]).all() for name in whole)
    assert max(float((whole[name] - resumed[name]).abs().max()) for name in whole) > 1e-5


def folders(parent: Path, *names: str) -> tuple[str, ...]:
    for name in names:
        (parent / name).mkdir()
    return names
