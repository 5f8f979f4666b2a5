"""Results folders with one odd file: what a kill, a full disk, another version or a hand leaves behind.

The state of the sweep and its report are made from each. Whatever is in one run's files, the other runs keep their
states and their rows.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.core.position import Position
from bench.launch.display import plain
from bench.launch.overview import Status
from bench.launch.slurm import queue
from bench.plan.spec import RunSpec
from bench.reporting import latex, summary, tables
from bench.store import attempts, planned, record
from bench.store.folder import HISTORY, LOG, PROGRESS, RUN
from bench.store.frame import RECALLS, collect
from bench.store.record import Cost, Failure, Metrics, Record, Scores
from benchmarks.fuzzing import Try, Wrong, damaged, target

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    1.5,
    1e308,
    2**31,
    2**63,
    2**70,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x",
)
ODD += (
    "‮\n\x1b[31m",
    "\ud800",
    "a" * 5000,
    "../../etc",
    "<script>",
    "12_3",
    [],
    {},
    [[]],
    {"a": {"b": []}},
    ["x"],
    [None],
)
IDS = ("lora-s0-00000000", "lora-s1-00000001", "vpt-s0-00000002", "harma-s0-00000003", "coop-s0-00000004")
FINISHED = 3  # so many of them; then a failed one, and one that is at work


@target("results")
def results(folder: Path) -> Try:
    """Makes one whole results folder, of which each input alters a copy."""
    whole = folder / "whole"
    _make(whole)
    expected = _states(whole), _rows(whole)

    def one(rng: random.Random) -> None:
        sweep = folder / "sweep"
        shutil.rmtree(sweep, ignore_errors=True)
        shutil.copytree(whole, sweep)
        files = sorted(path for path in sweep.rglob("*") if path.is_file())
        path = rng.choice(files)
        _alter(path, rng)
        owner = path.relative_to(sweep).parts[0]
        found = _states(sweep), _rows(sweep)
        if owner in IDS:
            for before, now in zip(expected, found, strict=True):
                for run_id in before.keys() - {owner}:
                    if now.get(run_id) != before[run_id]:
                        raise Wrong(
                            f"{path.name} of one run changes another run's {before[run_id]} to {now.get(run_id)}"
                        )

    return one


def _states(sweep: Path) -> dict[str, Any]:
    picture = Status(sweep).look()
    plain(picture, True).encode()
    json.dumps(picture.to_dict(), allow_nan=False).encode()
    return {run.run_id: (run.state, run.method, run.mean_recall, run.attempts) for run in picture.runs}


def _rows(sweep: Path) -> dict[str, Any]:
    runs = collect(sweep)
    rows = summary.summarise(runs)
    blocks = tables.blocks(runs, rows)
    for text in (
        tables.csv(rows),
        tables.markdown(runs, blocks),
        latex.tables(runs, blocks),
        tables.terminal(runs, blocks),
    ):
        text.encode()
    columns = ["run_id", "status", "seed", "method", *RECALLS]
    return {row[0]: tuple(map(str, row)) for row in runs.frame[columns].itertuples(index=False)}


def _alter(path: Path, rng: random.Random) -> None:
    match rng.randrange(10):
        case 0:
            path.write_bytes(damaged(path.read_bytes(), rng))
        case 1:
            path.write_bytes(
                rng.choice((b"", b"null", b"[]", b"{}", b"3", b"\xff\xfe", b"[" * 10**5, b'{"status": "finished"}'))
            )
        case 2:
            path.unlink()
            rng.choice(
                (lambda: None, path.mkdir, lambda: path.symlink_to(path.name), lambda: path.symlink_to("/dev/null"))
            )()
        case 3 if path.parent.name in IDS:
            shutil.rmtree(path.parent)
            rng.choice((lambda: None, path.parent.touch, path.parent.mkdir))()
        case _ if path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            at = rng.randrange(len(lines))
            content = json.loads(lines[at])
            for _ in range(rng.choice((1, 1, 1, 3))):
                _poke(content, rng)
            lines[at] = json.dumps(content)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
        case _:
            path.write_bytes(damaged(path.read_bytes(), rng))


def _poke(content: Any, rng: random.Random) -> None:
    """Put something odd somewhere into plain data, or take a part of it away."""
    places = list(_places(content))
    if not places:
        return
    node, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[rng.choice(("x", "", "‮", "a" * 300))] = node[key]
        case _:
            node[key] = copy.deepcopy(rng.choice(ODD))


def _places(node: Any) -> Any:
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


def _make(sweep: Path) -> None:
    runs = {run_id: _spec(sweep.name, run_id) for run_id in IDS}
    start = planned.Start("local", str(sweep / "reports"), blocks={"slurm": {"partition": "short"}}, command="x")
    planned.write(sweep, planned.Plan(sweep.name, runs, "x.yaml", start))
    for number, (run_id, spec) in enumerate(runs.items()):
        run_dir = sweep / run_id
        run_dir.mkdir()
        (run_dir / RUN).write_text(RunSpec.from_dict(spec).dump())
        (run_dir / LOG).write_text("a line\n")
        (run_dir / HISTORY).write_text("epoch,loss,val_mean_recall,seconds\n1,2.5,30.0,1.5\n")
        attempts.start_attempt(run_dir, gpus=1.0, job="12_3", at=Position())
        common = {"run_id": run_id, "sweep": sweep.name, "spec": spec}
        if number < FINISHED:
            scores = Scores(**dict.fromkeys(RECALLS, 40.0 + number), i2t_ties=0, t2i_ties=1, images=8, captions=40)
            cost = Cost(trainable_params=1000, total_params=10**6, train_seconds=9.5, peak_bytes=10**9)
            metrics = Metrics(best_epoch=1, val=scores, test=scores)
            origin = {"git_commit": "c0ffee", "git_dirty": False, "packages": {"torch": "2"}, "finished": "2026"}
            origin |= {"split": "pir", "weights": "random", "lock_differs": []}
            record.write(run_dir, Record(**common, status="finished", metrics=metrics, cost=cost, provenance=origin))
        elif number == FINISHED:
            record.write(run_dir, Record(**common, status="failed", error=Failure(message="broke")))
        else:
            state = {"phase": "train", "epoch": 1, "epochs": 3, "step": 2, "steps": 9, "updated": 1e9, "loss": 1.0}
            (run_dir / PROGRESS).write_text(json.dumps(state))
            continue
        attempts.end_attempt(run_dir, "finished", reached=Position(1))
    (sweep / queue.FOLDER).mkdir()
    sent = {"submitted": datetime(2026, 1, 1, tzinfo=UTC).isoformat(), "token": "petl-bench:x:1", "report_job": "13"}
    sent |= {
        "tasks": {run_id: f"12_{number}" for number, run_id in enumerate(IDS)},
        "arrays": [{"job": "12", "size": 5}],
    }
    (sweep / queue.FOLDER / "1.json").write_text(json.dumps(sent))


def _spec(sweep: str, run_id: str) -> dict[str, Any]:
    method, seed, _ = run_id.split("-")
    return RunSpec.from_dict(
        {
            "sweep": sweep,
            "dataset": {"name": "ucm", "root": os.devnull, "split": "karpathy"},
            "backbone": {"model": "tiny-clip", "weights": "random"},
            "method": {"name": method},
            "loss": {"name": "info_nce"},
            "train": {"epochs": 3},
            "seed": int(seed[1:]),
        }
    ).to_dict()
