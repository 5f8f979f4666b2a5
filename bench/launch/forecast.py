"""What a sweep will cost before it runs: seconds a run from FLOPs and a rate, corrected by runs that were measured.

No torch. The FLOPs are those of the backbone's towers, by closed form; adapters count little beside them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench import data
from bench.config.backbones import model_shape
from bench.config.errors import UserError
from bench.config.settings import AnyDataset
from bench.config.shapes import TowerShape
from bench.data import Dataset
from bench.plan.spec import RunSpec
from bench.store import record
from bench.store.attempts import read_attempts

# FLOP/s of a GPU in training as a rule of thumb, where nothing was measured: float32 proper (no TF32), and bf16.
GPU_RATE = {"fp32": 10e12, "bf16": 80e12}
CPU_SHARE = 0.65  # of the rate of large matrix products that training reaches on a CPU
START_SECONDS = {"gpu": 15.0, "cpu": 5.0}  # of a run: imports, weights, data


@dataclass(frozen=True)
class Forecast:
    """Seconds of each run by run id, without those for which nothing is known; `basis` says what they rest on.

    gpu: whether they are of a GPU each. slots: how many run at once. unknown: for how many runs nothing is known.
    """

    seconds: dict[str, float]
    basis: str
    gpu: bool
    slots: int
    unknown: int = 0

    @property
    def total_seconds(self) -> float:
        """Of all runs one after another."""
        return sum(self.seconds.values())

    @property
    def wall_seconds(self) -> float:
        """From the first run's start to the last one's end, `slots` at once: the sum shared out, or the longest run."""
        return max([self.total_seconds / self.slots, *self.seconds.values()])


def forecast(runs: Sequence[RunSpec], folder: Path, *, finished: Sequence[RunSpec], gpu: bool, slots: int) -> Forecast:
    """The cost of these runs, each on a GPU, or on one of `slots` shares of this machine's CPU cores.

    finished: runs with a result in the results `folder`. Those of the same method, backbone and dataset correct the
    estimate for it, else all together do.
    """
    rates = GPU_RATE if gpu else dict.fromkeys(GPU_RATE, cpu_rate() / slots)
    start = START_SECONDS["gpu" if gpu else "cpu"]

    def plain(run: RunSpec) -> float | None:
        try:
            count = flops(run)
        except UserError:  # its data can't be read, which `faults` says
            count = None
        return None if count is None else start + count / rates[run.train.precision]

    ratios: dict[tuple[str, ...], list[float]] = {}
    for run in finished:
        estimate, took = plain(run), _measured(folder / run.run_id)
        if estimate and took:
            for key in (_kind(run), ()):
                ratios.setdefault(key, []).append(took / estimate)
    seconds = {}
    for run in runs:
        if (estimate := plain(run)) is not None:
            seconds[run.run_id] = estimate * statistics.median(ratios.get(_kind(run)) or ratios.get(()) or [1.0])
    return Forecast(seconds, _basis(ratios, rates["fp32"], gpu), gpu, slots, len(runs) - len(seconds))


def _basis(ratios: Mapping[tuple[str, ...], Sequence[float]], rate: float, gpu: bool) -> str:
    if ratios:
        return f"from FLOPs and the time of {len(ratios[()])} finished runs"
    if gpu:
        rates = " and ".join(f"{each / 1e12:.0f} in {name}" for name, each in GPU_RATE.items())
        return f"from FLOPs, at a usual GPU's rate (TFLOP/s: {rates}); finished runs will correct it"
    return f"from FLOPs, at {rate / 1e9:.0f} GFLOP/s a worker as measured just now; finished runs will correct it"


def _kind(run: RunSpec) -> tuple[str, ...]:
    return run.method.name, run.backbone.model, run.dataset.called


def _measured(run_dir: Path) -> float | None:
    """Seconds from start to end of a run that was computed in one attempt; None for others."""
    attempts = read_attempts(run_dir)
    if len(attempts) != 1 or attempts[0].ended is None or not record.is_finished(run_dir):
        return None
    return attempts[0].ended - attempts[0].started


def flops(run: RunSpec) -> float | None:
    """Floating-point operations of a whole run; None if a tower has no slots. UserError for unreadable data.

    A tower through which gradients flow costs as much again as its forward pass, and twice as much if its own weights
    are trained; a second view costs as much as the first; a teacher adds a forward pass from the second epoch on.
    """
    shape = model_shape(run.backbone.model)
    if shape.image.slots or shape.text.slots:
        return None
    image, text = tower_flops(shape.image), tower_flops(shape.text)
    image += 2 * shape.patches * 3 * shape.patch**2 * shape.image.width
    items = _items(run.dataset)
    splits = {"val": run.train.epochs if run.method.trains else 1, "test": int(run.evaluation.test)}
    if run.evaluation.protocol == "test-selected":
        splits["test"] += run.train.epochs
    total = 0.0
    for split, times in splits.items():
        here = getattr(items, split)
        captions = {caption for item in here for caption in item.captions}
        total += times * (len(here) * image + len(captions) * text)
    if run.method.trains:
        pairs = len(items.train)
        if run.train.captions_per_epoch == "all":
            pairs = sum(len(item.captions) for item in items.train)
        passes = {side: 1 + (side in run.method.grad_towers) for side in ("image", "text")}
        count, all_weights = run.trainable_params(), shape.total_params
        if count and all_weights and count > all_weights / 4:
            passes = {side: times + (times > 1) for side, times in passes.items()}
        views = 1 if run.loss.second_view is None else 2
        total += run.train.epochs * pairs * views * (passes["image"] * image + passes["text"] * text)
        if run.loss.has_teacher:
            total += (run.train.epochs - 1) * pairs * (image + text)
    return total


def tower_flops(tower: TowerShape) -> float:
    """Forward, one input, blocks alone: four projections, two products of attention, two layers of the MLP."""
    projections = 8 * tower.tokens * tower.width**2 + 4 * tower.tokens * tower.width * tower.mlp_width
    return float(tower.layers * (projections + 4 * tower.tokens**2 * tower.width))


@cache
def _items(dataset: AnyDataset) -> Dataset:
    return data.load(dataset)


@cache
def cpu_rate() -> float:
    """FLOP/s that training may reach on all of this machine's CPU cores, from large products measured now."""
    import numpy as np

    a = np.ones((1024, 1024), np.float32)
    a @ a
    took = []
    for _ in range(7):
        start = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - start)
    return CPU_SHARE * 2 * 1024**3 / statistics.median(took)
