"""How long a report of many runs takes, and how much memory: `python -m benchmarks.reports [RUNS] [IMAGES]`.

The runs are made up: settings, scores from random ranks, and histories; nothing is trained, and one in 97 has failed.
Seconds are printed, first with no cache of the ranks, then with it, and the process's largest memory. Then the table is
computed again from the runs' own files by json and numpy alone, and compared.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.core.ranks import Ranks, Saved, metrics, to_npz

CAPTIONS = 5  # of an image
METHODS = ("lora", "adapter", "adaptformer", "mrs_adapter", "harma", "vpt", "coop", "linear_probe", "bitfit", "ssf")
SEEDS = 3
FAILED = 97  # the last of so many runs has failed


def main(argv: list[str] | None = None) -> int:
    """Make the runs, build the report twice, print seconds and memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reports", description=__doc__)
    parser.add_argument("runs", type=int, nargs="?", default=10_000)
    parser.add_argument("images", type=int, nargs="?", default=452, help="of the test set, with 5 captions each")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as root:
        os.environ["PETL_BENCH_CACHE"] = str(Path(root, "cache"))
        folder = Path(root, "many")
        write(folder, arguments.runs, arguments.images)
        for words in ("first report", "again, ranks in the cache"):
            seconds, cpu = measure(folder, Path(root, "report"))
            print(f"{words}: {seconds:.1f} s, {cpu:.1f} s of processor time", flush=True)
        print(f"largest memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
        numbers, difference = check(folder, Path(root, "report", "table.csv"))
    print(f"checked against result.json and ranks.npz: {numbers:,} numbers, largest difference {difference:.1e}")
    return 0


def measure(folder: Path, out: Path) -> tuple[float, float]:
    """Seconds that the report takes, and seconds of processor time (user and system)."""
    from bench.reporting.build import build

    start, used = time.perf_counter(), time.process_time()
    build(folder, out)
    return time.perf_counter() - start, time.process_time() - used


def check(folder: Path, table: Path) -> tuple[int, float]:
    """How many numbers of a table.csv were computed again, and the largest difference; infinite where one is missing.

    Rows come from plan.json, recalls from ranks.npz, costs from result.json, by json and numpy alone. A run without a
    result is in no mean.
    """
    rows: dict[str, list[dict[str, float]]] = {}
    for run in json.loads((folder / "plan.json").read_text())["runs"]:
        group = json.dumps({key: value for key, value in run["spec"].items() if key != "seed"})
        found = _again(folder / run["run_id"])
        rows.setdefault(group, []).extend([found] if found else [])
    with table.open(encoding="utf-8", newline="") as file:
        shown = list(csv.DictReader(file))
    differences = [
        abs(expected - float(line[name] or "nan"))
        for line, runs in zip(shown, rows.values(), strict=True)
        for name, expected in _expected(runs).items()
    ]
    return len(differences), max(math.inf if math.isnan(each) else each for each in differences)


def _again(run: Path) -> dict[str, float]:
    """The numbers of a run from its files; {} where it has no result."""
    result = json.loads((run / "result.json").read_text())
    if result["status"] != "finished":
        return {}
    with np.load(run / "ranks.npz") as held:
        assert not held["i2t_tied"].any()
        assert not held["t2i_tied"].any()
        recalls = {
            f"{s}_r{k}": 100 * float((held[f"{s}_above"] < k).mean()) for s in ("i2t", "t2i") for k in (1, 5, 10)
        }
    costs = {key: float(result["cost"][key]) for key in ("trainable_params", "train_seconds", "peak_bytes")}
    return recalls | {"mean_recall": statistics.fmean(recalls.values())} | costs


def _expected(runs: list[dict[str, float]]) -> dict[str, float]:
    """A row's numbers: how many seeds, means, sample standard deviations of recalls, and the largest memory."""
    out = {"seeds": float(len(runs))}
    for name in runs[0]:
        values = [run[name] for run in runs]
        out[name] = max(values) if name == "peak_bytes" else statistics.fmean(values)
        if "_r" in name and len(values) > 1:
            out[f"{name}_std"] = statistics.stdev(values)
    return out


def write(folder: Path, runs: int, images: int) -> None:
    """A results folder of that many finished runs: methods with seeds, and a grid of learning rates and widths."""
    plan = []
    for number, (spec, quality) in enumerate(_specs(runs)):
        run_id = f"{spec['method']['name']}-s{spec['seed']}-{number:08x}"
        saved = ranks(images, quality, number)
        scores = metrics(saved.i2t, saved.t2i)
        result = {
            **{"schema": 1, "run_id": run_id, "sweep": "many", "status": "finished", "error": None, "spec": spec},
            "metrics": {"best_epoch": 3, "val": scores, "test": scores},
            "cost": {"trainable_params": 1000 * (1 + spec["method"]["width"]), "total_params": 151_277_313}
            | {"train_seconds": 100.0 + number % 7, "peak_bytes": 2 * 10**9, "flops_per_pair": 15 * 10**9},
            "provenance": {"git_commit": "c0ffee", "git_dirty": False, "split": "pir", "weights": "openai"}
            | {"device": "cpu", "finished": "2026-01-01T00:00:00Z", "dataset_sha256": "a" * 64},
        }
        if number % FAILED == FAILED - 1:
            error = {"type": "RuntimeError", "message": "CUDA out of memory", "traceback": "...", "user": False}
            result |= {"status": "failed", "error": error, "metrics": None, "cost": None, "provenance": None}
        (folder / run_id).mkdir(parents=True)
        (folder / run_id / "result.json").write_text(json.dumps(result))
        (folder / run_id / "ranks.npz").write_bytes(to_npz(saved))
        (folder / run_id / "history.csv").write_text(
            "epoch,train_loss,val_mean_recall\n" + "".join(f"{e},1.0,{e * quality}\n" for e in (1, 2, 3))
        )
        plan.append({"run_id": run_id, "spec": spec})
    (folder / "plan.json").write_text(json.dumps({"sweep": "many", "file": "sweeps/many.yaml", "runs": plan}))


def _specs(runs: int) -> Iterator[tuple[dict[str, Any], float]]:
    """Settings of a run, and how good it is (0 to 10)."""
    for number in range(runs):
        group, seed = divmod(number, SEEDS)
        setting, method = divmod(group, len(METHODS))
        lr, width = setting % 20, setting // 20
        spec: dict[str, Any] = {
            "sweep": "many",
            "dataset": {"name": "rsitmd", "root": "/data", "split": "pir", "annotations": None},
            "backbone": {"model": "ViT-B-32-quickgelu", "weights": "openai", "seed": 0},
            "method": {"name": METHODS[method], "width": width},
            "loss": {"name": "info_nce", "targets": "pair"},
            "train": {"epochs": 20, "lr": 1e-5 * (1 + lr), "betas": [0.9, 0.98], "workers": 4},
            "seed": seed,
        }
        yield spec, 2 + method / 2 + (lr % 5) / 10


def ranks(images: int, quality: float, seed: int) -> Saved:
    """Random ranks, the smaller the higher the quality."""
    rng = np.random.default_rng(seed)
    sides = []
    for queries in (images, images * CAPTIONS):
        above = np.minimum(rng.geometric(0.02 * (1 + quality), queries) - 1, images - 1)
        sides.append(Ranks(above, np.zeros_like(above), np.ones_like(above)))
    return Saved(sides[0], sides[1], np.full(images, CAPTIONS), sides[0], sides[1])


if __name__ == "__main__":
    sys.exit(main())
