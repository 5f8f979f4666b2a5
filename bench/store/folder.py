"""One run's folder: the names of its files, its progress, history and log, and the claim of its process. No torch.

`bench.store.record` reads and writes `result.json`, `bench.store.attempts` does the same for `attempts.jsonl`.
"""

from __future__ import annotations

import csv
import fcntl
import io
import math
import os
import struct
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from bench.config.errors import UserError
from bench.config.files import read_json, write_bytes, write_json

RUN, RESULT, PROGRESS = "run.yaml", "result.json", "progress.json"
STATE, LOCK, LOG = "state.pt", "run.lock", "log.txt"
ADAPTER, RANKS, HISTORY, ATTEMPTS = "adapter.safetensors", "ranks.npz", "history.csv", "attempts.jsonl"
ALIVE = "alive.json"  # unix time; while a process holds the run, and after a kill until the run starts again
TOP = "top.npz"  # the best items of each test query
BEST = "best-{epoch:04d}.safetensors"  # the adapter of the best epoch so far, while the run is not finished


BEAT_SECONDS = 30.0  # between two writes of ALIVE
CLAIMS_ARE_SEEN = sys.platform == "linux"  # whether one process can see another's claim
_HELD: set[Path] = set()  # folders whose claim this process holds
_GUARDS: dict[Path, threading.Lock] = {}  # one a folder: its lock file is opened and closed by one thread at a time


# The values of progress.json; all others are texts.
COUNTS = ("epoch", "epochs", "step", "steps", "pid")
NUMBERS = ("loss", "val_mean_recall", "eta_seconds", "updated")


class RunLocked(Exception):
    """Another process is computing this run right now."""


def is_run(run_dir: Path) -> bool:
    """Whether the folder is a run's: it holds settings or a result."""
    return (run_dir / RESULT).exists() or (run_dir / RUN).exists()


def runs_in(sweep_dir: Path, besides: Collection[str] = ()) -> list[str]:
    """The names of the run folders in a sweep's folder, sorted, without those in `besides`; [] if it can't be read."""
    try:
        return sorted(path.name for path in sweep_dir.iterdir() if path.name not in besides and is_run(path))
    except OSError:
        return []


def read_progress(run_dir: Path) -> dict[str, Any] | None:
    """progress.json of a run that is being computed, without values of another type than it is written with.

    None if there is none.
    """
    content = read_json(run_dir / PROGRESS)
    return {key: value for key, value in content.items() if _fits(key, value)} if isinstance(content, dict) else None


def _fits(key: str, value: Any) -> bool:
    if key in COUNTS:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    if key in NUMBERS:
        return value is None or (isinstance(value, int | float) and -1e300 < value < 1e300)  # false for NaN
    return isinstance(value, str) and value.isprintable()


def write_history(run_dir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write history.csv: one line an epoch."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_bytes(run_dir / HISTORY, text.getvalue().encode())


def log_tail(run_dir: Path, lines: int = 40) -> str:
    """The last lines of the run's log; empty if there is none."""
    log = run_dir / LOG
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def tidy(run_dir: Path) -> None:
    """Delete the files that only an unfinished run needs, and files that a kill left half-written."""
    for leftover in leftovers(run_dir):
        leftover.unlink(missing_ok=True)


def leftovers(run_dir: Path) -> list[Path]:
    """The files that a finished run does not need."""
    best = BEST.partition("{")[0] + "*" + BEST.rpartition("}")[2]
    unneeded = (run_dir / STATE, run_dir / PROGRESS, run_dir / ALIVE)
    return [*run_dir.glob(best), *run_dir.glob(".*.part"), *(path for path in unneeded if path.exists())]


@contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Hold the run for this process while the context lasts. A killed process loses its claim at once.

    RunLocked if the run is held already; UserError if the file system has no locks.
    """
    key, guard = _guarded(run_dir)
    with guard:
        if key in _HELD:
            raise RunLocked(run_dir.name)
        file = _lock(run_dir)
        _HELD.add(key)
    over = threading.Event()
    beats = threading.Thread(target=_beat, args=(run_dir / ALIVE, over), daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        with guard:
            _HELD.discard(key)
            file.close()


def _beat(file: Path, over: threading.Event) -> None:
    """Write the time into the file every BEAT_SECONDS; delete the file once `over` is set."""
    while not over.wait(BEAT_SECONDS):
        with suppress(OSError, UserError):
            write_json(file, time.time())
    with suppress(OSError):
        file.unlink(missing_ok=True)


def last_seen(run_dir: Path, progress: Mapping[str, Any]) -> float:
    """When a process last computed the run for certain, by its signs of life and progress; 0 if none did."""
    beat = read_json(run_dir / ALIVE)
    return max(beat if isinstance(beat, float) and math.isfinite(beat) else 0.0, progress.get("updated") or 0.0)


def _lock(run_dir: Path) -> IO[str]:
    try:
        file = (run_dir / LOCK).open("a")
    except OSError as error:
        raise UserError(f"{run_dir} can't be written ({error.strerror}), so nothing can be computed there") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: forked data loaders would keep that one
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError | PermissionError):
            raise RunLocked(run_dir.name) from error
        raise UserError(
            f"{run_dir} can't be locked ({error.strerror}); put the results on another file system"
        ) from error
    return file


def is_claimed(run_dir: Path) -> bool:
    """Whether a process holds the run: on this machine, or anywhere if the file system's locks reach that far.

    It asks without taking the lock, because a run that starts at this moment would find itself locked out. False for
    other processes' claims where they are not seen (CLAIMS_ARE_SEEN).
    """
    key, guard = _guarded(run_dir)
    with guard:
        if key in _HELD:  # to open and close the file would give up this process's own claim, as POSIX has it
            return True
        if not CLAIMS_ARE_SEEN:
            return False
        layout = "hhqqi"  # struct flock: type, whence, start, length, pid
        try:
            with (run_dir / LOCK).open("rb") as file:
                asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                answer = fcntl.fcntl(file, fcntl.F_GETLK, asked + bytes(-len(asked) % 8))
        except OSError:
            return False
        return bool(struct.unpack_from(layout, answer)[0] != fcntl.F_UNLCK)


def _guarded(run_dir: Path) -> tuple[Path, threading.Lock]:
    key = run_dir.absolute()
    return key, _GUARDS.setdefault(key, threading.Lock())
