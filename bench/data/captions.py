"""Captions cleaned before they are tokenised: named presets."""

from __future__ import annotations

import html
from collections.abc import Callable

MAX_WORDS = 30
_HARMA = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")


def clean(text: str, preset: str) -> str:
    """The caption after a preset: none | clip | harma.

    none: as written. clip: what CLIP's tokenizer does itself before BPE (ftfy, HTML entities, white space, lower
    case), so it changes no token. harma: lower case, ``,.'!?"()*#:;~`` removed, ``-`` and ``/`` to a space, at most
    30 words (HarMA's released pre_caption).
    """
    return PRESETS[preset](text)


def _clip(text: str) -> str:
    import ftfy  # costs 0.1 s, and is needed here alone

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def _harma(text: str) -> str:
    return " ".join(text.lower().translate(_HARMA).split()[:MAX_WORDS])


PRESETS: dict[str, Callable[[str], str]] = {"none": str, "clip": _clip, "harma": _harma}
