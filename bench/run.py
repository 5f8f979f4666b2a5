"""Compute one run: `python -m bench.run results/<sweep>/<run>` (or its run.yaml) trains, validates, tests once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.config.errors import GpuLost, UserError
from bench.config.terminal import command, given_path
from bench.store import folder


def main(argv: Sequence[str] | None = None) -> int:
    """0: finished; 1: the run failed; 2: the user has something to fix; 130: Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("run", type=given_path, help="a run's folder, or a run.yaml in it")
    parser.add_argument(
        "--plugin", type=given_path, action="append", default=[], metavar="FILE", help="more methods, losses"
    )
    return command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    from bench import launch
    from bench.compute.execute import execute  # torch
    from methods.registry import add_plugin

    run_dir: Path = arguments.run.parent if arguments.run.name == folder.RUN else arguments.run
    for path in arguments.plugin:
        add_plugin(path)
    if not (run_dir / folder.RUN).is_file():
        raise UserError(f"no {folder.RUN} in {run_dir}")
    try:
        result = execute(run_dir, job=launch.current_job())
    except folder.RunLocked:
        raise UserError(f"another process is computing {run_dir}") from None
    except GpuLost as error:
        raise UserError(f"the GPU was lost ({error}); the same command continues the run in a new process") from error
    if result.error:
        print(result.error.traceback, file=sys.stderr)
        print(f"error: {result.error.message}", file=sys.stderr)
        return 2 if result.error.user else 1
    assert result.metrics is not None
    print(json.dumps(result.metrics.test.model_dump(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
