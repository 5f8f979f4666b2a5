"""Whole runs on the device, and what only its driver knows: memory, errors, waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch

from bench.compute import execute as execution
from bench.compute.execute import execute
from bench.config.settings import TrainSettings
from bench.conformance.subject import Subject
from bench.conformance.tiny import batch, eval_set
from bench.core import cost
from bench.core.inputs import Inputs
from bench.core.state import StateFiles
from bench.core.train import Batch, TrainBatches, fit
from bench.launch.inline import run_many
from bench.launch.local import LocalPool
from bench.store import record
from bench.store.attempts import read_attempts
from bench.store.folder import STATE
from tests.gpu.device import DEVICE, STAND_IN, needs_cuda, put, put_split, require_device
from tests.gpu.test_numbers import TRAINED, Note, label
from tests.test_run import make_run, numbers

require_device()

MIB = 1024 * 1024
MRS = {"name": "mrs_adapter", "bottleneck": 16, "shared_dim": 16}  # with HMMC: dropout in each step, on the device


def run_dirs(root: Path, folder: Path, *names: str, **train) -> list[Path]:
    return [make_run(root, folder / name, MRS, "hmmc", **{"epochs": 3, "precision": "bf16"} | train) for name in names]


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory) -> dict:
    """The numbers of a run that shares the device with none."""
    [run_dir] = run_dirs(root, tmp_path_factory.mktemp("alone"), "run")
    assert execute(run_dir).error is None
    return numbers(run_dir)


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_killed_and_resumed_equals_uninterrupted(root, alone, tmp_path):
    """By SIGKILL, once a state has been saved; in another process, with data loaders."""
    [run_dir] = run_dirs(root, tmp_path, "run", workers=1)
    process = subprocess.Popen([sys.executable, "-m", "bench.run", str(run_dir)], stdout=subprocess.DEVNULL)
    while not (run_dir / STATE).exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not record.is_finished(run_dir)
    assert execute(run_dir).error is None
    assert numbers(run_dir) == alone


def test_two_runs_side_by_side(root, alone, tmp_path):
    """On one card, each has the numbers that it has alone."""
    runs = run_dirs(root, tmp_path, "a", "b")
    assert set(run_many(runs, parallel=2).values()) == {"finished"}
    assert [numbers(run_dir) for run_dir in runs] == [alone, alone]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_out_of_memory(root, alone, tmp_path, monkeypatch):
    """One clear message, and the next run goes on as if nothing had been."""
    runs = run_dirs(root, tmp_path, "large", "next")

    def in_little_memory(model: torch.nn.Module, **arguments):
        monkeypatch.setattr(execution, "fit", fit)
        if STAND_IN:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB (emulated)")
        torch.cuda.empty_cache()
        held, total = torch.cuda.memory_reserved(), torch.cuda.get_device_properties(DEVICE).total_memory
        torch.cuda.set_per_process_memory_fraction((held + MIB) / total)
        try:
            return fit(model, **arguments)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    monkeypatch.setattr(execution, "fit", in_little_memory)
    assert run_many(runs) == {"large": "failed", "next": "finished"}
    found = record.read(runs[0])
    assert found is not None
    assert found.error is not None
    assert found.error.type == "OutOfMemoryError"
    assert "lower train.batch_size" in found.error.message
    assert "\n" not in found.error.message
    assert numbers(runs[1]) == alone


def test_a_poisoned_context(root, alone, tmp_path, monkeypatch):
    """A failed assertion on the GPU ends the worker; the run is computed by another one, and so is the next run."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])))
    runs = run_dirs(root, tmp_path, "poisoned", "next")
    assert LocalPool(1, "tests.gpu.faulty_runs:run").compute(runs) == {"poisoned": "finished", "next": "finished"}
    assert [[each.outcome for each in read_attempts(run)] for run in runs] == [["lost", "finished"], ["finished"]]
    assert "device-side assert" in (runs[0] / "log.txt").read_text()
    assert [numbers(run) for run in runs] == [alone, alone]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_peak_bytes_of_a_known_allocation(record_property: Note):
    """64 MiB more at the peak are counted as 64 MiB, and freeing them does not hide them."""
    size = 64 * MIB
    cost.reset_peak_memory(DEVICE)
    before = cost.peak_memory(DEVICE)
    held = torch.ones(size, dtype=torch.uint8, device=DEVICE)
    del held
    after = cost.peak_memory(DEVICE)
    assert before is not None
    assert after is not None
    record_property("difference", abs(after - before - size) / size)
    record_property("tolerance", 0.05)
    assert abs(after - before - size) <= 0.05 * size


