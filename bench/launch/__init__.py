"""Where runs are computed: in this process, in a pool of local workers, or as jobs of a cluster scheduler. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.config.settings import SCHEDULERS, Settings
from bench.launch.schedulers import Launcher, current_job, executors, scheduler, scheduler_for
from bench.store.planned import Plan

__all__ = ["Launcher", "current_job", "executors", "make", "scheduler", "scheduler_for"]


def resolved(executor: str) -> str:
    """The executor that `auto` means on this machine; any other is itself."""
    return scheduler_for(executor) or ("inline" if executor == "inline" else "local")


def make(
    executor: str,
    *,
    folder: Path,
    reports: Path,
    blocks: Mapping[str, Settings],
    workers: int | None = None,
    follow: bool = False,
    plan: Plan | None = None,
) -> Launcher:
    """The launcher that `executor` names, for the sweep in `folder`.

    blocks: the sweep's settings for each scheduler; a scheduler without a block uses its defaults. reports: where a
    scheduler's last job writes the plan's report. follow: whether a scheduler's launcher waits for
    the runs. workers: how many local workers; by default one a GPU, else one a core. UserError for settings that
    contradict each other.
    """
    if name := scheduler_for(executor):
        settings = blocks.get(name) or SCHEDULERS[name]()
        return scheduler(name).make_launcher(folder, settings, reports, detached=not follow, plan=plan)
    if executor == "inline":
        from bench.launch.inline import Inline

        return Inline()
    from bench.launch.local import LocalPool

    return LocalPool(workers)
