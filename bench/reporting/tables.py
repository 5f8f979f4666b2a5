"""The table of a report: its blocks, and their text as csv and Markdown and for a terminal. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import pandas as pd

from bench.reporting import contamination, options, protocols, significance, training
from bench.reporting.contamination import SEEN
from bench.reporting.further import Section
from bench.reporting.origin import DIFFERS
from bench.reporting.published import notes
from bench.reporting.significance import TIED
from bench.reporting.summary import CHOSEN, DEPARTS, MEANINGS, OUTSIDE, SHORT, TABLE_COLUMNS
from bench.store.frame import RECALLS, Runs

DASH = "–"
PUBLISHED = "Published mean recall of these methods, as printed, from runs under other conditions"


def csv(rows: pd.DataFrame) -> str:
    """The numbers in full precision; missing ones are empty."""
    words = {True: "true", False: "false"}
    rows = rows.assign(
        chosen=rows["chosen"].map(words),
        tied_with_best=rows["tied_with_best"].map(words),
        recipe_departs=rows["recipe_departs"].map(" ".join),
    )
    return rows[list(TABLE_COLUMNS)].to_csv(index=False, lineterminator="\n")


@dataclass(frozen=True)
class Cell:
    """A number as text, its standard deviation as text, its value, and whether it is its column's best or second.

    There is no best where all are equal, and no second among two.
    """

    text: str
    std: str = ""
    value: float | None = None
    best: bool = False
    second: bool = False


@dataclass(frozen=True)
class Line:
    """One row of a table, formatted."""

    method: str
    title: str  # of the method, as in papers
    config: str  # with the mark CHOSEN where the row is chosen
    recipe: str  # its name, with the mark DEPARTS where the row departs from it; empty without one
    chosen: bool
    params: int | None
    seeds: str  # "3", or "2 of 3" where runs are missing
    marks: str  # of SHORT, OUTSIDE, DIFFERS, SEEN and those of the protocol
    tied: bool  # whether its mean recall has the mark TIED
    recalls: tuple[Cell, ...]  # in the order of RECALLS
    time: Cell
    memory: Cell
    flops: Cell


@dataclass(frozen=True)
class Block:
    """The rows of one dataset and backbone, and the facts that hold for all of them."""

    dataset: str
    backbone: str
    training: str  # what most rows share, in the shortest form; empty where nothing trains
    facts: tuple[tuple[str, str], ...]
    departures: tuple[str, ...]  # "harma-released: harma: train.epochs": who departs from a recipe, and in what
    published: tuple[str, ...]  # of its methods
    lines: tuple[Line, ...]
    rows: pd.DataFrame

    @property
    def title(self) -> str:
        """The block's heading."""
        return f"{self.dataset}, {self.backbone}"

    @property
    def choice(self) -> str:
        """How the epoch was chosen."""
        return dict(self.facts)["Choice"]

    @property
    def titles(self) -> dict[str, str]:
        """What papers call its methods."""
        return {line.method: line.title for line in self.lines}

    @property
    def columns(self) -> dict[str, str]:
        """The columns between the method and its parameters, by the attribute of a line that they show."""
        recipes = {line.recipe for line in self.lines}
        named = {"config": any(line.config for line in self.lines), "recipe": len(recipes) > 1 or bool(self.departures)}
        return {key: key.title() for key, shown in named.items() if shown}

    @property
    def marks(self) -> list[str]:
        """The marks of its rows."""
        used = {
            mark
            for line in self.lines
            for mark in line.marks + line.recipe[-1:] + CHOSEN * line.chosen + TIED * line.tied
        }
        return [mark for mark in MEANINGS if mark in used]


def blocks(
    runs: Runs, rows: pd.DataFrame, said: Mapping[significance.Block, significance.Facts] | None = None
) -> list[Block]:
    """The rows parted by dataset and backbone, formatted. `said`: of `significance.add`."""
    finished, made, asked = runs.finished, [], options.of(runs)
    for (dataset, backbone), part in rows.groupby(["dataset", "backbone"], sort=False):
        part = _ordered(part, asked.order)
        here = finished[(finished["dataset"] == dataset) & (finished["backbone"] == backbone)]
        seeds = runs.frame.loc[(runs.frame["dataset"] == dataset) & (runs.frame["backbone"] == backbone), "seed"]
        shared = training.common(part.loc[part["trains"], "settings"])
        departs = [key for keys in part["departs"] for key in keys]
        facts = (
            *_facts(str(dataset), str(backbone), here),
            *_training(shared, departs),
            ("Choice", protocols.CHOICE[protocols.of_block(part["protocol"])]),
            *_recipe(part),
            ("Seeds", _join(sorted(seeds.dropna().unique()))),
            *contamination.facts(part["settings"]),
            *(said or {}).get((dataset, backbone), ()),
        )
        leaders = {name: _leaders(part[name], asked.precision) for name in RECALLS}
        lines = tuple(_line(row, leaders, runs.titles, asked.precision) for row in part.to_dict("records"))
        short = training.stated(shared, training.SHORTEST)
        published = tuple(notes(str(dataset), set(part["method"])))
        made.append(Block(str(dataset), str(backbone), short, facts, _departures(part), published, lines, part))
    return sorted(made, key=lambda block: block.backbone) if asked.group == "backbone" else made


