"""What adaptation does to a model, as tables: transfer, forgetting, geometry, classification by names. No torch.

Every row is a method on the data it was trained on, over its seeds; the frozen backbone's rows come first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from bench.reporting import heatmap
from bench.reporting.further import Section
from bench.reporting.measured import UNKNOWN, Ends, Numbers, Row, mean_of, rows_of
from bench.store.behaviour import Role
from bench.store.frame import Runs

DASH, MINUS = "–", "−"
GEOMETRY = {
    "modality_gap": "Gap",
    "alignment": "Alignment",
    "uniformity": "Uniformity",
    "similarity": "Similarity",
    "class_similarity": "In-class",
    "effective_rank": "Effective rank",
    "drift": "Drift",
}
INTERVALS = (
    "In brackets: 95% intervals over the test images and the seeds, of a change paired with the frozen backbone by "
    "image (one seed: over the images alone). ± without one: over seeds, of runs that saved no ranks here."
)


def transfer(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """Mean recall of each row on every dataset that was evaluated: trained on x tested on."""
    found = rows_of(runs, rows, "evaluate")
    if not any(each.tested for each in found):
        return []
    evaluated = {each.tested for each in found} - {""}
    tested = list(dict.fromkeys(each.base for each in found if each.base in evaluated))
    tested += sorted(evaluated - {*tested})
    numbers, shown = [], []
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    own = [each for each in rows_of(runs, rows, "own") if each.tested in tested]
    mains = [replace(each, tested="", after=(), against=None) for each in found if not each.is_frozen]
    for each in (*found, *own, *mains):
        trained = "" if each.is_frozen else each.dataset
        line = lines.setdefault((each.backbone, each.method, each.config, trained), {})
        line.setdefault(each.tested or each.base, each)
    cells: dict[tuple[str, str], Numbers] = {}
    plain: dict[str, Numbers] = {}  # of each frozen backbone
    for (backbone, method, config, trained), line in lines.items():
        values = {name: _cell(line.get(name), name) for name in tested}
        means = {name: value.mean for name, value in values.items()}
        if trained:
            panel = " ".join([next(iter(line.values())).title, *_several(found, backbone).values()])
            cells |= {(panel, trained): means, (panel, ""): plain.get(backbone, {})}
        else:
            plain[backbone] = means
        origin = {"trained_on": trained, "backbone": backbone, "method": method, "config": config}
        numbers.append(
            origin
            | {f"mean_recall_{name}": value for name, value in means.items()}
            | {f"mean_recall_{name}_std": value.std for name, value in values.items()}
            | {key: end for name, value in values.items() for key, end in value.ends_in_csv(name).items()}
        )
        shown.append(
            {"Method": next(iter(line.values())).name, "Trained on": trained or DASH}
            | _several(found, backbone)
            | {f"on {name}": _text(value.mean, 1, value.std, value.ends) for name, value in values.items()}
            | {f"change on {name}": _signed(value.change, value.change_ends) for name, value in values.items()}
        )
    trained_on = list(dict.fromkeys(trained for _, trained in cells if trained))
    draw = partial(heatmap.draw, cells, [*trained_on, ""], tested) if len(trained_on) > 1 else None
    note = (
        "Mean recall on the test sets of other data, in percent, by the model of the epoch that was chosen on the "
        "validation split of its own data. On its own data: the number of the main table. Change: against the frozen "
        "backbone, in points. " + INTERVALS + _failures(runs, "evaluate")
    )
    return [Section("transfer", "Transfer", note, pd.DataFrame(numbers), pd.DataFrame(shown), draw)]


@dataclass(frozen=True)
class _Cell:
    """Mean recall of a row on a test set, its deviation over seeds and its interval; the same of its change."""

    mean: float = math.nan
    std: float = math.nan
    ends: Ends = UNKNOWN
    change: float = math.nan
    change_ends: Ends = UNKNOWN

    def ends_in_csv(self, name: str) -> dict[str, float]:
        """The intervals and the change, as in a csv file."""
        (low, high), (change_low, change_high) = self.ends, self.change_ends
        found = {f"mean_recall_{name}_low": low, f"mean_recall_{name}_high": high, f"change_{name}": self.change}
        return found | {f"change_{name}_low": change_low, f"change_{name}_high": change_high}


def _cell(row: Row | None, tested: str) -> _Cell:
    """What was measured on the dataset, or the main table's numbers where it is the row's own."""
    if row is None:
        return _Cell()
    change = row.change("mean_recall"), row.change_ends()
    if row.after and (row.is_frozen or not row.own):
        return _Cell(row.mean("mean_recall"), row.deviation("mean_recall"), row.ends("mean_recall"), *change)
    is_main = row.base == tested and not row.is_frozen
    return _Cell(row.mean_recall, row.std, row.main, *change) if is_main else _Cell()


def forgetting(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """Recall on general-domain data and drift there, against the frozen backbone."""
    found = [each for each in rows_of(runs, rows, "forgetting") if each.tested]
    if not found:
        return []
    keys = {"i2t_r1": "I2T R@1", "t2i_r1": "T2I R@1", "mean_recall": "Mean recall"}
    numbers, shown = [], []
    for each in found:
        adapted = not each.is_frozen
        numbers.append(
            each.origin()
            | _with_spread(each, [*keys])
            | {f"{key}_{end}": value for key in keys for end, value in _low_high(each.ends(key))}
            | {"change": each.change("mean_recall")}
            | {f"change_{end}": value for end, value in _low_high(each.change_ends())}
            | {"kept": _share(each)}
            | {f"drift_{side}": each.mean(f"drift_{side}") for side in ("image", "text")}
        )
        shown.append(
            _head(found, each)
            | {title: _text(each.mean(key), 1, each.deviation(key), each.ends(key)) for key, title in keys.items()}
            | {"Change": _signed(each.change("mean_recall"), each.change_ends())}
            | {"Kept": _text(_share(each), 0, unit="%")}
            | {"Drift": _pair(each, "drift", 3) if adapted else DASH}
        )
    note = (
        "Recall in percent on data of what the backbone could do before, by the frozen backbone and by each adapted "
        "model. Change: of mean recall, in points; kept: the share that is left. Drift: mean of 1 − cosine between "
        "both models' embeddings of an item, images / captions; none where they have different dimensions. "
        + INTERVALS
        + _failures(runs, "forgetting")
    )
    return [Section("forgetting", "Forgetting", note, pd.DataFrame(numbers), pd.DataFrame(shown))]


def geometry(runs: Runs, rows: pd.DataFrame) -> list[Section]:
    """How the embeddings of each row's own test set lie, before and after."""
    found = [each for each in rows_of(runs, rows, "own") if any("modality_gap" in one for one in each.after)]
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
    found = [each for role in ("own", "evaluate") for each in rows_of(runs, rows, role)]
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


