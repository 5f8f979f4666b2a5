"""Write the model of a finished run as files for others: a plain open_clip checkpoint, peft's folder, or the adapter.

python -m bench.export results/<sweep>/<run> my-model/                      # what fits its method best
python -m bench.export results/<sweep>/<run> my-model/ --format open_clip   # merged, for plain open_clip
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.config.terminal import command, given_path, plugin_option

PROG = "python -m bench.export"
FORMATS = ("auto", "open_clip", "peft", "adapter")


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The exit code: 0 when the folder is written and checked, 2 for a user's mistake."""
    return command(_run, parser(prog).parse_args(argv))


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=given_path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("out", type=given_path, metavar="DIR", help="a folder that does not exist yet")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="auto",
        help="open_clip: a whole checkpoint; peft: the peft library's adapter; adapter: the trained part, for "
        "bench.load. default: peft where that library can hold it, else open_clip, else adapter",
    )
    parser.add_argument("--license", metavar="ID", help="the licence that the model card names, such as cc-by-4.0")
    plugin_option(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from methods.registry import add_plugin

    for path in arguments.plugin:
        add_plugin(path)
    from bench.compute.export import export  # torch

    done = export(arguments.run, arguments.out, arguments.format, arguments.license)
    print(f"{done.format}: {done.folder}; loaded again, its embeddings differ by at most {done.difference:.1e}")
    print(f"how to load it: {done.folder / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
