"""A report that follows a sweep: written anew whenever a result has come, until every run has one. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.reporting.build import Report
from bench.store import planned
from bench.store.folder import RESULT, runs_in

SECONDS = 20  # between two looks, and after which the page loads itself again


def follow(
    folders: Sequence[Path],
    write: Callable[[int | None], Report],
    say: Callable[[Report], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Write the report of results folders by `write(seconds)` after each new result, and `say` so; the last one.

    It ends when every run of the folders' plans has a result and none follows from them, or on Ctrl-C; then the page is
    written once more, by `write(None)`, as one that does not load itself again.
    """
    seen, told = None, ""
    try:
        while True:
            now = _look(folders)
            if now.over and not now.outlook:
                break
            if now.results != seen:
                say(write(SECONDS))
                seen = now.results
            if now.over and now.outlook != told:
                print(now.outlook, flush=True)
                told = now.outlook
            sleep(SECONDS)
    except KeyboardInterrupt:
        print("\nstopped; the sweep itself is not: `python -m bench.status` shows it")
    return write(None)


@dataclass(frozen=True)
class _Look:
    """The times of change of the result files, in ns; whether every planned run has one; and what is planned later."""

    results: dict[Path, int]
    over: bool
    outlook: str


def _look(folders: Sequence[Path]) -> _Look:
    found: dict[Path, int] = {}
    wanted, outlooks = 0, []
    for folder in folders:
        plan = planned.read(folder)
        runs = list(dict(plan.runs)) if plan else runs_in(folder)
        outlooks += [plan.outlook] if plan and plan.outlook else []
        wanted += len(runs)
        for path in (folder / run_id / RESULT for run_id in runs):
            try:
                found[path] = path.stat().st_mtime_ns
            except OSError:
                continue
    return _Look(found, len(found) == wanted, "; ".join(outlooks))
