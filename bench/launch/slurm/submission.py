"""Submitting runs as Slurm job arrays, through submitit. The jobs run `bench.launch.slurm.job`."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

from bench.config.errors import UserError
from bench.config.files import write_json
from bench.config.settings import SlurmSettings
from bench.launch.slurm import job, queue
from bench.launch.slurm.limits import MAX_ARRAY_SIZE, Limits
from bench.launch.slurm.queue import array_of, job_names
from bench.store import planned, provenance
from bench.store.cluster import Queue
from bench.store.planned import Plan
from methods.registry import PLUGINS, plugins

REPORT_MINUTES, REPORT_GB = 30, 4
# SIGUSR2 would end a job in its first seconds, before Python handles it; a process inherits "ignore" from its shell.
PYTHON = f'sh -c \'trap "" USR2; exec "$0" "$@"\' {shlex.quote(sys.executable)}'
AT_A_LIMIT = re.compile(r"submit ?(job)? ?limit|MaxSubmit|temporarily", re.IGNORECASE)
TIMED_OUT = re.compile(r"timed out|time-?out|unable to contact|communication", re.IGNORECASE)
UNSEEN_PAUSES = (0.0, 3.0, 5.0, 10.0)  # seconds before each look for jobs that Slurm took although sbatch timed out
FIT_PAUSES = (0.0, 5.0, 10.0)  # seconds before each try: a controller that has just started refuses every job
FITS_NOWHERE = "node configuration is not available"
WHERE = ("partition", "account", "qos", "constraint")
Packet = tuple[Path, ...]  # the runs of one job


class Refused(Exception):
    """Slurm did not take a job; the message is its reason, in one line."""


class LimitReached(Refused):
    """A limit on submitted jobs is reached: Slurm takes no more of this user's jobs now."""


@dataclass
class _Array:
    """Jobs that are submitted as one array, of which at most `share` run at once.

    An array starts when the previous one of its lane has ended; arrays of different lanes run side by side.
    """

    packets: list[Packet]
    lane: int
    share: int


