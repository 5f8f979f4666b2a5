"""Names to classes, looked up when asked for; unknown names get a suggestion. No torch.

Three places are searched: the table of built-in names, the entry points of installed packages, and plug-in files,
which `--plugin FILE` names. Plug-ins are kept in the environment, so that workers and jobs know them as well.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from bench.errors import UserError

T = TypeVar("T")
PLUGINS = "PETL_BENCH_PLUGINS"


@dataclass(frozen=True, eq=False)
class Registry(Generic[T]):
    """A table of `name -> "module:Class"`, extended by entry points and by the classes of plug-in files."""

    kind: str
    base: type[T]
    entry_points: str
    built_in: Mapping[str, str]

    @cache  # noqa: B019 - registries live as long as the process
    def _installed(self) -> dict[str, str]:
        return {point.name: point.value for point in entry_points(group=self.entry_points)}

    def _plugged(self) -> dict[str, type[T]]:
        return {cls.name: cls for path in plugins() for cls in self.classes(load_file(path))}  # type: ignore[attr-defined]

    def classes(self, module: ModuleType) -> list[type[T]]:
        """The methods or losses that a module defines itself, in its order; those it imports don't count."""
        found = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, self.base)]
        return [each for each in found if each.__module__ == module.__name__ and "name" in vars(each)]

    def names(self) -> list[str]:
        """All registered names, the built-in ones first."""
        return list(dict.fromkeys([*self.built_in, *self._installed(), *self._plugged()]))

    def get(self, name: str) -> type[T]:
        """The class registered under a name; UserError with the nearest name if there is none."""
        if name not in self.built_in and name in (plugged := self._plugged()):
            return plugged[name]
        target = self.built_in.get(name) or self._installed().get(name)
        if target is None:
            close = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UserError(
                f"unknown {self.kind} '{name}'{hint} (known: {', '.join(self.names())}; "
                "those in a file of yours need --plugin FILE)"
            )
        module, _, attribute = target.partition(":")
        try:
            found: type[T] = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"the {self.kind} '{name}' is registered as {target}, but: {error}") from error
        return found


def add_plugin(path: Path) -> None:
    """Make the methods and losses of a file known here and in every process started from here."""
    load_file(path)
    known = [*map(str, plugins()), str(path.absolute())]
    os.environ[PLUGINS] = os.pathsep.join(dict.fromkeys(known))


def plugins() -> list[Path]:
    """The plug-in files of this process."""
    return [Path(path) for path in os.environ.get(PLUGINS, "").split(os.pathsep) if path]


@cache
def _module(path: Path) -> ModuleType:
    name = f"petl_bench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: not a Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"--plugin {path}: cannot be imported: {type(error).__name__}: {error}") from error
    return module


def load_file(path: Path) -> ModuleType:
    """Import a plug-in file, once; UserError if it is not there, does not import, or takes a built-in's name."""
    if not path.is_file():
        raise UserError(f"--plugin {path}: no such file")
    import methods
    from methods import losses

    module = _module(path.absolute())
    registries: tuple[Registry, ...] = (methods.METHODS, losses.LOSSES)
    found = [(registry, cls) for registry in registries for cls in registry.classes(module)]
    if not found:
        raise UserError(f"--plugin {path}: defines no method and no loss (a class with a `name` that extends Method)")
    for registry, cls in found:
        if cls.name in registry.built_in:
            raise UserError(f"--plugin {path}: the {registry.kind} '{cls.name}' exists already; choose another name")
    return module


def sources(*classes: type) -> dict[str, str]:
    """The plug-in files that classes come from, with the sha256 of each: what a result's provenance names."""
    paths = {path for path in plugins() for cls in classes if cls.__module__ == _module(path.absolute()).__name__}
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}
