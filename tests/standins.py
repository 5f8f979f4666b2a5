"""Stand-in images for real annotations: ``python tests/standins.py rsitmd DIR --annotations FOLDER [--split pir]``.

Every image the annotations name becomes a small picture under DIR: a colour gradient with noise, drawn from the name
alone, so the same everywhere. They let the harness run over real captions and splits; they teach a model nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from bench.config.errors import UserError
from bench.data import DATASETS
from bench.data.annotations import FILES, read


def render(name: str, size: int = 64) -> Image.Image:
    """The picture for a name: RGB, size x size."""
    rng = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8))
    noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    smooth = Image.Resampling.BILINEAR
    return Image.blend(corners.resize((size, size), smooth), noise.resize((size, size), smooth), 0.4)


def render_all(root: Path, names: Iterable[str], size: int = 64) -> int:
    """Writes a picture for each name that has no file yet, format by extension; returns how many names there are."""
    count = 0
    for count, name in enumerate(names, 1):  # noqa: B007
        path = root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            render(name, size).save(path)
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[name for name in DATASETS if name != "demo"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--split", choices=FILES, help="layout; default: the dataset's default split")
    parser.add_argument("--size", type=int, default=64, help="edge in pixels")
    given = parser.parse_args()
    try:
        splits = read(given.split or DATASETS[given.name].splits[0], given.name, given.annotations)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = render_all(given.folder, (item.image for items in splits.values() for item in items), given.size)
    print(f"{count} stand-in images under {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
