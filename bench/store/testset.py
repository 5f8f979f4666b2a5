"""What a test set is made of, once a results folder: names, classes and captions of its images. No torch.

Reports show queries and what was found for them, also where the dataset itself is not at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bench.config.errors import UserError
from bench.config.files import write_json
from bench.store.planned import PLAN

FOLDER = "testsets"  # in a results folder: one file a dataset, named by the start of the dataset's hash


class Queries(BaseModel):
    """The images of a test set in the order of the runs' ranks, each with its captions and, where known, its class.

    sha256: of the dataset, as in the runs' provenance.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    dataset: str
    sha256: str
    images: tuple[str, ...]
    labels: tuple[str | None, ...]
    captions: tuple[tuple[str, ...], ...]

    @model_validator(mode="after")
    def _fits(self) -> Queries:
        if not len(self.images) == len(self.labels) == len(self.captions):
            raise ValueError("images, labels and captions differ in number")
        return self


def path_of(results_dir: Path, sha256: str) -> Path:
    """The file of the test set of the dataset with this hash (64 hex digits)."""
    return results_dir / FOLDER / f"{sha256[:16]}.json"


def write(
    results_dir: Path,
    dataset: str,
    sha256: str,
    images: Sequence[str],
    labels: Sequence[str | None],
    captions: Sequence[Sequence[str]],
) -> None:
    """Write the test set's file, if it is not there yet: the runs of a sweep share it.

    Nothing is written beside a lone run, whose parent is no sweep's folder. No run fails for want of this file: a
    failure to write it is a warning on stderr.
    """
    if not (results_dir / PLAN).exists() or read(results_dir, sha256) is not None:
        return
    path = path_of(results_dir, sha256)
    content = Queries(
        dataset=dataset,
        sha256=sha256,
        images=tuple(images),
        labels=tuple(labels),
        captions=tuple(map(tuple, captions)),
    )
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, content.model_dump(mode="json"))
    except (OSError, UserError) as error:
        print(f"warning: {path} could not be written ({error}); reports show no queries", file=sys.stderr)


def read(results_dir: Path, sha256: str) -> Queries | None:
    """The test set of the dataset with this hash; None if its file is absent, broken or another dataset's."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        return None
    try:
        found = Queries.model_validate_json(path_of(results_dir, sha256).read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.sha256 == sha256 else None
