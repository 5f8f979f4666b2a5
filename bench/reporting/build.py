"""Writes the report of a results folder: tables, figures and a page. No torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from bench.config.errors import UserError
from bench.config.files import write_bytes
from bench.reporting import curves, figures, latex, origin, sections, significance, summary, tables
from bench.reporting.page import page
from bench.store.frame import collect
from bench.store.planned import Plan


@dataclass(frozen=True)
class Report:
    """The files of a report, its table as text, and how many runs there are; `unfinished` ones have no numbers."""

    out_dir: Path
    paths: tuple[Path, ...]
    text: str
    runs: int
    unfinished: int

    @property
    def index(self) -> Path:
        """The report's page."""
        return self.out_dir / "index.html"

    def print_table(self) -> None:
        """Print the table and the first runs missing from it."""
        encoding = sys.stdout.encoding or "utf-8"
        print(self.text.encode(encoding, "replace").decode(encoding))


def build(
    results_dir: Path, out_dir: Path | None = None, plan: Plan | None = None, *, only: bool = False, plain: bool = False
) -> Report:
    """Write the report of `results/<sweep>` for this plan (default: its newest), by default to `reports/<sweep>`.

    only: leave out finished runs that are not in the plan, even if the sweep was started to keep them.
    plain: without intervals and marks of ties, even if the sweep file does not say so.

    Files: table.csv, table.md, table.tex, recall_vs_params.png and .pdf, those of each of `curves.charts`, a csv of
    each of `sections.sections`, index.html; each written atomically. The same results give the same bytes. UserError if
    there are no runs, or if the files can't be written.
    """
    runs = collect(results_dir, plan, only=only)
    rows = summary.summarise(runs)
    said: dict[significance.Block, significance.Facts] = {}
    if not plain and significance.wanted(runs):
        rows, said = significance.add(runs, rows)
    parts = tables.blocks(runs, rows, said)
    charts = curves.charts(runs, rows)
    more = sections.sections(runs, rows)
    drawn = {"recall_vs_params": figures.recall_vs_params(parts)}
    drawn |= {chart.name: curves.draw(chart) for chart in charts}
    files = {
        "table.csv": tables.csv(rows).encode(),
        "table.md": tables.markdown(runs, parts, more).encode(),
        **{f"{section.name}.csv": sections.csv(section).encode() for section in more},
        "table.tex": latex.tables(runs, parts).encode(),
        **{f"{section.name}.tex": latex.section(section).encode() for section in more},
        "runs.csv": origin.runs_csv(runs, rows).encode(),
        "provenance.json": origin.provenance(runs, rows).encode(),
        **{f"{name}.{kind}": figures.save(figure, kind) for name, figure in drawn.items() for kind in ("png", "pdf")},
        "index.html": page(runs, parts, charts, more).encode(),
    }
    out_dir = Path("reports", results_dir.resolve().name) if out_dir is None else out_dir
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_bytes(out_dir / name, content)
    except OSError as error:
        raise UserError(f"cannot write the report to '{out_dir}': {error.strerror}") from error
    return Report(
        out_dir=out_dir,
        paths=tuple(out_dir / name for name in files),
        text=tables.terminal(runs, parts),
        runs=len(runs.frame),
        unfinished=len(runs.unfinished),
    )
