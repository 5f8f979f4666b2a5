"""One run's folder: what lies in it, written atomically, read back without surprises. No torch."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import UserError

RUN, RESULT, PROGRESS, STATE, LOCK = "run.yaml", "result.json", "progress.json", "state.pt", "run.lock"
ADAPTER, RANKS, HISTORY = "adapter.safetensors", "ranks.npz", "history.csv"


class RunLocked(Exception):
    """Another process is computing this run right now."""


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
