"""Where every run of a sweep stands: told by its folder first, by Slurm second. No torch.

A run is finished or failed if its result says so, and running if a process holds it. The others wait: in Slurm's queue,
or to be submitted. Or they are lost: begun or submitted once, but in two looks nobody held them and no job had them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from bench import store
from bench.errors import UserError
from bench.launch import queue
from bench.launch.queue import Job, Manifest, Queue
from bench.progress import Look, clock, last_line
from bench.sweep import PLAN
from methods.registry import add_plugin

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

WATCH_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 5.0  # between the two looks that it takes to call a run lost
FRESH_SECONDS = 120.0  # a sign of life that counts where locks can't be trusted: between hosts
ROWS = 20  # of each state, in a terminal
READERS = 16  # on a network file system reading is waiting
COLOURS = {
    "finished": "green",
    "running": "cyan",
    "stopped": "yellow",
    "waiting": "dim",
    "unknown": "magenta",
    "failed": "red",
    "lost": "bold red",
}

State = Literal["finished", "running", "stopped", "waiting", "unknown", "failed", "lost"]
STATES: tuple[State, ...] = get_args(State)
OVER = ("finished", "failed", "lost")


@dataclass(frozen=True)
class Standing:
    """One run. epoch and step: where it is, or from where it will go on; what is not known is None.

    job: Slurm's, "12_3", while it has one. hours: of all attempts; gpu_hours: times the GPUs that each kept.
    """

    run_id: str
    method: str
    state: State
    words: str
    job: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None
    mean_recall: float | None = None
    attempts: int = 0
    hours: float = 0.0
    gpu_hours: float = 0.0
    share: float = 0.0  # how much of it is done
    gpus: float = 0.0  # of its last attempt

    @property
    def gone(self) -> bool:
        """Begun or submitted, and nowhere to be seen: lost, if a second look says the same."""
        return self.state == "unknown" and self.words == GONE


GONE = "nobody has it"


@dataclass(frozen=True)
class Total:
    """What all attempts of all runs took, and what running and waiting ones will, as far as finished ones tell."""

    hours: float
    gpu_hours: float
    hours_left: float | None
    gpu_hours_left: float | None


@dataclass(frozen=True)
class Picture:
    """A sweep at one moment. If not `queue_known`, Slurm did not answer; strangers: jobs for runs not in the plan."""

    sweep: str
    folder: Path
    runs: tuple[Standing, ...]
    queue_known: bool
    strangers: int = 0
    note: str | None = None

    def of(self, state: State) -> list[Standing]:
        return [run for run in self.runs if run.state == state]

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(run.state for run in self.runs)
        return {state: found[state] for state in STATES}

    @property
    def total(self) -> Total:
        return _total(self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what `--json` prints."""
        runs = []
        for run in self.runs:
            row = asdict(run)
            del row["share"], row["gpus"]
            runs.append(row | {"hours": round(run.hours, 4), "gpu_hours": round(run.gpu_hours, 4)})
        total = {key: None if value is None else round(value, 2) for key, value in asdict(self.total).items()}
        return {
            "schema": 1,
            "sweep": self.sweep,
            "folder": str(self.folder),
            "time": round(time.time(), 1),
            "queue_known": self.queue_known,
            "counts": self.counts,
            "total": total,
            "runs": runs,
        }


# --- one run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What a run's folder holds."""

    result: dict[str, Any] | None = None
    result_time: float = 0.0
    progress: dict[str, Any] = field(default_factory=dict)
    attempts: tuple[store.Attempt, ...] = ()
    claimed: bool = False

    @classmethod
    def read(cls, run_dir: Path) -> Facts:
        """What matters, the result last: a run that ends meanwhile is seen at work or ended, never as neither."""
        try:
            claimed = store.is_claimed(run_dir)
            progress = store.read_progress(run_dir) or {}
            attempts = tuple(store.read_attempts(run_dir))
            result = store.read_result(run_dir)
            written = (run_dir / store.RESULT).stat().st_mtime if result else 0.0
        except OSError as error:
            raise UserError(f"{run_dir} can't be read: {error.strerror}") from error
        return cls(result, written, progress, attempts, claimed)

    @property
    def last(self) -> store.Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def finished(self) -> bool:
        return self.result is not None and self.result["status"] == "finished"


