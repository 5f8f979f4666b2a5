"""Small pictures of a test set's images, from the dataset where it is on this machine. No torch."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, features

from bench import data
from bench.config.errors import UserError
from bench.config.settings import dataset_class
from bench.data import pixels
from bench.store.testset import Queries

SIDE = 112  # pixels of the longer side
# What Pillow raises for files that are no picture, or one too large.
_UNREADABLE: tuple[type[BaseException], ...] = (
    *(UserError, OSError, ValueError, SyntaxError, ArithmeticError, MemoryError),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
_MOST = 1500  # pictures that are decoded


def thumbnails(queries: Queries, settings: Mapping[str, Any], wanted: Sequence[int], budget: int) -> dict[int, str]:
    """Data URLs of the wanted images by index, in this order until `budget` bytes are used.

    `settings`: a run's flat ones, which say where the dataset lies. {} where it does not lie there, or has changed
    since; an image that can't be read has no picture.
    """
    try:
        dataset = _dataset(settings)
    except (UserError, OSError, ValueError, TypeError, KeyError):
        return {}
    if dataset.sha256 != queries.sha256:
        return {}
    made: dict[int, str] = {}
    with pixels.strict():
        for i in wanted[:_MOST]:
            url = _picture(dataset, queries.images[i])
            budget -= len(url)
            if budget < 0:
                break
            if url:
                made[i] = url
    return made


def _picture(dataset: data.Dataset, image: str) -> str:
    """The data URL of a small picture of a test image; "" if there is no such file or it can't be decoded."""
    try:
        path = data.locate(dataset.root, image, "test")
        return _url(pixels.decode(path)) if path else ""
    except _UNREADABLE:
        return ""


def _dataset(settings: Mapping[str, Any]) -> data.Dataset:
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        parts = key.split(".")
        if parts[0] == "dataset":
            place = nested
            for part in parts[1:-1]:
                place = place.setdefault(part, {})
            place[parts[-1]] = value
    return data.load(dataset_class(nested).model_validate_json(json.dumps(nested)))


def _url(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE))
    kind = "webp" if features.check("webp") else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=60)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
