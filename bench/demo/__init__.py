"""The built-in demo: a drawn world of overhead scenes and a tiny CLIP pre-trained on another world. No download.

Importing this package makes both known: the dataset `demo`, and the backbone `tiny-clip` with the weights `demo`. No
torch.
"""

from __future__ import annotations

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


def root() -> Path:
    """The demo world's folder in the cache, drawn on first use."""
    folder = cache_dir() / f"demo-{VERSION}"
    with cache_errors("cache", folder):
        if not folder.is_dir():
            from bench.demo import world

            world.build(folder)  # appears only when complete, also with two builds at once
    return folder


def state_dict(path: Path) -> dict[str, Any]:
    """The tiny CLIP's weights by open_clip's names."""
    from bench.demo.tiny_clip import state_dict as read  # torch

    return read(path)


data.register(
    "demo", data.DatasetInfo("the built-in demo world, drawn on first use", ("demo",), f"demo-{VERSION}", root)
)
backbones.register(MODEL, backbones.BuiltIn(CONFIG, {"demo": WEIGHTS}, state_dict))
