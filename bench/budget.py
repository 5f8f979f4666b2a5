"""Matched budgets: a method's knob (rank, bottleneck, tokens) solved for a count of trainable parameters. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.errors import UserError
from methods.base import Method

CLOSE = 0.9  # the smallest share of a budget that counts as reaching it
UNITS = {"": 1, "k": 10**3, "m": 10**6}


def read(value: Any, place: str) -> int:
    """160000, 160k or 1.5M as a number of parameters; UserError, with the place, for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmM]?)", str(value).strip())
    count = round(float(found[1]) * UNITS[found[2].lower()]) if found and not isinstance(value, bool) else 0
    if count < 1:
        raise UserError(
            f"{place}: grid: budget: expected trainable parameters, such as 160000, 160k or 1.5M, got {value!r}"
        )
    return count


@dataclass(frozen=True)
class Fitted:
    """A method at the largest knob whose count stays within a budget; `method` is None where none comes close."""

    method: Method | None
    note: str


def fit(
    budget: int,
    name: str,
    knob: str | None,
    make: Callable[[int | None], Method],
    count: Callable[[Method], int | None],
) -> Fitted:
    """Solve a method's knob for a budget, from below; without a knob its one count reaches the budget or does not.

    `make` builds the method with a value of the knob (UserError where it can't be had), or with None as it is set.
    `count` is the closed form; it grows with the knob.
    """
    plain = make(None)
    if knob is None:
        return _judge(budget, plain, count(plain), name)

    def at(multiple: int) -> tuple[Method | None, int | None]:
        try:
            method = make(multiple * plain.knob_step)
            return method, count(method)
        except UserError:
            return None, None

    def within(multiple: int) -> bool:
        found = at(multiple)[1]
        return found is not None and found <= budget

    low, high = 1, 2
    while within(high) and at(high)[1] != at(low)[1]:  # a knob may cease to matter, such as a rank beyond the layer's
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return _judge(budget, *at(low), f"{name} {knob}={low * plain.knob_step}")


def _judge(budget: int, method: Method | None, found: int | None, what: str) -> Fitted:
    if found is None:
        return Fitted(None, f"budget {budget:,}: {what} is left out: its parameters can't be counted beforehand")
    share = f"{found / budget:.0%}" if found < 2 * budget else f"{found / budget:,.0f} times as many"
    text = f"budget {budget:,}: {what} trains {found:,} ({share})"
    if found > budget:
        return Fitted(None, f"{text}: left out, it can't be smaller")
    if found < CLOSE * budget:
        return Fitted(None, f"{text}: left out, it comes no closer from below")
    return Fitted(method, text)
