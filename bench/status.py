"""Show the state of every run of a sweep, retry failed and lost runs, or cancel the sweep's jobs. No torch.

A run is finished or failed if it has a result, and running if a process computes it. All others wait: in a scheduler's
queue, or to be submitted. A run is lost if it was started or submitted, but two looks find no process or job for it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config.errors import UserError
from bench.config.terminal import command, given_path, plugin_option
from bench.launch.display import plain, render
from bench.launch.overview import Picture, Status, cancel, find, retry
from bench.store.standing import OVER
from methods.registry import add_plugin

if TYPE_CHECKING:
    from rich.console import RenderableType

PROG = "python -m bench.status"
WATCH_SECONDS = 5.0


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The exit code: 0 when done, 2 if the user has something to fix, 130 after Ctrl-C."""
    return command(_run, parser(prog).parse_args(argv))


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("target", type=given_path, metavar="SWEEP", help="a sweep file, or its folder in the results")
    parser.add_argument("--watch", action="store_true", help="keep looking until nothing runs or waits any more")
    parser.add_argument("--all", action="store_true", help="list every run")
    parser.add_argument("--json", action="store_true", help="for programs; with --watch a line a look")
    parser.add_argument(
        "--results", type=given_path, default=Path("results"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--reports",
        type=given_path,
        metavar="DIR",
        help="for --retry: where the report goes; default: as the sweep's",
    )
    plugin_option(parser, help="the sweep's plug-in, for --retry")
    act = parser.add_mutually_exclusive_group()
    act.add_argument(
        "--retry", action="append", choices=("failed", "lost"), help="start these runs again; may be given twice"
    )
    act.add_argument("--cancel", action="store_true", help="end this sweep's cluster jobs, and no others")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    for path in arguments.plugin:
        add_plugin(path)
    status = find(arguments.target, arguments.results)
    if arguments.cancel:
        print(cancel(status.folder))
    elif arguments.retry:
        picture = status.look_twice()
        if not picture.queue_known:
            raise UserError(f"{picture.scheduler} did not answer, so nothing was submitted; try again later")
        count = retry(status, picture, arguments.retry, reports=arguments.reports)
        print(f"tried again: {count} runs")
    elif arguments.watch:
        _watch(status, arguments)
    else:
        _show(_look(status) if sys.stdout.isatty() else status.look_twice(), arguments)
    return 0


def hints(picture: Picture, arguments: argparse.Namespace) -> list[str]:
    """The commands that retry failed and lost runs, if there are any."""
    target = shlex.quote(str(arguments.target))
    for option, default in (("results", Path("results")), ("reports", None)):
        if (given := getattr(arguments, option)) != default:
            target += f" --{option} {shlex.quote(str(given))}"
    found = []
    for state, what in (("failed", "tries the failed ones again"), ("lost", "submits the lost ones again")):
        if picture.counts[state]:
            found.append(f"python -m bench.status {target} --retry {state}   # {what}")
    return found


def _show(picture: Picture, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(picture.to_dict(), indent=None if arguments.watch else 2), flush=True)
    elif sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(render(picture, console.width, everything=arguments.all))
        for line in hints(picture, arguments):
            console.print(line, style="dim", highlight=False, soft_wrap=True)
    else:
        print(plain(picture, arguments.all), flush=True)


def _look(status: Status) -> Picture:
    """Look with a spinner in the terminal: a second look, or a slow scheduler, takes some seconds."""
    from rich.console import Console

    with Console(stderr=True).status("looking"):
        return status.look_twice()


def _watch(status: Status, arguments: argparse.Namespace) -> None:
    """Look every WATCH_SECONDS until all is over; redraw in a terminal, otherwise print each look."""
    picture = status.look()
    if arguments.json or not sys.stdout.isatty():
        _show(picture, arguments)
        while not _over(picture):
            time.sleep(WATCH_SECONDS)
            picture = status.look()
            _show(picture, arguments)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()

    def drawn() -> RenderableType:
        return render(picture, console.width, everything=arguments.all, height=console.height)

    with Live(drawn(), console=console, auto_refresh=False) as live:
        while not _over(picture):
            time.sleep(WATCH_SECONDS)
            picture = status.look()
            live.update(drawn(), refresh=True)


def _over(picture: Picture) -> bool:
    """Whether no run is left that starts without the user."""
    return all(run.state in OVER for run in picture.runs) and not (picture.later and picture.goes_on)


if __name__ == "__main__":
    sys.exit(main())
