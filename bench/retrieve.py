"""Find the images of a folder that fit a caption best, with the adapted model of a finished run.

python -m bench.retrieve results/<sweep>/<run> "two planes beside a terminal" pictures/ --out sheet.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bench.config.terminal import command, given_path, plugin_option, progress_counter

if TYPE_CHECKING:
    from bench.compute.retrieval import Retrieval

PROG = "python -m bench.retrieve"
SKIPPED = 5  # files that a note lists


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The exit code: 0 when the sheet is written, 2 for a user's mistake."""
    return command(_run, parser(prog).parse_args(argv))


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=given_path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("caption", metavar="CAPTION", help="what to look for, in words")
    parser.add_argument("folder", type=given_path, metavar="FOLDER", help="pictures, in folders of any depth")
    parser.add_argument("--top", type=int, default=12, metavar="N", help="how many images; default: %(default)s")
    parser.add_argument(
        "--out", type=given_path, default=Path("sheet.png"), metavar="FILE", help="the sheet; default: %(default)s"
    )
    parser.add_argument("--device", metavar="D", help="a device of torch; default: the first GPU, else cpu")
    plugin_option(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from bench.config.errors import UserError
    from methods.registry import add_plugin

    if arguments.out.suffix.lower() != ".png":
        raise UserError(f"--out {arguments.out}: the sheet is a PNG; give a name that ends with .png")
    for path in arguments.plugin:
        add_plugin(path)
    from bench.compute.retrieval import retrieve as find  # torch
    from bench.compute.sheet import png
    from bench.config.files import write_bytes

    counter = progress_counter("pictures")
    found = find(arguments.run, arguments.caption, arguments.folder, arguments.top, arguments.device, counter)
    for line in _lines(found):
        print(line.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"))
    write_bytes(arguments.out, png(found))
    print(f"\nsheet: {arguments.out}")
    return 0


def _lines(found: Retrieval) -> list[str]:
    from bench.compute.sheet import printable

    names = [printable(str(path.relative_to(found.folder))) for path, _ in found]
    lines = [
        f"{rank:>3}  {score:6.3f}  {name}" for rank, (name, (_, score)) in enumerate(zip(names, found, strict=True), 1)
    ]
    if found.skipped:
        shown = [f"  {printable(str(path))}: {printable(reason)}" for path, reason in found.skipped[:SKIPPED]]
        more = len(found.skipped) - len(shown)
        lines += ["", f"skipped {len(found.skipped)}:", *shown, *([f"  and {more} more"] if more else [])]
    return lines


class _Command(ModuleType):
    """This module, which is also the function of its name: importing it puts it in the function's place in `bench`."""

    def __call__(self, *args: Any, **options: Any) -> Retrieval:
        from bench.compute.retrieval import retrieve

        return retrieve(*args, **options)


sys.modules[__name__].__class__ = _Command

if __name__ == "__main__":
    sys.exit(main())
