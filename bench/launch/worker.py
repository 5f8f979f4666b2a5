"""A pool's worker process: `python -m bench.launch.worker [module:function]` computes runs one after another.

It reads run folders from stdin, one a line, and writes one JSON line a run to its original stdout. While it computes a
run, stdout and stderr go to the run's log.txt. On SIGTERM the run saves its state after its step, and the worker ends.
When stdin ends, the pool has ended, and the worker kills itself at once.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from bench.launch.task import LOST_GPU, STOP_SIGNALS, redirect
from bench.store.folder import LOG


def _read_orders(orders: queue.Queue[str]) -> None:
    with open(0, "rb", buffering=0, closefd=False) as stdin:  # the lock of a buffered stdin would abort Python's exit
        for line in stdin:
            orders.put(os.fsdecode(line.rstrip(b"\n")))
    os.killpg(0, signal.SIGKILL)  # the worker leads its own process group, which holds the run's children too


def main(argv: Sequence[str]) -> None:
    """Compute runs with the named function (default: `bench.launch.task:run_one`) until SIGTERM or the end of stdin."""
    module, _, name = (argv[0] if argv else "bench.launch.task:run_one").partition(":")
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        redirect(Path(os.devnull))
        faulthandler.enable()
        stopping = threading.Event()
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: stopping.set())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pool handles Ctrl-C
        orders: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()
        while not stopping.is_set():
            run = Path(orders.get())
            redirect(run / LOG)
            outcome = getattr(import_module(module), name)(run, stopping.is_set)
            redirect(Path(os.devnull))
            answers.write(json.dumps({"run": str(run), "outcome": outcome}) + "\n")
            if outcome == "lost":
                os._exit(LOST_GPU)
    os._exit(0)  # a normal exit takes seconds with torch loaded, which a job near its limit does not have


if __name__ == "__main__":
    main(sys.argv[1:])
