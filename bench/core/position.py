"""How far a run has come. This file imports no torch."""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """Finished epochs, and batches done in the next one. Positions compare: the larger one is further on."""

    epochs: int = 0
    batches: int = 0
