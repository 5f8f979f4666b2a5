"""What adaptation does to a model, as tables: transfer, forgetting, geometry, classification by names. No torch.

Every row is a method on the data it was trained on, over its seeds; the frozen backbone's rows come first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from bench.reporting import heatmap, options
from bench.reporting.further import Section
from bench.store.behaviour import Measured, Role, TestSet
from bench.store.frame import Runs

FROZEN, DASH, MINUS = "frozen backbone", "–", "−"
GEOMETRY = {
    "modality_gap": "Gap",
    "alignment": "Alignment",
    "uniformity": "Uniformity",
    "similarity": "Similarity",
    "class_similarity": "In-class",
    "effective_rank": "Effective rank",
    "drift": "Drift",
}
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class _Row:
    """A row of the main table with what its runs measured of one test set. `finished`: how many runs it has.

    `before` and `after`: by name, of each run; empty where nothing was measured.
    """

    dataset: str
    backbone: str
    method: str
    config: str
    title: str  # what papers call both
    base: str  # the dataset without what tells it from others of its name
    place: int  # in the main table
    trains: bool
    finished: int
    mean_recall: float
    std: float
    tested: str = ""
    before: tuple[Numbers, ...] = ()
    after: tuple[Numbers, ...] = ()

    @property
    def name(self) -> str:
        """The method with its settings, and of how many runs the numbers are, where some lack them."""
        some = f" ({len(self.after)} of {self.finished} runs)" if 0 < len(self.after) < self.finished else ""
        return self.title + some

    def mean(self, key: str) -> float:
        """Over the runs that have it; NaN where none has."""
        return _mean([each.get(key, math.nan) for each in self.after])

    def deviation(self, key: str) -> float:
        """The sample standard deviation over the runs; NaN for fewer than two."""
        values = [each[key] for each in self.after if key in each]
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    @property
    def is_frozen(self) -> bool:
        """Whether it is the backbone's."""
        return self.method == FROZEN

    def frozen(self) -> _Row:
        """The row of the backbone as this row's runs saw it."""
        return replace(
            self, method=FROZEN, config="", title=FROZEN, place=-1, finished=1, before=(), after=self.before[:1]
        )

    def change(self, key: str) -> float:
        """The mean over runs of what the adapted model has more than the frozen backbone; NaN for the backbone."""
        pairs = zip(self.before, self.after, strict=False)
        return _mean([b.get(key, math.nan) - a.get(key, math.nan) for a, b in pairs])

    def origin(self) -> dict[str, object]:
        """What every csv file says of a row first."""
        trained_on = "" if self.is_frozen else self.dataset
        found = {"trained_on": trained_on, "backbone": self.backbone, "method": self.method, "config": self.config}
        return {**found, "tested_on": self.tested, "runs": len(self.after)}


