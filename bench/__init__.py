"""PETL-Bench: parameter-efficient transfer learning for CLIP on remote-sensing image-text retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.adapted import Adapted

__all__ = ["load"]


def load(run_dir: str | Path, device: str | None = None) -> Adapted:
    """The adapted model of a finished run, with its preprocess and tokenizer: see `bench.adapted.Adapted`."""
    from bench.adapted import load as load_run

    return load_run(Path(run_dir), device)
