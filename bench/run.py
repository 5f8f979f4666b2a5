"""Compute one run: of a method by name, from its folder, or again to compare.

python -m bench.run --method lora --set rank=8 --dataset demo   # as a sweep of this one run
python -m bench.run results/<sweep>/<run>                       # from its run.yaml; a finished one is not repeated
python -m bench.run --again results/<sweep>/<run>               # anew, beside it, and what differs
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config.errors import GpuLost, UserError
from bench.config.terminal import command, given_path, plugin_option
from bench.store import folder

if TYPE_CHECKING:
    from bench.plan.grid import Sweep
    from bench.store.record import Record

PROG = "python -m bench.run"
DEMO = ("tiny-clip", "demo")
USUAL = ("ViT-B-32-quickgelu", "openai")


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """0: finished, with `--again` with the same numbers; 1: failed, or other numbers; 2: a mistake; 130: Ctrl-C."""
    arguments = parser(prog).parse_args(argv)
    arguments.command = shlex.join([*prog.split(), *(sys.argv[1:] if argv is None else argv)])
    return command(_run, arguments)


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=given_path, nargs="?", metavar="FOLDER", help="a run's folder, or its run.yaml")
    parser.add_argument("--again", type=given_path, metavar="FOLDER", help="compute a finished run anew and compare")
    named = parser.add_argument_group("a run by its method's name")
    named.add_argument("--method", metavar="NAME", help="see `petl-bench methods`")
    named.add_argument("--dataset", default="demo", metavar="NAME", help="see `petl-bench data list`; default: demo")
    named.add_argument("--root", metavar="DIR", help="the dataset's folder; the demo needs none")
    named.add_argument("--backbone", metavar="MODEL", help=f"default: {DEMO[0]} for the demo, else {USUAL[0]}")
    named.add_argument("--weights", metavar="W", help=f"default: {DEMO[1]} for the demo, else {USUAL[1]}")
    named.add_argument("--seed", type=int, default=0, help="default: 0")
    named.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="a setting of the method (rank=8, preset=table, loss=hmmc) or of a section (train.epochs=2)",
    )
    named.add_argument(
        "--name", default="runs", help="the sweep's name, under which results and report lie; default: %(default)s"
    )
    named.add_argument("--results", type=given_path, default=Path("results"), metavar="DIR")
    named.add_argument("--reports", type=given_path, default=Path("reports"), metavar="DIR")
    plugin_option(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from methods.registry import add_plugin

    given = [each for each in (arguments.run, arguments.again, arguments.method) if each is not None]
    if len(given) != 1:
        raise UserError("which run? give one of FOLDER, --again FOLDER and --method NAME; --help shows examples")
    for path in arguments.plugin:
        add_plugin(path)
    if arguments.method is not None:
        return _named(arguments)
    return _again(_run_dir(arguments.again)) if arguments.again else _compute(_run_dir(arguments.run))


def _run_dir(path: Path) -> Path:
    run_dir = path.parent if path.name == folder.RUN else path
    if not (run_dir / folder.RUN).is_file():
        raise UserError(f"no {folder.RUN} in {run_dir}")
    return run_dir


def _compute(run_dir: Path) -> int:
    """Compute the run in this folder, unless it is finished, and print its scores."""
    from bench.store import record

    done = record.read(run_dir)
    if done and done.finished:
        print(f"nothing was computed: {run_dir} is finished; --again {run_dir} computes it anew", file=sys.stderr)
    else:
        done = _execute(run_dir)
    if not done.finished:
        return _say_failure(done)
    assert done.metrics is not None
    scores = done.metrics.test or done.metrics.val  # of a trial, which has no test
    assert scores is not None
    print(json.dumps(scores.model_dump(), indent=2))
    return 0


def _say_failure(failed: Record) -> int:
    """Print a failed run's error; the exit code."""
    assert failed.error is not None
    if not failed.error.user:
        print(failed.error.traceback, file=sys.stderr)
    print(f"error: {failed.error.message}", file=sys.stderr)
    return 2 if failed.error.user else 1


def _execute(run_dir: Path) -> Record:
    from bench import launch
    from bench.compute.execute import execute  # torch

    try:
        return execute(run_dir, job=launch.current_job())
    except folder.RunLocked:
        raise UserError(f"another process is computing {run_dir}") from None
    except GpuLost as error:
        raise UserError(f"the GPU was lost ({error}); the same command continues the run in a new process") from error


