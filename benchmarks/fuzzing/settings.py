"""Sweep files and `--set` overrides: valid ones with values, keys, structure or text changed."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bench.config.document import parse_yaml
from bench.plan.grid import MOST_RUNS, expand
from bench.plan.spec import RunSpec
from benchmarks.fuzzing import Try, Wrong, damaged, target

BASES = """
name: x
dataset: {name: demo}
backbone: {model: tiny-clip, weights: random}
train: {epochs: 6, lr: [1e-4, 2e-4], betas: [0.9, 0.98], schedule: step}
slurm: {partition: gpu, timeout_min: 60, setup: [module load x], extra: {nice: 5}}
grid: {seed: [0, 1], method: [zero_shot, {lora: {rank: [2, 8]}}, {harma: {bottleneck: 32, train: {lr: 4e-4}}}]}
---
name: y
dataset: [{name: rsitmd, root: data, split: pir}, {name: rsitmd, root: data, val_fraction: [0.1, 0.2], split: precomp}]
backbone: [{model: ViT-B-32, weights: random, seed: [1, 2]}, {model: tiny-clip, weights: demo}]
loss: [info_nce, {harma: {margin: [0.1, 0.2]}}]
grid:
  budget: [100k, 1.5M]
  method: [lora, bitfit, {coop: {preset: [paper, table]}}, {vpt: {recipe: common, backbone: {weights: random}}}]
---
name: z
dataset: {name: rsitmd, root: $FUZZ_ROOT, annotations: '${FUZZ_ROOT}', split: precomp, split_seed: 3}
backbone: {model: tiny-clip, weights: weights.pt}
grid: {method: [{mrs_adapter: {loss: [hmmc, siglip], bottleneck: 8, shared_dim: 8}}, full_finetune, adaptformer]}
"""
BIG = "9" * 400
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**62, 2**63, -(2**63), 10**400, 0.5, 1e-300, 1e308, -0.0, "1e400", "-1e400"),
    *("", " ", "x", "x" * 300, "é" * 200, "nan", ".inf", "~", "null", "\0", "\ud800", "a\udfffb", "\n", "0", "1_000"),
    *("$", "$$", "$FUZZ_ROOT", "${FUZZ_ROOT}", "$NOT_THERE", "${", "~/x", "~nobody-of-this-name", "a/b.pt", "..", "/"),
    *(
        "/dev/zero",
        "/dev/null",
        "/proc/self/mem",
        "/proc/self/environ",
        "/proc/1/mem",
        "folder.pt",
        "pipe.pt",
        "random",
    ),
    *("x" * 300 + ".pt", "a\0.pt", "link.pt", "empty.pt", "1k", "1.5M", "0x10", "²", "٣", f"{BIG}", f"{BIG}M", "demo"),
    *([], {}, [[]], [{}], [None], {"": None}, {"x": {}}, [1, 2, 3], [[1, 2], [3, 4]], list(range(200)), ["lora"] * 50),
    *(list(range(3000)), [[[[[[[1]]]]]]], {"a": {"b": {"c": {"d": 1}}}}, "lora", "zero_shot", "info_nce", "ViT-L-14"),
]
TEXTS = [
    *(
        "&a ",
        "*a",
        "<<: *a\n",
        "!!float ",
        "!!python/name:os.system ",
        "? ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ": ",
        "#",
        "|\n",
    ),
    *(">\n", "'", '"', "%YAML 1.2\n", "---\n", "...\n", "\t", "\r", "\x85", "\u2028", "\ufeff", "\x00", "\x1b", "!"),
]
KEYS = [
    "",
    "name",
    "nmae",
    "train",
    "loss",
    "preset",
    "recipe",
    "grid",
    "root",
    "x" * 200,
    "<<",
    "1",
    "null",
    "é",
    "lr",
]
OVERRIDDEN = [
    *(
        "train.lr",
        "train.epochs",
        "grid.seed",
        "grid.method",
        "loss",
        "train",
        "dataset.name",
        "dataset.root",
        "name",
        "recipe",
    ),
    *(
        "backbone.weights",
        "backbone",
        "slurm.extra.x",
        "slurm",
        "a.b.c.d",
        "",
        ".",
        "train.lr.x",
        "grid.budget",
        "x\udcff",
    ),
]


class _Escaped(yaml.SafeDumper):
    """Writes what YAML has no characters for as escapes, as a file may."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_Escaped.add_representer(str, _write_text)


@target("settings")
def settings(folder: Path) -> Try:
    """Sets up a folder with a dataset and odd files, and goes there: paths in the files are relative."""
    _prepare(folder)
    bases = [parse_yaml(text, "base")[0] for text in BASES.split("---")]

    def one(rng: random.Random) -> None:
        os.chdir(folder)
        file = Path("x.yaml")
        data = copy.deepcopy(rng.choice(bases))
        for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
            _mutate(data, rng)
        file.write_bytes(_text(data, rng))
        _check(file, [_override(rng) for _ in range(rng.choice((0, 0, 0, 0, 1, 2)))])

    return one


