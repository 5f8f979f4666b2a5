"""The ledger of a results folder: every opening of the test set, a file a run. No torch.

A file a run, because the process that computes a run holds its claim: no file has two writers at once, which would lose
lines on a network file system. The files lie outside the run folders, so that a run that is deleted and computed again
is known to have been scored before; and those of two people merge by copying.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.config.errors import UserError
from bench.config.settings import Protocol
from bench.store.planned import PLAN

FOLDER = "test_openings"  # in a results folder: <run id>.jsonl
AGAIN = "-again"  # what is put behind a sweep's name for the folder of runs that are computed anew, to compare
LONE = "test_openings.jsonl"  # in the folder of a run that belongs to no sweep
# Why it was opened.
SCORE, CHOOSE, LOADED = "score the chosen epoch", "choose the epoch", "score a loaded run"
MEASURED = "measure the embeddings of a finished run"


class Opening(BaseModel):
    """One opening of the test set by a run. time: UTC, ISO 8601. epoch: whose weights were scored; null: untrained."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    run_id: str
    time: str
    protocol: Protocol
    epoch: int | None
    host: str
    why: str


def path_of(run_dir: Path) -> Path:
    """The file of a run's openings: in its sweep's results folder, or in its own folder if that is no sweep's.

    A run that is computed anew, to compare, notes its opening where the first one is.
    """
    results = run_dir.parent
    if results.name.endswith(AGAIN) and results.name != AGAIN and not (results / PLAN).exists():
        results = results.with_name(results.name.removesuffix(AGAIN))
    if (results / PLAN).exists():
        return results / FOLDER / f"{run_dir.name}.jsonl"
    return run_dir / LONE


def note(run_dir: Path, *, protocol: Protocol, epoch: int | None, why: str) -> None:
    """Record that the test set is about to be opened. UserError if that can't be written: nothing is to be scored.

    A line that a kill cut off is ended first, so that no other line is lost.
    """
    path = path_of(run_dir)
    line = Opening(
        run_id=run_dir.name,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        protocol=protocol,
        epoch=epoch,
        host=socket.gethostname(),
        why=why,
    )
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            cut_off = file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write((b"\n" if cut_off else b"") + line.model_dump_json().encode() + b"\n")
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"the opening of the test set can't be recorded in {path} ({error.strerror}), so nothing was scored; make "
            "the folder writable and run the same command again"
        ) from error


def read(run_dir: Path) -> list[Opening]:
    """The recorded openings of a run, oldest first; [] without any. Lines that are no openings are left out."""
    try:
        text = path_of(run_dir).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return list(_parsed(text, run_dir.name))


def scorings(found: list[Opening]) -> list[Opening]:
    """The openings at the end of a run, of which a finished run has one.

    Those that chose an epoch do not count, nor those that measured the embeddings of a run that has its scores.
    """
    return [each for each in found if each.why not in (CHOOSE, MEASURED)]


def _parsed(text: str, run_id: str) -> Iterator[Opening]:
    for line in text.splitlines():
        try:
            found = Opening.model_validate_json(line)
        except ValidationError:
            continue
        if found.run_id == run_id and (found.time + found.host + found.why).isprintable():
            yield found
