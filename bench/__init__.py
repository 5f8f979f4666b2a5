"""PETL-Bench: parameter-efficient transfer learning for CLIP on remote-sensing image-text retrieval.

This package is the Python API; its modules without a folder are the commands.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config.version import VERSION as __version__


def _check_methods() -> None:
    """Stop if another package `methods`, as in the current folder, would be imported in place of PETL-Bench's own."""
    found = find_spec("methods")
    places = [Path(each).resolve() for each in (found.submodule_search_locations or ())] if found else []
    own = Path(__file__).resolve().parents[1] / "methods"
    if places == [own]:
        return
    other = places[0] if places else Path(found.origin or "?") if found else None
    words = f"{other} hides the package 'methods' of PETL-Bench ({own}); start from another folder, or rename that one"
    if sys.argv[0] == "-m":  # a command: Python has this here while it imports the package of `python -m`
        print(f"error: {words}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(words)


_check_methods()

from bench import demo as demo  # noqa: E402  makes the demo's dataset and backbone known

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    import pandas as pd

    from bench.compute.adapted import Adapted
    from bench.compute.retrieval import Retrieval

__all__ = ["__version__", "demo", "load", "results", "retrieve"]


def results(
    folders: str | PathLike[str] | Sequence[str | PathLike[str]] = "results/*", *, unfinished: bool = False
) -> pd.DataFrame:
    """A tidy table with one row a run of these results folders: see `bench.store.tidy.results`."""
    from bench.store.tidy import results as results_of

    return results_of(folders, unfinished=unfinished)


def load(run_dir: str | Path, device: str | None = None, weights: str | None = None) -> Adapted:
    """The adapted model of a finished run, ready to encode pictures and texts: see `bench.compute.adapted.Adapted`.

    `device` names a torch device; by default the first GPU, else the CPU. `weights`: where the backbone's are on this
    machine, if not where the run had them. UserError if there is no finished run.
    """
    from bench.compute.adapted import load as load_run

    return load_run(Path(run_dir), device, weights)


def retrieve(
    run: str | Path | Adapted,
    caption: str,
    folder: str | Path,
    top: int = 10,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Retrieval:
    """The `top` images under `folder` that fit the caption best: see `bench.compute.retrieval.retrieve`.

    Iterating over it gives (path, score). The command `bench.retrieve`, once imported, can be called in the same way.
    """
    from bench.compute.retrieval import retrieve as find

    return find(run, caption, folder, top, device, progress)
