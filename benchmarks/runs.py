"""`overhead`, `sweep` and `prefix`: whole runs and sweeps, and what they cost beside training."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.config import files
from bench.plan.spec import RunSpec
from bench.store import record
from bench.store.folder import HISTORY, RUN
from benchmarks.measure import Row, Timing, check_equal
from benchmarks.packing import prepare
from benchmarks.work import captions_like_rsitmd, draw_dataset, run_spec

ROOT = Path(__file__).parents[1]
IMPORTS = {  # what is imported -> the most seconds
    "bench": 0.5,
    "bench.sweep": 1.0,
    "bench.compute.execute": 4.0,
}
FIXED_SECONDS = 0.5  # the most for a further run in the same process
SWEEP_SECONDS = 200.0


def import_rows(*, rounds: int = 3, baseline: str = "torch, open_clip") -> list[Row]:
    """Imports in processes of their own; that of all a run needs beside that of the libraries alone."""
    found = []
    for module, target in IMPORTS.items():
        timing, theirs = Timing(), Timing()
        beside = module == "bench.compute.execute"
        for _ in range(rounds):
            timing.seconds.append(_import_seconds(module))
            if beside:
                theirs.seconds.append(_import_seconds(baseline))
        other = (f"import {baseline}", theirs, None) if beside else (None, None, target)
        found.append(Row(f"import {module}", timing, *other))
    return found


def _import_seconds(modules: str) -> float:
    """As a process takes them, the interpreter's own start included."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True, env=_environment())
    return time.perf_counter() - started


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def fixed_rows(*, runs: int = 6) -> list[Row]:
    """A run's time without training and evaluation: of the first one in a process, imports included, and of others."""
    with tempfile.TemporaryDirectory(prefix="petl-benchmark-") as name:
        prepare(Path(name) / "runs", runs)
        run_dirs = sorted(path for path in (Path(name) / "runs").iterdir() if path.is_dir())
        out = Path(name) / "seconds.json"
        command = [sys.executable, "-m", "benchmarks.runs", str(out), *map(str, run_dirs)]
        subprocess.run(command, check=True, cwd=ROOT, env=_environment())
        seconds = files.read_json(out)
    first, further = Timing([seconds[0]]), Timing(seconds[1:])
    return [
        Row("first run of a process, fixed cost", first),
        Row("further run of a process, fixed cost", further, target=FIXED_SECONDS),
    ]


def compute(out: Path, run_dirs: Sequence[Path]) -> None:
    """Compute demo runs in this process; write the seconds of each outside of training and evaluation to `out`."""
    started = time.perf_counter()
    from bench.compute import execute
    from bench.launch.task import run_one

    with outside_of_training(execute) as spent:
        found = []
        for run_dir in run_dirs:
            assert run_one(run_dir) == "finished", run_dir
            found.append(time.perf_counter() - started - spent[0])
            started, spent[0] = time.perf_counter(), 0.0
    files.write_json(out, found)


@contextmanager
def outside_of_training(execute: Any) -> Iterator[list[float]]:
    """Inside, one number: the seconds that `fit` and `evaluate` of bench.compute.execute took."""
    spent, before = [0.0], (execute.fit, execute.evaluate)

    def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[0] += time.perf_counter() - started

        return wrapper

    execute.fit, execute.evaluate = map(clocked, before)
    try:
        yield spent
    finally:
        execute.fit, execute.evaluate = before


def overhead_rows(*, rounds: int = 3, runs: int = 6) -> list[Row]:
    """Imports, and the fixed cost of runs."""
    return import_rows(rounds=rounds) + fixed_rows(runs=runs)


def sweep_rows(sweep: Path = ROOT / "sweeps" / "demo.yaml") -> list[Row]:
    """Wall time of a sweep from its command to its report."""
    with tempfile.TemporaryDirectory(prefix="petl-benchmark-") as name:
        timing = Timing()
        started = time.perf_counter()
        command = [sys.executable, "-m", "bench.sweep", str(sweep), "--executor", "local", "--results", name]
        subprocess.run(command, check=True, cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL)
        timing.seconds.append(time.perf_counter() - started)
        count = len(list(Path(name).glob("*/*/result.json")))
    return [Row(f"{sweep.name}, {count} runs", timing, target=SWEEP_SECONDS)]


# --- with and without shortcuts ---------------------------------------------------------------------------------------

PREFIX = (  # a method whose frozen part can be cached, and the ratio of epochs that is to be reached
    ({"name": "coop"}, 4.0),
    ({"name": "vpt"}, 1.4),
    ({"name": "linear_probe"}, 100.0),
    ({"name": "clip_adapter"}, 100.0),
)


def prefix_rows(*, model: str = "ViT-B-32", images: int = 64, batch: int = 16, rounds: int = 3) -> list[Row]:
    """The second epoch of a run with `core.shortcuts` beside that of the same run without; equal recalls and losses."""
    found = []
    with tempfile.TemporaryDirectory(prefix="petl-benchmark-") as name:
        dataset = draw_dataset(Path(name) / "data", images, captions_like_rsitmd(images))
        for method, target in PREFIX:
            timings = {"on": Timing(), "off": Timing()}
            for number in range(rounds):
                results = {}
                for shortcuts, timing in timings.items():
                    train = {"epochs": 2, "batch_size": batch, "workers": 0}
                    core = {"shortcuts": shortcuts}
                    spec = run_spec(dataset, method, train, model=model, seed=number, core=core)
                    run_dir = Path(name) / f"{method['name']}-{shortcuts}-{number}"
                    results[shortcuts] = run_record(spec, run_dir), last_epoch(run_dir)
                    timing.seconds.append(results[shortcuts][1]["seconds"])
                    timing.note_peak(results[shortcuts][0].cost.peak_bytes)  # type: ignore[union-attr]
                losses = [[results[each][1]["train_loss"]] for each in ("on", "off")]
                check_equal(method["name"], *losses)
            what = f"{method['name']} epoch of {images} pairs, cached"
            found.append(Row(what, timings["on"], "core.shortcuts: off", timings["off"], target))
    return found


def last_epoch(run_dir: Path) -> dict[str, float]:
    """Loss and seconds of training of the run's last epoch."""
    with (run_dir / HISTORY).open(newline="", encoding="utf-8") as file:
        row = list(csv.DictReader(file))[-1]
    return {key: float(row[key]) for key in ("train_loss", "seconds")}


def run_record(spec: RunSpec, run_dir: Path) -> record.Record:
    """The record of a run that is computed now, in this process; AssertionError if it failed."""
    from bench.compute.execute import execute

    run_dir.mkdir(parents=True)
    files.write_bytes(run_dir / RUN, spec.dump().encode())
    found = execute(run_dir, keep=True)
    assert found.finished, found.error
    return found


if __name__ == "__main__":
    compute(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
