"""The plans of a sweep: the runs of each command's grid with their settings, and how it was started. No torch.

plan.json is the newest plan. `plans/` keeps every plan by its content, so that a second command with the same sweep's
name takes nothing from the first one: each report is made for the plan of the command that it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from bench.config.errors import UserError
from bench.config.files import make_folder, write_json
from bench.config.settings import SCHEDULERS
from bench.store.naming import distinguish, flatten

PLAN, PLANS = "plan.json", "plans"
_NAMES = ("dataset.name", "dataset.title", "dataset.split", "backbone.model", "backbone.weights")
STRICT = ConfigDict(strict=True)


@dataclass(frozen=True, config=STRICT)
class Start:
    """How a sweep was last started. A retry starts it in the same way.

    executor: the one that was used, never "auto". reports: the folder of its report, absolute. blocks: each cluster
    scheduler's settings, with the user's overrides. plugins: the files of its plug-ins, absolute. command: as given.
    only: its report leaves out finished runs that are not in its grid.
    """

    executor: str
    reports: str
    workers: int | None = None
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    command: str | None = None
    only: bool = False


@dataclass(frozen=True, config=STRICT)
class Plan:
    """The runs of a command's grid in order: run id -> settings as in run.yaml.

    file: the sweep file, None without one. start: how it was started. content: the sweep file with all overrides, as
    plain data. own: run id -> the settings of its method and loss that are not the defaults, with dotted keys. recipes:
    run id -> the recipe that it was planned with; departs: run id -> the dotted keys in which it departs from that.
    titles: method -> what papers call it. later: how many runs of winners are planned when the trials are over.
    Plans of earlier versions have none of the latter seven.
    """

    sweep: str
    runs: dict[str, dict[str, Any]]
    file: str | None = None
    start: Start | None = None
    content: dict[str, Any] = field(default_factory=dict)
    own: dict[str, list[str]] = field(default_factory=dict)
    recipes: dict[str, str] = field(default_factory=dict)
    departs: dict[str, list[str]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    later: int = 0

    @property
    def goes_on(self) -> bool:
        """Whether the command that started the sweep plans what follows by itself: it does where it waits for runs."""
        if self.start is None or self.start.executor not in SCHEDULERS:
            return True
        return "--follow" in shlex.split(self.start.command or "")

    @property
    def outlook(self) -> str:
        """What is planned when the trials are over, and what it takes; empty if nothing is."""
        if not self.later:
            return ""
        runs = f"{self.later} test runs of the winners follow" if self.later > 1 else "1 test run of the winner follows"
        command = (self.start and self.start.command) or "the same command"
        return f"{runs} when all trials are over" + ("" if self.goes_on else f" and this is given again: {command}")

    @cached_property
    def id(self) -> str:
        """8 hex digits that stand for the runs of the plan, in their order, and for what its report leaves out."""
        only = self.start is not None and self.start.only
        return hashlib.sha256(json.dumps([list(self.runs), only]).encode()).hexdigest()[:8]

    def to_dict(self) -> dict[str, Any]:
        """The content of its file."""
        said: dict[str, Mapping[str, Any]] = {"own": self.own, "recipe": self.recipes, "departs": self.departs}
        runs = [
            {"run_id": run_id, "spec": spec} | {key: by_run[run_id] for key, by_run in said.items() if run_id in by_run}
            for run_id, spec in self.runs.items()
        ]
        start = None if self.start is None else asdict(self.start)
        head = {"sweep": self.sweep, "file": self.file, "start": start, "content": self.content, "titles": self.titles}
        return head | {"later": self.later, "runs": runs}


def write(folder: Path, plan: Plan) -> None:
    """Write the plan into the sweep's folder, which is created if need be, as its newest; UserError if that fails."""
    make_folder(folder)
    make_folder(folder / PLANS)
    for path in (folder / PLANS / f"{plan.id}.json", folder / PLAN):
        write_json(path, plan.to_dict())


def read(folder: Path, plan_id: str | None = None) -> Plan | None:
    """The sweep's newest plan, or the one of this id; None if there is none. UserError if the file is not a plan."""
    if plan_id is not None and not re.fullmatch("[0-9a-f]{8}", plan_id):
        raise UserError(f"'{plan_id}' is not a plan's id, which is eight of 0-9 and a-f")
    path = folder / (PLAN if plan_id is None else f"{PLANS}/{plan_id}.json")
    try:
        content = json.loads(path.read_bytes())
        runs = {run["run_id"]: run["spec"] for run in content["runs"]}
        if all(Path(run_id).name == run_id and run_id.isprintable() for run_id in runs):
            start = Start(**content["start"]) if content.get("start") else None
            sweep, resolved = content.get("sweep") or folder.resolve().name, content.get("content") or {}
            own, recipes, departs = (
                {run["run_id"]: run[key] for run in content["runs"] if key in run}
                for key in ("own", "recipe", "departs")
            )
            titles, later = content.get("titles") or {}, content.get("later", 0)
            if type(later) is not int or later < 0:
                raise TypeError("later")
            return Plan(sweep, runs, content.get("file"), start, resolved, own, recipes, departs, titles, later)
    except (FileNotFoundError, NotADirectoryError):
        newest = read(folder) if plan_id is not None else None  # earlier versions kept no others
        return newest if newest and newest.id == plan_id else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(f"'{path}' is not a sweep's plan; run the sweep again, or delete it to report every run folder")


def every(folder: Path) -> Iterator[Plan]:
    """All readable plans of the sweep in this folder, by their ids."""
    for path in sorted((folder / PLANS).glob("*.json")):
        with suppress(UserError):
            if plan := read(folder, path.stem):
                yield plan


def labels(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By run id, the run's dataset and backbone as far as they differ among these runs (id -> settings); else ""."""
    flat = [
        {
            key: Path(value).name if key == "backbone.weights" else value
            for key, value in flatten(settings).items()
            if key in _NAMES and isinstance(value, str)
        }
        for settings in runs.values()
    ]
    return dict(zip(runs, distinguish(flat), strict=True))
