"""Which code this is, as git tells it. No torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("bench", "methods")
SECONDS = 20


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> str | None:
    """The commit's hash; None where this code is not under git, also if it is installed inside another repository."""
    tracked = _git("ls-files", "--error-unmatch", str(Path(__file__)))
    return _git("rev-parse", "HEAD") if tracked else None


def is_dirty() -> bool | None:
    """Whether `bench/` or `methods/` differ from the commit, new files included; None where there is no commit."""
    changes = _git("status", "--porcelain", "--", *CODE) if commit() else None
    return None if changes is None else bool(changes)
