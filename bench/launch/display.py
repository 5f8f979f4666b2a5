"""A sweep's overview as text: plain lines for files and pipes, tables for a terminal. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.launch.overview import Picture
from bench.store.standing import OVER, STATES, Standing

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

ROWS = 20  # of each state in a terminal
COLOURS = {
    "finished": "green",
    "running": "cyan",
    "stopped": "yellow",
    "waiting": "dim",
    "unknown": "magenta",
    "failed": "red",
    "lost": "bold red",
}


def summary(picture: Picture) -> list[str]:
    """Counts, hours and notes in a few lines."""
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
        lines.append(f"{picture.scheduler} did not answer: what is in its queue is not known")
    if picture.others:
        lines.append(f"{picture.others} of these runs are of other commands, not in the last one's grid")
    if picture.outlook:
        lines.append(picture.outlook)
    if picture.note:
        lines.append(f"note: {picture.note}")
    return lines


def _short(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def plain(picture: Picture, everything: bool) -> str:
    """Text for files and pipes: a line for each unfinished run, or for every run, then the summary."""
    rows = [run for state in STATES for run in picture.of(state) if everything or state != "finished"]
    return "\n".join(
        [
            *("  ".join(filter(None, (f"{run.state:8}", run.run_id, run.label, run.words))) for run in rows),
            *summary(picture),
        ]
    )


def render(picture: Picture, width: int, *, everything: bool = False, height: int | None = None) -> RenderableType:
    """Tables for a terminal of this width: at most ROWS runs of a state unless `everything`; fewer to fit `height`."""
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
            words = Text.assemble(
                (f"{run.label}  " if run.label else "", "dim"), (run.words, COLOURS[state] if state in OVER else "")
            )
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
    """What these runs wait for, and how many wait for each, without job ids."""
    found = Counter(run.words.replace(f"job {run.job} ", "").replace(f", in job {run.job}", "") for run in runs)
    return "; ".join(f"{count} {words}" for words, count in found.most_common(4))


def _shorten(run_id: str, width: int) -> Text:
    """The run's id in at most `width` characters; the middle is left out, since the end holds seed and hash."""
    from rich.text import Text

    if len(run_id) <= width:
        return Text(run_id)
    tail = min(16, width // 2)
    return Text(f"{run_id[: width - tail - 1]}…{run_id[-tail:]}")
