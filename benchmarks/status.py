"""The time that `python -m bench.status` takes over a big sweep: 2,000 finished runs and 200 running ones.

    python benchmarks/status.py [--finished 2000] [--running 200] [--repeat 5]

It writes the run folders, holds the claims of the running ones, and puts a stand-in for squeue on the PATH that answers
at once. It prints the seconds of the whole process, the start of the interpreter included. Expected time: half a
minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from bench.config import files
from bench.core.position import Position
from bench.launch.slurm import queue
from bench.plan.grid import expand
from bench.store import planned
from bench.store.attempts import end_attempt, start_attempt
from bench.store.folder import LOCK, PROGRESS, RESULT, RUN, claim
from bench.store.planned import Plan

SWEEP = """
name: big
dataset: {{name: demo}}
backbone: {{model: tiny-clip, weights: demo}}
grid:
  seed: [{seeds}]
  method:
    - harma: {{bottleneck: [16, 32, 64, 128], heads: 4}}
    - lora: {{rank: [2, 4, 8, 16, 32, 64]}}
"""
TOKEN = "petl-bench:big:1"


def result(run_id: str, spec: dict) -> dict:
    """A result.json as big as a real one."""
    recalls = {f"{side}_r{k}": 12.3456789 for side in ("i2t", "t2i") for k in (1, 5, 10)}
    scores = recalls | {"mean_recall": 23.4567, "images": 452, "captions": 2260, "medians": [12.0, 13.0]}
    provenance = {f"package-{i}": "1.2.3" for i in range(20)} | {
        "device": "NVIDIA H100 80GB HBM3",
        "platform": "x" * 60,
    }
    cost = {f"cost_{i}": 123456789 for i in range(8)}
    return {
        "schema": 1,
        "run_id": run_id,
        "sweep": "big",
        "spec": spec,
        "status": "finished",
        "error": None,
        "metrics": {"best_epoch": 3, "val": scores, "test": scores},
        "cost": cost,
        "provenance": provenance,
    }


def build(folder: Path, finished: int, running: int) -> list[Path]:
    """Write a sweep's results; return the folders of the running runs."""
    file = folder / "big.yaml"
    file.write_text(SWEEP.format(seeds=", ".join(map(str, range(-(-(finished + running) // 10))))))
    specs = {run.run_id: run.to_dict() for run in expand(file).runs[: finished + running]}
    sweep = folder / "big"
    sweep.mkdir()
    planned.write(sweep, Plan("big", specs, str(file)))
    manifest = {"submitted": datetime.now(UTC).isoformat(), "token": TOKEN, "report_job": None}
    tasks = {run_id: f"12_{i}" for i, run_id in enumerate(specs)}
    (sweep / queue.FOLDER).mkdir()
    files.write_json(sweep / queue.FOLDER / "1.json", manifest | {"tasks": tasks})
    busy = []
    for index, (run_id, spec) in enumerate(specs.items()):
        run_dir = sweep / run_id
        run_dir.mkdir()
        (run_dir / LOCK).touch()
        (run_dir / RUN).write_text(json.dumps(spec))
        start_attempt(run_dir, gpus=1, job=tasks[run_id], at=Position())
        if index < finished:
            end_attempt(run_dir, "finished", reached=Position(20), ended=time.time() + 3600)
            files.write_json(run_dir / RESULT, result(run_id, spec))
        else:
            progress = {"phase": "train", "epoch": 7, "epochs": 20, "step": 130, "steps": 400, "loss": 1.25}
            progress |= {"val_mean_recall": 31.5, "eta_seconds": 1234.5, "updated": time.time()}
            files.write_json(run_dir / PROGRESS, progress)
            busy.append(run_dir)
    rows = [f"{tasks[run_dir.name]}|RUNNING|None|1:00:00|{TOKEN}" for run_dir in busy]
    (folder / "rows").write_text("\n".join(rows) + "\n")
    (folder / "squeue").write_text(f"#!/bin/sh\nexec cat '{folder}/rows'\n")
    (folder / "squeue").chmod(0o755)
    return busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=int, default=2000)
    parser.add_argument("--running", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as held:
        for run_dir in build(Path(name), given.finished, given.running):
            held.enter_context(claim(run_dir))
        environment = os.environ | {"PATH": f"{name}{os.pathsep}{os.environ['PATH']}"}
        for target in (Path(name) / "big", Path(name) / "big.yaml"):
            command = [sys.executable, "-m", "bench.status", str(target), "--results", name, "--json"]
            seconds = []
            for _ in range(given.repeat):
                started = time.perf_counter()
                printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
                seconds.append(round(time.perf_counter() - started, 2))
            counts = {state: count for state, count in json.loads(printed)["counts"].items() if count}
            assert counts == {"finished": given.finished, "running": given.running}, counts
            print(
                f"bench.status {target.name}: {counts}: {seconds} s, median {sorted(seconds)[len(seconds) // 2]:.2f} s"
            )


if __name__ == "__main__":
    main()
