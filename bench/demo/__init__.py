"""The built-in demo: a drawn world of overhead scenes and a tiny CLIP pre-trained on another world. No download.

Importing this package makes both known: the dataset `demo`, and the backbone `tiny-clip` with the weights `demo`. It
also has `demo-haze`, the demo world through haze, and `demo-general`, a test set of the other world. No torch.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from bench import data
from bench.config import backbones
from bench.config.files import cache_dir, cache_errors

VERSION = "1"
"""Changes whenever the pictures or captions of a seed do; part of the demo's identity and of every run id."""

MODEL = "tiny-clip"
CONFIG = Path(__file__).with_name(f"{MODEL}.json")
WEIGHTS = Path(__file__).with_name(f"{MODEL}.safetensors")


def root(name: str = "demo") -> Path:
    """The folder in the cache of `demo`, `demo-haze` or `demo-general`, drawn on first use."""
    folder = cache_dir() / f"{name}-{VERSION}"
    with cache_errors("cache", folder):
        if not folder.is_dir():
            from bench.demo import others, world

            build = {"demo": world.build, "demo-haze": others.build_haze, "demo-general": others.build_general}[name]
            build(folder)  # appears only when complete, also with two builds at once
    return folder


def state_dict(path: Path) -> dict[str, Any]:
    """The tiny CLIP's weights by open_clip's names."""
    from bench.demo.tiny_clip import state_dict as read  # torch

    return read(path)


for name, title in {
    "demo": "the built-in demo world, drawn on first use",
    "demo-haze": "other scenes of the demo world through haze, to see how models transfer",
    "demo-general": "the world of the tiny CLIP's pre-training: a test set alone, to see what models forget",
}.items():
    data.register(name, data.DatasetInfo(title, ("demo",), f"{name}-{VERSION}", partial(root, name)))
backbones.register(MODEL, backbones.BuiltIn(CONFIG, {"demo": WEIGHTS}, state_dict))
