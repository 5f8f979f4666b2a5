"""Two sets of results row by row: which rows moved, and by how much: `python -m bench.report compare A B`. No torch."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bench.config.document import read_yaml
from bench.config.errors import UserError
from bench.config.files import is_folder, make_folder, write_bytes
from bench.config.terminal import given_path
from bench.evidence import saved
from bench.evidence import statistics as evidence
from bench.reporting import options, published
from bench.reporting.summary import summarise
from bench.store.frame import RECALLS, Runs, collect
from bench.store.naming import canonical

PUBLISHED = "published"
LEVEL = evidence.LEVEL
DASH = "—"
IMAGES, SEEDS = "images", "seeds"  # what an interval is made of
_APART = ("dataset.root", "dataset.annotations", "dataset.title", "dataset.file", "backbone.weights", "backbone.model")
_CONDITIONS = ("weights", "batch", "epochs", "selection")  # of a published number


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a side: a method with its settings (`trains`: whether it does), and the recalls of its seeds in order.

    found: their mean, by recall; None where unknown. tables: what each image's queries hit, averaged over seeds, where
    the runs saved their ranks. sha256: of the dataset; None if unknown or not one.
    """

    method: str
    config: str
    dataset: str
    backbone: str
    settings: Mapping[str, Any]
    found: Mapping[str, float | None]
    trains: bool = True
    seeds: tuple[int, ...] = ()
    runs: np.ndarray = field(default_factory=lambda: np.zeros((0, len(RECALLS))))
    sha256: str | None = None
    captions: np.ndarray | None = None
    tables: np.ndarray | None = None


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: its name, and its rows by their identity."""

    name: str
    rows: tuple[Row, ...]


@dataclass
class Pair:
    """A row before and after, with what differs in their settings, and in recalls: low and high are interval ends."""

    a: Row
    b: Row
    changed: str
    difference: dict[str, float | None] = field(default_factory=dict)
    low: dict[str, float | None] = field(default_factory=dict)
    high: dict[str, float | None] = field(default_factory=dict)
    p: float | None = None
    basis: str = ""

    @property
    def moved(self) -> str:
        """up or down where the mean recall is told apart at 5%, else "no"; empty where it was not tested."""
        if self.p is None:
            return ""
        return "no" if self.p >= 1 - LEVEL else "up" if (self.difference["mean_recall"] or 0) > 0 else "down"


@dataclass(frozen=True)
class Compared:
    """Two sides, their rows in pairs, and the rows of one side alone."""

    a: Side
    b: Side
    pairs: tuple[Pair, ...]
    only_a: tuple[Row, ...]
    only_b: tuple[Row, ...]


# --- sides ------------------------------------------------------------------------------------------------------------


def side(given: str, results: Path = Path("results")) -> Side | None:
    """The rows of a results folder, of a sweep file's, or of those of its runs that a commit made: `FOLDER@COMMIT`.

    None for "published". UserError where there are none.
    """
    if given == PUBLISHED:
        return None
    folder, commit = Path(given), ""
    if "@" in given and not is_folder(folder):
        place, _, commit = given.rpartition("@")
        folder = Path(place)
        if not re.fullmatch("[0-9a-f]{4,40}", commit):
            raise UserError(f"'{commit}' in '{given}' is no commit: give 4 to 40 of its digits")
    if folder.suffix in (".yaml", ".yml"):
        content = read_yaml(folder)[0]
        folder = results / str(content.get("name", folder.stem) if isinstance(content, dict) else folder.stem)
    runs = collect(folder)
    if commit:
        made = [str(origin.get("git_commit") or "").startswith(commit) for origin in runs.frame["provenance"]]
        runs = replace(runs, frame=runs.frame[made])
    if runs.finished.empty:
        raise UserError(f"no finished run in '{given}'; `python -m bench.status {folder}` says where they stand")
    return Side(given, tuple(_rows(runs)))


def _rows(runs: Runs) -> Iterator[Row]:
    finished = runs.finished
    for row in summarise(runs).to_dict("records"):
        own = finished[finished["group"] == row["group"]].sort_values("seed", kind="stable")
        if own.empty:
            continue
        hashes = {origin.get("dataset_sha256") for origin in own["provenance"]}
        found = Row(
            method=str(row["method"]),
            config=str(row["config"]),
            dataset=str(row["dataset"]),
            backbone=str(row["backbone"]),
            settings=row["settings"],
            found={name: float(row[name]) for name in RECALLS},
            trains=bool(row["trains"]),
            seeds=tuple(map(int, own["seed"])),
            runs=own[list(RECALLS)].to_numpy(float),
            sha256=next(iter(hashes)) if len(hashes) == 1 else None,
        )
        tables = saved.read(runs.folder, list(own["run_id"]), row["group"])
        if len(tables.run_ids) == len(own):
            found = replace(found, captions=tables.captions, tables=tables.tables.mean(axis=0))
        yield found


def _published(like: Side) -> Side:
    """The papers' numbers for the datasets and methods of the other side."""
    rows = []
    for dataset in dict.fromkeys(row.dataset for row in like.rows):
        for each in published.of_dataset(dataset):
            if each["registered"] in {row.method for row in like.rows}:
                conditions = ", ".join(f"{key} {each[key]}" for key in _CONDITIONS if each[key])
                found = {name: float(each[name]) if each[name] else None for name in RECALLS}
                source = "; ".join(filter(None, (each["source"], conditions, each["differs"])))
                rows.append(Row(each["registered"], source, dataset, each["backbone"], {}, found))
    if not rows:
        raise UserError(f"no published numbers for the datasets and methods of '{like.name}'")
    return Side(PUBLISHED, tuple(rows))


