"""What every typed block of settings shares, and the folder for things that can be made again. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings: unknown keys and wrong types are errors, instances never change.

    Validate mappings read from YAML with ``bench.spec.parse``: it goes through pydantic's strict JSON mode,
    where a list fills a tuple and 1 fills a float, but "12" never fills an int.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def extra_depth(cls, key: str) -> int | None:
        """How many lists deep a setting goes that is no field, in a class that takes such; None in all others."""
        return None


def cache_dir() -> Path:
    """Folder for decoded pixels and the demo world: $PETL_BENCH_CACHE, else ~/.cache/petl-bench."""
    return Path(os.environ.get("PETL_BENCH_CACHE") or Path.home() / ".cache" / "petl-bench")
