"""Annotation files of all layouts: entries, structure or bytes changed."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

from bench.config.settings import AnyDataset, CaptionSettings, DatasetSettings
from bench.data import identity, load, locate, resolved
from benchmarks.fuzzing import Try, Wrong, damaged, target

ODD: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        10**400,
        1e308,
        float("nan"),
        float("inf"),
        "",
        " ",
        ".",
        "..",
        "/",
        "/etc/passwd",
        "../x.tif",
    ),
    *(
        "a/../../b",
        "a/./b",
        "a//b",
        "\0",
        "a\0b",
        "\ud800",
        "x\udfffy",
        "x" * 300,
        "é" * 200,
        "a/" * 3000,
        "x\ny",
        "\u2028",
    ),
    *(
        "train",
        "val",
        "test",
        "restval",
        [],
        {},
        [[]],
        [None],
        ["x"],
        [""],
        [1],
        {"raw": "x"},
        [{"raw": 3}],
        ["x"] * 400,
    ),
    *([[[[[]]]]], {"images": []}, {"a": {"b": []}}, "train/a1.tif", "x" * 50_000),
]
LAYOUTS = ("pir", "precomp", "karpathy", "nwpu", "csv", "jsonl", "json", "coco", "imagefolder")
OWN = LAYOUTS[4:]


@target("annotations")
def annotations(folder: Path) -> Try:
    """Sets up a root with a file of annotations and none of pictures."""
    root = folder / "root"

    def one(rng: random.Random) -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        layout = rng.choice(LAYOUTS)
        for name, text in _files(layout, rng).items():
            raw = text.encode("utf-8", "surrogatepass")
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(damaged(raw, rng) if rng.random() < 0.25 else raw)
        if rng.random() < 0.05:
            victim = rng.choice(sorted(path for path in root.rglob("*") if path.is_file()))
            victim.unlink()
            rng.choice(
                (victim.mkdir, lambda: victim.symlink_to(rng.choice(("/proc/self/mem", "/dev/zero", victim.name))))
            )()
        if layout in OWN:
            _check(_own(root, rng))
            return
        name, split = ("nwpu", "karpathy") if layout == "nwpu" else ("rsitmd", layout)
        fraction, seed = rng.choice((0.2, 0.2, 0.5, 0.5, 1e-9, 0.999)), rng.choice((0, 3, -(2**62)))
        _check(DatasetSettings(name=name, root=str(root), split=split, val_fraction=fraction, split_seed=seed))  # type: ignore[arg-type]

    return one


def _files(layout: str, rng: random.Random) -> dict[str, str]:
    """Name -> text of a layout's files, with a few things changed."""
    splits = {split: [(f"{split}{i}.tif", [f"{split} {i} {k}" for k in range(5)]) for i in range(4)] for split in
              ("train", "val", "test")}  # fmt: skip
    if layout == "precomp":
        return _precomp(splits, rng)
    if layout in OWN:
        return _own_files(layout, splits, rng)
    data: Any
    if layout == "pir":
        data = {
            f"{split}.json": [
                {"image": f"{split}/{name}", "caption": captions, "label_name": "x"} for name, captions in items
            ]
            for split, items in splits.items()
        }
    else:
        entries = [
            {"filename": name, "split": split, "sentences": [{"raw": text} for text in captions]}
            for split, items in splits.items()
            for name, captions in items
        ]
        if layout == "nwpu":
            entries = [
                {"filename": e["filename"], "split": e["split"], "raw": "a", "raw_1": "b", "raw_2": "c"}
                for e in entries
            ]
            data = {"dataset.json": {"airport": entries[:6], "beach": entries[6:]}}
        else:
            data = {"dataset.json": {"images": entries}}
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        _mutate(data[rng.choice(list(data))], rng)
    return {name: _json(content, rng) for name, content in data.items()}


def _precomp(splits: dict[str, list[tuple[str, list[str]]]], rng: random.Random) -> dict[str, str]:
    files = {}
    for split in ("train", "test"):
        each = rng.choice((1, 5))  # lines of one name
        names = [name for name, _ in splits[split] for _ in range(each)]
        captions = [text for _, texts in splits[split] for text in texts]
        for lines in (names, captions):
            for _ in range(rng.choice((0, 0, 1, 2))):
                odd = rng.choice([value for value in ODD if isinstance(value, str)])
                at = rng.randrange(len(lines))
                lines[at : at + rng.choice((0, 1, 1, 3))] = [odd]
        end = rng.choice(("\n", "\n", "\r\n", "\r"))
        files |= {f"{split}_filename.txt": end.join(names) + end, f"{split}_caps.txt": end.join(captions) + end}
    return files


