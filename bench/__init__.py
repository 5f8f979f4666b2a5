"""PETL-Bench: parameter-efficient transfer learning for CLIP on remote-sensing image-text retrieval.

This package is the Python API; its modules without a folder are the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench import demo as demo  # makes the demo's dataset and backbone known

if TYPE_CHECKING:
    from bench.compute.adapted import Adapted

__all__ = ["demo", "load"]


def load(run_dir: str | Path, device: str | None = None) -> Adapted:
    """The adapted model of a finished run, with its preprocess and tokenizer: see `bench.compute.adapted.Adapted`.

    `device` names a torch device; by default the first GPU, else the CPU. UserError if there is no finished run.
    """
    from bench.compute.adapted import load as load_run

    return load_run(Path(run_dir), device)
