"""The state of a sweep's jobs in Slurm: its submissions, the jobs in the queue, and how jobs ended. No torch.

Every Slurm command has a time-out, and one look needs one command. Whether a run is finished or failed is read from
its folder, never from Slurm.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path

from bench.config.errors import UserError
from bench.config.files import read_json
from bench.store.cluster import Job, Queue, Submission

FOLDER = "slurm"  # in the sweep's folder: one JSON file a submission
SECONDS = 20.0  # time-out of a Slurm command: with the controller down, squeue would block for about 40 s

ALIVE = ("PENDING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED", "PREEMPTED")  # states of sacct


class NoAnswer(Exception):
    """A Slurm command failed or timed out. The state of the jobs is unknown: they may well be alive."""


def current_job() -> str | None:
    """The id of the job that this process belongs to: "12_3" in an array, else "12"; None outside of jobs."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")


def array_of(task: str) -> str:
    """The array's id of a task's: "12" of "12_3"."""
    return task.partition("_")[0]


def jobs_of(submission: Submission) -> set[str]:
    """Ids of a submission's arrays and of the job that writes the report."""
    arrays = {array_of(task) for task in submission.tasks.values()}
    return arrays | ({submission.report_job} if submission.report_job else set())


def job_names(jobs: Sequence[str]) -> str:
    """The arrays of these jobs as Slurm's commands take them, such as "12,15"."""
    return ",".join(sorted({array_of(job) for job in jobs}, key=int))


def submissions(folder: Path) -> list[Submission]:
    """The submissions of the sweep in `folder`, newest last; files that are not submissions are left out.

    UserError if one can't be read, for its jobs may live.
    """
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            content = read_json(path) or {}
            submitted = datetime.fromisoformat(content["submitted"])
            tasks = {str(run): str(task) for run, task in content["tasks"].items()}
            report = str(content["report_job"]) if content.get("report_job") else None
            found.append(Submission(path, submitted, str(content["token"]), tasks, report, content))
        except (TypeError, KeyError, ValueError, AttributeError):
            continue
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror}), so the sweep's jobs are not known") from error
    return sorted(found, key=lambda each: (each.submitted.timestamp(), each.path.name))


def look(submissions: Sequence[Submission]) -> Queue:
    """The living jobs of these submissions, by one call of squeue for the users who submitted them.

    squeue gives a job that is ending as COMPLETING, whether it has been cancelled or is to run again. In the latter
    case it waits already: it has used no time, and its end is not its start.
    """
    if not submissions:
        return Queue("Slurm")
    try:
        rows = _listed({each.path.stat().st_uid for each in submissions})
    except NoAnswer:
        return Queue("Slurm", known=False)
    tokens = {each.token for each in submissions}
    alive, ending = {}, set()
    for task, state, used, start, end, reason, left, token in rows:
        if token in tokens and state == "COMPLETING" and (seconds_of(used) or start == end):
            ending.add(task)
        elif token in tokens:
            alive[token, task] = Job(task, token, state.lower(), _in_words(reason), seconds_of(left))
    runs = {}
    for submission in submissions:
        for run_id, task in submission.tasks.items():
            # squeue lists an array of one element with its index or without.
            for name in (task, f"{task}_0" if task == array_of(task) else array_of(task)):
                if job := alive.get((submission.token, name)):
                    runs[run_id] = job
    return Queue("Slurm", True, tuple(alive.values()), runs, frozenset(ending))


def arrays_of(token: str) -> set[str]:
    """The ids of this user's arrays and single jobs in the queue that carry the token; NoAnswer."""
    return {array_of(row[0]) for row in _listed({os.getuid()}) if row[-1] == token}


def _listed(owners: Collection[int]) -> list[list[str]]:
    """The jobs of these users: id, state, time used, start, end, reason, time left, token, as squeue gives them.

    NoAnswer also if the answer lacks its header or its last line's end, and so may lack jobs.
    """
    answer = ask("squeue", "-r", "-u", ",".join(map(str, sorted(owners))), "-o", "%i|%T|%M|%S|%e|%r|%L|%k")
    header, *lines = answer.splitlines() or [""]
    if not header.startswith("JOBID|STATE|") or not answer.endswith("\n"):
        raise NoAnswer("squeue's answer is cut off")
    return [[cell.strip() for cell in line.split("|", 7)] for line in lines if line.count("|") >= 7]


def _in_words(reason: str) -> str | None:
    """Slurm's reason why a job waits, with what to do about one that will never start; None without a reason."""
    if re.search("PartitionTimeLimit|MaxWallDuration", reason):
        return f"will never start: lower slurm.timeout_min; {reason}"
    if re.search("PerJob|BadConstraints|PartitionNodeLimit", reason):
        return f"will never start: lower what `slurm:` asks for; {reason}"
    return None if reason == "None" else reason


def ends(submissions: Sequence[Submission]) -> dict[tuple[str, str], str]:
    """How tasks ended by Slurm's accounting: (token, task) -> "TIMEOUT", "NODE_FAIL", ...; {} without accounting.

    Use it as a hint only: the accounting may miss an end, and Slurm uses job ids again.
    """
    if not submissions:
        return {}
    known = [(each, jobs_of(each), set(each.tasks.values())) for each in submissions]
    jobs = ",".join(sorted(set().union(*(jobs for _, jobs, _ in known))))
    try:
        listed = ask("sacct", "-X", "-n", "-P", "-j", jobs, "-o", "JobID,State,Submit,Comment")
    except NoAnswer:
        return {}
    found = {}
    for line in listed.splitlines():
        task, state, submit, comment = (*line.split("|", 3), "", "", "")[:4]
        for each, own_jobs, tasks in known:
            if array_of(task) in own_jobs and comment in ("", each.token) and _not_before(submit, each):
                name = task if task in tasks else array_of(task)  # an array of one element may be listed with its index
                found[each.token, name] = state.partition(" ")[0]
    return {task: state for task, state in found.items() if state not in ALIVE}


def cancel(jobs: Sequence[Job]) -> None:
    """Cancel these jobs and no others; UserError if scancel fails."""
    ids = sorted({job.id for job in jobs})
    for start in range(0, len(ids), 500):
        try:
            ask("scancel", *ids[start : start + 500])
        except NoAnswer as error:
            raise UserError(f"scancel failed: {error}; try again later") from error


def ask(*command: str) -> str:
    """The output of a Slurm command; NoAnswer if it fails or takes longer than SECONDS."""
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
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise NoAnswer(lines[-1])
    return done.stdout


def seconds_of(left: str) -> int | None:
    """Seconds from Slurm's "[days-][[hours:]minutes:]seconds"; None for UNLIMITED, INVALID, NOT_SET."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", left)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _not_before(submit: str, submission: Submission) -> bool:
    """Whether a job submitted at this time (text of sacct) can be the submission's; clocks may differ by 5 minutes."""
    try:
        return datetime.fromisoformat(submit).timestamp() >= submission.submitted.timestamp() - 300
    except ValueError:
        return True