def _prepare(folder: Path) -> None:
    os.environ["FUZZ_ROOT"] = str(folder / "data")
    (folder / "data").mkdir(exist_ok=True)
    for split in ("train", "val", "test"):
        entries = [{"image": f"{split}/{i}.tif", "caption": f"picture {i}"} for i in range(5)]
        (folder / "data" / f"{split}.json").write_text(json.dumps(entries))
    for split in ("train", "test"):
        (folder / "data" / f"{split}_filename.txt").write_text("".join(f"{split}{i}.tif\n" for i in range(5)))
        (folder / "data" / f"{split}_caps.txt").write_text("a caption\n" * 5)
    (folder / "weights.pt").write_bytes(b"weights")
    (folder / "empty.pt").touch()
    (folder / "folder.pt").mkdir(exist_ok=True)
    for name, make in {"pipe.pt": os.mkfifo, "link.pt": lambda path: path.symlink_to(path.name)}.items():
        if not os.path.lexists(folder / name):
            make(folder / name)


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value."""
    for key, value in list(data.items() if isinstance(data, dict) else enumerate(data)):
        yield data, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _mutate(data: dict[str, Any], rng: random.Random) -> None:
    places = list(_places(data))
    if not places:
        return
    owner, key = rng.choice(places)
    match rng.randrange(9):
        case 0 | 1 | 2:
            owner[key] = copy.deepcopy(rng.choice(ODD))
        case 3:
            del owner[key]
        case 4:
            owner[key] = [owner[key]] * rng.choice((1, 2, 60))
        case 5 if isinstance(owner, dict):
            owner[rng.choice(KEYS)] = owner.pop(key) if rng.random() < 0.5 else copy.deepcopy(rng.choice(ODD))
        case 6 | 7:
            owner[key] = _near(owner[key], rng)
        case _:
            other, at = rng.choice(places)
            owner[key] = copy.deepcopy(other[at])


def _near(value: Any, rng: random.Random) -> Any:
    """Another value of the same kind, often a valid one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return rng.choice((value + 1, value * 2, value // 2, -value, [value, value + 1], value * 10**20))
    if isinstance(value, list):
        return rng.sample(value, rng.randrange(len(value) + 1)) + rng.choices(value, k=rng.randrange(2)) if value else 1
    if isinstance(value, dict):
        return [value, value]
    return str(value).upper() if rng.random() < 0.5 else [value]


def _text(data: Any, rng: random.Random) -> bytes:
    flow = rng.choice((None, False, True))
    text = yaml.dump(data, Dumper=_Escaped, sort_keys=False, default_flow_style=flow, width=rng.choice((20, 1000)))
    kind = rng.randrange(20)
    if kind == 0:
        for _ in range(rng.choice((1, 2, 8))):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(TEXTS) + text[at + rng.choice((0, 0, 1, 3)) :]
    if kind == 1:
        depth, width = rng.randrange(2, 24), rng.randrange(2, 6)
        text = f"a0: &a0 [{', '.join('1' * width)}]\n" + "".join(
            f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]\n" for i in range(1, depth)
        ) + text  # fmt: skip
    if kind == 2:
        opening, closing = rng.choice((("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")))
        text = f"{text}\nz: " + opening * (times := rng.choice((10, 40, 3000))) + closing * times
    raw = text.encode("utf-8", "surrogatepass")
    return damaged(raw, rng) if kind == 3 else raw


def _override(rng: random.Random) -> str:
    key = rng.choice(OVERRIDDEN)
    if rng.random() < 0.05:
        key = ".".join(["train"] * rng.choice((20, 5000)))
    value = rng.choice(ODD)
    text = value if isinstance(value, str) else json.dumps(value)
    return rng.choice((f"{key}={text}", f"{key}={text}", f"{key}{text}", f"{key}=[{text}, {text}]"))


def _check(file: Path, overrides: list[str]) -> None:
    sweep = expand(file, overrides)
    if len(sweep.runs) > MOST_RUNS:
        raise Wrong(f"{len(sweep.runs):,} runs")
    ids = {run.run_id for run in sweep.runs}
    if len(ids) != len(sweep.runs):
        raise Wrong("two runs of one id")
    for name in (*ids, sweep.name):
        if len(os.fsencode(name)) > 255 or "/" in name or name in (".", ".."):
            raise Wrong(f"{name!r} can't be a folder's name")
    for run in sweep.runs[:5]:
        again = RunSpec.from_dict(parse_yaml(run.dump(), "run.yaml")[0])
        if again != run or again.run_id != run.run_id:
            raise Wrong(f"{run.run_id} is {again.run_id} after it was written and read")