def judge(
    run_id: str, spec: dict[str, Any], facts: Facts, alive: Queue, given: Manifest | None, now: float
) -> Standing:
    """Where a run stands. `given`: the submission that it was last part of."""
    job, last = alive.runs.get(run_id), facts.last
    seconds = [_seconds(attempt, facts.progress) for attempt in facts.attempts]
    train = spec.get("train") or {}
    base = Standing(
        run_id,
        str((spec.get("method") or {}).get("name")),
        "waiting",
        "",
        job=job.id if job else None,
        epochs=train.get("epochs"),
        attempts=len(facts.attempts),
        hours=sum(seconds) / 3600,
        gpu_hours=sum(each * attempt.gpus for each, attempt in zip(seconds, facts.attempts, strict=True)) / 3600,
        gpus=last.gpus if last else 0.0,
    )
    if facts.finished:
        metrics = (facts.result or {}).get("metrics") or {}
        recall = (metrics.get("test") or {}).get("mean_recall")
        words = Look("finished", {}, facts.result or {}).outcome
        return replace(base, state="finished", words=words, mean_recall=recall, job=None, share=1.0)
    if _at_work(facts, job, now):
        run = _running(base, facts.progress, now)
        held = job and job.state != "running"
        return replace(run, words=f"{run.words}, its job is {job.state}") if job and held else run
    if facts.result and not (job and given and facts.result_time < given.submitted.timestamp()):
        return replace(base, state="failed", words=last_line(facts.result), job=None)
    saved, where = _saved(base, facts)
    if job:
        its = f"job {job.id} {job.state}" + (f" ({job.reason})" if job.reason else "")
        if last and saved.epoch is not None and facts.result is None:
            return replace(saved, state="stopped", words=f"{where}; {its}")
        return replace(base, words=f"its turn will come, in job {job.id}" if job.state == "running" else its)
    if given and not alive.known:
        return replace(saved, state="unknown", words="Slurm does not answer")
    if given or last:
        return replace(saved, state="unknown", words=GONE)
    return replace(base, words="not submitted")


def _at_work(facts: Facts, job: Job | None, now: float) -> bool:
    """Whether a process computes the run: it holds the claim or, where locks don't reach, it was heard of lately."""
    if facts.claimed:
        return True
    last = facts.last
    if last is None or last.ended is not None or facts.result_time > last.started:
        return False
    if job:
        return job.state == "running" and job.id == last.job
    heard = max(last.started, facts.progress.get("updated") or 0.0)
    return last.host != socket.gethostname() and now - heard < FRESH_SECONDS


def _running(base: Standing, progress: dict[str, Any], now: float) -> Standing:
    eta, age = progress.get("eta_seconds"), now - (progress.get("updated") or now)
    left = None if eta is None else max(0.0, round(eta - age, 1))
    look = Look("running", progress, {})
    phase = str(progress.get("phase") or "start")
    parts = [phase]
    if progress.get("epoch"):
        step = f"step {progress.get('step')}/{progress.get('steps')}" if phase == "train" else phase
        parts = [f"epoch {progress['epoch']}/{progress.get('epochs')}", step]
    parts += [f"{clock(left)} left"] if left is not None else []
    return replace(
        base,
        state="running",
        words=", ".join(parts),
        epoch=progress.get("epoch") or None,
        epochs=progress.get("epochs") or base.epochs,
        step=progress.get("step") or None,
        steps=progress.get("steps") or None,
        eta_seconds=left,
        share=look.share,
    )


