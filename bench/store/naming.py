"""Short names for settings by what differs among them: `rank=8` where only the rank varies. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Flat = Mapping[str, Any]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys: `{"train": {"lr": 1}}` becomes `{"train.lr": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal settings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def distinguish(settings: Sequence[Flat], also: Sequence[Collection[str]] = ()) -> list[str]:
    """A text for each of the settings that names the keys whose values vary; different settings get different texts.

    A key that only some settings have (the margin of one loss) appears only where no other key makes the difference.
    `also`: for each of the settings, keys that its text names in any case. Otherwise equal settings get equal texts; if
    all are equal, the texts are empty.
    """
    keys = list(dict.fromkeys(key for flat in settings for key in flat))
    varying = [key for key in keys if len({canonical(flat[key]) for flat in settings if key in flat}) > 1]
    whole = [canonical(flat) for flat in settings]
    if len(set(_render(settings, [varying] * len(settings)))) < len(set(whole)):
        varying += [key for key in keys if key not in varying and any(key not in flat for flat in settings)]
    wanted = [{*varying, *more} for more in also or [()] * len(settings)]
    texts = _render(settings, [[key for key in keys if key in each] for each in wanted])
    meanings: dict[str, set[str]] = {}
    for text, key in zip(texts, whole, strict=True):
        meanings.setdefault(text, set()).add(key)
    return [
        text if len(meanings[text]) == 1 else f"{text} #{hashlib.sha256(key.encode()).hexdigest()[:6]}".strip()
        for text, key in zip(texts, whole, strict=True)
    ]


def _render(settings: Sequence[Flat], keys: Sequence[Sequence[str]]) -> list[str]:
    """A text for each of the settings, with its own keys."""
    short = {key: key.removesuffix(".name").rpartition(".")[2] for each in keys for key in each}
    uses = Counter(short.values())
    names = {key: name if uses[name] == 1 else key for key, name in short.items()}
    return [
        ", ".join(f"{names[key]}={shown(flat[key])}" for key in each if key in flat)
        for flat, each in zip(settings, keys, strict=True)
    ]


def shown(value: Any) -> str:
    """A setting's value as text: 0.001, cosine, none, [0.9,0.98]."""
    if isinstance(value, float):
        near = (text for text in (f"{value:g}", f"{value:.12g}") if math.isclose(float(text), value, rel_tol=1e-11))
        return next(near, repr(value))
    return value if isinstance(value, str) else "none" if value is None else canonical(value)
