"""The origin of a result: its code (the git commit), packages and machine; and snapshots of the code. No torch."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CODE = ("bench", "methods")
COPY = "REVISION.json"  # in a snapshot's root: commit and state of the code it was copied from
SECONDS = 20  # time-out of a git command
LOCK_FILE = "requirements.lock"
PACKAGES = ("torch", "torchvision", "open_clip_torch", "peft", "numpy", "pillow", "petl-bench")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _copied() -> dict[str, Any] | None:
    """The commit and state recorded in this code if it is a snapshot; None if it is not."""
    try:
        return dict(json.loads((ROOT / COPY).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def commit() -> str | None:
    """The hash of this code's git commit; None if git does not track the code, even inside another repository."""
    if (copied := _copied()) is not None:
        return copied["commit"]
    tracked = _git("ls-files", "--error-unmatch", str(Path(__file__)))
    return _git("rev-parse", "HEAD") if tracked else None


def is_dirty() -> bool | None:
    """Whether `bench/` or `methods/` differ from the commit, new files included; None without a commit."""
    if (copied := _copied()) is not None:
        return copied["dirty"]
    changes = _git("status", "--porcelain", "--", *CODE) if commit() else None
    return None if changes is None else bool(changes)


def digest(plugins: Sequence[Path] = ()) -> str:
    """A hash (12 hex digits) of this code and these plug-in files: their content, commit and state."""
    content = hashlib.sha256(_about().encode())
    for path, source in _files(plugins).items():
        data = source.read_bytes()
        content.update(f"{path} {len(data)}\n".encode() + data)
    return content.hexdigest()[:12]


def snapshot(folder: Path, plugins: Sequence[Path] = ()) -> Path:
    """Copy this code and these plug-in files to `folder`/`digest(plugins)`, unless it exists; return that path."""
    copy = folder / digest(plugins)
    if not copy.exists():
        part = folder / f".{copy.name}.{secrets.token_hex(4)}.part"
        for path, source in _files(plugins).items():
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, part / path)
        (part / COPY).write_text(_about(), encoding="utf-8")
        try:
            part.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return copy


def _about() -> str:
    return json.dumps({"commit": commit(), "dirty": is_dirty()}) + "\n"


def plugins_in(copy: Path, plugins: Sequence[Path]) -> list[Path]:
    """The paths of these plug-in files inside a snapshot."""
    return [copy / "plugins" / str(number) / path.name for number, path in enumerate(plugins)]


def _files(plugins: Sequence[Path]) -> dict[Path, Path]:
    """The files of a snapshot: path in the snapshot -> path of the original."""
    found = [path.relative_to(ROOT) for name in CODE for path in (ROOT / name).rglob("*") if path.is_file()]
    code = {path: ROOT / path for path in sorted(found) if "__pycache__" not in path.parts}
    lock = {Path(LOCK_FILE): ROOT / LOCK_FILE} if (ROOT / LOCK_FILE).is_file() else {}
    return code | lock | dict(zip(plugins_in(Path(), plugins), plugins, strict=True))


def lock_sha256() -> str | None:
    """sha256 (hex) of the lock file beside this code; None if there is none, as in an installed package."""
    try:
        return hashlib.sha256((ROOT / LOCK_FILE).read_bytes()).hexdigest()
    except OSError:
        return None


def lock_differs() -> list[str] | None:
    """The installed packages whose version is not the lock file's, as "torch 2.13.0"; None where there is no lock."""
    try:
        text = (ROOT / LOCK_FILE).read_text(encoding="utf-8")
    except OSError:
        return None
    pins: dict[str, set[str]] = {}
    for name, pinned in re.findall(r"^([\w.-]+)==([\w.!+]+)", text, re.MULTILINE):
        pins.setdefault(name, set()).add(pinned)  # several where Pythons or platforms need different ones
    installed = {name: _version(name) for name in pins}
    return [f"{name} {here}" for name, here in installed.items() if here is not None and here not in pins[name]]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """Code, packages and machine as a result records them; unknown values are None."""
    return {
        "git_commit": commit(),
        "git_dirty": is_dirty(),
        "lock_sha256": lock_sha256(),
        "lock_differs": lock_differs(),
        "packages": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
    }