def _saved(base: Standing, facts: Facts) -> tuple[Standing, str]:
    """The run at the place that its folder holds a state of, and that place in words."""
    last, progress = facts.last, facts.progress
    if last is None:
        return base, ""
    epochs, batches = last.reached or last.at
    if last.reached is None and (progress.get("updated") or 0.0) >= last.started:  # killed: behind its last epoch
        epochs, batches = max((epochs, batches), (max(0, (progress.get("epoch") or 0) - 1), 0))
    if not epochs and not batches:
        return base, "nothing saved yet"
    share = epochs / base.epochs if base.epochs else 0.0
    place = f"epoch {epochs + 1}, step {batches}" if batches else f"the end of epoch {epochs}"
    return replace(base, epoch=epochs + bool(batches), step=batches or None, share=share), f"saved at {place}"


def _lost(run: Standing, facts: Facts, end: str | None) -> Standing:
    last = facts.last
    what = "its process is gone" if last else "its job is gone"
    if end:
        what = f"its job ended: {end}"
    elif last and last.outcome == "stopped":
        what = "it was stopped"
    _, where = _saved(run, facts)
    return replace(run, state="lost", words=f"{what}; {where or 'it never started'}")


def _seconds(attempt: store.Attempt, progress: dict[str, Any]) -> float:
    ended = attempt.ended or max(attempt.started, progress.get("updated") or 0.0)
    return max(0.0, ended - attempt.started)


def _total(runs: Sequence[Standing]) -> Total:
    """Sums, and an estimate of the rest by each method's finished runs; None if some run's method has none."""
    took: dict[str, list[Standing]] = {}
    for run in runs:
        if run.state == "finished" and run.hours:
            took.setdefault(run.method, []).append(run)
    left = [_left(run, took.get(run.method, [])) for run in runs if run.state not in OVER]
    known = [each for each in left if each is not None]
    hours_left, gpu_hours_left = sum(hours for hours, _ in known), sum(gpu_hours for _, gpu_hours in known)
    whole = len(known) == len(left)
    return Total(
        sum(run.hours for run in runs),
        sum(run.gpu_hours for run in runs),
        hours_left if whole else None,
        gpu_hours_left if whole else None,
    )


def _left(run: Standing, alike: Sequence[Standing]) -> tuple[float, float] | None:
    """Hours and GPU-hours that a run still takes: as it says itself, or as much as those alike took on average."""
    if run.eta_seconds is not None:
        return run.eta_seconds / 3600, run.eta_seconds / 3600 * run.gpus
    if not alike:
        return None
    rest = (1 - run.share) / len(alike)
    return rest * sum(each.hours for each in alike), rest * sum(each.gpu_hours for each in alike)


# --- the sweep -------------------------------------------------------------------------------------------------------