def _ordered(rows: pd.DataFrame, order: str) -> pd.DataFrame:
    """The rows of a block, the best first, or the smallest; missing ones last. `file` leaves them as they are."""
    if order == "file":
        return rows
    key, up = ("mean_recall", False) if order == "mean_recall" else ("trainable_params", True)
    return rows.sort_values(key, ascending=up, kind="stable", na_position="last")


def _leaders(values: pd.Series, precision: int) -> tuple[str | None, str | None]:
    """The best and the second number of a column as shown; None where all are equal, and where there are but two."""
    shown = [f"{value:.{precision}f}" for value in sorted(values.dropna().unique(), reverse=True)]
    distinct = list(dict.fromkeys(shown))
    return (distinct[0] if len(distinct) > 1 else None), (distinct[1] if len(distinct) > 2 else None)


def _marks(row: dict[str, Any], short: bool, seen: bool) -> str:
    """The marks behind a row's number of seeds."""
    own = {SHORT: short, OUTSIDE: row["outside_grid"], DIFFERS: row["origin_differs"], SEEN: seen}
    return "".join(mark for mark, holds in own.items() if holds) + protocols.marks(row)


def _line(
    row: dict[str, Any], leaders: dict[str, tuple[str | None, str | None]], titles: Mapping[str, str], precision: int
) -> Line:
    decimals = f"{{:.{precision}f}}".format
    recalls = tuple(
        Cell(
            _shown(row[name], decimals),
            "" if pd.isna(row[f"{name}_std"]) else _shown(row[f"{name}_std"], decimals),
            None if pd.isna(row[name]) else float(row[name]),
            _shown(row[name], decimals) == leaders[name][0],
            _shown(row[name], decimals) == leaders[name][1],
        )
        for name in RECALLS
    )
    short = row["seeds"] < row["known"]
    tied = row["tied_with_best"] is True and not recalls[-1].best
    if tied:
        recalls = (*recalls[:-1], replace(recalls[-1], text=recalls[-1].text + TIED))
    seen = contamination.contaminated(row["settings"]) is not None
    return Line(
        method=row["method"],
        title=options.title(row["method"], titles),
        config=options.short(row["config"]) + CHOSEN * bool(row["chosen"]),
        recipe=row["recipe"] + DEPARTS * bool(row["recipe_departs"]),
        chosen=bool(row["chosen"]),
        params=None if pd.isna(row["trainable_params"]) else int(row["trainable_params"]),
        seeds=f"{row['seeds']} of {row['known']}" if short else str(row["seeds"]),
        marks=_marks(row, short, seen),
        tied=tied,
        recalls=recalls,
        time=Cell(_shown(row["train_seconds"], seconds), value=_number(row["train_seconds"])),
        memory=Cell(_shown(row["peak_bytes"], size), value=_number(row["peak_bytes"])),
        flops=Cell(_shown(row["flops_per_pair"], flops), value=_number(row["flops_per_pair"])),
    )


