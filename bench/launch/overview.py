"""The state of every run of a sweep, from its folders and its scheduler's queue; cancelling and retrying. No torch."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.config.document import read_yaml
from bench.config.errors import UserError
from bench.config.settings import SCHEDULERS
from bench.launch import make, resolved
from bench.launch.follow import follow
from bench.launch.schedulers import submitted
from bench.plan.grid import expand
from bench.store import planned
from bench.store.cluster import Queue
from bench.store.folder import runs_in
from bench.store.planned import PLAN, Start
from bench.store.standing import Facts, Standing, State, Total, counts, judge, lost, total
from methods.registry import add_plugin

LOOK_AGAIN_SECONDS = 5.0  # between the two looks that must both miss a run before it counts as lost
READERS = 16  # reading from a network file system is mostly waiting


@dataclass(frozen=True)
class Picture:
    """The state of a sweep at one moment; runs are in the plan's order.

    Behind them are `others` runs of other commands that are finished, at work or in the queue. queue_known: whether the
    scheduler answered. scheduler: its name, for messages. note: a remark for the user. later: how many runs are planned
    when the trials of tuning are over; outlook: that in words. goes_on: whether they are started without the user.
    """

    sweep: str
    folder: Path
    runs: tuple[Standing, ...]
    queue_known: bool = True
    scheduler: str = ""
    others: int = 0
    note: str | None = None
    later: int = 0
    outlook: str = ""
    goes_on: bool = True

    def of(self, state: State) -> list[Standing]:
        """The runs in this state."""
        return [run for run in self.runs if run.state == state]

    @property
    def counts(self) -> dict[str, int]:
        """How many runs are in each state."""
        return counts(self.runs)

    @property
    def total(self) -> Total:
        """Hours used and left, over all runs."""
        return total(self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `bench.status --json` prints it; hours are rounded."""
        hours = {key: None if value is None else round(value, 2) for key, value in asdict(self.total).items()}
        return {
            "schema": 1,
            "sweep": self.sweep,
            "folder": str(self.folder),
            "time": round(time.time(), 1),
            "queue_known": self.queue_known,
            "counts": self.counts,
            "later": self.later,
            "total": hours,
            "runs": [run.to_dict() for run in self.runs],
        }


class Status:
    """Reads the state of the sweep in `folder`, as often as wanted; a finished run is read once, a plan when it is new.

    `file` is the sweep file, from which the runs come as long as the folder has no plan. UserError without either.
    """

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        self.folder, self.file = folder.absolute(), file
        self.done: dict[str, Standing] = {}
        self.gone: dict[str, float] = {}  # run id -> when a look first found it gone
        self.ends: dict[tuple[str, str], str] = {}
        self.asked: set[str] = set()  # lost runs whose end was asked for
        self._read_plan()

    def look(self) -> Picture:
        """The state of every run now. A run that is gone counts as lost once LOOK_AGAIN_SECONDS have passed."""
        if self._stamp() != self.stamp:
            self._read_plan()
        sent = submitted(self.folder)
        # The queue before the folders: a run whose job ends in between has written its result by then.
        alive = sent.look() if sent else Queue()
        given = {run_id: each for each in sent.submissions for run_id in each.tasks} if sent else {}
        now = time.time()
        specs = {run_id: dict[str, Any]() for run_id in (*self.others, *alive.runs)} | self.specs
        todo = [run_id for run_id in specs if run_id not in self.done]
        with ThreadPoolExecutor(READERS) as readers:
            facts = dict(zip(todo, readers.map(Facts.read, [self.folder / run_id for run_id in todo]), strict=True))
        found = {
            run_id: judge(run_id, specs[run_id], facts[run_id], alive=alive, given=given.get(run_id), now=now)
            for run_id in todo
        }
        self.done |= {run_id: run for run_id, run in found.items() if run.state == "finished"}
        self.gone = {run_id: self.gone.get(run_id, now) for run_id, run in found.items() if run.gone}
        twice = {run_id for run_id, since in self.gone.items() if now - since >= LOOK_AGAIN_SECONDS * 0.9}
        if sent and (new := twice - self.asked):
            tokens = {given[run_id].token for run_id in new if run_id in given}
            self.ends |= sent.scheduler.ends([each for each in sent.submissions if each.token in tokens])
            self.asked |= new
        for run_id in twice:
            sending = given.get(run_id)
            end = self.ends.get((sending.token, sending.tasks[run_id])) if sending else None
            found[run_id] = lost(found[run_id], facts[run_id], end)
        runs = [
            self.done.get(run_id) or found[run_id]
            for run_id in (*self.specs, *sorted(specs.keys() - self.specs.keys()))
        ]
        runs = [replace(run, label=self.labels.get(run.run_id, "")) for run in runs]
        shown = [run for run in runs if run.run_id in self.specs or run.state in ("finished", "running") or run.job]
        return Picture(
            sweep=self.folder.name,
            folder=self.folder,
            runs=tuple(shown),
            queue_known=alive.known,
            scheduler=alive.scheduler,
            others=len(shown) - len(self.specs),
            note=self._note(),
            later=self.plan.later if self.plan else 0,
            outlook=self.plan.outlook if self.plan else "",
            goes_on=self.plan is None or self.plan.goes_on,
        )

    def look_twice(self) -> Picture:
        """As `look`, but after a pause and a second look if runs are gone, so that lost runs are known to be lost."""
        picture = self.look()
        if any(run.gone for run in picture.runs):
            time.sleep(LOOK_AGAIN_SECONDS)
            picture = self.look()
        return picture

    def _read_plan(self) -> None:
        """The settings of each run, by run id, and what else follows from the newest plan."""
        self.stamp = self._stamp()
        self.plan = planned.read(self.folder)
        if self.plan is not None and self.plan.runs:
            self.specs = self.plan.runs
        elif self.file is None:
            raise UserError(f"{self.folder} is no sweep's results: it has no {PLAN}")
        else:
            self.specs = {run.run_id: run.to_dict() for run in expand(self.file).runs}
        self.labels = planned.labels(self.specs)
        self.others = runs_in(self.folder, besides=self.specs)

    def _stamp(self) -> int | None:
        """When the newest plan was written; None without one."""
        try:
            return (self.folder / PLAN).stat().st_mtime_ns
        except OSError:
            return None

    def _note(self) -> str | None:
        plan = self.folder / PLAN
        if self.file and plan.is_file() and self.file.stat().st_mtime > plan.stat().st_mtime:
            return f"{self.file} has changed since the sweep was started; this is the plan of then"
        return None