def _with_spread(row: Row, keys: Sequence[str]) -> dict[str, float]:
    """Mean and standard deviation of each number, as in a csv file."""
    return {name: value for key in keys for name, value in ((key, row.mean(key)), (f"{key}_std", row.deviation(key)))}


def _keys(found: Sequence[Row]) -> list[str]:
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


def _head(found: Sequence[Row], row: Row) -> dict[str, str]:
    """The first columns: the row's name, and what tells it from others."""
    trained, tested = ({getattr(each, key) for each in found} for key in ("dataset", "tested"))
    own = all(each.tested in ("", each.base) for each in found)  # one column says both
    head = {"Method": row.name}
    if len(trained) > (len(tested) if own else 1):
        head["Trained on"] = DASH if row.is_frozen else row.dataset
    if not own or len(tested) > 1:
        head["Tested on"] = row.tested
    return head | _several(found, row.backbone)


def _several(found: Sequence[Row], backbone: str) -> dict[str, str]:
    return {"Backbone": backbone} if len({each.backbone for each in found}) > 1 else {}


def _share(row: Row) -> float:
    """What is left of the frozen backbone's mean recall, in percent."""
    before = mean_of([each["mean_recall"] for each in row.before])
    return 100 * row.mean("mean_recall") / before if before else math.nan


def _pair(row: Row, key: str, digits: int) -> str:
    image, text = (_text(row.mean(f"{key}_{side}"), digits) for side in ("image", "text"))
    return DASH if image == text == DASH else f"{image} / {text}"


def _text(value: float, digits: int, spread: float = math.nan, ends: Ends = UNKNOWN, unit: str = "") -> str:
    """The number with its interval; with its spread over seeds where there is none."""
    if math.isnan(value):
        return DASH
    shown = f"{round(value, digits) + 0.0:.{digits}f}{unit}".replace("-", MINUS)  # + 0.0: no minus before a zero
    if not math.isnan(ends[0]):
        return f"{shown} ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"
    return shown if math.isnan(spread) else f"{shown} ± {spread:.{digits}f}"


def _signed(value: float, ends: Ends = UNKNOWN) -> str:
    if math.isnan(value):
        return DASH
    shown, *around = (f"{round(each, 1) + 0.0:+.1f}".replace("-", MINUS) for each in (value, *ends))
    return shown if math.isnan(ends[0]) else f"{shown} ({' to '.join(around)})"


def _low_high(ends: Ends) -> tuple[tuple[str, float], tuple[str, float]]:
    return ("low", ends[0]), ("high", ends[1])