# --- pairs ------------------------------------------------------------------------------------------------------------


def compare(given_a: str, given_b: str, results: Path = Path("results")) -> Compared:
    """The rows of two sides in pairs: those of the same settings, then those of one method that are alone on each side.

    UserError where a side has no rows, or no two rows are of the same method, dataset and model.
    """
    a, b = side(given_a, results), side(given_b, results)
    if a is None and b is None:
        raise UserError("published numbers can be compared with results; give a results folder as A or B")
    a = a or _published(b)  # type: ignore[arg-type]
    b = b or _published(a)
    pairs = list(_published_pairs(a, b) if PUBLISHED in (a.name, b.name) else _own_pairs(a, b))
    if not pairs:
        raise UserError(f"no row of '{given_a}' and '{given_b}' is of the same method, dataset and model")
    _measure(pairs)
    used_a, used_b = {id(pair.a) for pair in pairs}, {id(pair.b) for pair in pairs}
    alone = [tuple(row for row in s.rows if id(row) not in used) for s, used in ((a, used_a), (b, used_b))]
    return Compared(a, b, tuple(pairs), alone[0], alone[1])


# Which settings two rows must share to be a pair: all, those of the method, its name alone.
_SHARED: tuple[Callable[[str], bool], ...] = (
    lambda key: True,
    lambda key: key.startswith("method."),
    lambda key: key == "method.name",
)


def _own_pairs(a: Side, b: Side) -> Iterator[Pair]:
    """Rows of equal settings; of the rest those of equal method settings, then of one method, if each side has one."""
    left_a, left_b = list(a.rows), list(b.rows)
    for shared in _SHARED:
        known_a, known_b = _by_key(left_a, shared), _by_key(left_b, shared)
        for key, rows in known_a.items():
            if len(rows) == 1 and len(known_b.get(key, ())) == 1:
                before, after = rows[0], known_b[key][0]
                left_a.remove(before)
                left_b.remove(after)
                yield Pair(before, after, _changed(before.settings, after.settings))


