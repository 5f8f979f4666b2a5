"""Runs in a pool of worker processes on this machine: one GPU each, else a share of the CPU cores."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.config.machine import cpu_cores
from bench.launch.schedulers import current_job
from bench.launch.task import LOST_GPU, STOP_SIGNALS, WAIT_SECONDS, Outcome, lost_again, never, record_failure
from bench.store.attempts import GPUS_HELD
from bench.store.folder import log_tail
from bench.store.record import Failure

MAX_CPU_WORKERS = 8  # each keeps a backbone and a batch in memory
STOP_SECONDS = 5.0
ROOT = Path(__file__).parents[2]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def visible_gpus() -> list[str]:
    """The GPUs (or MIG slices) that this process may use, as CUDA_VISIBLE_DEVICES names them; [] without any."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"UUID: (MIG-[^)\s]+)", listed) or re.findall(r"^GPU (\d+):", listed, re.MULTILINE)


@dataclass
class _Worker:
    slot: int
    process: subprocess.Popen[bytes]
    gpu: str = ""
    run: Path | None = None

    def give(self, run: Path) -> None:
        """Send it the folder of its next run."""
        self.run = run
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(os.fsencode(run) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has just died; the pool notices at the end of its stdout

    def stop(self) -> None:
        """Ask it to save its run's state and exit; its children (data loaders) must live until it has saved."""
        if self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        """Kill it and its children."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class LocalPool:
    """`workers` processes (default: one a GPU, else one a core, at most 8), each computing one run after another.

    If a worker dies, its current run is recorded as failed and the worker is replaced. Runs that another process holds
    are waited for if `wait_for_held`. A run whose worker lost its GPU to a CUDA error is tried once more by another
    worker, on another GPU if the pool has one. An exception, Ctrl-C included, ends all workers before it is raised; a
    run that saves its state within STOP_SECONDS continues from there the next time.
    """

    workers: int | None = None
    target: str = "bench.launch.task:run_one"
    wait_for_held: bool = True
    detached: bool = field(default=False, init=False)

    def missing(self, runs: Sequence[Path]) -> list[Path]:
        """All of the runs: nothing is queued anywhere."""
        return list(runs)

    def launch(self, runs: Sequence[Path]) -> None:
        """Compute the runs in these folders."""
        self.compute(runs)

    def compute(self, runs: Sequence[Path], should_stop: Callable[[], bool] = never) -> dict[str, Outcome]:
        """Compute the runs; return the outcome of each, by run id.

        Once `should_stop()` is true, the current runs save their state and no other run starts.
        """
        gpus = visible_gpus()
        slots = self.workers or len(gpus) or min(cpu_cores(), MAX_CPU_WORKERS)
        count = min(slots, len(runs))
        waiting = deque((0.0, run.absolute()) for run in runs)  # (not before, run)
        outcomes: dict[str, Outcome] = {}
        lost_on: dict[str, set[Path]] = {gpu: set() for gpu in gpus}
        stopping = False
        pool = [self._start(slot, slots, gpus) for slot in range(count)]
        try:
            while any(worker.run for worker in pool) or (waiting and not stopping):
                if not stopping and should_stop():
                    stopping = True
                    for worker in pool:
                        worker.stop()
                for worker in pool:
                    if not worker.run and not stopping and (next_run := _take(waiting, lost_on.get(worker.gpu, ()))):
                        worker.give(next_run)
                for worker in _ready([worker for worker in pool if worker.run or not stopping]):
                    assert worker.process.stdout is not None
                    line, run = worker.process.stdout.readline(), worker.run
                    if line and run:
                        outcomes[run.name] = outcome = json.loads(line)["outcome"]
                        if outcome == "stopped" or (outcome == "locked" and self.wait_for_held):
                            waiting.append((time.monotonic() + WAIT_SECONDS, run))
                        worker.run = None
                        if outcome == "lost":  # the worker ends
                            if lost_again(run):
                                outcomes[run.name] = "failed"
                            else:
                                waiting.append((0.0, run))
                            if len({each.gpu for each in pool}) > 1:
                                lost_on[worker.gpu].add(run)
                            _bury(worker, blame=False)
                            pool[worker.slot] = self._start(worker.slot, slots, gpus)
                        continue
                    if run:
                        outcomes[run.name] = "stopped" if should_stop() else "failed"
                    _bury(worker, blame=not should_stop())
                    pool[worker.slot] = self._start(worker.slot, slots, gpus)
        finally:
            _stop(pool)
        return outcomes

    def _start(self, slot: int, slots: int, gpus: Sequence[str]) -> _Worker:
        environment, gpu = dict(os.environ), gpus[slot % len(gpus)] if gpus else ""
        for name in THREADS:
            environment.setdefault(name, str(max(1, cpu_cores() // slots)))
        if gpus:
            share = len(gpus) / slots
            environment[GPUS_HELD] = str(share if current_job() else min(share, 1))  # a job keeps all that it was given
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        environment["PYTHONSAFEPATH"] = "1"  # not the current folder's modules, which may be called `methods` too
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "bench.launch.worker", self.target]
        pipe = subprocess.PIPE
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the worker handles them
        try:
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True, bufsize=0
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return _Worker(slot, process, gpu)


def _take(waiting: deque[tuple[float, Path]], avoid: Collection[Path]) -> Path | None:
    """Take the first run out of `waiting` (not before, run) that may start now and is not one to avoid."""
    for entry in waiting:
        if entry[0] <= time.monotonic() and entry[1] not in avoid:
            waiting.remove(entry)
            return entry[1]
    return None


def _ready(pool: Sequence[_Worker], seconds: float = 0.5) -> list[_Worker]:
    """The workers that have written an answer or ended, after waiting up to `seconds` for one."""
    with selectors.DefaultSelector() as selector:
        for worker in pool:
            assert worker.process.stdout is not None
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        return [key.data for key, _ in selector.select(seconds)]


def _bury(worker: _Worker, blame: bool) -> None:
    """Clean up after a dead worker; with `blame`, record its run as failed, with the cause and the end of its log."""
    code = worker.process.wait()
    worker.kill()
    _close(worker)
    cause = f"exited with code {code}"
    if code < 0:
        hint = " (kill -9, or the machine ran out of memory)" if code == -signal.SIGKILL else ""
        cause = f"was ended by {signal.Signals(-code).name}{hint}"
    if worker.run and blame:
        failure = Failure(type="WorkerDied", message=f"the process of this run {cause}", traceback=log_tail(worker.run))
        record_failure(worker.run, failure)
    elif code > 0 and code != LOST_GPU and not worker.run:
        raise RuntimeError(f"a worker {cause} before it was given a run")


def _stop(pool: Sequence[_Worker]) -> None:
    """End all workers: idle ones at once, the others after they have saved or STOP_SECONDS have passed."""
    try:
        for worker in pool:
            if worker.run:
                worker.stop()
            else:
                worker.kill()
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(worker.process.poll() is None for worker in pool):
            time.sleep(0.02)
    finally:
        for worker in pool:
            worker.kill()
            worker.process.wait()
            _close(worker)


def _close(worker: _Worker) -> None:
    for pipe in (worker.process.stdin, worker.process.stdout):
        if pipe is not None:
            pipe.close()
