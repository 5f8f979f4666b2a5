"""Methods and losses by name: built-in ones, those of installed packages, and those in plug-in files.

A class is imported when its name is looked up; importing this file imports no torch. Packages register by entry points,
files by `--plugin FILE`. The plug-ins are listed in an environment variable: workers and jobs inherit it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from bench.config.errors import UserError

T = TypeVar("T")
PLUGINS = "PETL_BENCH_PLUGINS"


REGISTRIES: list[Registry[Any]] = []  # of methods and of losses, in the order in which they were made


@dataclass(frozen=True, eq=False)
class Registry(Generic[T]):
    """A table of `name -> "module:Class"`, extended by entry points and by the classes of plug-ins."""

    kind: str
    base: type[T]
    entry_points: str
    built_in: Mapping[str, str]

    def __post_init__(self) -> None:
        REGISTRIES.append(self)

    @cache  # noqa: B019 - registries live as long as the process
    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.entry_points)}

    def _plugged(self) -> dict[str, type[T]]:
        found: dict[str, type[T]] = {}
        for module in [*map(load_file, plugins()), *_MODULES]:
            for cls in self.classes(module):
                name: str = cls.name  # type: ignore[attr-defined]
                target = self._target(name)
                if target == f"{cls.__module__}:{cls.__name__}":
                    continue  # registered already
                if target is not None or found.get(name, cls) is not cls:
                    raise UserError(f"{module.__file__}: the {self.kind} '{name}' exists already; choose another name")
                found[name] = cls
        return found

    def classes(self, module: ModuleType) -> list[type[T]]:
        """The methods or losses that a module defines itself, in its order; those it imports don't count."""
        found = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, self.base)]
        return [each for each in found if each.__module__ == module.__name__ and "name" in vars(each)]

    def names(self) -> list[str]:
        """All registered names, the built-in ones first."""
        return list(dict.fromkeys([*self.built_in, *self._installed(), *self._plugged()]))

    def get(self, name: str) -> type[T]:
        """The class registered under a name. Raises UserError, with the nearest name, if there is no such class."""
        if (target := self._target(name)) is not None:
            return self._load(name, target)
        if name in (plugged := self._plugged()):
            return plugged[name]
        close = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(
            f"unknown {self.kind} '{name}'{hint} (known: {', '.join(self.names())}; "
            "those in a file of yours need --plugin FILE)"
        )

    def _target(self, name: str) -> str | None:
        """Where a built-in or installed one is, as "module:Class"."""
        installed = self._installed().get(name)
        return self.built_in.get(name) or (installed.value if installed else None)

    def _load(self, name: str, target: str) -> type[T]:
        module, _, attribute = target.partition(":")
        try:
            found = getattr(import_module(module), attribute)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"the {self.kind} '{name}' is registered as {target}, but: {reason}") from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise UserError(f"the {self.kind} '{name}' is registered as {target}, which is no {self.base.__name__}")
        if found.name != name:  # type: ignore[attr-defined]
            raise UserError(f"the {self.kind} '{name}' is registered as {target}, whose name is '{found.name}'")  # type: ignore[attr-defined]
        return found


_MODULES: list[ModuleType] = []  # known in this process alone: those that `bench.check` checks
_HASHES: dict[str, str] = {}  # of plug-in files, as they were imported


def add_module(module: ModuleType) -> None:
    """Make the methods and losses of an imported module known in this process."""
    if module not in _MODULES:
        _MODULES.append(module)


def add_plugin(path: Path) -> None:
    """Make the methods and losses of a file known in this process and in those that it starts.

    Raises UserError as `load_file` does.
    """
    if os.pathsep in str(path.absolute()):
        raise UserError(f"--plugin {path}: a path with '{os.pathsep}' can't be handed to other processes; rename it")
    load_file(path)
    known = [*map(str, plugins()), str(path.absolute())]
    os.environ[PLUGINS] = os.pathsep.join(dict.fromkeys(known))


def plugins() -> list[Path]:
    """The plug-in files of this process."""
    return [Path(path) for path in os.environ.get(PLUGINS, "").split(os.pathsep) if path]


@contextmanager
def _without_current_folder() -> Iterator[None]:
    """Leave out the folder that `python -m` puts on the path; workers and jobs, which import plug-ins too, lack it."""
    before = list(sys.path)
    if sys.path and sys.path[0] in ("", os.getcwd()) and not sys.flags.safe_path:  # noqa: PTH109
        del sys.path[0]
    try:
        yield
    finally:
        sys.path[:] = before


@cache
def _module(path: Path) -> ModuleType:
    name = f"petl_bench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: not a Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        _HASHES[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        with _without_current_folder():
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        hint = " (a plug-in is one file; what it shares with others has to be installed)"
        reason = f"{type(error).__name__}: {error}{hint if isinstance(error, ModuleNotFoundError) else ''}"
        raise UserError(f"--plugin {path}: cannot be imported: {reason}") from error
    return module


def load_file(path: Path) -> ModuleType:
    """Import a plug-in file, once. Raises UserError if it is missing, can't be imported, or a name in it is taken."""
    if not path.is_file():
        raise UserError(f"--plugin {path}: no such file")
    module = _module(path.absolute())
    found = [(registry, cls) for registry in REGISTRIES for cls in registry.classes(module)]
    if not found:
        raise UserError(f"--plugin {path}: defines no method and no loss (a class with a `name` that extends Method)")
    for registry, cls in found:
        if cls.name in registry.built_in:
            raise UserError(f"--plugin {path}: the {registry.kind} '{cls.name}' exists already; choose another name")
    return module


def sources(*classes: type) -> dict[str, str]:
    """Where classes from outside come from, for a result's provenance: file -> sha256, or package -> version."""
    found = {}
    for cls in classes:
        if cls.__module__ in _HASHES:
            found[str(sys.modules[cls.__module__].__file__)] = _HASHES[cls.__module__]
        for registry in REGISTRIES:
            point = registry._installed().get(cls.name)  # type: ignore[attr-defined]
            if point is not None and point.value.partition(":")[0] == cls.__module__ and point.dist is not None:
                found[point.dist.name] = point.dist.version
    return found
