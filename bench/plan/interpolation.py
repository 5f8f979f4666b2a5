"""Which runs of a sweep are interpolated with the backbone: those of methods that can. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import methods
from bench.config.document import Document, Key
from bench.config.errors import UserError
from bench.config.parse import parse
from bench.config.settings import EvaluationSettings
from bench.plan.axes import Choices, section
from bench.plan.spec import RunSpec
from methods.base import Method


@dataclass(frozen=True)
class Asked:
    """The section `evaluation` as it is written: the sweep's, or that of one method, for which `path` is its place."""

    choices: Choices
    path: Key = ("evaluation",)

    def settings(self, document: Document) -> list[EvaluationSettings]:
        """The settings of each combination; UserError for those that can't be."""
        return [
            parse(EvaluationSettings, choice.values, "evaluation", document, self.path, choice.places)
            for choice in self.choices
        ]


def of_entry(document: Document, path: Key, written: Any) -> Asked | None:
    """The section of one entry of the grid's methods; None if it has none, or none left beside overrides."""
    if not written:
        return None
    path = (*path, "evaluation")
    return Asked(section(EvaluationSettings, document, path, written), path)


def evaluated(document: Document, asked: Asked, method: Method) -> Iterator[tuple[EvaluationSettings, str]]:
    """How a method's runs are evaluated, each with a note. The sweep's `interpolate` is for the methods that can.

    UserError if the method's own section asks for what it can't do.
    """
    for found in asked.settings(document):
        if found.interpolate is None or method.interpolates:
            yield found, ""
        elif asked.path == ("evaluation",):
            note = f"{method.name} is not interpolated: it does not change the backbone's own weights"
            yield found.model_copy(update={"interpolate": None}), note if method.trains else ""
        else:
            raise UserError(
                f"{document.at((*asked.path, 'interpolate'))}: evaluation.interpolate: {method.name} neither trains "
                f"the backbone's own weights nor can be merged into them; {_able()}"
            )


def check_used(document: Document, common: Asked, runs: Collection[RunSpec]) -> None:
    """Raise UserError if the sweep asks for interpolation and none of its methods can."""
    asked = any(each.interpolate for each in common.settings(document))
    if asked and not any(run.evaluation.interpolate for run in runs):
        raise UserError(
            f"{document.at(('evaluation', 'interpolate'))}: evaluation.interpolate: no method of this sweep trains the "
            f"backbone's own weights or can be merged into them; {_able()}"
        )


def _able() -> str:
    classes = [methods.get(name) for name in methods.names()]
    able = [cls.name for cls in classes if cls(**next(iter(cls.examples.values()))).interpolates]
    return f"these can: {', '.join(able)}"
