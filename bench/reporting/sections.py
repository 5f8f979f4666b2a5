"""Further tables of a report, below the main one, from those who provide them. No torch."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from bench.reporting import behaviour, classes, overview, protocols, tuning
from bench.reporting.further import Section
from bench.store.frame import Runs

__all__ = ["PROVIDERS", "Section", "csv", "sections"]

# Each gives the tables for which the runs have numbers, from the runs and the rows of `summary.summarise`.
PROVIDERS: tuple[Callable[[Runs, pd.DataFrame], list[Section]], ...] = (
    overview.overview,
    tuning.tuning,
    protocols.comparison,
    protocols.reopened,
    behaviour.transfer,
    behaviour.forgetting,
    behaviour.geometry,
    behaviour.classification,
    classes.by_class,
)


def sections(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """The further tables of these runs, in the order of PROVIDERS."""
    return [section for provider in PROVIDERS for section in provider(runs, rows)]


def csv(section: Section) -> str:
    """The numbers in full precision; missing ones are empty."""
    return section.numbers.to_csv(index=False, lineterminator="\n")
