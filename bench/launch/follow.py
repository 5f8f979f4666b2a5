"""The live view of a sweep: a table in a terminal, otherwise a line an event. No torch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from bench.store.cluster import Queue
from bench.store.folder import RESULT
from bench.store.standing import Facts, Standing, State, clock, judge

if TYPE_CHECKING:
    from rich.console import RenderableType

STATUS_SECONDS = 30.0  # between two lines about the whole sweep


class Watch:
    """Follows runs through their folders. Failures and progress from before it was made do not count."""

    def __init__(self, runs: Sequence[Path], labels: Mapping[str, str] | None = None) -> None:
        self.labels = labels or {}
        self.started = time.time()
        self.before = {run: _stamp(run) for run in runs}
        self.runs = {run: Standing(run.name, run.name.partition("-")[0], "waiting", "") for run in runs}

    def update(self) -> list[Path]:
        """Look at every run that is not over; return those whose state has changed."""
        changed = []
        for run, old in self.runs.items():
            if old.state in ("finished", "failed"):
                continue
            new = self._look(run)
            self.runs[run] = new
            if new.state != old.state:
                changed.append(run)
        return changed

    def _look(self, run: Path) -> Standing:
        stamp = _stamp(run)  # before the result: one that is written in between counts at the next look
        facts = Facts.read(run)
        if facts.result and not facts.result.finished and stamp == self.before[run]:
            facts = replace(facts, result=None)  # an earlier failure; the run is computed again now
        if (facts.progress.get("updated") or 0.0) < self.started:
            facts = replace(facts, progress={})
        found = judge(run.name, {}, facts, alive=Queue(), given=None, now=time.time())
        state = found.state if found.state in ("running", "finished", "failed") else "waiting"
        return replace(found, state=state, label=self.labels.get(run.name, ""))

    def count(self, state: State) -> int:
        """How many runs are in this state."""
        return len(self.of(state))

    def of(self, state: State) -> list[Standing]:
        """The runs in this state."""
        return [found for found in self.runs.values() if found.state == state]

    @property
    def done(self) -> float:
        """How many runs are done, fractions of running ones included."""
        return sum(1.0 if found.state == "failed" else found.share for found in self.runs.values())

    @property
    def elapsed(self) -> float:
        """Seconds since this was made."""
        return time.time() - self.started

    @property
    def left_seconds(self) -> float | None:
        """Seconds left for all runs at the pace so far; None until enough is done for an estimate."""
        if self.done < 0.3 or self.elapsed < 5:
            return None
        longest = max((found.eta_seconds or 0.0 for found in self.runs.values()), default=0.0)
        return max(longest, self.elapsed * (len(self.runs) - self.done) / self.done)


def _stamp(run: Path) -> int | None:
    """When the run's result was written; None without a result."""
    try:
        return (run / RESULT).stat().st_mtime_ns
    except OSError:
        return None


def _name(run: Standing) -> str:
    return f"{run.run_id}  {run.label}".rstrip()


def doing(run: Standing) -> str:
    """The phase, epoch, loss, validation score and time left of a running run, in one line."""
    parts = [run.phase or "start"]
    if run.epochs and run.epoch:
        parts = [f"epoch {run.epoch}/{run.epochs}" + ("" if parts == ["train"] else f" {parts[0]}")]
        parts += [f"loss {run.loss:.3g}"] if run.loss is not None else []
        parts += [f"val {run.val_mean_recall:.1f}"] if run.val_mean_recall is not None else []
        parts += [f"{clock(run.eta_seconds)} left"] if run.eta_seconds is not None else []
    return ", ".join(parts)


def follow(
    runs: Sequence[Path], stream: TextIO | None = None, *, labels: Mapping[str, str] | None = None
) -> AbstractContextManager[Any]:
    """A context that shows the progress of these runs on `stream` (default: stdout).

    labels: by run id, what else to call the run: see `bench.store.planned.labels`.
    """
    stream, watch = stream or sys.stdout, Watch(runs, labels)
    return _Live(watch, stream) if stream.isatty() else _Plain(watch, stream)


class _Plain:
    """A line when a run starts, finishes or fails, and one about the whole every STATUS_SECONDS without news."""

    def __init__(self, watch: Watch, stream: TextIO, every: float = 0.5) -> None:
        self.watch, self.stream, self.every = watch, stream, every
        self.over = threading.Event()
        self.spoke = time.monotonic()
        self.thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> _Plain:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.over.set()
        self.thread.join()
        if kind is None:
            self._report()

    def _loop(self) -> None:
        while not self.over.wait(self.every):
            self._report()

    def _report(self) -> None:
        watch = self.watch
        for run in watch.update():
            found = watch.runs[run]
            words = {"running": "start", "finished": "done ", "failed": "FAILED"}
            if found.state != "waiting":
                text = "" if found.state == "running" else found.words
                self._say("  ".join(filter(None, (f"{words[found.state]} {run.name}", found.label, text))))
        if time.monotonic() - self.spoke >= STATUS_SECONDS:
            running = "; ".join(f"{found.run_id} {doing(found)}" for found in watch.of("running")) or "nothing running"
            left = "" if watch.left_seconds is None else f"; about {clock(watch.left_seconds)} left in all"
            self._say(f"{watch.count('finished')}/{len(watch.runs)} finished; {running}{left}")

    def _say(self, text: str) -> None:
        self.spoke = time.monotonic()
        print(f"[{clock(self.watch.elapsed)}] {text}", file=self.stream, flush=True)


class _Live:
    """A live table: running runs, the latest results, and the time left."""

    def __init__(self, watch: Watch, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self.watch = watch
        console = Console(file=stream)
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=2)

    def __enter__(self) -> _Live:
        self.live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        watch = self.watch
        watch.update()
        done, failed = watch.count("finished"), watch.count("failed")
        left = watch.left_seconds
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=len(watch.runs), completed=watch.done, width=30),
            Text(f"{done}/{len(watch.runs)} finished", "bold"),
            Text(f"{failed} failed", "red") if failed else Text(),
            Text(clock(watch.elapsed) + ("" if left is None else f", about {clock(left)} left"), "dim"),
        )
        running = Table.grid(padding=(0, 2))
        for found in watch.of("running"):
            bar = ProgressBar(total=1.0, completed=found.share, width=20)
            running.add_row(Text(f"  {_name(found)}", "cyan"), bar, Text(doing(found)))
        if not running.row_count and done + failed < len(watch.runs):
            running.add_row(Text("  starting", "dim"))
        ended = Table.grid(padding=(0, 2))
        for found in watch.of("finished")[-8:]:
            ended.add_row(Text("✓", "green"), Text(_name(found)), Text(found.words, "dim"))
        for found in watch.of("failed")[-8:]:
            words = Text(found.words, "red", overflow="ellipsis", no_wrap=True)
            ended.add_row(Text("✗", "red"), Text(_name(found)), words)
        return Group(ended, running, head)
