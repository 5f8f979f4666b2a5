"""Further tables of a report: in table.md, on the page, and as csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench.reporting import build, page, sections, summary, tables
from bench.reporting.curves import Chart, Curve
from bench.reporting.sections import Section
from bench.store.frame import collect
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
    for text in ("<h2>The gap</h2>", '<p class="note">Cosine &amp; more.</p>', "&lt;Cosine&gt;", ">0.12</td>"):
        assert text in page


def test_captions_of_line_figures_are_texts_on_the_page(tmp_path: Path) -> None:
    runs = collect(write(tmp_path / "results", twelve(1)))
    parts = tables.blocks(runs, summary.summarise(runs))
    chart = Chart("c", "<i>x</i>", "y", "<b>all</b> & more", {"p": [Curve("LoRA", (0.0, 1.0), (1.0, 2.0), (0.0, 0.0))]})
    text = page.page(runs, parts, [chart])
    assert text.count("&lt;b&gt;all&lt;/b&gt; &amp; more") == 2  # below the figure, and in its place
    assert "<b>all</b>" not in text
