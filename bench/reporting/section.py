"""A further table of a report: a name, a title, a note, numbers and their text, and perhaps a figure. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """One table. `numbers` goes into `<name>.csv` in full precision, `shown` (text, the same rows) to readers.

    note: what the numbers are, in one or two sentences. `shown`: column names as readers see them; the first column
    names the row. figure: draws a picture of the numbers on light or dark paper; None where there is none.
    """

    name: str
    title: str
    note: str
    numbers: pd.DataFrame
    shown: pd.DataFrame
    figure: Callable[[bool], Figure] | None = None