def _recipe(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """The recipe that all rows have, where none departs from it; otherwise there is a column."""
    name = rows["recipe"].iloc[0]
    if name and (rows["recipe"] == name).all() and not rows["recipe_departs"].map(len).any():
        yield "Recipe", name


def _departures(rows: pd.DataFrame) -> tuple[str, ...]:
    """The rows that depart from their recipes, those with the same recipe and keys in one text."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows.itertuples():
        if row.recipe_departs:
            found.setdefault((str(row.recipe), ", ".join(row.recipe_departs)), {})[str(row.method)] = None
    return tuple(f"{recipe}, {', '.join(methods)}: {keys}" for (recipe, keys), methods in found.items())


def _training(shared: dict[str, Any], departs: Sequence[str]) -> Iterator[tuple[str, str]]:
    if text := training.stated(shared, training.STATED, [*training.unusual(shared), *departs]):
        yield "Training", f"{text}{'; where a row differs, its config says so' if departs else ''}"


def _facts(dataset: str, backbone: str, runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
    origin = runs["provenance"]
    split = _differing([p.get("split") for p in origin])
    images, captions = _differing(runs["images"]), _differing(runs["captions"])
    yield "Dataset", f"{dataset}, split {split}: {images} test images, {captions} captions"
    weights = _differing([p.get("weights") for p in origin])
    yield "Backbone", backbone if backbone.endswith(f"/{weights}") else f"{backbone}, weights {weights}"
    ties = "expected recall under random tie order; "
    if runs[["i2t_ties", "t2i_ties"]].isna().all(axis=None):
        yield "Ties", ties + "number of tied queries unknown"
        return
    tied = runs[(runs["i2t_ties"].fillna(0) > 0) | (runs["t2i_ties"].fillna(0) > 0)]
    if tied.empty:
        yield "Ties", ties + "no query tied in any run"
        return
    width = (tied["mean_recall_optimistic"] - tied["mean_recall_pessimistic"]).max()
    bound = "" if pd.isna(width) else f" (mean recall moves by at most {width:.2f} points with their order)"
    yield (
        "Ties",
        f"{ties}{len(tied)} of {len(runs)} runs had tied queries, "
        f"at most {tied['i2t_ties'].max():,} images and {tied['t2i_ties'].max():,} captions{bound}",
    )


def _differing(values: Any) -> str:
    """The one value of all runs, or all of them marked as differing, or a dash."""
    texts = dict.fromkeys(f"{v:,}" if isinstance(v, Integral) else str(v) for v in values if pd.notna(v))
    return DASH if not texts else next(iter(texts)) if len(texts) == 1 else f"[differs: {', '.join(texts)}]"


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _shown(value: Any, as_text: Callable[[float], str] = "{:.2f}".format) -> str:
    return DASH if pd.isna(value) else as_text(float(value))


def _join(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) or DASH


def seconds(value: float) -> str:
    """A duration as text: 8.1 s, 4.2 min, 1.35 h."""
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.2f} h"


def size(value: float) -> str:
    """Bytes as GB or MB of 1000s."""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def flops(value: float) -> str:
    """Operations of a pair in GFLOPs: 14.6 G."""
    return f"{value / 1e9:.1f} G" if value >= 1e9 else f"{value / 1e6:.1f} M"


def params(count: int | None, exact: bool = True) -> str:
    """161,088, or 0.16M as the papers print it (exact below 100,000)."""
    if count is None:
        return DASH
    if exact or count < 100_000:
        return f"{count:,}"
    return f"{count / 1e6:.2f}M" if count < 99.5e6 else f"{count / 1e6:.0f}M"


@dataclass(frozen=True)
class Missing:
    """A run without a result in the table, and why."""

    run_id: str
    status: str
    note: str


def unfinished(runs: Runs) -> list[Missing]:
    """The runs without a result in the table: failures first, runs that never ran last."""
    order = {"failed": 0, "unreadable": 1, "superseded": 2, "missing": 3}
    left = [Missing(str(row.run_id), str(row.status), str(row.note)) for row in runs.unfinished.itertuples()]
    return sorted(left, key=lambda run: order[run.status])


def code(runs: Runs) -> str:
    """The commits that made the runs, uncommitted changes marked."""
    origin = [p for p in runs.finished["provenance"] if p.get("git_commit")]
    return _differing(
        [f"{str(p['git_commit'])[:12]}{' with uncommitted changes' if p.get('git_dirty') else ''}" for p in origin]
    )


HEADER = ("I2T R@1", "R@5", "R@10", "T2I R@1", "R@5", "R@10", "mR")


def markdown(runs: Runs, parts: Sequence[Block], more: Sequence[Section] = ()) -> str:
    """table.md: what the numbers are, one table a block, the further tables, then the runs without a result."""
    asked = options.of(runs).columns
    out = [
        f"# {_md(runs.sweep)}",
        "",
        "Recall of image-text retrieval on the test set, in percent: mean ± sample standard deviation over seeds.",
        "I2T finds a caption of an image, T2I the image of a caption; mR is the mean of the six.",
        "Bold: the best of a column.",
        f"Code: commit {_md(code(runs))}.",
        *([f"Command: {_md_code(runs.command)}"] if runs.command else []),
    ]
    for block in parts:
        out += ["", f"## {_md(block.title)}", "", *(f"- {name}: {_md(text)}" for name, text in block.facts), ""]
        out += _md_table(block, asked)
        for mark in block.marks:
            out += ["", f"{mark} {MEANINGS[mark]}{':' if mark == DEPARTS else '.'}"]
            out += ["", *(f"- {_md(text)}" for text in block.departures)] if mark == DEPARTS else []
        if block.published:
            out += ["", f"{PUBLISHED}:", "", *(f"- {_md(text)}" for text in block.published)]
    for section in more:
        cells = [[_md(str(cell)) for cell in row] for row in section.shown.to_numpy().tolist()]
        head = [_md(str(name)) for name in section.shown.columns]
        out += ["", f"## {_md(section.title)}", "", _md(section.note), "", *_md_grid(head, cells, left=1)]
    left = unfinished(runs)
    if left:
        out += ["", f"## Not in the table: {len(left)} of {len(runs.frame)} runs", ""]
        out += [f"- {_md(run.run_id)}: {run.status}: {_md(run.note)}" for run in left]
    return "\n".join(out) + "\n"


_MD_HEAD = {
    **{"params": "Params", "seeds": "Seeds", **dict(zip(RECALLS, HEADER, strict=True))},
    **{"train_seconds": "Train time", "peak_bytes": "Peak memory", "flops_per_pair": "FLOPs a pair"},
}
_MD_COLUMNS = tuple(key for key in _MD_HEAD if key != "flops_per_pair")


def _md_table(block: Block, asked: Sequence[str] | None) -> list[str]:
    keys, named = asked or _MD_COLUMNS, block.columns
    recalls = [key for key in keys if key in RECALLS]
    alone = bool(recalls) and not set(RECALLS) <= set(keys)  # without its neighbours, R@5 needs its direction

    def head(key: str) -> str:
        return f"{key[:3].upper()} R@{key[5:]}" if alone and "_r" in key and key in RECALLS[:-1] else _MD_HEAD[key]

    rows = [
        [_md(line.method), *(_md(getattr(line, key)) for key in named), *(_md_cell(line, key) for key in keys)]
        for line in block.lines
    ]
    return _md_grid(["Method", *named.values(), *map(head, keys)], rows, left=1 + len(named))


def _md_cell(line: Line, key: str) -> str:
    if key in RECALLS:
        cell = line.recalls[RECALLS.index(key)]
        return (f"**{cell.text}**" if cell.best else cell.text) + (f" ± {cell.std}" if cell.std else "")
    if key == "params":
        return params(line.params)
    if key == "seeds":
        return line.seeds + line.marks
    return {"train_seconds": line.time, "peak_bytes": line.memory, "flops_per_pair": line.flops}[key].text


def _md_grid(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """A Markdown table of escaped cells; the first `left` columns are text, the others numbers."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]

    def joined(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    return [joined(head), joined(rule), *map(joined, rows)]


def _md(text: str) -> str:
    """Text as itself in Markdown: nothing in it marks up, breaks the table or becomes HTML."""
    text = re.sub(r"([\\`*\[\]|#~])|(?<![^\W_])(_)|(_)(?![^\W_])", r"\\\g<0>", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _md_code(text: str) -> str:
    """Text as code, to copy as it is; escaped as other text where it has characters that could end the code."""
    return _md(text) if re.search(r"[`<>&\n]", text) else f"`{text}`"


def terminal(runs: Runs, parts: Sequence[Block]) -> str:
    """The table for a terminal, mean recall with its deviation, and the first runs that are missing."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=160, color_system=None, legacy_windows=False, emoji=False)
    with console.capture() as capture:
        for block in parts:
            table = Table(box=SIMPLE_HEAD, title=Text(f"{block.title}: test recall in percent"), title_justify="left")
            for name in ("method", *block.columns):
                table.add_column(name, max_width=40, overflow="fold")
            for name in ("params", "seeds", *HEADER):
                table.add_column(name, justify="right", no_wrap=True)
            for line in block.lines[:60]:
                recalls = [c.text for c in line.recalls[:-1]]
                mean = line.recalls[-1]
                names = [line.method, *(getattr(line, key) for key in block.columns)]
                cells = [*names, params(line.params, exact=False), line.seeds + line.marks]
                table.add_row(*map(Text, [*cells, *recalls, mean.text + (f" ± {mean.std}" if mean.std else "")]))
            console.print(table)
            for name, text in block.facts:
                if name == "Ranking":
                    console.print(Text(f"  {text}"), soft_wrap=True)
            if block.training:
                console.print(Text(f"  trained with {block.training}; {block.choice}"), soft_wrap=True)
            if len(block.lines) > 60:
                console.print(f"  ... and {len(block.lines) - 60} more rows")
            for mark in block.marks:
                console.print(f"  {mark} {MEANINGS[mark]}")
        left = unfinished(runs)
        for run in left[:10]:
            console.print(Text(f"{run.run_id}: {run.status}: {run.note}"), soft_wrap=True)
        if len(left) > 10:
            console.print(f"... and {len(left) - 10} more runs without a result")
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")
