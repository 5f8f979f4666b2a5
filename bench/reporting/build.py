"""Writes the report of a results folder: tables, figures and a page. No torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.config.errors import UserError
from bench.config.files import write_bytes
from bench.reporting import bundle, curves, figures, latex, origin, sections, significance, summary, tables
from bench.reporting.further import Section
from bench.reporting.page import page
from bench.store.frame import collect, collect_all
from bench.store.planned import Plan


@dataclass(frozen=True)
class Report:
    """The files of a report, its table as text, and how many runs there are; `unfinished` ones have no numbers.

    more: its further tables.
    """

    out_dir: Path
    paths: tuple[Path, ...]
    text: str
    runs: int
    unfinished: int
    more: tuple[Section, ...] = ()

    @property
    def index(self) -> Path:
        """The report's page."""
        return self.out_dir / "index.html"

    @property
    def progress(self) -> str:
        """How far the sweep is, in a line."""
        return f"{self.runs - self.unfinished} of {self.runs} runs finished: {self.index}"

    def print_table(self) -> None:
        """Print the table and the first runs missing from it."""
        encoding = sys.stdout.encoding or "utf-8"
        print(self.text.encode(encoding, "replace").decode(encoding))


def build(
    results: Path | Sequence[Path],
    out_dir: Path | None = None,
    plan: Plan | None = None,
    *,
    only: bool = False,
    plain: bool = False,
    style: figures.Style = "paper",
    live: int | None = None,
) -> Report:
    """Write the report of `results/<sweep>` for this plan (default: its newest), by default to `reports/<sweep>`.

    results: a folder, or several, whose newest plans make one report, by default in `reports/<a>+<b>`.
    only: leave out finished runs that are not in the plan, even if the sweep was started to keep them.
    plain: without intervals and marks of ties, even if the sweep file does not say so.
    live: the page loads itself again after so many seconds.

    Files: table.csv, .md and .tex, runs.csv, provenance.json, png and pdf of each figure (`bundle.drawn`), a csv
    and a tex of each of `sections.sections`, supplement.tex, index.html; each written atomically. The same results give
    the same bytes. UserError if there are no runs, or if the files can't be written.
    """
    folders = [results] if isinstance(results, Path) else list(results)
    runs = collect(folders[0], plan, only=only) if len(folders) == 1 else collect_all(folders, only=only)
    rows = summary.summarise(runs)
    said: dict[significance.Block, significance.Facts] = {}
    if not plain and significance.wanted(runs):
        rows, said = significance.add(runs, rows)
    parts = tables.blocks(runs, rows, said)
    charts = curves.charts(runs, rows)
    more = sections.sections(runs, rows)
    drawn = {each.name: each for each in bundle.drawn(runs, rows, parts, charts, more, style)}
    widths = {name: each.figure.get_figwidth() for name, each in drawn.items()}
    captions = {name: each.caption for name, each in drawn.items()}
    pictures = {f"{n}.{kind}": figures.save(each.figure, kind) for n, each in drawn.items() for kind in ("png", "pdf")}
    files = {
        "table.csv": tables.csv(rows).encode(),
        "table.md": tables.markdown(runs, parts, more).encode(),
        "table.tex": latex.tables(runs, parts).encode(),
        "table_notes.tex": latex.notes(runs, parts).encode(),
        **{f"{section.name}.csv": sections.csv(section).encode() for section in more},
        **{f"{section.name}.tex": latex.section(section).encode() for section in more},
        "runs.csv": origin.runs_csv(runs, rows).encode(),
        "provenance.json": origin.provenance(runs, rows).encode(),
        **pictures,
        "supplement.tex": bundle.supplement(runs, widths, captions, more).encode(),
        "index.html": page(runs, parts, charts, more, live).encode(),
    }
    names = dict.fromkeys(folder.resolve().name for folder in folders)
    out_dir = Path("reports", "+".join(names)) if out_dir is None else out_dir
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
        more=tuple(more),
    )
