"""What the benchmarks compute on: drawn pictures with captions as long as RSITMD's, and runs on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import methods
from bench import data
from bench.compute.build import Loaded, shortcuts_of
from bench.core.inputs import Inputs
from bench.core.weights import Backbone, load_backbone
from bench.plan.spec import RunSpec

# Each is one token of CLIP's. With start and end, RSITMD's captions have 13 tokens in the mean and 42 at most.
WORDS = (
    "road",
    "river",
    "tree",
    "house",
    "field",
    "bridge",
    "airport",
    "beach",
    "white",
    "green",
    "many",
    "near",
    "two",
)
MEAN_WORDS, MOST_WORDS = 11, 40
EVALUATED = 8  # images of the validation and test splits where a benchmark does not look at them
Settings = Mapping[str, Any]


def captions_like_rsitmd(count: int, seed: int = 0) -> list[str]:
    """`count` captions of drawn words, 4 to 40 of them, 11 in the mean: 2 tokens more each."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(4 + rng.negative_binomial(3, 3 / (MEAN_WORDS - 1), count), 4, MOST_WORDS)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def read_captions(path: Path) -> list[str]:
    """The captions of an annotation file: a JSON list of entries with `caption`, a text or a list; or one a line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return [line for line in text.splitlines() if line.strip()]
    found = [entry["caption"] for entry in json.loads(text)]
    return [caption for each in found for caption in ([each] if isinstance(each, str) else each)]


def draw_dataset(folder: Path, images: int, captions: Sequence[str], evaluated: int = EVALUATED) -> dict[str, Any]:
    """Write a dataset of noise pictures with these captions in turn, and return the settings that name it.

    Every training image has `len(captions) / images` captions; `evaluated` more images make each of val and test.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    each = len(captions) // images
    rows = []
    splits = ["train"] * images + ["val"] * evaluated + ["test"] * evaluated
    for number, split in enumerate(splits):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((256, 256)).save(
            folder / f"{number}.jpg"
        )
        own = [captions[(number * each + index) % len(captions)] for index in range(each)]
        rows += [{"image": f"{number}.jpg", "caption": caption, "split": split} for caption in own]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = {"image": "image", "caption": "caption", "split": "split"}
    return {"name": "captions", "root": str(folder), "file": "captions.jsonl", **columns}


def run_spec(
    dataset: Settings,
    method: Settings,
    train: Settings,
    *,
    model: str,
    loss: Settings | None = None,
    seed: int = 0,
    core: Settings | None = None,
) -> RunSpec:
    """A run of a method on a dataset, from a backbone with random weights."""
    return RunSpec.from_dict(
        ({"core": dict(core)} if core else {})
        | {
            "sweep": "benchmark",
            "dataset": dict(dataset),
            "backbone": {"model": model, "weights": "random"},
            "method": dict(method),
            "loss": dict(loss or {"name": methods.get(method["name"]).default_loss}),
            "train": dict(train),
            "seed": seed,
        }
    )


def load(spec: RunSpec) -> Loaded:
    """The run's dataset and plain backbone."""
    return Loaded(data.load(spec.dataset), load_backbone(spec.backbone))


def inputs_of(spec: RunSpec, loaded: Loaded, backbone: Backbone) -> Inputs:
    """What the core reads for a run whose method is attached to `backbone`."""
    device = next(backbone.model.parameters()).device
    return Inputs(
        loaded.dataset,
        backbone,
        spec.train,
        device,
        prepared=loaded.prepared,
        shortcuts=shortcuts_of(spec, backbone.model),
        core=spec.core,
    )
