"""`python -m bench.data`: list the known datasets, check one on disk, or look for duplicates in several.

Exit codes: 0 clean, 1 problems or training images that are held-out ones too, 2 misuse.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config.terminal import command, given_path
from bench.data import DATASETS
from bench.data.annotations import FILES

if TYPE_CHECKING:
    from bench.config.settings import AnyDataset

PROG = "python -m bench.data"


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """0: no problems; 1: the data has problems; 2: the user has something to fix."""
    return command(_run, parser(prog).parse_args(argv))


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog=prog, description="Datasets: what is known, what is on disk.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the known datasets, their splits and the files they are read from")
    check = commands.add_parser("check", help="counts per split, and every problem with the images and captions")
    check.add_argument("name", choices=[*DATASETS, "captions"])
    check.add_argument("--root", help="folder that holds the images")
    check.add_argument("--split", help=f"{', '.join(FILES)} (default: the first in `list`); of captions: a column")
    check.add_argument("--annotations", help="folder that holds the annotation files; default: the root")
    for key in ("image", "caption", "label"):
        check.add_argument(f"--{key}", help=f"of captions: the column of the {key}; default: by its usual name")
    check.add_argument("--file", nargs="+", help="of captions: the file, or train=FILE val=FILE test=FILE")
    check.add_argument(
        "--out", type=given_path, help="file for the whole lists; default: one in the cache, if a list is cut"
    )
    audit = commands.add_parser("audit", help="duplicate images and captions within and across datasets and splits")
    audit.add_argument(
        "datasets",
        nargs="+",
        metavar="NAME=ROOT[,KEY=VALUE...]",
        help="datasets with their folders and other settings, such as rsitmd=/data/RSITMD,split=pir; without a folder "
        "the one in $RSITMD_ROOT is taken",
    )
    audit.add_argument(
        "--out", type=given_path, default=Path("audit"), help="folder for the page, the tables and the lists (audit)"
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    return {"list": lambda _: _list(), "check": _check, "audit": _audit}[arguments.command](arguments)


def _list() -> int:
    from bench.data.survey import table

    print(table())
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from bench.config.document import Document
    from bench.config.parse import parse
    from bench.config.settings import dataset_class
    from bench.data.survey import check

    keys = ("name", "root", "split", "annotations", "image", "caption", "label")
    given = {key: value for key in keys if (value := getattr(arguments, key)) is not None}
    if arguments.file:
        parted = [text.partition("=") for text in arguments.file]
        several = all(equals for _, equals, _ in parted)
        given["file"] = {key: file for key, _, file in parted} if several else " ".join(arguments.file)
    document = Document(given, {(): "the command line"})
    return 1 if check(parse(dataset_class(given), given, "dataset", document), out=arguments.out) else 0


def _audit(arguments: argparse.Namespace) -> int:
    from bench.data.audit import audit

    return 1 if audit([_given(text) for text in arguments.datasets], arguments.out) else 0


def _given(text: str) -> AnyDataset:
    """The settings of one dataset of `audit`; UserError for what they do not fit."""
    from bench.config.document import Document
    from bench.config.parse import parse
    from bench.config.settings import dataset_class

    first, *others = text.split(",")
    name, _, root = first.partition("=")
    root = root or os.environ.get(f"{name.upper()}_ROOT", "")
    given = {"name": name, **({"root": root} if root else {})}
    given |= {key: value for key, _, value in (other.partition("=") for other in others)}
    return parse(dataset_class(given), given, "dataset", Document(given, {(): f"audit {text}"}))


if __name__ == "__main__":
    sys.exit(main())
