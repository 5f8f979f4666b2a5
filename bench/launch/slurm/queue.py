"""What the cluster says about a sweep's jobs: the manifests of its submissions, and one look at the queue. No torch.

Slurm is asked little, always with a time-out, and is never the truth about a run: that is the run's own folder.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from bench.config.errors import UserError
from bench.config.files import read_json
from bench.store.cluster import Job, Queue, Submission

FOLDER = "slurm"  # in the sweep's folder
SECONDS = 20.0  # patience with any Slurm command: with its controller down, squeue alone would block twice as long

ALIVE = ("PENDING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED", "PREEMPTED")  # in the accounting's words


class NoAnswer(Exception):
    """Slurm did not answer in time, or not at all: nothing is known, which does not mean that nothing is there."""


def array_of(task: str) -> str:
    """ "12_3" -> "12"."""
    return task.partition("_")[0]


def jobs_of(manifest: Submission) -> set[str]:
    """Ids of a submission's arrays, and of the job that writes the report."""
    return {array_of(task) for task in manifest.tasks.values()} | (
        {manifest.report_job} if manifest.report_job else set()
    )


def job_names(jobs: Sequence[str]) -> str:
    """The arrays and jobs that these belong to, as Slurm's commands take them: "12,15"."""
    return ",".join(sorted({array_of(job) for job in jobs}, key=int))


def submissions(sweep_dir: Path) -> list[Submission]:
    """The sweep's submissions, newest last. What can't be read is left out."""
    found = []
    for path in sorted((sweep_dir / FOLDER).glob("*.json")):
        content = read_json(path) or {}
        try:
            submitted = datetime.fromisoformat(content["submitted"])
            tasks = {str(run): str(task) for run, task in content["tasks"].items()}
            report = str(content["report_job"]) if content.get("report_job") else None
            found.append(Submission(path, submitted, str(content["token"]), tasks, report, content))
        except (TypeError, KeyError, ValueError, AttributeError):
            continue
    return sorted(found, key=lambda manifest: (manifest.submitted.timestamp(), manifest.path.name))


def look(manifests: Sequence[Submission]) -> Queue:
    """Ask squeue once about all of these submissions' jobs, whoever made them."""
    if not manifests:
        return Queue("Slurm")
    owners = ",".join(sorted({str(manifest.path.stat().st_uid) for manifest in manifests}))
    try:
        listed = ask("squeue", "-h", "-r", "-u", owners, "-o", "%i|%T|%r|%L|%k")
    except NoAnswer:
        return Queue("Slurm", known=False)
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
    return Queue("Slurm", True, tuple(alive.values()), runs)


def ends(manifests: Sequence[Submission]) -> dict[tuple[str, str], str]:
    """How the accounting says that tasks ended: (token, task) -> "TIMEOUT", "NODE_FAIL", ...; {} where it says nothing.

    Good for a hint alone: it may never hear of an end, and an id that was used again may be another's.
    """
    if not manifests:
        return {}
    jobs = ",".join(sorted({job for manifest in manifests for job in jobs_of(manifest)}))
    try:
        listed = ask("sacct", "-X", "-n", "-P", "-j", jobs, "-o", "JobID,State,Submit,Comment")
    except NoAnswer:
        return {}
    found = {}
    for line in listed.splitlines():
        task, state, submit, comment = (*line.split("|", 3), "", "", "")[:4]
        for manifest in manifests:
            if (
                array_of(task) in jobs_of(manifest)
                and comment in ("", manifest.token)
                and _not_before(submit, manifest)
            ):
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


def _not_before(submit: str, manifest: Submission) -> bool:
    try:
        return datetime.fromisoformat(submit).timestamp() >= manifest.submitted.timestamp() - 300
    except ValueError:
        return True
