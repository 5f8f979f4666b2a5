"""What the runs of a report took in all: training time by method, and attempts that came to nothing. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.reporting import tables
from bench.store.attempts import read_attempts
from bench.store.frame import Runs


@dataclass(frozen=True)
class Line:
    """A method's runs: how many are finished and have no result, and their time in training steps, as text.

    share: of the training time of all methods, in percent; None where no time is known.
    """

    method: str
    finished: int
    unfinished: int
    each: str
    total: str
    share: float | None


@dataclass(frozen=True)
class Costs:
    """The lines by method, the longest first, and facts about all runs together."""

    lines: tuple[Line, ...]
    facts: tuple[tuple[str, str], ...]


def costs(runs: Runs) -> Costs:
    """What the runs took. Times are of finished runs; a missing one is not counted, and its run is named as such."""
    finished, unfinished = runs.finished, runs.unfinished
    whole = float(finished["train_seconds"].sum())
    lines = []
    for method, group in runs.frame[runs.frame["method"] != ""].groupby("method", sort=False):
        done = group[group["status"] == "finished"]
        known = done["train_seconds"].dropna()
        lines.append(
            Line(
                method=runs.titles.get(str(method), str(method)),
                finished=len(done),
                unfinished=len(group) - len(done),
                each=tables.seconds(float(known.mean())) if len(known) else tables.DASH,
                total=tables.seconds(float(known.sum())) if len(known) else tables.DASH,
                share=100 * float(known.sum()) / whole if len(known) and whole else None,
            )
        )
    lines.sort(key=lambda line: -(line.share or 0))
    return Costs(tuple(lines), tuple(_facts(runs, finished, unfinished, whole)))


def _facts(runs: Runs, finished: pd.DataFrame, unfinished: pd.DataFrame, whole: float) -> list[tuple[str, str]]:
    counted = int(finished["train_seconds"].notna().sum())
    facts = [("Training", f"{tables.seconds(whole)} in the training steps of {counted} runs" if counted else "none")]
    held, gpu, idle, lost = 0.0, 0.0, 0.0, 0
    for run in pd.concat([finished, unfinished])[["folder", "run_id"]].itertuples():
        for attempt in read_attempts(Path(run.folder or runs.folder) / str(run.run_id)):
            if attempt.ended is None:
                continue
            took = max(0.0, attempt.ended - attempt.started)
            held, gpu = held + took, gpu + took * attempt.gpus
            if attempt.outcome not in ("finished", "stopped"):
                idle, lost = idle + took, lost + 1
    if held:
        gpus = f", {gpu / 3600:.2f} GPU-hours" if gpu else ", on no GPU"
        facts.append(("All attempts", f"{tables.seconds(held)} with data, validation and test{gpus}"))
    if lost:
        words = "attempt that" if lost == 1 else "attempts that"
        facts.append(("Of it in vain", f"{tables.seconds(idle)} in {lost} {words} failed, were killed or lost the GPU"))
    return facts
