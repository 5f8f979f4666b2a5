"""One further table of a report: a name, a title, a note, numbers and their text. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


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
