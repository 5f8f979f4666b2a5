"""The time that packing saves: 20 runs of the demo, one a process or ten a process (`slurm.runs_per_job: 10`).

    python benchmarks/packing.py [--runs 20] [--pack 10]

It prints the fixed cost of a run for both ways: the wall time of the process without training and evaluation (start,
imports, backbone, data, writing), divided by its runs. The two ways alternate, so that other load on the machine slows
both. Expected time: 12 minutes on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.config import files
from bench.plan.grid import expand
from bench.store import record
from bench.store.folder import ADAPTER, RUN
from bench.store.record import Metrics

SWEEP = """
name: packing
dataset: {name: demo}
backbone: {model: tiny-clip, weights: demo}
train: {epochs: 1, batch_size: 24, lr: 6e-3, captions_per_epoch: one, workers: 0}
grid:
  seed: [0, 1, 2, 3, 4]
  method:
    - linear_probe: {train: {lr: 3e-3}}
    - lora: {rank: [2, 8]}
    - mrs_adapter: {bottleneck: 32, shared_dim: 32}
"""


def compute(out: Path, run_dirs: Sequence[str]) -> None:
    """Compute the runs as one job does; write to `out` the seconds that went into training and evaluation."""
    from bench.compute import execute
    from bench.launch.inline import run_many

    spent = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal spent
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent += time.perf_counter() - started

        return wrapper

    execute.fit, execute.evaluate = timed(execute.fit), timed(execute.evaluate)
    outcomes = run_many(run_dirs)
    assert set(outcomes.values()) == {"finished"}, outcomes
    files.write_json(out, spent)


def fixed_seconds(folder: Path, run_dirs: Sequence[Path]) -> float:
    """Wall time of one process that computes these runs, without training and evaluation."""
    out = folder / "spent.json"
    started = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--compute", str(out), *map(str, run_dirs)], check=True)
    return time.perf_counter() - started - float(files.read_json(out) or 0)


def prepare(folder: Path, count: int) -> list[Path]:
    """Folders with a run.yaml for the first `count` runs of the sweep."""
    file = folder / "packing.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(SWEEP)
    found = []
    for spec in expand(file).runs[:count]:
        run_dir = folder / spec.run_id
        run_dir.mkdir()
        files.write_bytes(run_dir / RUN, spec.dump().encode())
        found.append(run_dir)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--pack", type=int, default=10)
    parser.add_argument("--compute", nargs="+", metavar="PATH", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.compute:
        compute(Path(given.compute[0]), given.compute[1:])
        return
    with tempfile.TemporaryDirectory() as name:
        alone, packed = prepare(Path(name) / "alone", given.runs), prepare(Path(name) / "packed", given.runs)
        fixed_seconds(Path(name), prepare(Path(name) / "warm", 1))  # the demo world is drawn, the pixels are cached
        seconds: dict[str, list[float]] = {"alone": [], "packed": []}
        for start in range(0, given.runs, given.pack):
            for run_dir in alone[start : start + given.pack]:
                seconds["alone"].append(fixed_seconds(Path(name), [run_dir]))
            seconds["packed"].append(fixed_seconds(Path(name), packed[start : start + given.pack]))
        same = all(_numbers(one) == _numbers(two) for one, two in zip(alone, packed, strict=True))
    one, many = (sum(values) / given.runs for values in seconds.values())
    print(json.dumps({key: [round(value, 2) for value in values] for key, values in seconds.items()}))
    print(f"fixed cost of a run, {given.runs} runs: one a process {one:.2f} s; {given.pack} a process {many:.2f} s")
    print(f"{one / many:.1f} times less; results {'equal' if same else 'DIFFER'}")


def _numbers(run_dir: Path) -> tuple[Metrics, bytes]:
    """What must not depend on how runs are packed: the scores and the adapter's bytes."""
    result = record.read(run_dir)
    assert result is not None
    assert result.metrics is not None, result.error
    return result.metrics, (run_dir / ADAPTER).read_bytes()


if __name__ == "__main__":
    main()