class Status:
    """Looks at a sweep's folder, again and again if wanted. Finished runs are read once."""

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        self.folder, self.file = folder.absolute(), file
        self.done: dict[str, Standing] = {}
        self.gone: dict[str, float] = {}  # run id -> when a look first found nobody at it
        self.ends: dict[tuple[str, str], str] = {}
        self.asked: set[str] = set()  # lost runs about which the accounting was asked
        self.specs = self._plan()

    def look(self) -> Picture:
        """How things stand. What nobody has is lost only if that was so some seconds ago as well."""
        manifests = queue.read_manifests(self.folder)
        alive = queue.look(manifests)  # before the folders: a run that ends in between has its result by then
        given = {run_id: manifest for manifest in manifests for run_id in manifest.tasks}
        now = time.time()
        todo = [run_id for run_id in self.specs if run_id not in self.done]
        with ThreadPoolExecutor(READERS) as readers:
            facts = dict(zip(todo, readers.map(Facts.read, [self.folder / run_id for run_id in todo]), strict=True))
        found = {
            run_id: judge(run_id, self.specs[run_id], facts[run_id], alive, given.get(run_id), now) for run_id in todo
        }
        self.done |= {run_id: run for run_id, run in found.items() if run.state == "finished"}
        self.gone = {run_id: self.gone.get(run_id, now) for run_id, run in found.items() if run.gone}
        lost = {run_id for run_id, since in self.gone.items() if now - since >= LOOK_AGAIN_SECONDS * 0.9}
        if new := lost - self.asked:
            tokens = {given[run_id].token for run_id in new if run_id in given}
            self.ends |= queue.ends([manifest for manifest in manifests if manifest.token in tokens])
            self.asked |= new
        for run_id in lost:
            found[run_id] = _lost(found[run_id], facts[run_id], self._end(given.get(run_id), run_id))
        runs = tuple(self.done.get(run_id) or found[run_id] for run_id in self.specs)
        strangers = len(alive.runs.keys() - self.specs.keys())
        return Picture(self.folder.name, self.folder, runs, alive.known, strangers, self._note())

    def look_twice(self) -> Picture:
        """As `look`, with a second one where the first leaves it open whether runs are lost."""
        picture = self.look()
        if any(run.gone for run in picture.runs):
            time.sleep(LOOK_AGAIN_SECONDS)
            picture = self.look()
        return picture

    def _end(self, given: Manifest | None, run_id: str) -> str | None:
        """How the run's job ended, as far as the accounting says."""
        if given is None:
            return None
        task = given.tasks[run_id]
        return self.ends.get((given.token, task)) or self.ends.get((given.token, f"{task}_0"))

    def _plan(self) -> dict[str, dict[str, Any]]:
        plan = store.read_json(self.folder / PLAN)
        if isinstance(plan, dict) and plan.get("runs"):
            return {row["run_id"]: row["spec"] for row in plan["runs"]}
        if self.file is None:
            raise UserError(f"{self.folder} is no sweep's results: it has no {PLAN}")
        from bench.spec import expand

        return {run.run_id: run.to_dict() for run in expand(self.file).runs}

    def _note(self) -> str | None:
        plan = self.folder / PLAN
        if self.file and plan.is_file() and self.file.stat().st_mtime > plan.stat().st_mtime:
            return f"{self.file} has changed since the sweep was started; this is the plan of then"
        return None


def find(target: Path, results: Path) -> Status:
    """The status of a sweep, given by its file or by its folder; UserError if there is neither."""
    if target.is_dir():
        return Status(target)
    if not target.is_file():
        raise UserError(f"{target}: no such sweep file or results folder")
    from bench.config import read_yaml

    data, _ = read_yaml(target)
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise UserError(f"{target}: expected a sweep file with 'name:', or a results folder")
    return Status(results / data["name"], target)


# --- doing something about it ----------------------------------------------------------------------------------------


def cancel(folder: Path) -> str:
    """End the sweep's jobs, and no others; what was done, in words."""
    alive = queue.look(queue.read_manifests(folder))
    if not alive.known:
        raise UserError("Slurm gave no answer, so nothing was cancelled; try again later")
    queue.cancel(alive.jobs)
    if not alive.jobs:
        return "no job of this sweep is in the queue"
    return f"cancelled {len(alive.jobs)} jobs with {len(alive.runs)} runs; runs at work save their state first"


def retry(status: Status, picture: Picture, states: Iterable[str], reports: Path) -> int:
    """Start the runs in these states again, where and as the sweep was started; how many these are."""
    from bench import launch
    from bench.progress import follow
    from bench.spec import SlurmSettings, expand

    folder = status.folder
    runs = [folder / run.run_id for run in picture.runs if run.state in states]
    manifests = queue.read_manifests(folder)
    if not runs:
        return 0
    settings = SlurmSettings()
    if status.file:
        settings = expand(status.file).slurm
    elif manifests:
        settings = SlurmSettings.model_validate_json(json.dumps(manifests[-1].content["slurm"]))
    launcher = launch.make("slurm" if manifests else "auto", None, folder, settings, reports / folder.name)
    new = launcher.missing(runs)
    if launcher.detached:
        launcher.launch(new)
    else:
        with follow(new):
            launcher.launch(new)
        print(f"report: python -m bench.report {shlex.quote(str(folder))}")
    return len(new)