# --- by name ----------------------------------------------------------------------------------------------------------


def _named(arguments: argparse.Namespace) -> int:
    """Compute a sweep of one run in this process, and write its report."""
    from bench.sweep import execute

    sweep = sweep_of(arguments)
    if len(sweep.runs) != 1:
        raise UserError(f"this is a grid of {len(sweep.runs)} runs; write a sweep file for it, or give one value each")
    where = argparse.Namespace(
        executor="inline", workers=None, follow=False, only=False, command=arguments.command, overrides=[]
    )
    return execute(sweep, arguments.results / sweep.name, arguments.reports / sweep.name, where)


def sweep_of(arguments: argparse.Namespace) -> Sweep:
    """The sweep that the options describe; UserError for any mistake."""
    from bench.config.document import Document, parse_yaml
    from bench.plan.grid import expand_document

    model, weights = DEMO if arguments.dataset.partition("-")[0] == "demo" else USUAL
    method: dict[str, Any] = {}
    overrides = []
    for setting in arguments.settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected key=value, such as rank=8")
        if "." in key:
            overrides.append(setting)
        else:
            method[key] = parse_yaml(text, f"--set {setting}")[0]
    given = {"model": arguments.backbone, "weights": arguments.weights}
    if "recipe" in method and (own := {key: value for key, value in given.items() if value}):
        method["backbone"] = own  # what the command line says wins over the recipe
    content = {
        "name": arguments.name,
        "dataset": {"name": arguments.dataset} | ({"root": arguments.root} if arguments.root else {}),
        "backbone": {"model": arguments.backbone or model, "weights": arguments.weights or weights},
        "grid": {"seed": [arguments.seed], "method": [{arguments.method: method}]},
    }
    return expand_document(Document(content, {(): "the command line"}), overrides)


# --- again ------------------------------------------------------------------------------------------------------------


def _again(old_dir: Path) -> int:
    """Compute a finished run anew in the folder `<sweep>-again` beside its sweep's, and print what differs."""
    from bench.config.files import make_folder, write_bytes
    from bench.plan.spec import RunSpec
    from bench.store import openings, record

    old_dir = old_dir.absolute()
    old = record.read(old_dir)
    if not old or not old.finished:
        raise UserError(f"{old_dir} is not finished; `{PROG} {old_dir}` computes it")
    new_dir = old_dir.parent.with_name(old_dir.parent.name + openings.AGAIN) / old_dir.name
    make_folder(new_dir)
    new = record.read(new_dir)
    if new is None or not new.finished:
        write_bytes(new_dir / folder.RUN, RunSpec.from_dict(old.spec).dump().encode())
        new = _execute(new_dir)
        if not new.finished:
            return _say_failure(new)
    else:
        print(f"{new_dir} was computed before; delete it to compute it once more", file=sys.stderr)
    try:
        same = (old_dir / folder.ADAPTER).read_bytes() == (new_dir / folder.ADAPTER).read_bytes()
    except OSError as error:
        raise UserError(f"the adapters can't be compared: {error.filename}: {error.strerror}") from error
    differing = differences(old, new)
    print(f"\n{old_dir}\n{new_dir}")
    if not differing and same:
        print("the same scores to the last digit, and the same adapter")
        return 0
    for line in differing or ["the scores are the same to the last digit; the adapters differ"]:
        print(line)
    for line in origins(old, new):
        print(f"  {line}")
    return 1


def differences(old: Record, new: Record) -> list[str]:
    """The scores that differ between two results of one run."""
    assert old.metrics is not None
    assert new.metrics is not None
    found = []
    for split in ("val", "test"):
        a, b = (getattr(each.metrics, split) for each in (old, new))
        for key, value in (a.model_dump() if a and b else {}).items():
            if value != (now := getattr(b, key)):
                found.append(f"{split} {key}: {value} then, {now} now")
    return found


def origins(old: Record, new: Record) -> list[str]:
    """What differs in the origin of two results of one run, and may explain other numbers."""
    a, b = old.provenance or {}, new.provenance or {}
    keys = [key for key in a if key not in ("started", "finished") and a[key] != b.get(key)]
    return [f"{key}: {a[key]} then, {b.get(key)} now" for key in keys]


if __name__ == "__main__":
    sys.exit(main())
