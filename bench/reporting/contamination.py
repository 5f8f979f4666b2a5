"""Checkpoints known to be tuned on the datasets that they are scored on. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

SEEN = "¶"  # mark of a row
MEANING = "the weights were tuned on this dataset before the run: it is no test of adapting to it"


@dataclass(frozen=True)
class Known:
    """Checkpoints by their files' names (patterns of fnmatch, lower case), and the datasets that they were tuned on."""

    patterns: tuple[str, ...]
    datasets: tuple[str, ...]
    reason: str


KNOWN = (
    Known(
        ("*rs5m*ret-2*", "*rs5m*ret2*", "*georsclip*ret-2*", "*georsclip*ret2*"),
        ("rsicd", "rsitmd"),
        "GeoRSCLIP's RET-2 checkpoints are fine-tuned on RSICD and RSITMD (Zhang et al. 2024, arXiv 2306.11300)",
    ),
    Known(
        ("*remoteclip*",),
        ("rsicd", "rsitmd", "ucm"),
        "RemoteCLIP is trained on RET-3: RSICD, RSITMD and UCM-Captions (Liu et al. 2024, arXiv 2306.11029)",
    ),
)


def facts(settings: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """A fact of a block for each reason why weights of its rows have seen the dataset."""
    for reason in dict.fromkeys(filter(None, map(contaminated, settings))):
        yield "Weights", reason


def contaminated(settings: Mapping[str, Any]) -> str | None:
    """Why a run's weights have seen its dataset, from the run's flat settings; None if nothing is known.

    A file is known by its name alone: under another name it is not found.
    """
    weights = [str(settings.get(key, "")) for key in ("backbone.weights", "backbone.model")]
    names = [PurePath(text).name.lower() for text in weights]
    for known in KNOWN:
        matches = any(fnmatchcase(name, pattern) for name in names for pattern in known.patterns)
        if matches and settings.get("dataset.name") in known.datasets:
            return known.reason
    return None
