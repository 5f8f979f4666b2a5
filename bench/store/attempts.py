"""The attempts at a run, in attempts.jsonl: when each started and ended, where, on how many GPUs, and its outcome.

No torch.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.core.position import Position
from bench.store.folder import ATTEMPTS, last_seen, read_progress

GPUS_HELD = "PETL_BENCH_GPUS_HELD"  # environment: the share of GPUs that each run of a pool's worker keeps from others


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run: the position it started from (`at`) and the last position it saved (`reached`).

    started, ended: unix time; ended is None while the attempt lasts, and after a kill until the run starts again.
    gpus: the number reserved for it, a fraction where runs share one. job: the id of its cluster job, such as "12_3".
    """

    started: float
    job: str | None
    host: str
    gpus: float
    at: Position
    ended: float | None = None
    outcome: str | None = None  # finished, failed, stopped, killed, lost (its GPU)
    reached: Position | None = None


def start_attempt(run_dir: Path, *, gpus: float, job: str | None, at: Position) -> None:
    """Append the start of an attempt; an earlier attempt without an end is closed as killed. Hold the claim first.

    `gpus`: how many are reserved for the run; `job`: the id of the cluster job; `at`: the position it starts from.
    """
    before = read_attempts(run_dir)
    if before and before[-1].ended is None:
        seen = last_seen(run_dir, read_progress(run_dir) or {})
        end_attempt(run_dir, "killed", reached=at, ended=max(before[-1].started, seen))
    line = {"started": time.time(), "job": job, "host": socket.gethostname(), "gpus": gpus}
    _append(run_dir / ATTEMPTS, line | {"epoch": at.epochs, "step": at.batches})


def end_attempt(run_dir: Path, outcome: str, *, reached: Position, ended: float | None = None) -> None:
    """Append the end of the current attempt: its outcome, the position it saved, and unix time (default: now)."""
    line = {"ended": ended or time.time(), "outcome": outcome}
    _append(run_dir / ATTEMPTS, line | {"epoch": reached.epochs, "step": reached.batches})


def read_attempts(run_dir: Path) -> list[Attempt]:
    """The run's attempts, oldest first; [] if there are none. Lines that a kill or a full disk cut off are left out."""
    try:
        text = (run_dir / ATTEMPTS).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    found: list[Attempt] = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not _is_sound(row):
                continue
            position = Position(int(row["epoch"]), int(row["step"]))
            if "started" in row:
                found.append(Attempt(row["started"], row["job"], row["host"], row["gpus"], position))
            elif found and found[-1].ended is None:
                found[-1] = replace(found[-1], ended=row["ended"], outcome=row["outcome"], reached=position)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return found


def saved_by(attempt: Attempt, progress: Mapping[str, Any]) -> Position:
    """The position from which a run continues after this attempt, estimated without reading its saved state.

    While the attempt lasts, and after a kill, it follows from the run's progress: the training of epoch 3 begins when
    epoch 2 is saved, the test when all epochs are.
    """
    if attempt.reached is not None:
        return attempt.reached
    if (progress.get("updated") or 0.0) < attempt.started:
        return attempt.at
    in_test, epoch = progress.get("phase") == "test", progress.get("epoch") or 0
    return max(attempt.at, Position(progress.get("epochs") or 0 if in_test else max(0, epoch - 1)))


def _is_sound(row: dict[str, Any]) -> bool:
    """Whether the values of a line are of the types that they are written with."""
    times = [row[key] for key in ("started", "ended", "gpus") if key in row]
    texts = [row[key] for key in ("job", "host", "outcome") if row.get(key) is not None]
    return (
        all(isinstance(each, int | float) and 0 <= each < 2**40 for each in times)
        and all(isinstance(each, str) and each.isprintable() for each in texts)
        and min(row["epoch"], row["step"]) >= 0
    )


def _append(path: Path, line: dict[str, Any]) -> None:
    """Append a line in one write, after a line break if the last line was cut off. A full disk is ignored."""
    with suppress(OSError), path.open("ab+", buffering=0) as file:
        cut_off = file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if cut_off else b"") + json.dumps(line).encode() + b"\n")
