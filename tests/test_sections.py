"""Further tables of a report: in table.md, on the page, and as csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench.reporting import build, sections
from bench.reporting.sections import Section
from tests.test_report import twelve, write


def test_a_further_table_is_in_every_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = pd.DataFrame({"method": ["a_b"], "cosine": [0.123456789]})
    shown = pd.DataFrame({"Method": ["a_b"], "<Cosine>": ["0.12"]})
    table = Section("gap", "The gap", "Cosine & more.", numbers, shown)
    monkeypatch.setattr(sections, "PROVIDERS", (lambda runs, rows: [table],))

    out = build.build(write(tmp_path / "results", twelve()), tmp_path / "out").out_dir

    assert (out / "gap.csv").read_text() == "method,cosine\na_b,0.123456789\n"
    assert "## The gap\n\nCosine &amp; more.\n\n| Method | &lt;Cosine&gt; |\n" in (out / "table.md").read_text()
    page = (out / "index.html").read_text()
    for text in ("<h2>The gap</h2>", "&lt;Cosine&gt;", ">0.12</td>"):
        assert text in page