class NewSubmission:
    """A submission in the making: its arrays, its file, and the job that writes the report when all arrays have ended.

    alive: the sweep's jobs in the queue. They count towards the limit of jobs at once, and the report waits for them.
    plan: that of the runs and of the report. A job for an older report of the same kind is cancelled.
    """

    def __init__(
        self, sweep_dir: Path, settings: SlurmSettings, reports: Path, *, alive: Queue, plan: Plan | None = None
    ) -> None:
        now = datetime.now(UTC)
        stamp = f"{now:%Y%m%dT%H%M%S%f}"
        self.sweep_dir, self.settings, self.reports, self.now = sweep_dir, settings, reports, now
        self.sweep = sweep_dir.name
        self.token = f"petl-bench:{self.sweep}:{stamp}"
        folder = sweep_dir / queue.FOLDER
        self.jobs, self.logs = folder / "jobs" / stamp, folder / "logs"
        self.code_folder = folder / "code"
        self.file = folder / f"{stamp}.json"
        self.code = self.code_folder / provenance.digest(plugins())
        self.labels = planned.labels(plan.runs) if plan else {}
        self.of = {"plan": plan.id if plan else None, "reports": str(reports)}
        old = {(each.token, each.report_job): each.content for each in queue.submissions(sweep_dir)}
        report_jobs = {each: old[each.token, each.id] for each in alive.jobs if (each.token, each.id) in old}
        self.old_reports = [each for each, content in report_jobs.items() if self.of.items() <= content.items()]
        self.before = [each for each in alive.jobs if each not in report_jobs]

    # --- what to submit ---

    def scripts(self, runs: Sequence[Path]) -> list[str]:
        """The sbatch scripts for these runs, one an array; works without Slurm."""
        arrays = self._arrays(runs, MAX_ARRAY_SIZE)
        lanes = max(array.lane for array in arrays) + 1
        return [self._script(array, [f"<job {i - lanes + 1}>"] if i >= lanes else []) for i, array in enumerate(arrays)]

    def _arrays(self, runs: Sequence[Path], largest: int) -> list[_Array]:
        """The runs as arrays of at most `largest` jobs; with the living jobs they keep to `array_parallelism`."""
        each = self.settings.runs_per_job
        packets = [tuple(runs[start : start + each]) for start in range(0, len(runs), each)]
        room = self.settings.array_parallelism - len(self.before)
        at_once = min(room if room > 0 else self.settings.array_parallelism, len(packets))
        count = ceil(len(packets) / largest)
        lanes = min(count, at_once)
        return [
            _Array(packets[i * largest : (i + 1) * largest], i % lanes, (at_once + lanes - 1 - i % lanes) // lanes)
            for i in range(count)
        ]

    def _script(self, array: _Array, after: Sequence[str]) -> str:
        import submitit.slurm.slurm as submitit_slurm

        many = len(array.packets) if len(array.packets) > 1 else None
        executor_command = f"{PYTHON} -u -m submitit.core._submit {shlex.quote(str(self.jobs))}"
        return submitit_slurm._make_sbatch_string(
            executor_command, self.jobs, map_count=many, **self._parameters(array, after)
        )

    def _parameters(self, array: _Array, after: Sequence[str]) -> dict[str, Any]:
        """The keyword arguments of submitit for an array."""
        methods = list(dict.fromkeys(run.name.partition("-")[0] for packet in array.packets for run in packet))
        labels = dict.fromkeys(self.labels.get(run.name, "") for packet in array.packets for run in packet)
        words = "+".join("-".join(part.partition("=")[2] for part in each.split(", ")) for each in labels if each)
        # A "/" in the name, which is part of the log's path, would keep the job from starting.
        name = f"{self.sweep}-{'+'.join(methods)}" + (f"@{re.sub(r'[^A-Za-z0-9._+-]+', '_', words)}" if words else "")
        given = self.settings.model_dump(exclude_none=True)
        parameters = {key: given[key] for key in (*WHERE, "gres", "gpus_per_node", "cpus_per_task") if key in given}
        if self.settings.mem_gb is not None:
            parameters["mem"] = f"{round(self.settings.mem_gb * 1024)}M"
        parameters |= self._common(name if len(name) <= 60 else f"{name[:57]}...", len(array.packets) > 1, after)
        died = f"{shlex.quote(sys.executable)} -m {job.__name__} {shlex.quote(str(self.sweep_dir))} $code"
        return parameters | {
            "time": self.settings.timeout_min,
            "array_parallelism": array.share,
            "signal_delay_s": self.settings.signal_seconds,
            "teardown": ["code=$?", f"[ $code -eq 0 ] || {died}", "exit $code"],
            "additional_parameters": parameters["additional_parameters"] | self.settings.extra,
        }

    def _common(self, name: str, is_array: bool, after: Sequence[str]) -> dict[str, Any]:
        """The keyword arguments that all jobs share. PYTHONPATH puts the snapshot before all other code."""
        log = str(self.logs / ("%x-%A_%a.log" if is_array else "%x-%j.log"))
        path = f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(self.code))}${{PYTHONPATH:+:$PYTHONPATH}}"
        copies = provenance.plugins_in(self.code, plugins())
        plugged = [f"export {PLUGINS}={shlex.quote(os.pathsep.join(map(str, copies)))}"] if copies else []
        threads = [f"export OMP_NUM_THREADS={self.settings.cpus_per_task}"] if self.settings.cpus_per_task else []
        return {
            "job_name": name,
            "comment": self.token,
            "wckey": None,
            "stderr_to_stdout": True,
            "setup": [*self.settings.setup, path, *plugged, *threads],
            "dependency": f"afterany:{':'.join(after)}" if after else None,
            "srun_args": [f"--output={log}", "--open-mode=append"],
            "additional_parameters": {"output": log, "requeue": True},
        }

    # --- submitting it ---

    def submit(self, runs: Sequence[Path]) -> list[Path]:
        """Submit these runs and the job for the report; return the runs that a submit limit kept out.

        UserError if no node could run the jobs, or Slurm refuses some of them. What it took stays in the queue, with
        the job for the report.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        self.code = provenance.snapshot(self.code_folder, plugins())
        self.content: dict[str, Any] = {
            "schema": 1,
            "submitted": self.now.isoformat(),
            "token": self.token,
            "arrays": [],
            "tasks": {},
            "report_job": None,
            **self.of,
            "folder": str(self.sweep_dir),
            "commit": provenance.commit(),
            "dirty": provenance.is_dirty(),
            "snapshot": str(self.code),
            "slurm": self.settings.model_dump(mode="json"),
        }
        self.limits = Limits.ask(self.settings.model_dump(include=set(WHERE)) | self.settings.extra)
        self._check_time()
        waiting = deque(self._arrays(runs, self.limits.array_size))
        self._check_fit(waiting[0])
        full = len(self.before) >= self.settings.array_parallelism
        first = sorted({array_of(each.id) for each in self.before}) if full else []
        last: dict[int, str] = {}
        reason: Refused | None = None
        while waiting:
            array = waiting.popleft()
            try:
                last[array.lane] = self._sbatch(array, [last[array.lane]] if array.lane in last else first)
            except Refused as error:
                reason, half = error, len(array.packets) // 2
                if not half or not isinstance(error, LimitReached):
                    waiting.appendleft(array)
                    break
                for part in (array.packets[half:], array.packets[:half]):
                    waiting.appendleft(_Array(part, array.lane, min(array.share, len(part))))
        held_back = [run for array in waiting for packet in array.packets for run in packet]
        at_limit = isinstance(reason, LimitReached)
        if held_back and not self.content["tasks"] and not (at_limit and self.before):
            raise UserError(f"Slurm did not take the jobs: {reason}")
        if self.content["tasks"]:
            self._submit_report()
        self._print_summary()
        if held_back and not at_limit:
            queued = f"{len(self.content['tasks'])} runs are queued as jobs {job_names(self._taken())}"
            raise UserError(
                f"Slurm did not take all jobs: {reason}; {queued}, {len(held_back)} are not submitted; "
                "the same command submits these"
            )
        if held_back:
            print(
                f"not submitted: {len(held_back)} runs, for Slurm takes no more now ({reason}); "
                "the same command submits them later, and with --follow it waits for room",
                flush=True,
            )
        return held_back

    def _taken(self) -> list[str]:
        """The ids of the arrays that Slurm has taken."""
        return [array["job"] for array in self.content["arrays"]]

    def _check_time(self) -> None:
        """Raise a UserError for a time limit above the cluster's: Slurm takes such jobs, but never starts them."""
        limit = self.limits.time
        if limit and self.settings.timeout_min > limit.minutes and "time" not in self.settings.extra:
            raise UserError(
                f"slurm.timeout_min ({self.settings.timeout_min}) is above the limit of {limit.owner} "
                f"({limit.minutes:g}), so that the jobs would never start; lower it, or name another partition, "
                "account or qos"
            )

    def _check_fit(self, array: _Array) -> None:
        """Raise a UserError if no node could ever run such a job, which Slurm would leave in the queue for ever."""
        refused = None
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file, _outside_of_jobs():
            file.write(self._script(array, []))
            file.flush()
            for seconds in FIT_PAUSES:
                time.sleep(seconds)
                try:
                    queue.ask("sbatch", "--test-only", file.name)
                    return
                except queue.NoAnswer as error:
                    if FITS_NOWHERE not in str(error):
                        return
                    refused = error
        raise UserError(
            f"no node could run such a job: {refused}; lower what `slurm:` asks for (cpus_per_task, mem_gb, "
            "gpus_per_node, gres, constraint) or name another partition"
        ) from refused

    def _sbatch(self, array: _Array, after: Sequence[str]) -> str:
        """Submit an array and write it to the submission's file; return its id. Refused."""
        orders = [
            job.Orders(
                run_dirs=tuple(map(str, packet)),
                parallel=self.settings.parallel_runs,
                timeout_min=self.settings.timeout_min,
                signal_seconds=self.settings.signal_seconds,
                max_timeouts=self.settings.max_timeouts,
                submitted=self.now.timestamp(),
            )
            for packet in array.packets
        ]
        ids = self._through_submitit(job.compute, orders, **self._parameters(array, after))
        tasks = {run.name: task for packet, task in zip(array.packets, ids, strict=True) for run in packet}
        self.content["tasks"] |= tasks
        self.content["arrays"].append({"job": array_of(ids[0]), "size": len(ids)})
        write_json(self.file, self.content)
        return array_of(ids[0])

    def _submit_report(self) -> None:
        """Submit the job that writes the report when all arrays have ended, and cancel those of earlier submissions."""
        after = sorted({*self._taken(), *(array_of(each.id) for each in self.before)})
        given = self.settings.model_dump(exclude_none=True)
        extra = {
            key: value
            for key, value in self.settings.extra.items()
            if not key.startswith(("gpu", "gres", "mem", "exclusive", "nodes", "ntasks", "cpus", "time"))
        }
        parameters: dict[str, Any] = {key: given[key] for key in WHERE if key in given}
        parameters |= self._common(f"{self.sweep}-report", False, after)
        parameters |= {"time": self._report_minutes(), "mem": f"{REPORT_GB}G", "cpus_per_task": 1}
        parameters["additional_parameters"] |= extra
        try:
            order: list[list[str | None]] = [[str(self.sweep_dir)], [str(self.reports)], [self.of["plan"]]]
            [report] = self._through_submitit(job.report, *order, **parameters)
        except Refused as error:
            print(f"no job for the report: {error}; `python -m bench.report {self.sweep_dir}` makes it")
            return
        self.content["report_job"] = report
        write_json(self.file, self.content)
        with suppress(UserError):  # a second report does no harm
            queue.cancel(self.old_reports)

    def _report_minutes(self) -> int:
        """The report's time limit: within that of the cluster or, if that is unknown, of the runs' own jobs."""
        limit = self.limits.time
        return max(1, int(min(REPORT_MINUTES, limit.minutes if limit else self.settings.timeout_min)))

    def _through_submitit(self, function: Any, *arguments: Sequence[Any], **parameters: Any) -> list[str]:
        """Submit a job an item of the arguments; return their ids. Refused with Slurm's reason."""
        import submitit

        try:
            with _outside_of_jobs():
                executor = submitit.SlurmExecutor(self.jobs, python=PYTHON)
                executor.update_parameters(**parameters)
                return [each.job_id for each in executor.map_array(function, *arguments)]
        except (RuntimeError, OSError) as error:  # submitit raises RuntimeErrors
            if TIMED_OUT.search(str(error)) and (array := self._taken_unseen()):
                return self._adopt(array, executor, function, *arguments)
            raise (LimitReached if AT_A_LIMIT.search(str(error)) else Refused)(_last_line(error)) from error
        finally:
            for leftover in (*self.jobs.glob(".submission_file_*"), *self.jobs.glob(f"{'[0-9a-f]' * 32}.pkl")):
                leftover.unlink()

    def _taken_unseen(self) -> str | None:
        """The array or job of this submission that Slurm took although sbatch timed out; None if there is none.

        Refused if squeue does not answer.
        """
        known, answered = {*self._taken(), self.content["report_job"]}, False
        for seconds in UNSEEN_PAUSES:
            time.sleep(seconds)
            try:
                new = queue.arrays_of(self.token) - known
            except queue.NoAnswer:
                continue
            if new:
                return min(new, key=int)
            answered = True
        if answered:
            return None
        raise Refused("sbatch timed out and squeue gave no answer, so Slurm may have taken jobs; see squeue later")

    def _adopt(self, array: str, executor: Any, function: Any, *arguments: Sequence[Any]) -> list[str]:
        """Write the files that the jobs of an array wait for, as submitit would have done; return the jobs' ids."""
        from submitit.core.utils import DelayedSubmission, JobPaths

        calls = list(zip(*arguments, strict=True))
        ids = [f"{array}_{index}" for index in range(len(calls))] if len(calls) > 1 else [array]
        for job_id, call in zip(ids, calls, strict=True):
            delayed = DelayedSubmission(function, *call)
            delayed.set_timeout(executor.parameters["time"], executor.max_num_timeout)
            delayed.dump(JobPaths(self.jobs, job_id).submitted_pickle)
        return ids

    def _print_summary(self) -> None:
        if jobs := self._taken():
            count, at_once = len(self.content["tasks"]), self.settings.array_parallelism
            print(f"submitted: {count} runs as jobs {job_names(jobs)}, at most {at_once} jobs at once")
            if self.content["report_job"]:
                print(f"report:    job {self.content['report_job']}, when they have ended, in {self.reports}")
            print(f"status:    python -m bench.status {self.sweep_dir}")
            print(f"queue:     squeue -j {job_names(jobs)}")
            print(f"logs:      {self.logs}", flush=True)


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide Slurm's variables: if this process is part of a job (an interactive one), new jobs must not inherit them."""
    inside = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("SLURM_") and key != "SLURM_CONF"}
    try:
        yield
    finally:
        os.environ.update(inside)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