# --- showing it ------------------------------------------------------------------------------------------------------


def summary(picture: Picture) -> list[str]:
    """The whole in a few lines."""
    counts = ", ".join(f"{count} {state}" for state, count in picture.counts.items() if count and state != "finished")
    lines = [f"{picture.sweep}: {picture.counts['finished']} of {len(picture.runs)} finished"]
    lines[0] += f", {counts}" if counts else ""
    total = picture.total
    what = "GPU-hours" if total.gpu_hours else "hours"
    used, left = (total.gpu_hours, total.gpu_hours_left) if total.gpu_hours else (total.hours, total.hours_left)
    rest = "what is left is not known yet" if left is None else f"about {_short(left)} left"
    if used or left:
        lines.append(f"{_short(used)} {what} used, {rest}")
    if not picture.queue_known:
        lines.append("Slurm did not answer: what is in its queue is not known")
    if picture.strangers:
        lines.append(f"{picture.strangers} more runs in the queue are not in the plan any more")
    if picture.note:
        lines.append(f"note: {picture.note}")
    return lines


def _short(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def plain(picture: Picture, everything: bool) -> str:
    """For files and pipes: a line a run that is not finished, or each run, then the whole."""
    rows = [run for state in STATES for run in picture.of(state) if everything or state != "finished"]
    return "\n".join([*(f"{run.state:8}  {run.run_id}  {run.words}".rstrip() for run in rows), *summary(picture)])


def render(picture: Picture, width: int, everything: bool = False, height: int | None = None) -> RenderableType:
    """For a terminal: at most 20 runs of a state, unless everything is asked for; fewer to keep to a `height`."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    listed = sum(bool(picture.of(state)) for state in STATES if state not in ("finished", "waiting"))
    rows = ROWS if height is None else max(1, (height - 7) // max(1, listed) - 2)
    names = min(max((len(run.run_id) for run in picture.runs), default=0), max(24, width * 36 // 100))
    parts: list[RenderableType] = []
    for state in STATES:
        runs = picture.of(state)
        if not runs or (state == "finished" and not everything):
            continue
        head = Text.assemble((f"{state} ", COLOURS[state]), (str(len(runs)), "bold"))
        if state == "waiting" and not everything:
            parts += [Text.assemble(head, "  ", (_reasons(runs), "dim"))]
            continue
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        table.add_column(width=names, no_wrap=True)
        if state == "running":
            table.add_column(width=8)
        table.add_column(ratio=1, no_wrap=height is not None, overflow="fold" if height is None else "ellipsis")
        for run in runs if everything else runs[:rows]:
            words = Text(run.words, COLOURS[state] if state in OVER else "")
            cells: list[RenderableType] = [words]
            if state == "running":
                cells = [
                    ProgressBar(total=1.0, completed=run.share, width=8),
                    words.append(f"  {run.job or ''}", "dim"),
                ]
            table.add_row(_shorten(run.run_id, names), *cells)
        more = [] if everything or len(runs) <= rows else [Text(f"and {len(runs) - rows} more (--all)", "dim")]
        parts += [head, table, *more]
    whole = Table.grid(padding=(0, 2, 0, 0))
    first, *others = summary(picture)
    done = sum(run.share for run in picture.runs)
    bar = ProgressBar(total=max(1, len(picture.runs)), completed=done, width=max(10, min(24, width // 5)))
    whole.add_row(bar, Text(first, "bold"))
    for line in others:
        whole.add_row("", Text(line))
    return Group(*parts, *([Text()] if parts else []), whole)


def _reasons(runs: Sequence[Standing]) -> str:
    """What they wait for, without the jobs' ids, and how many for each."""
    found = Counter(run.words.replace(f"job {run.job} ", "").replace(f", in job {run.job}", "") for run in runs)
    return "; ".join(f"{count} {words}" for words, count in found.most_common(4))


def _shorten(name: str, width: int) -> Text:
    """A run's name with its middle left out if need be: its end tells seed and hash."""
    from rich.text import Text

    if len(name) <= width:
        return Text(name)
    tail = min(16, width // 2)
    return Text(f"{name[: width - tail - 1]}…{name[-tail:]}")


def hints(picture: Picture, arguments: argparse.Namespace) -> list[str]:
    """What can be done about it."""
    target = shlex.quote(str(arguments.target))
    for option, default in (("results", "results"), ("reports", "reports")):
        if str(getattr(arguments, option)) != default:
            target += f" --{option} {shlex.quote(str(getattr(arguments, option)))}"
    found = []
    for state, what in (("failed", "tries the failed ones again"), ("lost", "submits the lost ones again")):
        if picture.counts[state]:
            found.append(f"python -m bench.status {target} --retry {state}   # {what}")
    return found


# --- command line ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """0: told, or done what was asked; 2: the user has something to fix; 130: Ctrl-C."""
    arguments = _arguments(argv)
    try:
        for path in arguments.plugin:
            add_plugin(path)
        status = find(arguments.target, arguments.results)
        if arguments.cancel:
            print(cancel(status.folder))
        elif arguments.retry:
            picture = status.look_twice()
            if not picture.queue_known:
                raise UserError("Slurm did not answer, so nothing was submitted; try again later")
            count = retry(status, picture, arguments.retry, arguments.reports)
            print(f"tried again: {count} runs")
        elif arguments.watch:
            _watch(status, arguments)
        else:
            _show(_patiently(status) if sys.stdout.isatty() else status.look_twice(), arguments)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.status", description=__doc__)
    parser.add_argument("target", type=Path, metavar="SWEEP", help="a sweep file, or its folder in the results")
    parser.add_argument("--watch", action="store_true", help="keep looking until nothing runs or waits any more")
    parser.add_argument("--all", action="store_true", help="list every run")
    parser.add_argument("--json", action="store_true", help="for programs; with --watch a line a look")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--reports", type=Path, default=Path("reports"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--plugin", type=Path, action="append", default=[], metavar="FILE", help="the sweep's plug-in, for --retry"
    )
    act = parser.add_mutually_exclusive_group()
    act.add_argument(
        "--retry", action="append", choices=("failed", "lost"), help="start these runs again; may be given twice"
    )
    act.add_argument("--cancel", action="store_true", help="end this sweep's Slurm jobs, and no others")
    return parser.parse_args(argv)


def _show(picture: Picture, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(picture.to_dict(), indent=None if arguments.watch else 2), flush=True)
    elif sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(render(picture, console.width, arguments.all))
        for line in hints(picture, arguments):
            console.print(line, style="dim", highlight=False, soft_wrap=True)
    else:
        print(plain(picture, arguments.all), flush=True)


def _patiently(status: Status) -> Picture:
    """A second look, or a Slurm that is slow to answer, takes some seconds: say so."""
    from rich.console import Console

    with Console(stderr=True).status("looking"):
        return status.look_twice()


def _watch(status: Status, arguments: argparse.Namespace) -> None:
    """Look every few seconds; in a terminal the picture is drawn anew, else each is printed."""
    picture = status.look()
    if arguments.json or not sys.stdout.isatty():
        _show(picture, arguments)
        while not _over(picture):
            time.sleep(WATCH_SECONDS)
            picture = status.look()
            _show(picture, arguments)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()

    def drawn() -> RenderableType:
        return render(picture, console.width, arguments.all, console.height)

    with Live(drawn(), console=console, auto_refresh=False) as live:
        while not _over(picture):
            time.sleep(WATCH_SECONDS)
            picture = status.look()
            live.update(drawn(), refresh=True)


def _over(picture: Picture) -> bool:
    return all(run.state in OVER for run in picture.runs)


if __name__ == "__main__":
    sys.exit(main())
