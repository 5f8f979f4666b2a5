"""Measure this project beside what others do for the same work: python -m benchmarks [NAME ...] [--json]

Both sides alternate in one process, so that other load on the machine slows both; the table has medians, the ratio
(theirs over ours), the target, and how much of the time the machine's measured rates of multiplying and copying would
need at least. Memory is the working memory of one round: resident memory at its peak, beyond that before it. Expected
times on two quiet cores: step 6 minutes, retrieval, pixels and overhead one each, prefix 5, sweep 5, profile 5; `gpu`
takes under 8 minutes on a machine with a CUDA device. Exit codes: 0 measured, whatever was reached; 2 a mistake, or
no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.config.errors import UserError
from benchmarks import gpu, measure, pixels, profiles, retrieval, runs, steps, work

NAMES = ("step", "retrieval", "pixels", "overhead", "sweep", "prefix", "profile", "gpu")
USUAL = NAMES[:-2]  # without a name


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: {', '.join(USUAL)}")
    parser.add_argument("--json", action="store_true", help="print data instead of tables")
    parser.add_argument("--rounds", type=int, help="how often both sides are measured")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: this process's processor time, for `step`, `retrieval` and `pixels` on a machine that others use; "
        "compare with one thread; default: wall",
    )
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU; default: torch's own choice")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="captions for `step`: one a line, or PIR's JSON")
    parser.add_argument("--large", action="store_true", help="`retrieval` also at 20,000 x 100,000: half a minute")
    given = parser.parse_args(argv)
    if unknown := [name for name in given.names if name not in NAMES]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    measure.clock = time.process_time if given.clock == "cpu" else time.perf_counter
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        return _measure(given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _measure(given: argparse.Namespace) -> int:
    repeated = {} if given.rounds is None else {"rounds": given.rounds}
    captions = work.read_captions(given.captions) if given.captions else work.captions_like_rsitmd(1000)
    measured: dict[str, Callable[[], list[measure.Row]]] = {
        "step": lambda: steps.rows(captions, **repeated),
        "retrieval": lambda: retrieval.rows(large=given.large, **repeated),
        "pixels": lambda: pixels.rows(**repeated),
        "overhead": lambda: runs.overhead_rows(**repeated),
        "sweep": runs.sweep_rows,
        "prefix": lambda: runs.prefix_rows(**repeated),
        "profile": lambda: profiles.rows(captions, **repeated),
        "gpu": gpu.rows,
    }
    found = {}
    for name in given.names or USUAL:
        found[name] = measured[name]()
        if not given.json:
            print(f"## {name}\n\n{measure.table(found[name])}\n", flush=True)
    facts = measure.machine(torch.device("cuda") if "gpu" in found else measure.CPU)
    if given.json:
        print(json.dumps({"machine": facts} | {name: [row.as_data() for row in rows] for name, rows in found.items()}))
    else:
        print(", ".join(f"{key} {value}" for key, value in facts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
