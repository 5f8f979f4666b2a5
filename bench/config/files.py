"""Files that are written whole or not at all, hashes of large files, and the cache folder. No torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.config.errors import UserError

LARGE_BYTES = 2**25  # the hash of a file beyond this size is remembered


def cache_dir() -> Path:
    """Folder for what can be made again (pixels, the demo world): $PETL_BENCH_CACHE, else ~/.cache/petl-bench.

    UserError if there is no home folder.
    """
    try:
        return Path(os.environ.get("PETL_BENCH_CACHE") or Path.home() / ".cache" / "petl-bench")
    except RuntimeError:
        raise UserError("no home folder for the cache; set PETL_BENCH_CACHE to a folder that can be written") from None


@contextmanager
def cache_errors(what: str, path: Path) -> Iterator[None]:
    """A UserError where a part of the cache, at `path`, can't be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"can't write the {what} {path}: {reason}; make room or set PETL_BENCH_CACHE") from error


def make_folder(path: Path) -> None:
    """Make a folder for results, with those above it, unless it exists; UserError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write results to {path}: {error.strerror}; choose another --results") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: a reader, or a kill at any moment, finds the old file or the new one, never a part.

    UserError if the disk is full or can't be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with disk_errors(part):
        part.write_bytes(data)
        part.replace(path)


@contextmanager
def disk_errors(part: Path) -> Iterator[None]:
    """Remove a part that could not be written whole; a disk that is full or can't be written becomes a UserError."""
    try:
        yield
    except Exception as error:  # torch and safetensors have exceptions of their own for failed writes
        reason = _disk_fault(error, part.parent)  # asked before the part's own space is free again
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if reason:
            raise UserError(f"{reason} and run the same command again") from error
        raise


def _disk_fault(error: Exception, folder: Path) -> str | None:
    """What keeps a file from being written into the folder, and a remedy; None if the error is not the disk's."""
    number = error.errno if isinstance(error, OSError) else None
    with suppress(OSError):
        if number in (errno.ENOSPC, errno.EDQUOT) or shutil.disk_usage(folder).free < 2**20:
            return f"no space left in {folder}; free some"
        if not os.access(folder, os.W_OK):
            return f"{folder} is read-only; make it writable"
    return f"can't write in {folder} ({error.strerror or error}); repair it" if isinstance(error, OSError) else None


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. ValueError for not-a-number: a missing value is null."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any | None:
    """The file's content; None if the file is absent or not JSON (the harness never leaves half a file)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None


def is_regular(path: Path) -> bool:
    """Whether there is a file of bytes: no folder, pipe or device, nor one that the kernel makes up (/proc, /sys).

    False for a path that can't be a file's name.
    """
    try:
        real = path.resolve()
        return path.is_file() and not any(real.is_relative_to(each) for each in ("/proc", "/sys"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False for a path that can't be one's name."""
    try:
        return path.is_dir()
    except OSError:
        return False


def exists(path: Path) -> bool:
    """Whether anything has that path; False for a path that can't be a name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit`; UserError, with the path, for anything else."""
    try:
        if not is_regular(path):
            raise UserError(f"{path}: not a regular file" if exists(path) else f"no file {path}")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    if len(data) > limit:
        raise UserError(f"{path}: over {limit // 1024} KiB; not a settings file")
    return data


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes. The hash of a large file is remembered by path, size and time of change.

    UserError if the file can't be read.
    """
    try:
        stat = path.stat()
        with path.open("rb") as file:
            note = _note(f"{path}|{stat.st_size}|{stat.st_mtime_ns}") if stat.st_size > LARGE_BYTES else None
            known = note and _remembered(note)
            digest = known or hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    if note and not known:
        with suppress(OSError):  # a cache that can't be written: the hash is computed again next time
            note.parent.mkdir(parents=True, exist_ok=True)
            part = note.with_suffix(f".{os.getpid()}")
            part.write_text(digest, encoding="ascii")
            part.replace(note)
    return digest


def _note(key: str) -> Path:
    return cache_dir() / "hashes" / hashlib.sha256(os.fsencode(key)).hexdigest()


def _remembered(note: Path) -> str | None:
    """The hash in a note; None if there is none, or something else."""
    try:
        text = note.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None