def find(target: Path, results: Path) -> Status:
    """The status of the sweep whose file, or whose folder in the results, is `target`; UserError for anything else."""
    if target.is_dir():
        return Status(target)
    if not target.is_file():
        raise UserError(f"{target}: no such sweep file or results folder")
    data, _ = read_yaml(target)
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise UserError(f"{target}: expected a sweep file with 'name:', or a results folder")
    return Status(results / data["name"], target)


# --- cancelling and retrying ------------------------------------------------------------------------------------------


def cancel(folder: Path) -> str:
    """Cancel the jobs of the sweep in `folder` and no others; return what was done, as a sentence.

    UserError if the scheduler does not answer or refuses.
    """
    sent = submitted(folder)
    alive = sent.look() if sent else Queue()
    if not alive.known:
        raise UserError(f"{alive.scheduler} gave no answer, so nothing was cancelled; try again later")
    if not sent or not alive.jobs:
        return "no job of this sweep is in the queue"
    sent.scheduler.cancel(alive.jobs)
    return f"cancelled {len(alive.jobs)} jobs with {len(alive.runs)} runs; runs at work save their state first"


def retry(status: Status, picture: Picture, states: Iterable[str], *, reports: Path | None = None) -> int:
    """Start the runs in these states again, as their sweep was started; return how many.

    The report goes where the sweep's goes, or into `reports`/<sweep>. UserError if the launcher refuses.
    """
    folder = status.folder
    runs = [folder / run.run_id for run in picture.runs if run.state in states]
    if not runs:
        return 0
    start = _start(status, reports)
    for path in start.plugins:
        add_plugin(Path(path))
    blocks = {name: SCHEDULERS[name].model_validate_json(json.dumps(block)) for name, block in start.blocks.items()}
    out_dir = Path(start.reports)
    plan = planned.read(folder)
    launcher = make(
        start.executor,
        folder=folder,
        reports=out_dir,
        blocks=blocks,
        workers=start.workers,
        plan=plan,
    )
    new = launcher.missing(runs)
    if launcher.detached:
        launcher.launch(new)
    else:
        with follow(new, labels=status.labels):
            launcher.launch(new)
        print(f"report: python -m bench.report {shlex.quote(str(folder))} --out {shlex.quote(str(out_dir))}")
    return len(new)


def _start(status: Status, reports: Path | None) -> Start:
    """How the sweep was started; for plans of earlier versions, which do not say, as its newest submission was."""
    plan = planned.read(status.folder)
    out_dir = str((reports or Path("reports")).absolute() / status.folder.name)
    if plan and plan.start:
        return replace(plan.start, reports=out_dir) if reports else plan.start
    if sent := submitted(status.folder):
        return Start(sent.name, out_dir, blocks={sent.name: sent.submissions[-1].content[sent.name]})
    return Start(resolved("auto"), out_dir)
