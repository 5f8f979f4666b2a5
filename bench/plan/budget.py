"""Matched budgets: a method's knob (rank, bottleneck, tokens) solved for a count of trainable parameters. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.config.document import show
from bench.config.errors import UserError
from methods.base import Method

CLOSE = 0.9  # the smallest share of a budget that counts as reaching it
FIRST = 64  # multiples of the knob's step that are tried to find the smallest valid one
MOST = 10**12  # parameters: beyond any model
UNITS = {"": 1, "k": 10**3, "m": 10**6}


def read(value: Any, place: str) -> int:
    """160000, 160k or 1.5M as a number of parameters; UserError, with the place, for anything else."""
    found = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([kKmM]?)", str(value).strip())
    count = round(float(found[1]) * UNITS[found[2].lower()]) if found and not isinstance(value, bool) else 0
    if not 1 <= count <= MOST:
        raise UserError(
            f"{place}: grid: budget: expected trainable parameters, such as 160000, 160k or 1.5M, got {show(value)}"
        )
    return count


@dataclass(frozen=True)
class Fitted:
    """A method at the largest knob whose count stays within a budget; `method` is None where none comes close."""

    method: Method | None
    note: str


def fit(
    budget: int,
    what: str,
    *,
    knob: str | None,
    make: Callable[[Mapping[str, Any]], Method],
    count: Callable[[Method], int | None],
) -> Fitted:
    """The method at the largest knob whose count stays within the budget. Without a knob it has one count.

    `make(settings)` builds the method with these settings beside its own; UserError if they are not valid. `count` is
    the closed form, which grows with the knob. `what` names the method in the note.
    """
    plain = make({})
    if knob is None:
        return _judge(budget, plain, count(plain), what)
    refused = ""

    def at(multiple: int) -> tuple[Method | None, int | None]:
        nonlocal refused
        try:
            method = make({knob: multiple * plain.knob_step})
            return method, count(method)
        except UserError as error:
            refused = str(error)
            return None, None

    def within(multiple: int) -> bool:
        found = at(multiple)[1]
        return found is not None and found <= budget

    low = next((multiple for multiple in range(1, FIRST + 1) if at(multiple)[0] is not None), None)
    if low is None:
        return Fitted(None, f"budget {budget:,}: {what} is left out: {refused}")
    high = low + 1
    while within(high) and at(high)[1] != at(low)[1]:  # a knob may cease to matter, such as a rank beyond the layer's
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return _judge(budget, *at(low), f"{what} {knob}={low * plain.knob_step}")


def _judge(budget: int, method: Method | None, found: int | None, what: str) -> Fitted:
    if found is None:
        return Fitted(None, f"budget {budget:,}: {what} is left out: it has no closed form to count by")
    share = f"{found / budget:.1%}" if found < 2 * budget else f"{found / budget:,.0f} times as many"
    text = f"budget {budget:,}: {what} trains {found:,} ({share})"
    if found > budget:
        return Fitted(None, f"{text}: left out, it can't be smaller")
    if found < CLOSE * budget:
        return Fitted(None, f"{text}: left out, it comes no closer from below")
    return Fitted(method, text)
