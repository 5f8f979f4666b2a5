"""The versions that `make install` takes (requirements.lock) and the lowest ones (requirements-lowest.txt)."""

from __future__ import annotations

import os
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
REQUIRE = "PETL_BENCH_REQUIRE_LOCK"


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]


def pinned(file: str) -> list[Requirement]:
    """A line a package and platform."""
    lines = (line.split(" #")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def version(pin: Requirement) -> Version:
    [only] = pin.specifier
    assert only.operator == "==", f"{pin} is no pin"
    return Version(only.version)


def pins_of(name: str, file: str) -> list[Version]:
    """More than one where the newest version does not run on every Python."""
    return [version(pin) for pin in pinned(file) if canonicalize_name(pin.name) == canonicalize_name(name)]


@pytest.mark.parametrize("dependency", declared(), ids=lambda each: each.name)
def test_a_dependency_is_pinned_within_its_range(dependency):
    pins = pins_of(dependency.name, "requirements.lock")
    assert pins, f"{dependency.name} is not in requirements.lock; run `make lock`"
    assert all(pin in dependency.specifier for pin in pins), f"{dependency}, but requirements.lock has {pins}"


@pytest.mark.parametrize("dependency", declared(), ids=lambda each: each.name)
def test_the_lowest_version_is_the_lower_end_of_the_range(dependency):
    [end] = [Version(each.version) for each in dependency.specifier if each.operator == ">="]
    assert pins_of(dependency.name, "requirements-lowest.txt") == [end]


def test_the_lock_is_what_every_machine_can_have():
    assert pins_of("torch", "requirements.lock") == [Version("2.14.1")]
    for constraint in pinned("constraints.txt"):
        assert pins_of(constraint.name, "requirements.lock") == [version(constraint)]
    for pin in pinned("requirements.lock") + pinned("requirements-lowest.txt"):
        assert version(pin).local is None, f"{pin} is a build that only one index has"


def test_what_runs_is_what_is_locked():
    differing = []
    for pin in pinned("requirements.lock"):
        if pin.marker and not pin.marker.evaluate():
            continue
        try:
            here = metadata.version(pin.name)
        except metadata.PackageNotFoundError:
            here = "missing"
        if here == "missing" or Version(here) not in pin.specifier:
            differing.append(f"{pin.name} {here}, not {version(pin)}")
    if differing and os.environ.get(REQUIRE) != "1":
        pytest.skip(f"other versions than requirements.lock's: {'; '.join(differing)}")
    assert not differing