def transfer(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """Mean recall of each row on every dataset that was evaluated: trained on x tested on."""
    found = _rows(runs, rows, "evaluate")
    if not any(each.tested for each in found):
        return []
    evaluated = {each.tested for each in found} - {""}
    tested = list(dict.fromkeys(each.base for each in found if each.base in evaluated))
    tested += sorted(evaluated - {*tested})
    numbers, shown = [], []
    lines: dict[tuple[str, ...], dict[str, _Row]] = {}
    for each in found:
        trained = "" if each.is_frozen else each.dataset
        line = lines.setdefault((each.backbone, each.method, each.config, trained), {})
        line.setdefault(each.tested or each.base, each)
        if not each.is_frozen:
            line.setdefault(each.base, replace(each, tested="", after=()))
    cells: dict[tuple[str, str], Numbers] = {}
    plain: dict[str, Numbers] = {}  # of each frozen backbone
    for (backbone, method, config, trained), line in lines.items():
        values = {name: _cell(line.get(name), name) for name in tested}
        means = {name: value for name, (value, _) in values.items()}
        if trained:
            panel = " ".join([next(iter(line.values())).title, *_several(found, backbone).values()])
            cells |= {(panel, trained): means, (panel, ""): plain.get(backbone, {})}
        else:
            plain[backbone] = means
        origin = {"trained_on": trained, "backbone": backbone, "method": method, "config": config}
        numbers.append(
            origin
            | {f"mean_recall_{name}": value for name, (value, _) in values.items()}
            | {f"mean_recall_{name}_std": std for name, (_, std) in values.items()}
        )
        shown.append(
            {"Method": next(iter(line.values())).name, "Trained on": trained or DASH}
            | _several(found, backbone)
            | {f"on {name}": _text(value, 1, std) for name, (value, std) in values.items()}
        )
    trained_on = list(dict.fromkeys(trained for _, trained in cells if trained))
    draw = partial(heatmap.draw, cells, [*trained_on, ""], tested) if len(trained_on) > 1 else None
    note = (
        "Mean recall on the test sets of other data, in percent, by the model of the epoch that was chosen on the "
        "validation split of its own data. On its own data: the number of the main table." + _failures(runs, "evaluate")
    )
    return [Section("transfer", "Transfer", note, pd.DataFrame(numbers), pd.DataFrame(shown), draw)]


def _cell(row: _Row | None, tested: str) -> tuple[float, float]:
    """Mean recall and its deviation: measured on the dataset, or the main table's where it is the row's own."""
    if row is None:
        return math.nan, math.nan
    if row.after:
        return row.mean("mean_recall"), row.deviation("mean_recall")
    return (row.mean_recall, row.std) if row.base == tested and not row.is_frozen else (math.nan, math.nan)


def forgetting(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """Recall on general-domain data and drift there, against the frozen backbone."""
    found = [each for each in _rows(runs, rows, "forgetting") if each.tested]
    if not found:
        return []
    keys = {"i2t_r1": "I2T R@1", "t2i_r1": "T2I R@1", "mean_recall": "Mean recall"}
    numbers, shown = [], []
    for each in found:
        adapted = not each.is_frozen
        numbers.append(
            each.origin()
            | {
                name: value
                for key in keys
                for name, value in ((key, each.mean(key)), (f"{key}_std", each.deviation(key)))
            }
            | {"change": each.change("mean_recall"), "kept": _share(each)}
            | {f"drift_{side}": each.mean(f"drift_{side}") for side in ("image", "text")}
        )
        shown.append(
            _head(found, each)
            | {title: _text(each.mean(key), 1, each.deviation(key)) for key, title in keys.items()}
            | {"Change": _signed(each.change("mean_recall")), "Kept": _text(_share(each), 0, unit="%")}
            | {"Drift": _pair(each, "drift", 3) if adapted else DASH}
        )
    note = (
        "Recall in percent on data of what the backbone could do before, by the frozen backbone and by each adapted "
        "model. Change: of mean recall, in points; kept: the share that is left. Drift: mean of 1 − cosine between "
        "both models' embeddings of an item, images / captions; none where they have different dimensions."
        + _failures(runs, "forgetting")
    )
    return [Section("forgetting", "Forgetting", note, pd.DataFrame(numbers), pd.DataFrame(shown))]


def geometry(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """How the embeddings of each row's own test set lie, before and after."""
    found = [each for each in _rows(runs, rows, "own") if any("modality_gap" in one for one in each.after)]
    if not found:
        return []
    keys = [key for key in _keys(found) if key in GEOMETRY or key.partition("_image")[0] in GEOMETRY or "_text" in key]
    numbers, shown = [], []
    for each in found:
        numbers.append(each.origin() | _with_spread(each, keys))
        cells = {"modality_gap": _text(each.mean("modality_gap"), 3), "alignment": _text(each.mean("alignment"), 3)}
        for key in GEOMETRY:
            cells.setdefault(key, _pair(each, key, {"effective_rank": 1, "drift": 3}.get(key, 2)))
        shown.append(_head(found, each) | {title: cells[key] for key, title in GEOMETRY.items()})
    note = (
        "Of the L2-normalised embeddings of the test set; two numbers are images / captions. Gap: distance of the mean "
        "image and the mean caption embedding. Alignment: mean squared distance of a caption and its image. "
        "Uniformity: log of the mean of exp(−2d²) over pairs of one modality (lower: spread more evenly). Similarity: "
        "mean cosine over these pairs; in-class: over those of one class. Effective rank: exp of the entropy of the "
        "singular values. Drift: mean of 1 − cosine to the frozen backbone's embedding; none where a method's "
        "embeddings have another dimension. "
        "Means over seeds; the csv has their spread." + _failures(runs, "own")
    )
    return [Section("geometry", "Geometry of the embeddings", note, pd.DataFrame(numbers), pd.DataFrame(shown))]


def classification(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """Accuracy by class names, before and after, on the own test set and those evaluated."""
    found = [each for role in ("own", "evaluate") for each in _rows(runs, rows, role)]
    found = [each for each in found if any("accuracy" in one for one in each.after)]
    if not found:
        return []
    tested = list(dict.fromkeys(each.tested for each in found))
    once = {(each.tested, each.place, each.backbone): each for each in found}.values()
    numbers, shown = [], []
    for each in sorted(once, key=lambda each: (tested.index(each.tested), each.place)):
        numbers.append(
            each.origin()
            | {key: each.mean(key) for key in ("classes", "images")}
            | _with_spread(each, ["accuracy", "mean_per_class"])
            | {"change": each.change("accuracy")}
        )
        shown.append(
            _head(found, each)
            | {"Classes": f"{each.mean('classes'):.0f}", "Chance": _text(100 / each.mean("classes"), 1)}
            | {"Accuracy": _text(each.mean("accuracy"), 1, each.deviation("accuracy"))}
            | {"Mean per class": _text(each.mean("mean_per_class"), 1, each.deviation("mean_per_class"))}
            | {"Change": _signed(each.change("accuracy"))}
        )
    note = (
        "Zero-shot classification of the test images by the names of their classes: top-1 accuracy in percent. A class "
        "is the mean embedding of its prompts (the setting behaviour.templates). Change: against the frozen backbone, "
        "in points."
    )
    title = "Zero-shot land-use classification"
    return [Section("classification", title, note, pd.DataFrame(numbers), pd.DataFrame(shown))]


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(runs: Runs, rows: pd.DataFrame, role: str) -> list[_Row]:
    """Each row of the main table with each test set of this role that its runs measured; without one, with none.

    The frozen backbone's rows come first: in place of those of methods that train nothing.
    """
    measured = runs.finished[runs.finished["behaviour"].notna()]
    by_group = {group: list(found) for group, found in measured.groupby("group", sort=False)["behaviour"]}
    found: list[_Row] = []
    titles = options.rows(rows, runs.titles)
    for place, row in enumerate(rows.to_dict("records")):
        settings = row["settings"]
        base = str(settings.get("dataset.title") or settings.get("dataset.name"))
        plain = _Row(
            dataset=row["dataset"],
            backbone=row["backbone"],
            method=row["method"],
            config=row["config"],
            title=titles[place],
            base=base,
            place=place,
            trains=bool(row["trains"]),
            finished=int(row["seeds"]),
            mean_recall=row["mean_recall"],
            std=row["mean_recall_std"],
        )
        sets: dict[str, list[TestSet]] = {}
        for behaviour in by_group.get(row["group"], ()):
            for each in behaviour.sets:
                if each.role == role and each.after and each.before:
                    sets.setdefault(each.dataset, []).append(each)
        found += [
            replace(plain, tested=name, before=tuple(map(_before, each)), after=tuple(map(_after, each)))
            for name, each in sets.items()
        ] or [plain]
    return [*_frozen(found), *(each for each in found if each.trains)]


def _frozen(found: Sequence[_Row]) -> list[_Row]:
    """The frozen backbone's row of each backbone and test set."""
    first: dict[tuple[str, str], _Row] = {}
    for each in found:
        if each.before:
            first.setdefault((each.backbone, each.tested), each.frozen())
    return list(first.values())


def _before(test: TestSet) -> dict[str, float]:
    return _flat(test.before)


def _after(test: TestSet) -> dict[str, float]:
    drifts = {"drift_image": test.drift_image, "drift_text": test.drift_text}
    return _flat(test.after) | {key: value for key, value in drifts.items() if value is not None}


def _flat(measured: Measured | None) -> dict[str, float]:
    """All numbers of one model on one test set by name, such as uniformity_image."""
    assert measured is not None
    found = dict(measured.scores.model_dump(exclude_none=True))
    if measured.geometry:
        parts = measured.geometry.model_dump(exclude_none=True)
        sides = {side: parts.pop(side, {}) for side in ("image", "text")}
        found |= parts | {f"{key}_{side}": value for side, each in sides.items() for key, value in each.items()}
    return found | (measured.classification.model_dump() if measured.classification else {})


def _with_spread(row: _Row, keys: Sequence[str]) -> dict[str, float]:
    """Mean and standard deviation of each number, as in a csv file."""
    return {name: value for key in keys for name, value in ((key, row.mean(key)), (f"{key}_std", row.deviation(key)))}


def _keys(found: Sequence[_Row]) -> list[str]:
    return list(dict.fromkeys(key for each in found for one in each.after for key in one))


def _failures(runs: Runs, role: Role | str) -> str:
    """What could not be measured, with the first reason of each test set."""
    notes: dict[str, list[str]] = {}
    for behaviour in runs.finished["behaviour"].dropna():
        for each in behaviour.sets:
            if each.role == role and each.note:
                notes.setdefault(each.dataset, []).append(each.note)
    said = [f"{name} in {len(each)} runs: {each[0]}" for name, each in notes.items()]
    return f" Not measured: {'; '.join(said)}." if said else ""


# --- text -------------------------------------------------------------------------------------------------------------


def _head(found: Sequence[_Row], row: _Row) -> dict[str, str]:
    """The first columns: the row's name, and what tells it from others."""
    trained, tested = ({getattr(each, key) for each in found} for key in ("dataset", "tested"))
    own = all(each.tested in ("", each.base) for each in found)  # one column says both
    head = {"Method": row.name}
    if len(trained) > (len(tested) if own else 1):
        head["Trained on"] = DASH if row.is_frozen else row.dataset
    if not own or len(tested) > 1:
        head["Tested on"] = row.tested
    return head | _several(found, row.backbone)


def _several(found: Sequence[_Row], backbone: str) -> dict[str, str]:
    return {"Backbone": backbone} if len({each.backbone for each in found}) > 1 else {}


def _share(row: _Row) -> float:
    """What is left of the frozen backbone's mean recall, in percent."""
    before = _mean([each["mean_recall"] for each in row.before])
    return 100 * row.mean("mean_recall") / before if before else math.nan


def _pair(row: _Row, key: str, digits: int) -> str:
    image, text = (_text(row.mean(f"{key}_{side}"), digits) for side in ("image", "text"))
    return DASH if image == text == DASH else f"{image} / {text}"


def _text(value: float, digits: int, spread: float = math.nan, unit: str = "") -> str:
    if math.isnan(value):
        return DASH
    shown = f"{round(value, digits) + 0.0:.{digits}f}{unit}".replace("-", MINUS)  # + 0.0: no minus before a zero
    return shown if math.isnan(spread) else f"{shown} ± {spread:.{digits}f}"


def _signed(value: float) -> str:
    return DASH if math.isnan(value) else f"{round(value, 1) + 0.0:+.1f}".replace("-", MINUS)


def _mean(values: Sequence[float]) -> float:
    known = [each for each in values if not math.isnan(each)]
    return float(np.mean(known)) if known else math.nan