def _by_key(rows: Sequence[Row], shared: Callable[[str], bool]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        kept = {key: value for key, value in row.settings.items() if key not in _APART and shared(key)}
        model = Path(str(row.settings.get("backbone.model"))).name
        found.setdefault(canonical([_bare(row.dataset), model, kept]), []).append(row)
    return found


def _bare(name: str) -> str:
    """A dataset's name without what a report adds to it: `rsitmd (split=pir)`."""
    return name.partition(" (")[0]


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The settings that differ, as `train.epochs 5 → 20`; of paths only the file's name."""
    texts = []
    for key in dict.fromkeys((*before, *after)):
        old, new = ("not set" if value is None else value for value in (before.get(key), after.get(key)))
        if key == "backbone.weights":
            old, new = Path(str(old)).name, Path(str(new)).name
        if old != new and (key not in _APART or key == "backbone.weights"):
            texts.append(f"{key} {old} → {new}")
    return ", ".join(texts)


def _published_pairs(a: Side, b: Side) -> Iterator[Pair]:
    """Every row of results with every published number of its method and dataset."""
    for before in a.rows:
        for after in b.rows:
            if before.method == after.method and before.dataset == after.dataset:
                paper = before if a.name == PUBLISHED else after
                yield Pair(before, after, paper.config)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _measure(pairs: Sequence[Pair]) -> None:
    """Fill in the differences, and the intervals where there can be some."""
    for pair in pairs:
        for name in RECALLS:
            a, b = pair.a.found[name], pair.b.found[name]
            pair.difference[name] = None if a is None or b is None else b - a
            pair.low[name] = pair.high[name] = None
    by_test_set: dict[str, list[Pair]] = {}
    for pair in pairs:
        if _same_images(pair):
            by_test_set.setdefault(str(pair.a.sha256), []).append(pair)
        else:
            _by_seeds(pair)
    for same in by_test_set.values():
        _by_images(same)


def _same_images(pair: Pair) -> bool:
    a, b = pair.a, pair.b
    if a.captions is None or b.captions is None or a.sha256 is None or a.sha256 != b.sha256:
        return False
    return np.array_equal(a.captions, b.captions)


def _by_images(pairs: Sequence[Pair]) -> None:
    """Intervals of rows on one test set, paired by image, and by seed where both sides have the same ones."""
    before, after = (
        np.stack([each.tables for each in rows]) for rows in zip(*((p.a, p.b) for p in pairs), strict=True)
    )
    same = [pair.a.seeds == pair.b.seeds for pair in pairs]
    error = evidence.seed_error_of_differences([pair.a.runs for pair in pairs], [pair.b.runs for pair in pairs], same)
    captions = pairs[0].a.captions
    assert captions is not None
    found = evidence.moves(before, after, captions, error)
    for row, pair in enumerate(pairs):
        pair.low = dict(zip(RECALLS, found.intervals[row, :, 0].tolist(), strict=True))
        pair.high = dict(zip(RECALLS, found.intervals[row, :, 1].tolist(), strict=True))
        pair.p, pair.basis = float(found.p[row]), IMAGES


def _by_seeds(pair: Pair) -> None:
    """Welch's intervals from the spread over seeds, where both sides have two or more; they say nothing of images."""
    a, b = pair.a.runs, pair.b.runs
    if len(a) < 2 or len(b) < 2:
        return
    parts = [runs.var(axis=0, ddof=1) / len(runs) for runs in (a, b)]
    variance = parts[0] + parts[1]
    if not (variance > 0).all():
        return
    freedom = variance**2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    reach = stats.t.isf((1 - LEVEL) / 2, freedom) * np.sqrt(variance)
    for name, half in zip(RECALLS, reach.tolist(), strict=True):
        difference = pair.difference[name]
        if difference is not None:
            pair.low[name], pair.high[name] = difference - half, difference + half
    pair.basis = SEEDS


# --- texts ------------------------------------------------------------------------------------------------------------

HEADER = ("method", "settings", "A", "B", "B − A", "95% interval", "moved", "by", "what differs")


def cells(compared: Compared) -> list[tuple[str, ...]]:
    """The rows of the table as text, the largest change first: mean recall, as HEADER says."""
    several = len({(row.dataset, row.backbone) for row in (*compared.a.rows, *compared.b.rows) if row.runs.size}) > 1
    found: list[tuple[str, ...]] = []
    for pair in sorted(compared.pairs, key=lambda pair: -abs(pair.difference["mean_recall"] or 0)):
        own = pair.a if pair.a.runs.size else pair.b
        place = [own.dataset, own.backbone] if several else []
        low, high = pair.low["mean_recall"], pair.high["mean_recall"]
        found.append(
            (
                pair.a.method,
                ", ".join(filter(None, (*place, options.short(own.config)))),
                _number(pair.a.found["mean_recall"]),
                _number(pair.b.found["mean_recall"]),
                _number(pair.difference["mean_recall"], "+.2f"),
                DASH if low is None or high is None else f"{low:+.2f} to {high:+.2f}",
                pair.moved or DASH,
                pair.basis or DASH,
                pair.changed or DASH,
            )
        )
    return found


def _number(value: float | None, form: str = ".2f") -> str:
    return DASH if value is None or math.isnan(value) else format(value, form)


def notes(compared: Compared) -> list[str]:
    """What the numbers are, and the rows of one side alone."""
    found = [
        f"Mean recall on the test set, in percent; A: {compared.a.name}, B: {compared.b.name}.",
        f"by {IMAGES}: paired by image on the same test set, with the error of few seeds; moved: told apart at 5%, all "
        f"rows corrected together (Holm). by {SEEDS}: other test data or no saved ranks, so Welch's interval from the "
        f"spread over seeds alone, and no test. {DASH}: one seed without saved ranks, or a published number.",
    ]
    one = [pair for pair in compared.pairs if pair.basis == IMAGES and min(len(pair.a.seeds), len(pair.b.seeds)) == 1]
    if trained := sum(pair.a.trains for pair in one):
        found.append(f"{trained} of these have one seed on a side: what another would give is in no interval.")
    for name, rows in (("A", compared.only_a), ("B", compared.only_b)):
        if rows:
            shown = "; ".join(f"{row.method} {options.short(row.config)}".strip() for row in rows[:8])
            more = f"; and {len(rows) - 8} more" if len(rows) > 8 else ""
            found.append(f"Only in {name} ({len(rows)}): {shown}{more}.")
    return found


def markdown(compared: Compared) -> str:
    """The comparison as Markdown."""
    lines = [f"# {_md(compared.a.name)} against {_md(compared.b.name)}", "", f"| {' | '.join(HEADER)} |"]
    lines += ["|---|---|---:|---:|---:|---|---|---|---|"]
    lines += [f"| {' | '.join(map(_md, row))} |" for row in cells(compared)]
    return "\n".join([*lines, *(f"\n{_md(note)}" for note in notes(compared))]) + "\n"


def _md(text: str) -> str:
    text = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(compared: Compared) -> pd.DataFrame:
    """One row a pair, with every recall of both sides, its difference and interval in full precision."""
    rows = []
    for pair in compared.pairs:
        own = pair.a if pair.a.runs.size else pair.b
        row: dict[str, Any] = {"dataset": own.dataset, "backbone": own.backbone, "method": own.method}
        row |= {"config": own.config, "changed": pair.changed, "basis": pair.basis, "p": pair.p, "moved": pair.moved}
        row |= {"seeds_a": len(pair.a.seeds) or None, "seeds_b": len(pair.b.seeds) or None}
        for name in RECALLS:
            row |= {f"{name}_a": pair.a.found[name], f"{name}_b": pair.b.found[name]}
            row |= {f"{name}_difference": pair.difference[name], f"{name}_low": pair.low[name]}
            row |= {f"{name}_high": pair.high[name]}
        rows.append(row)
    return pd.DataFrame(rows)


def terminal(compared: Compared) -> str:
    """The comparison for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=160, color_system=None, legacy_windows=False, emoji=False)
    shown = Table(box=SIMPLE_HEAD)
    for name in HEADER:
        text = name in ("method", "settings", "what differs")
        shown.add_column(name, justify="left" if text else "right", no_wrap=not text, max_width=40, overflow="fold")
    rows = cells(compared)
    for row in rows[:60]:
        shown.add_row(*map(Text, row))
    with console.capture() as capture:
        console.print(shown)
        if len(rows) > 60:
            console.print(f"  ... and {len(rows) - 60} more rows")
        for note in notes(compared):
            console.print(Text(note))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


# --- the command ------------------------------------------------------------------------------------------------------


def parser(prog: str) -> argparse.ArgumentParser:
    """The options of `report compare`."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Compare two sets of results row by row: which rows moved, and by how much."
    )
    where = "a results folder, a sweep file, FOLDER@COMMIT, or 'published'"
    parser.add_argument("a", metavar="A", help=where)
    parser.add_argument("b", metavar="B", help=f"{where}; differences are B less A")
    parser.add_argument("--results", type=given_path, default=Path("results"), metavar="DIR", help="of sweep files")
    parser.add_argument("--out", type=given_path, metavar="DIR", help="default: reports/compare-<A>-<B>")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison, and write compare.md and compare.csv; the exit code."""
    compared = compare(arguments.a, arguments.b, arguments.results)
    names = [re.sub(r"[^A-Za-z0-9._-]+", "_", Path(each).name) for each in (arguments.a, arguments.b)]
    out: Path = arguments.out or Path("reports", f"compare-{names[0]}-{names[1]}")
    make_folder(out)
    write_bytes(out / "compare.md", markdown(compared).encode("utf-8", "replace"))
    write_bytes(
        out / "compare.csv", table(compared).to_csv(index=False, lineterminator="\n").encode("utf-8", "replace")
    )
    encoding = sys.stdout.encoding or "utf-8"
    print(terminal(compared).encode(encoding, "replace").decode(encoding))
    print(f"\ncomparison: {out / 'compare.md'}")
    return 0
