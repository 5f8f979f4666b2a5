"""Annotation files of all layouts: entries, structure or bytes changed."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

from bench.config.settings import DatasetSettings
from bench.data import identity, load, locate
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
LAYOUTS = ("pir", "precomp", "karpathy", "nwpu")


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
            (root / name).write_bytes(damaged(raw, rng) if rng.random() < 0.25 else raw)
        if rng.random() < 0.05:
            victim = rng.choice(sorted(root.iterdir()))
            victim.unlink()
            rng.choice(
                (victim.mkdir, lambda: victim.symlink_to(rng.choice(("/proc/self/mem", "/dev/zero", victim.name))))
            )()
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


def _check(settings: DatasetSettings) -> None:
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
            if locate(dataset.root, item.image, split) is not None and not item.image.endswith((".json", ".txt")):
                raise Wrong(f"{item.image!r} is found where no picture is")
