"""What all commands share: exit codes, error messages, a progress count."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

USER_MISTAKE, INTERRUPTED = 2, 130


def command(function: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Call a command's function; give back the exit code of the process.

    A UserError is one message and exit code 2, Ctrl-C is 130. If the reader of its output ends (`| head`), the
    command ends silently.
    """
    from bench.config.errors import UserError

    try:
        return function(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt as interrupt:
        words = str(interrupt)
        print(f"\n{words}" if words else "", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def given_path(text: str) -> Path:
    """A path from the command line; argparse refuses one with a line break or another character that can't be seen.

    Such a path could not stand in a job script, a log or a report.
    """
    if not text.isprintable() or not text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is empty or has characters that can't be printed; rename the folder"
        )
    return Path(text)


def plugin_option(parser: argparse.ArgumentParser, help: str = "a Python file with more methods or losses") -> None:
    """Add `--plugin FILE`, which may be given several times."""
    parser.add_argument("--plugin", type=given_path, action="append", default=[], metavar="FILE", help=help)


def override_option(parser: argparse.ArgumentParser) -> None:
    """Add `--set KEY=VALUE ...`, which overrides values of a sweep file; they are in `overrides`."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override values of the file, as in train.epochs=2 or grid.seed=[0]; they win over a method's own "
        "train and loss too",
    )


def progress_counter(what: str) -> Callable[[int, int], None] | None:
    """A function (done, total) that shows a count in the terminal; None where the output is not a terminal."""
    if not sys.stdout.isatty():
        return None

    def show(done: int, total: int) -> None:
        print(f"\r{what}: {done}/{total}", end="\n" if done >= total else "", flush=True)

    return show
