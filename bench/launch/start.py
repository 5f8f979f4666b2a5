"""Starting a sweep: writing its plan and each unfinished run's run.yaml, and launching the runs.

torch is imported only to check images and weights before the first run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config.errors import UserError
from bench.config.files import make_folder, write_bytes
from bench.config.machine import cpu_cores
from bench.launch import make, resolved
from bench.launch.follow import follow
from bench.launch.local import MAX_CPU_WORKERS, visible_gpus
from bench.launch.schedulers import scheduler, scheduler_for
from bench.plan.grid import Sweep
from bench.plan.spec import RunSpec
from bench.store import planned, record
from bench.store.folder import RUN, RunLocked, claim, leftovers, runs_in, tidy
from bench.store.planned import Plan, Start
from methods.registry import plugins, sources

if TYPE_CHECKING:
    from bench.launch.forecast import Forecast


def plan_of(sweep: Sweep, how: Start | None = None) -> Plan:
    """The plan of a sweep that is started in this way."""
    runs = {run.run_id: run.to_dict() for run in sweep.runs}
    file = None if sweep.file is None else str(sweep.file)
    own = {run.run_id: run.own() for run in sweep.runs}
    recipes = {run_id: name for run_id, (name, _) in sweep.recipes.items()}
    departs = {run_id: keys for run_id, (_, keys) in sweep.recipes.items()}
    titles = {run.method.name: run.method.called() for run in sweep.runs}
    return Plan(sweep.name, runs, file, how, dict(sweep.content), own, recipes, departs, titles, sweep.later)


def estimate(sweep: Sweep, folder: Path, *, executor: str, workers: int | None) -> Forecast:
    """What the unfinished runs would cost with this executor: on a cluster a GPU each, here as local workers do."""
    from bench.launch.forecast import forecast

    left = unfinished(sweep, folder)
    todo, done = list(left.values()), [run for run in sweep.runs if folder / run.run_id not in left]
    if name := scheduler_for(executor):
        gpu, slots = True, scheduler(name).at_once(sweep.schedulers[name], len(todo))
    else:
        gpus = visible_gpus()
        gpu = bool(gpus)
        slots = 1 if executor == "inline" else workers or len(gpus) or min(cpu_cores(), MAX_CPU_WORKERS)
    return forecast(todo, folder, finished=done, gpu=gpu, slots=max(1, min(slots, len(todo) or 1)))


def outside(sweep: Sweep, folder: Path) -> list[str]:
    """The finished runs in the results `folder` that are not in the sweep's grid, by name."""
    inside = {run.run_id for run in sweep.runs}
    return [name for name in runs_in(folder, besides=inside) if record.is_finished(folder / name)]


@dataclass(frozen=True)
class Started:
    """A sweep that was started: its plan, and whether all its runs are over."""

    plan: Plan
    over: bool


def unfinished(sweep: Sweep, folder: Path) -> dict[Path, RunSpec]:
    """The runs of the sweep that have no finished result in its results `folder`, by their own folders."""
    return {folder / run.run_id: run for run in sweep.runs if not record.is_finished(folder / run.run_id)}


def _tidy(folder: Path, sweep: Sweep) -> None:
    """Delete what a node that died right behind a result left of a finished run; a running process does so itself."""
    for run in sweep.runs:
        run_dir = folder / run.run_id
        if record.is_finished(run_dir) and leftovers(run_dir):
            with suppress(RunLocked, UserError, OSError), claim(run_dir):
                tidy(run_dir)


def start(
    sweep: Sweep,
    *,
    folder: Path,
    reports: Path,
    executor: str = "auto",
    workers: int | None = None,
    stay: bool = False,
    command: str | None = None,
    only: bool = False,
    on_pixels: Callable[[int, int], None] | None = None,
) -> Started:
    """Write the plan and launch the unfinished runs; return the plan, and whether all its runs are over.

    They are not if a cluster scheduler computes them and `stay` is false. `folder`: the sweep's results; `reports`:
    where its report goes; `only`: without runs that are not in this grid. `workers`: how many local workers. `command`:
    what the user typed, for the record.
    `on_pixels(done, total)` is called while images are prepared. UserError for missing images or weights before any run
    starts, and for a launcher that refuses the runs.
    """
    todo = unfinished(sweep, folder)
    how = Start(
        executor=resolved(executor),
        reports=str(reports.absolute()),
        workers=workers,
        blocks={name: block.model_dump(mode="json") for name, block in sweep.schedulers.items()},
        plugins=[str(path) for path in plugins()],
        command=command,
        only=only,
    )
    plan = plan_of(sweep, how)
    planned.write(folder, plan)
    _tidy(folder, sweep)
    if not todo:
        return Started(plan, over=True)
    launcher = make(
        executor,
        folder=folder,
        reports=reports,
        blocks=sweep.schedulers,
        workers=workers,
        follow=stay,
        plan=plan,
    )
    new = launcher.missing(list(todo))
    for run_dir in new:
        make_folder(run_dir)
        write_bytes(run_dir / RUN, todo[run_dir].dump().encode())
    if new:
        from bench.compute.build import preflight  # torch

        preflight([todo[run_dir] for run_dir in new], on_pixels)
    if launcher.detached:
        if new:
            launcher.launch(new)
        return Started(plan, over=False)
    with follow(list(todo), labels=planned.labels(plan.runs)):
        launcher.launch(list(todo))
    return Started(plan, over=True)


def stale(sweep: Sweep, folder: Path) -> list[str]:
    """At most one note: which finished runs were made by another version of the plug-in files than the current one."""
    if not plugins():
        return []
    old = []
    for run in sweep.runs:
        result = record.read(folder / run.run_id)
        made_by = ((result and result.provenance) or {}).get("plugins") or {}
        now = sources(type(run.method), type(run.loss))
        if result and result.finished and sorted(made_by.values()) != sorted(now.values()):
            old.append(run.run_id)
    hint = f"delete their folders in {folder} to run them again: {', '.join(old[:3])}{', ...' if len(old) > 3 else ''}"
    return [f"{len(old)} finished runs were made by another version of the plug-in; {hint}"] if old else []
