"""One run's folder: what lies in it, written atomically, read back without surprises. No torch."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import secrets
import shutil
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import UserError

RUN, RESULT, PROGRESS, STATE, LOCK = "run.yaml", "result.json", "progress.json", "state.pt", "run.lock"
ADAPTER, RANKS, HISTORY, ATTEMPTS = "adapter.safetensors", "ranks.npz", "history.csv", "attempts.jsonl"

SHARED_BY = "PETL_BENCH_GPU_SHARED_BY"  # environment: how many runs are computed side by side on a GPU


class RunLocked(Exception):
    """Another process is computing this run right now."""


class Stopped(Exception):
    """The run was told to stop. What it has done is saved; it goes on from there when it is started again."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, finds the old one or the new one, never a part."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with disk_errors(part):
        part.write_bytes(data)
        part.replace(path)


@contextmanager
def disk_errors(part: Path) -> Iterator[None]:
    """Removes a part that could not be written whole; a full disk becomes a UserError."""
    try:
        yield
    except Exception as error:  # torch and safetensors have exceptions of their own for failed writes
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        full = full or shutil.disk_usage(part.parent).free < 2**20  # before the part's own space is free again
        part.unlink(missing_ok=True)
        if full:
            raise UserError(f"no space left in {part.parent}; free some and run the same command again") from error
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; not-a-number is an error, for missing is null."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any | None:
    """The file's content; None if it is absent or not JSON (nothing of ours is ever half-written)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """result.json, finished or failed; None if there is none yet."""
    content = read_json(run_dir / RESULT)
    return content if isinstance(content, dict) and "status" in content else None


def is_finished(run_dir: Path) -> bool:
    """Whether the run holds a finished result: the one truth about it."""
    return (read_result(run_dir) or {}).get("status") == "finished"


def read_progress(run_dir: Path) -> dict[str, Any] | None:
    """progress.json of a run under way; None if there is none."""
    content = read_json(run_dir / PROGRESS)
    return content if isinstance(content, dict) else None


def write_history(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One CSV line an epoch."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


@contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Hold the run for this process; RunLocked if another holds it. A killed process loses its claim at once."""
    with (run_dir / LOCK).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: forked data loaders would keep that one
        except (BlockingIOError, PermissionError) as error:
            raise RunLocked(run_dir.name) from error
        except OSError as error:
            raise UserError(
                f"{run_dir} can't be locked ({error.strerror}); put the results on another file system"
            ) from error
        yield


def is_claimed(run_dir: Path) -> bool:
    """Whether another process holds the run: on this machine, or anywhere if the file system's locks reach that far.

    It asks without taking the lock, which could make a run that starts right now believe it is held. Not for a process
    that holds the claim itself: closing the file would give it up. False where it can't be told (not on Linux).
    """
    if sys.platform != "linux":
        return False
    layout = "hhqqi"  # struct flock: type, whence, start, length, pid
    try:
        with (run_dir / LOCK).open("rb") as file:
            asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_GETLK, asked + bytes(-len(asked) % 8))
    except OSError:
        return False
    return bool(struct.unpack_from(layout, answer)[0] != fcntl.F_UNLCK)


# --- attempts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """One go at a run. `at` and `reached`: finished epochs, and batches done in the next, as saved.

    gpus: those held for it, a fraction where runs share one. job: Slurm's, "12_3". ended is None while it goes on, or
    if it was killed and nobody has noted it yet.
    """

    started: float
    job: str | None
    host: str
    gpus: float
    at: tuple[int, int]
    ended: float | None = None
    outcome: str | None = None  # finished, failed, stopped, killed
    reached: tuple[int, int] | None = None


def start_attempt(run_dir: Path, gpus: float, at: tuple[int, int]) -> None:
    """Note that the run starts; its claim's holder calls this. An attempt left open was killed, which is noted too."""
    before = read_attempts(run_dir)
    if before and before[-1].ended is None:
        last_seen = (read_progress(run_dir) or {}).get("updated") or before[-1].started
        end_attempt(run_dir, "killed", at, max(before[-1].started, last_seen))
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    line = {"started": time.time(), "job": job, "host": socket.gethostname(), "gpus": gpus}
    _append(run_dir / ATTEMPTS, line | {"epoch": at[0], "step": at[1]})


def end_attempt(run_dir: Path, outcome: str, reached: tuple[int, int], ended: float | None = None) -> None:
    """Note how the attempt that `start_attempt` noted has ended."""
    line = {"ended": ended or time.time(), "outcome": outcome}
    _append(run_dir / ATTEMPTS, line | {"epoch": reached[0], "step": reached[1]})


def read_attempts(run_dir: Path) -> list[Attempt]:
    """The run's attempts, oldest first; a line that a kill or a full disk has torn is passed over."""
    try:
        text = (run_dir / ATTEMPTS).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    found: list[Attempt] = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
            position = int(row["epoch"]), int(row["step"])
            if "started" in row:
                found.append(Attempt(row["started"], row["job"], row["host"], row["gpus"], position))
            elif found and found[-1].ended is None:
                found[-1] = replace(found[-1], ended=row["ended"], outcome=row["outcome"], reached=position)
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _append(path: Path, line: dict[str, Any]) -> None:
    """Add a line in one write, behind a torn one if need be. No run is worth losing for it: a full disk is no error."""
    with suppress(OSError), path.open("ab+", buffering=0) as file:
        torn = file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")
