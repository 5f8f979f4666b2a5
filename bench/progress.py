"""How a sweep stands, shown while it runs: live in a terminal, else a line for each thing that happens. No torch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from bench import store

if TYPE_CHECKING:
    from rich.console import RenderableType

STATUS_SECONDS = 30.0
State = Literal["waiting", "running", "finished", "failed"]


@dataclass
class Look:
    """One run as its folder tells it now."""

    state: State
    progress: dict[str, Any]
    result: dict[str, Any]

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        if self.state in ("finished", "failed"):
            return 1.0
        epochs, steps = self.progress.get("epochs") or 0, self.progress.get("steps") or 0
        epoch = max(0, (self.progress.get("epoch") or 0) - 1)
        step = (self.progress.get("step") or 0) / steps if steps else 0.0
        return min((epoch + step) / epochs, 1.0) if epochs and self.state == "running" else 0.0

    @property
    def outcome(self) -> str:
        """A finished run's score, a failed one's last error line."""
        if self.state == "failed":
            return last_line(self.result)
        score = ((self.result.get("metrics") or {}).get("test") or {}).get("mean_recall")
        return "finished" if score is None else f"mean recall {score:.1f}"

    @property
    def doing(self) -> str:
        """What a running one is at, in one line."""
        now = self.progress
        parts = [str(now.get("phase") or "start")]
        if now.get("epochs") and now.get("epoch"):
            parts = [f"epoch {now['epoch']}/{now['epochs']}" + ("" if parts == ["train"] else f" {parts[0]}")]
            parts += [f"loss {now['loss']:.3g}"] if now.get("loss") is not None else []
            parts += [f"val {now['val_mean_recall']:.1f}"] if now.get("val_mean_recall") is not None else []
            parts += [f"{clock(now['eta_seconds'])} left"] if now.get("eta_seconds") is not None else []
        return ", ".join(parts)


def last_line(result: dict[str, Any]) -> str:
    """A failed result's error in one line."""
    error = result.get("error") or {}
    lines = [line for line in str(error.get("message") or "").splitlines() if line.strip()] or ["no message"]
    return lines[-1] if error.get("user") else f"{error.get('type')}: {lines[-1]}"


def clock(seconds: float) -> str:
    """`1:05` or `2:03:00`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Watch:
    """Looks at run folders again and again. Results and progress from before it was made do not count."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self.runs = runs
        self.started = time.time()
        self.before = {run: _stamp(run / store.RESULT) for run in runs}
        self.looks = {run: Look("waiting", {}, {}) for run in runs}

    def update(self) -> list[Path]:
        """Look once; gives back the runs whose state has changed."""
        changed = []
        for run, old in self.looks.items():
            if old.state in ("finished", "failed"):
                continue
            new = self._look(run)
            self.looks[run] = new
            if new.state != old.state:
                changed.append(run)
        return changed

    def _look(self, run: Path) -> Look:
        stamp = _stamp(run / store.RESULT)
        if stamp is not None and stamp != self.before[run]:
            result = store.read_result(run) or {}
            if result:
                return Look("finished" if result["status"] == "finished" else "failed", {}, result)
        progress = store.read_progress(run) or {}
        fresh = (progress.get("updated") or 0) >= self.started and progress.get("phase") != "stopped"
        return Look("running" if fresh else "waiting", progress if fresh else {}, {})

    def count(self, state: State) -> int:
        return sum(look.state == state for look in self.looks.values())

    def of(self, state: State) -> list[tuple[Path, Look]]:
        return [(run, look) for run, look in self.looks.items() if look.state == state]

    @property
    def elapsed(self) -> float:
        return time.time() - self.started

    @property
    def left_seconds(self) -> float | None:
        """Time left for all, as if the rest went at the pace so far; None while that is a wild guess."""
        done = sum(look.share for look in self.looks.values())
        if done < 0.3 or self.elapsed < 5:
            return None
        longest = max((look.progress.get("eta_seconds") or 0.0 for look in self.looks.values()), default=0.0)
        return max(longest, self.elapsed * (len(self.runs) - done) / done)


def _stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def follow(runs: Sequence[Path], stream: TextIO | None = None) -> AbstractContextManager[Any]:
    """Shows how these runs get on for as long as the context lasts."""
    stream = stream or sys.stdout
    return _Live(Watch(runs), stream) if stream.isatty() else _Plain(Watch(runs), stream)


class _Plain:
    """A line when a run starts, finishes or fails, and every 30 s one about the whole."""

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
            self._tell()

    def _loop(self) -> None:
        while not self.over.wait(self.every):
            self._tell()

    def _tell(self) -> None:
        watch = self.watch
        for run in watch.update():
            look = watch.looks[run]
            words = {"running": "start", "finished": "done ", "failed": "FAILED"}
            if look.state != "waiting":
                text = "" if look.state == "running" else look.outcome
                self._say(f"{words[look.state]} {run.name}  {text}".rstrip())
        if time.monotonic() - self.spoke >= STATUS_SECONDS:
            running = "; ".join(f"{run.name} {look.doing}" for run, look in watch.of("running")) or "nothing running"
            left = "" if watch.left_seconds is None else f"; about {clock(watch.left_seconds)} left in all"
            self._say(f"{watch.count('finished')}/{len(watch.runs)} finished; {running}{left}")

    def _say(self, text: str) -> None:
        self.spoke = time.monotonic()
        print(f"[{clock(self.watch.elapsed)}] {text}", file=self.stream, flush=True)


class _Live:
    """A live picture: what runs, what came out, how long it will take."""

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
            ProgressBar(total=len(watch.runs), completed=sum(look.share for look in watch.looks.values()), width=30),
            Text(f"{done}/{len(watch.runs)} finished", "bold"),
            Text(f"{failed} failed", "red") if failed else Text(),
            Text(clock(watch.elapsed) + ("" if left is None else f", about {clock(left)} left"), "dim"),
        )
        running = Table.grid(padding=(0, 2))
        for run, look in watch.of("running"):
            bar = ProgressBar(total=1.0, completed=look.share, width=20)
            running.add_row(Text(f"  {run.name}", "cyan"), bar, Text(look.doing))
        if not running.row_count and done + failed < len(watch.runs):
            running.add_row(Text("  starting", "dim"))
        ended = Table.grid(padding=(0, 2))
        for run, look in watch.of("finished")[-8:]:
            ended.add_row(Text("✓", "green"), Text(run.name), Text(look.outcome, "dim"))
        for run, look in watch.of("failed")[-8:]:
            ended.add_row(
                Text("✗", "red"), Text(run.name), Text(look.outcome, "red", overflow="ellipsis", no_wrap=True)
            )
        return Group(ended, running, head)
