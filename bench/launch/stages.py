"""The stages of a sweep that tunes: first its trials, then the winners' runs. No torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.plan.grid import Sweep
from bench.plan.spec import RunSpec
from bench.plan.tuning import Tuned
from bench.store import record


def staged(sweep: Sweep, folder: Path) -> Sweep:
    """The sweep with the runs that can be known by now, from the results in its `folder`; one without tuning as it is.

    These are the runs that are not tuned, the trials, and where all trials of a configuration are over, the runs of
    its winner. A failed trial is over.
    """
    if not sweep.tuned:
        return sweep
    scores: dict[str, float | None] = {}
    for each in sweep.tuned:
        for trial in _possible(each):
            if result := record.read(folder / trial.run_id):
                val = result.metrics.val if result.metrics else None
                scores[trial.run_id] = val.mean_recall if val else None
    trials, finals, recipes, waiting = [], [], dict(sweep.recipes), 0
    for each in sweep.tuned:
        listed, winner = each.planned(scores)
        own = each.finals(winner) if winner else []
        trials += listed
        finals += own
        open_ = any(trial.run_id not in scores for trial in listed)
        waiting += len(each.runs) if open_ else 0
        recipes |= {run.run_id: found for run in (*listed, *own) if (found := _recipe(sweep, each, run))}
    notes = [f"tuning: {len(trials)} trials of {len(sweep.tuned)} configurations, which never open the test set"]
    if waiting:
        notes.append(f"{waiting} test runs are planned when the trials of their configurations are over")
    runs = {run.run_id: run for run in (*sweep.runs, *trials, *finals)}
    notes = [*sweep.notes, *notes]
    return replace(sweep, runs=tuple(runs.values()), notes=tuple(notes), recipes=recipes, later=waiting)


def _possible(tuned: Tuned) -> list[RunSpec]:
    """All trials that a configuration may have: whole ones, and short ones."""
    return [*tuned.planned({})[0], *tuned.trials]


def _recipe(sweep: Sweep, tuned: Tuned, run: RunSpec) -> tuple[str, list[str]] | None:
    """The recipe of a tuned run, and in what it departs from it: as the run in the file, and in the tuned settings."""
    base = tuned.runs[0]
    if base.run_id not in sweep.recipes:
        return None
    name, departs = sweep.recipes[base.run_id]
    parts = [key.split(".") for key in tuned.keys]
    moved = [f"{p}.{n}" for p, n in parts if getattr(getattr(run, p), n) != getattr(getattr(base, p), n)]
    return name, list(dict.fromkeys([*departs, *moved]))
