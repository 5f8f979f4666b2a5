"""Further tables of a report, below the main one: each a name, a title, a note, numbers and their text. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from bench.store.frame import Runs


@dataclass(frozen=True)
class Section:
    """One table. `numbers` goes into `<name>.csv` in full precision, `shown` (text, the same rows) to readers.

    note: what the numbers are, in one or two sentences. `shown`: column names as readers see them; the first column
    names the row.
    """

    name: str
    title: str
    note: str
    numbers: pd.DataFrame
    shown: pd.DataFrame


# Each gives the tables for which the runs have numbers, from the runs and the rows of `summary.summarise`.
PROVIDERS: tuple[Callable[[Runs, pd.DataFrame], list[Section]], ...] = ()


def sections(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """The further tables of these runs, in the order of PROVIDERS."""
    return [section for provider in PROVIDERS for section in provider(runs, rows)]


def csv(section: Section) -> str:
    """The numbers in full precision; missing ones are empty."""
    return section.numbers.to_csv(index=False, lineterminator="\n")
