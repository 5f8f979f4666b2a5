"""The command `petl-bench`, the same as `python -m bench`: it lists the commands and calls them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from bench.config.version import VERSION

# command -> what it does, in a line. Its module has `parser(prog)` and `main(argv, prog)`.
COMMANDS = {
    "sweep": "from a sweep file to a report: run what is not finished, write the tables",
    "run": "one run: of a method by name, from its folder, or again to compare",
    "status": "the state of every run of a sweep; try failed ones again; cancel",
    "report": "tables, a figure and a page from a sweep's results",
    "retrieve": "the images of a folder that fit a caption best, with a finished run's model",
    "export": "a finished run's model as a plain checkpoint or an adapter folder, with a model card",
    "measure": "what adaptation did to finished runs' models: geometry, transfer, forgetting",
    "data": "the known datasets; check one on disk; find duplicates in several",
    "methods": "the methods there are; what one is, its settings and its paper",
    "check": "the conformance suite on a method of your own",
}
MODULES = {name: f"bench.{name}" for name in COMMANDS} | {"data": "bench.data.__main__"}
SHELLS = ("bash", "zsh", "tcsh")
PROG = "petl-bench"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command; 0 for help and version, 2 for a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        return int(import_module(MODULES[words[0]]).main(words[1:], f"{PROG} {words[0]}"))
    arguments = top().parse_args(words)  # without a command: help, version, completion, or a mistake
    if arguments.command == "completion":
        import shtab

        print(shtab.complete(whole(), arguments.shell))
        return 0
    top().print_help()
    return 0


def top() -> argparse.ArgumentParser:
    """The parser of the command itself; what follows a command's name is that command's own."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="PETL-Bench: compare methods that adapt CLIP to remote-sensing image-text retrieval.",
        epilog=f"`{PROG} COMMAND --help` says more. `python -m bench.COMMAND` is the same command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, does in COMMANDS.items():
        commands.add_parser(name, help=does, add_help=False)
    completion = commands.add_parser(
        "completion",
        help="a script that completes these commands in your shell",
        description=f'For bash: eval "$({PROG} completion bash)" in ~/.bashrc.',
    )
    completion.add_argument("shell", choices=SHELLS)
    return parser


def whole() -> argparse.ArgumentParser:
    """The parser with the options of every command, for completion."""
    parser = argparse.ArgumentParser(prog=PROG)
    commands = parser.add_subparsers(dest="command")
    for name, does in COMMANDS.items():
        inner = import_module(MODULES[name]).parser(f"{PROG} {name}")
        inner_copy = commands.add_parser(name, help=does, parents=[inner], add_help=False, conflict_handler="resolve")
        inner_copy.description = inner.description
    commands.add_parser("completion").add_argument("shell", choices=SHELLS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
