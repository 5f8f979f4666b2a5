"""Give the readers of settings, pictures, annotations and checkpoints odd inputs, and report what goes wrong.

    python -m benchmarks.fuzz [--inputs 100000] [--seed 0] [--targets settings pictures] [--seconds 600]
    python -m benchmarks.fuzz --again 0/settings/123

Reported are: any exception but UserError, anything that takes over 5 s of processor time or 300 MB, and whatever is
accepted with a silently wrong result (see benchmarks/fuzzing). Exit codes: 0 nothing found, 1 findings. Expected time
for 100,000 inputs: an hour on one core. `--again` redoes one input, with its traceback.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from benchmarks.fuzzing import Outcome, load_targets, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser.add_argument("--inputs", type=int, default=100_000, help="over all targets; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="the longest time for each target")
    parser.add_argument("--targets", nargs="+", choices=load_targets(), default=list(load_targets()))
    parser.add_argument("--again", metavar="SEED/TARGET/NUMBER", help="redo one input")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.stderr = os.fdopen(os.dup(2), "w")
    faulthandler.enable(sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the libraries below Pillow write there what they find
    with tempfile.TemporaryDirectory(prefix="petl-fuzz-") as folder:
        if given.again:
            seed, name, number = given.again.split("/")
            numbers = range(int(number), int(number) + 1)
            return report([run(name, Path(folder), seed=int(seed), inputs=numbers, alarm=True)])
        outcomes = []
        for name in given.targets:
            own = Path(folder) / name
            own.mkdir()
            share = range(given.inputs // len(given.targets))
            outcomes.append(
                run(name, own, seed=given.seed, inputs=share, seconds=given.seconds, alarm=True, each=show_progress)
            )
            print(f"\r{outcomes[-1]}", flush=True)
        return report(outcomes)


def show_progress(outcome: Outcome) -> None:
    if sys.stdout.isatty():
        print(f"\r{outcome}", end="", flush=True)
    elif outcome.inputs % 5000 == 0:
        print(outcome, flush=True)


def report(outcomes: list[Outcome]) -> int:
    """Print each kind of finding with its number and one input that shows it."""
    findings = [finding for outcome in outcomes for finding in outcome.findings]
    for what, count in Counter(finding.what for finding in findings).most_common():
        example = next(finding for finding in findings if finding.what == what)
        print(f"\n{count} x {what}\nagain: python -m benchmarks.fuzz --again {example.key}\n{example.trace}")
    print(f"{sum(outcome.inputs for outcome in outcomes):,} inputs, {len(findings):,} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
