"""All figures of a report with what they show in words, and supplement.tex, which sets tables and figures. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from bench.reporting import bars, classes, curves, figures, latex
from bench.reporting.further import Section
from bench.reporting.tables import Block
from bench.store.frame import Runs


@dataclass(frozen=True)
class Drawn:
    """A figure: its file's name without ending, what it shows, and itself."""

    name: str
    caption: str
    figure: Figure


def drawn(
    runs: Runs,
    rows: pd.DataFrame,
    parts: Sequence[Block],
    charts: Sequence[curves.Chart],
    more: Sequence[Section],
    kind: figures.Style,
) -> Iterator[Drawn]:
    """Each figure for which the runs have numbers. recall_vs_params is always there."""
    for cost in figures.COSTS:
        if cost is figures.PARAMS or _varies(rows, cost.column):
            yield Drawn(cost.name, figures.caption(cost, parts), figures.recall_vs(cost, parts, kind=kind))
    yield Drawn("recall_by_method", bars.BARS, bars.per_method(parts, kind))
    looks = figures.titled_looks(parts)
    for chart in (*charts, *curves.training(runs, rows)):
        yield Drawn(chart.name, chart.caption, curves.draw(chart, kind=kind, looks=looks))
    for heat in bars.grids(parts):
        yield Drawn(heat.name, heat.caption, bars.draw_heat(heat, kind=kind))
    for section in more:
        if section.figure:
            classed = classes.heat(section.name, section.title, section.numbers) if _is_class(section) else None
            figure = bars.draw_heat(classed, kind=kind) if classed else section.figure(False)
            yield Drawn(section.name, f"{section.title}. {section.note}", figure)


def _is_class(section: Section) -> bool:
    return section.name.startswith(classes.NAME)


def _varies(rows: pd.DataFrame, column: str) -> bool:
    trained = rows.loc[(rows["trainable_params"] > 0) & rows["mean_recall"].notna(), column]
    return bool(trained.notna().any())


def supplement(runs: Runs, widths: Mapping[str, float], captions: Mapping[str, str], more: Sequence[Section]) -> str:
    """supplement.tex: a document of two columns with all tables and figures of the folder; pdflatex sets it as it is.

    widths: of each figure, in inches.
    """
    out = [
        "\\documentclass[twocolumn]{article}",
        "\\usepackage{booktabs,graphicx}",
        "\\begin{document}",
        f"\\title{{{latex.escape(runs.sweep)}: all results}}\\author{{}}\\date{{}}\\maketitle",
        *(f"\\input{{{name}}}" for name in ("table", *(section.name for section in more), "table_notes")),
    ]
    for name, width in widths.items():
        kind = "figure" if width <= 1.2 * figures.COLUMN else "figure*"
        out += [
            f"\\begin{{{kind}}}[tbp]\\centering\\emergencystretch=3em",
            f"\\includegraphics[width=\\linewidth,height=0.8\\textheight,keepaspectratio]{{{name}.pdf}}",
            f"\\caption{{{latex.escape(captions[name])}}}",
            f"\\end{{{kind}}}",
        ]
    return "\n".join([*out, "\\end{document}"]) + "\n"
