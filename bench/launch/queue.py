"""What the cluster says about a sweep's jobs: the manifests of its submissions, and one look at the queue. No torch.

Slurm is asked little, always with a time-out, and is never the truth about a run: that is the run's own folder.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import store
from bench.errors import UserError

FOLDER = "slurm"  # in the sweep's folder
SECONDS = 20.0  # patience with any Slurm command: with its controller down, squeue alone would block twice as long

ALIVE = ("PENDING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED", "PREEMPTED")  # in the accounting's words


class NoAnswer(Exception):
    """Slurm did not answer in time, or not at all: nothing is known, which does not mean that nothing is there."""


@dataclass(frozen=True)
class Manifest:
    """One submission. `tasks`: run id -> "12_3", or "12" for a job that is no array; packed runs share one."""

    path: Path
    submitted: datetime
    token: str  # its jobs' --comment; job ids are used again, this is not
    tasks: dict[str, str]
    report_job: str | None
    content: dict[str, Any]

    @property
    def jobs(self) -> set[str]:
        """Ids of its arrays, and of the job that writes the report."""
        return {array_of(task) for task in self.tasks.values()} | ({self.report_job} if self.report_job else set())


@dataclass(frozen=True)
class Job:
    """An array element or job that the queue holds, in Slurm's words: pending, running, requeued, suspended, ..."""

    id: str
    token: str
    state: str
    reason: str | None
    left_seconds: int | None  # until its time limit


@dataclass(frozen=True)
class Queue:
    """A sweep's living jobs. If not `known`, Slurm gave no answer, and that a run has no job here means nothing."""

    known: bool
    jobs: tuple[Job, ...]  # the report's too
    runs: dict[str, Job]  # run id -> the job it was last given to, where that one lives

    def state(self, run_id: str) -> str | None:
        """The state of the run's job; None if it has no living one."""
        return self.runs[run_id].state if run_id in self.runs else None


def array_of(task: str) -> str:
    """ "12_3" -> "12"."""
    return task.partition("_")[0]


def read_manifests(sweep_dir: Path) -> list[Manifest]:
    """The sweep's submissions, newest last. What can't be read is left out."""
    found = []
    for path in sorted((sweep_dir / FOLDER).glob("*.json")):
        content = store.read_json(path) or {}
        try:
            submitted = datetime.fromisoformat(content["submitted"])
            tasks = {str(run): str(task) for run, task in content["tasks"].items()}
            report = str(content["report_job"]) if content.get("report_job") else None
            found.append(Manifest(path, submitted, str(content["token"]), tasks, report, content))
        except (TypeError, KeyError, ValueError, AttributeError):
            continue
    return sorted(found, key=lambda manifest: (manifest.submitted.timestamp(), manifest.path.name))


def look(manifests: Sequence[Manifest]) -> Queue:
    """Ask squeue once about all of these submissions' jobs, whoever made them."""
    if not manifests:
        return Queue(True, (), {})
    owners = ",".join(sorted({str(manifest.path.stat().st_uid) for manifest in manifests}))
    try:
        listed = ask("squeue", "-h", "-r", "-u", owners, "-o", "%i|%T|%r|%L|%k")
    except NoAnswer:
        return Queue(False, (), {})
    tokens = {manifest.token for manifest in manifests}
    rows = [[cell.strip() for cell in line.split("|", 4)] for line in listed.splitlines() if line.count("|") >= 4]
    alive = {
        (token, job): Job(job, token, state.lower(), None if reason == "None" else reason, _seconds(left))
        for job, state, reason, left, token in rows
        if token in tokens
    }
    runs = {}
    for manifest in manifests:
        for run_id, task in manifest.tasks.items():
            # An array of one element may be listed with its index or without.
            for name in (task, f"{task}_0" if task == array_of(task) else array_of(task)):
                if job := alive.get((manifest.token, name)):
                    runs[run_id] = job
    return Queue(True, tuple(alive.values()), runs)


def ends(manifests: Sequence[Manifest]) -> dict[tuple[str, str], str]:
    """How the accounting says that tasks ended: (token, task) -> "TIMEOUT", "NODE_FAIL", ...; {} where it says nothing.

    Good for a hint alone: it may never hear of an end, and an id that was used again may be another's.
    """
    if not manifests:
        return {}
    jobs = ",".join(sorted({job for manifest in manifests for job in manifest.jobs}))
    try:
        listed = ask("sacct", "-X", "-n", "-P", "-j", jobs, "-o", "JobID,State,Submit,Comment")
    except NoAnswer:
        return {}
    found = {}
    for line in listed.splitlines():
        task, state, submit, comment = (*line.split("|", 3), "", "", "")[:4]
        for manifest in manifests:
            if array_of(task) in manifest.jobs and comment in ("", manifest.token) and _not_before(submit, manifest):
                found[manifest.token, task] = state.partition(" ")[0]
    return {task: state for task, state in found.items() if state not in ALIVE}


def cancel(jobs: Iterable[Job]) -> None:
    """End these jobs, and nothing else; UserError if Slurm does not do it."""
    ids = sorted({job.id for job in jobs})
    for start in range(0, len(ids), 500):
        try:
            ask("scancel", *ids[start : start + 500])
        except NoAnswer as error:
            raise UserError(f"scancel failed: {error}; try again later") from error


def ask(*command: str) -> str:
    """What a Slurm command prints; NoAnswer if it fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
            env=os.environ | {"SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "standard"},  # long array ids in full
        )
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"{command[0]} gave no answer in {SECONDS:g} s") from error
    except OSError as error:
        raise NoAnswer(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise NoAnswer(words[-1])
    return done.stdout


def _seconds(left: str) -> int | None:
    """squeue's "[days-][[hours:]minutes:]seconds" in seconds; None for UNLIMITED, INVALID, NOT_SET."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", left)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _not_before(submit: str, manifest: Manifest) -> bool:
    try:
        return datetime.fromisoformat(submit).timestamp() >= manifest.submitted.timestamp() - 300
    except ValueError:
        return True
