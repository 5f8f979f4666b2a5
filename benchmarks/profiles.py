"""`profile`: the seconds of a training step of every method, and where the slowest ones spend theirs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import methods
from bench.compute.build import build
from bench.core.state import StateFiles
from bench.core.train import fit
from bench.plan.spec import RunSpec
from benchmarks import measure
from benchmarks.measure import Row, Timing
from benchmarks.work import draw_dataset, inputs_of, load, run_spec

SLOWEST, SHOWN = 3, 8  # methods that are profiled, and torch operations shown of each


def rows(captions: Sequence[str], *, model: str = "ViT-B-32", batch: int = 16, rounds: int = 2) -> list[Row]:
    """One row a method, with its defaults and its own loss; the slowest first, with shares of the time by operation."""
    names = [name for name in methods.names() if methods.get(name).trains and _has_defaults(name)]
    with tempfile.TemporaryDirectory(prefix="petl-benchmark-") as name:
        count = batch * (rounds + 1)
        dataset = draw_dataset(Path(name) / "data", count, [captions[i % len(captions)] for i in range(count)])
        train = {"epochs": 1, "batch_size": batch, "lr": 1e-7, "workers": 0}
        specs = {each: run_spec(dataset, {"name": each}, train, model=model) for each in names}
        found = [Row(each, steps(spec, Path(name), rounds)) for each, spec in specs.items()]
        found.sort(key=lambda row: -row.ours.median)
        for row in found[:SLOWEST]:
            row.facts.update(operations(specs[row.what], Path(name)))
    return found


def _has_defaults(name: str) -> bool:
    return not any(field.is_required() for field in methods.get(name).model_fields.values())


class _Enough(Exception):
    """Ends the core's loop before it validates and saves."""


def steps(spec: RunSpec, folder: Path, rounds: int) -> Timing:
    """The seconds of steps in the core's own loop, after one that warms up."""
    timing, started = Timing(), [measure.clock()]

    def on_step() -> None:
        timing.seconds.append(measure.clock() - started[0])
        if len(timing.seconds) > rounds:
            raise _Enough
        started[0] = measure.clock()

    _train(spec, folder, on_step)
    return Timing(timing.seconds[1:])


def operations(spec: RunSpec, folder: Path) -> dict[str, str]:
    """The shares of a step's processor time that torch's operations take, without those that they call."""
    profiler, done = profile(activities=[ProfilerActivity.CPU]), []

    def on_step() -> None:
        if done:
            profiler.__exit__(None, None, None)
            raise _Enough
        done.append(True)
        profiler.__enter__()

    _train(spec, folder, on_step)
    spent = {each.key: each.self_cpu_time_total for each in profiler.key_averages()}
    most = sorted(spent, key=lambda key: -spent[key])[:SHOWN]
    return {key.removeprefix("aten::"): f"{100 * spent[key] / sum(spent.values()):.0f}%" for key in most}


def _train(spec: RunSpec, folder: Path, on_step: Callable[[], None]) -> None:
    """Train in the core's loop; `on_step` is called after each step, and ends it by an `_Enough`."""
    loaded = load(spec)
    backbone = build(spec, torch.device("cpu"), loaded.backbone)
    inputs = inputs_of(spec, loaded, backbone)
    batches = inputs.train_batches(spec.seed)

    def on_progress(phase: str, **facts: Any) -> None:
        if phase == "train":
            on_step()

    try:
        fit(
            backbone.model,
            loss=spec.loss,
            batches=batches,
            validation=inputs.eval_set("val"),
            settings=spec.train,
            seed=spec.seed,
            files=StateFiles(folder / "state.pt"),
            on_progress=on_progress,
        )
    except _Enough:
        pass
    finally:
        batches.close()