def _own_files(layout: str, splits: dict[str, list[tuple[str, list[str]]]], rng: random.Random) -> dict[str, str]:
    """Caption files of one's own."""
    data: Any = [
        {"file_name": name, "caption": text, "split": split, "label": "x"}
        for split, items in splits.items()
        for name, captions in items
        for text in captions
    ]
    if rng.random() < 0.2:
        for row in data:
            del row["split"]
    if layout == "coco":
        names = list(dict.fromkeys(row["file_name"] for row in data))
        images = [{"id": names.index(name), "file_name": name, "split": name[:-5]} for name in names]
        annotations = [{"image_id": names.index(row["file_name"]), "caption": row["caption"]} for row in data]
        data = {"images": images, "annotations": annotations}
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        _mutate(data, rng)
    if layout in ("json", "coco"):
        return {"captions.json": _json(data, rng)}
    if layout == "jsonl":
        return {"captions.jsonl": rng.choice(("\n", "\n", "\r\n", "\r")).join(_json(row, rng) for row in data)}
    rows = [row for row in data if isinstance(row, dict)]
    if layout == "csv":
        return {rng.choice(("captions.csv", "captions.tsv")): _table(rows, rng)}
    if rng.random() < 0.3:
        return {"metadata.jsonl": "\n".join(_json(row, rng) for row in rows)}
    folders = {split: [row for row in rows if str(row.get("file_name")).startswith(split)] for split in splits}
    kind = rng.choice(("csv", "jsonl"))
    return {
        f"{folder.replace('val', 'validation')}/metadata.{kind}": "\n".join(_json(row, rng) for row in found)
        if kind == "jsonl"
        else _table(found, rng)
        for folder, found in folders.items()
    }


def _table(rows: list[dict[str, Any]], rng: random.Random) -> str:
    """The rows as a table, sometimes with a value that is not quoted as it should be."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    file, separator = io.StringIO(newline=""), rng.choice(("\t", ",", ";"))
    writer = csv.DictWriter(file, columns, delimiter=separator, lineterminator=rng.choice(("\n", "\r\n", "\r")))
    try:
        writer.writeheader()
        writer.writerows({key: str(value)[:100_000] for key, value in row.items()} for row in rows)
    except (ValueError, csv.Error):  # a number of over 4,300 digits
        writer.writerow(dict.fromkeys(columns, "x"))
    text = file.getvalue()
    if rng.random() < 0.1:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(('"', "\n", "\0", separator, '""', "\r", "\ufeff", "\u2028")) + text[at:]
    return text


def _own(root: Path, rng: random.Random) -> CaptionSettings:
    given: dict[str, Any] = {"split_seed": rng.choice((0, 3)), "val_fraction": rng.choice((0.1, 0.5, 1e-9))}
    if rng.random() < 0.2:
        odd = [value for value in ODD if isinstance(value, str)]
        for key in rng.choice((("file",), ("image",), ("caption", "label"), ("split",))):
            given[key] = rng.choice((*odd, "caption", "file_name", "captions.csv"))
    settings = CaptionSettings(name="captions", root=str(root), **given)
    found = resolved(settings)
    assert isinstance(found, CaptionSettings)
    if load(found).sha256 != load(settings).sha256:
        raise Wrong("other items once the columns are written out")
    return found


def _mutate(data: Any, rng: random.Random) -> None:
    """Change one value, at any depth."""
    while True:
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(data[key], dict | list) and data[key] and rng.random() < 0.8:
            data = data[key]
            continue
        match rng.randrange(4):
            case 0:
                del data[key]
            case 1 if isinstance(data, list):
                data.append(copy.deepcopy(data[key]))
            case _:
                data[key] = copy.deepcopy(rng.choice(ODD))
        return


def _json(content: Any, rng: random.Random) -> str:
    try:
        text = json.dumps(content)
    except ValueError:  # a number of over 4,300 digits
        text = "[" + "9" * 5000 + "]"
    if rng.random() < 0.05:
        at = rng.randrange(len(text))
        text = (
            text[:at]
            + rng.choice(("[", "{", '"', "[" * 5000, "9" * 5000, "[" * 900 + "]" * 900, "NaN", "\\"))
            + text[at:]
        )
    return text


def _check(settings: AnyDataset) -> None:
    before = identity(settings)
    dataset = load(settings)
    if identity(settings) != before or load(settings) != dataset:
        raise Wrong("not the same when read again")
    names = [item.image for items in (dataset.train, dataset.val, dataset.test) for item in items]
    if len(set(names)) != len(names):
        raise Wrong("an image is in two splits, or twice in one")
    for split in ("train", "val", "test"):
        items = getattr(dataset, split)
        if not items or not all(item.captions for item in items):
            raise Wrong(f"{split} has no image, or one without captions")
        for item in items:
            item.image.encode()
            "".join(item.captions).encode()
            if locate(dataset.root, item.image, split) is not None and not item.image.endswith(
                (".json", ".txt", ".csv", ".tsv", ".jsonl")
            ):
                raise Wrong(f"{item.image!r} is found where no picture is")