# --- waits ------------------------------------------------------------------------------------------------------------

LIBRARY_WAITS = {
    "peft adalora": "the library reads the threshold of its ranks on the host",
    "peft boft": "torch.linalg.solve asks the GPU whether the matrix was singular",
}


def watched(open_epoch: Callable[[int, int], Generator[Batch, None, None]]) -> TrainBatches:
    """An epoch in which every wait for the GPU is an error, from its third batch to its last."""

    def batches(epoch: int, skip: int) -> Generator[Batch, None, None]:
        try:
            for index, each in enumerate(open_epoch(epoch, skip)):
                if index == 2:
                    torch.cuda.set_sync_debug_mode("error")
                yield each
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return TrainBatches(batches, per_epoch=6)


def train_watched(subject: Subject, batches: TrainBatches, folder: Path) -> None:
    try:
        fit(
            subject.attached().to(DEVICE),
            loss=subject.loss,
            batches=batches,
            validation=put_split(eval_set()),
            settings=TrainSettings(epochs=1, batch_size=4, precision="bf16", clip_grad_norm=1.0),
            seed=0,
            files=StateFiles(folder / "state.pt"),
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")  # an error keeps the batches' generator from its end


@needs_cuda
@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(
            each,
            id=label(each),
            marks=[pytest.mark.xfail(reason=LIBRARY_WAITS[each.label], strict=True)]
            if each.label in LIBRARY_WAITS
            else [],
        )
        for each in TRAINED
    ],
)
def test_no_wait_inside_a_step(subject: Subject, tmp_path: Path):
    """Forward, backward, gradient norm, optimizer; batches are on the device already."""
    data = [put(batch(index)) for index in range(6)]
    train_watched(subject, watched(lambda epoch, skip: (each for each in data[skip:])), tmp_path)


@needs_cuda
@pytest.mark.parametrize("augment", ["none", "harma"])
def test_no_wait_for_batches(root, tmp_path, monkeypatch, augment):
    """The same with the batches of a dataset, copied while the GPU computes, and augmented there."""
    unwatched = Inputs.train_batches

    def train_batches(inputs: Inputs, seed: int) -> TrainBatches:
        found = unwatched(inputs, seed)
        return TrainBatches(watched(found.open).open, found.per_epoch, found.close)

    monkeypatch.setattr(Inputs, "train_batches", train_batches)
    monkeypatch.setattr("bench.compute.progress.PROGRESS_SECONDS", 1e9)  # to show the loss, the host has to wait
    [run_dir] = run_dirs(root, tmp_path, "run", epochs=1, batch_size=4, workers=1, augment=augment)
    assert execute(run_dir).error is None


@needs_cuda
def test_a_wait_inside_a_step_is_seen(tmp_path, monkeypatch):
    """The check above can fail: a penalty that is read on the host."""
    [subject] = [each for each in TRAINED if each.label == "bitfit"]

    def read_on_the_host(loss, features, *_):
        return features.image.sum() * float(features.text.sum())

    monkeypatch.setattr(type(subject.loss), "__call__", read_on_the_host)
    data = [put(batch(index)) for index in range(6)]
    with pytest.raises(RuntimeError, match="synchroniz"):
        train_watched(subject, watched(lambda epoch, skip: (each for each in data[skip:])), tmp_path)
