"""A pool's worker: `python -m bench.launch.worker [module:function]` runs what it is told, one run after another.

Run folders come over stdin, one a line; one JSON line a run goes back over stdout. Between the two, stdout and stderr
belong to the run's log.txt. On SIGTERM the run saves its state after the next step, and the worker ends with it. When
stdin ends the pool is gone, and so is the worker, at once.
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
    with open(0, "rb", buffering=0, closefd=False) as stdin:  # a buffered stdin's lock would abort Python's exit
        for line in stdin:
            orders.put(os.fsdecode(line.rstrip(b"\n")))
    os.killpg(0, signal.SIGKILL)  # the worker leads a process group of its own: a run's children go along


def main(argv: Sequence[str]) -> None:
    module, _, name = (argv[0] if argv else "bench.launch.task:run_one").partition(":")
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        redirect(Path(os.devnull))
        faulthandler.enable()
        told = threading.Event()
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: told.set())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pool's to handle
        orders: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()
        while not told.is_set():
            run = Path(orders.get())
            redirect(run / LOG)
            outcome = getattr(import_module(module), name)(run, told.is_set)
            redirect(Path(os.devnull))
            answers.write(json.dumps({"run": str(run), "outcome": outcome}) + "\n")
            if outcome == "lost":
                os._exit(LOST_GPU)
    os._exit(0)  # at once: an orderly end takes torch seconds, of which there may be few


if __name__ == "__main__":
    main(sys.argv[1:])
