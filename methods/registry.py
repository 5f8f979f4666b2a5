"""Names to classes, looked up when asked for; unknown names get a suggestion. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from bench.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Registry(Generic[T]):
    """A table of `name -> "module:Class"`, extended by the installed packages' entry points."""

    kind: str
    entry_points: str
    built_in: Mapping[str, str]

    @cache  # noqa: B019 - registries live as long as the process
    def _outside(self) -> dict[str, str]:
        return {point.name: point.value for point in entry_points(group=self.entry_points)}

    def names(self) -> list[str]:
        """All registered names, the built-in ones first."""
        return [*self.built_in, *(name for name in self._outside() if name not in self.built_in)]

    def get(self, name: str) -> type[T]:
        """The class registered under a name; UserError with the nearest name if there is none."""
        target = self.built_in.get(name) or self._outside().get(name)
        if target is None:
            close = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UserError(f"unknown {self.kind} '{name}'{hint} (known: {', '.join(self.names())})")
        module, _, attribute = target.partition(":")
        found: type[T] = getattr(import_module(module), attribute)
        return found
