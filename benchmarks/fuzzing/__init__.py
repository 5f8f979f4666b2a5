"""Odd inputs, by seed: named targets, and what counts as a finding.

A target is a file in this folder that registers a function:

    @target("settings")
    def settings(folder: Path) -> Try:
        ...                                   # set up once; the folder is the target's own
        def one(rng: random.Random) -> None:  # one input, drawn from rng alone
            ...
        return one

`one` returns if the input was accepted. A UserError is the right answer to a bad one; `Wrong` says that an input was
accepted and something silently wrong came of it. Any other exception, more than five seconds or 300 MB are findings.
"""

from __future__ import annotations

import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import FrameType

import torch

from bench.config.errors import UserError
from bench.core import cost

Try = Callable[[random.Random], None]

TARGETS: dict[str, Callable[[Path], Try]] = {}
MODULES = ("settings", "pictures", "annotations", "checkpoints", "results")  # a new target's file gets its name here
LONGEST_SECONDS, MOST_BYTES = 5.0, 300 * 2**20
LONGEST_MESSAGE = 4000  # characters
CPU = torch.device("cpu")


class Wrong(Exception):
    """An input was accepted, and something wrong came of it."""


class _Hang(BaseException):
    """An input took too long; no `except Exception` of the code under test stops it."""


@dataclass(frozen=True)
class Finding:
    """What one input did; `random.Random(key)` draws it again."""

    key: str
    what: str
    trace: str


@dataclass
class Outcome:
    """The inputs that a target was given, and what became of them."""

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.target}: {self.inputs:,} inputs in {self.seconds:.0f} s: {self.accepted:,} accepted, "
            f"{self.refused:,} refused, {len(self.findings):,} findings"
        )


def target(name: str) -> Callable[[Callable[[Path], Try]], Callable[[Path], Try]]:
    """Register a target's function."""

    def register(setup: Callable[[Path], Try]) -> Callable[[Path], Try]:
        TARGETS[name] = setup
        return setup

    return register


def load_targets() -> dict[str, Callable[[Path], Try]]:
    """All targets by name."""
    for module in MODULES:
        import_module(f"benchmarks.fuzzing.{module}")
    return TARGETS


def run(
    name: str,
    folder: Path,
    *,
    seed: int,
    inputs: range,
    seconds: float = float("inf"),
    alarm: bool = False,
    each: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Give a target its inputs of these numbers, until the seconds are over.

    alarm: interrupt an input that hangs; else it is only measured. It takes SIGALRM, which pytest-timeout needs.
    """
    one = load_targets()[name](folder)
    outcome, start = Outcome(name), time.perf_counter()
    for index in inputs:
        if time.perf_counter() - start > seconds:
            break
        _try(one, f"{seed}/{name}/{index}", outcome, alarm)
        outcome.seconds = time.perf_counter() - start
        each(outcome)
    return outcome


def _try(one: Try, key: str, outcome: Outcome, alarm: bool) -> None:
    cost.reset_peak_memory(CPU)  # to what is resident now: an earlier input may have needed more
    peak, start = _peak_bytes(), time.process_time()  # which other work on the machine does not lengthen
    outcome.inputs += 1
    known = len(outcome.findings)

    def found(what: str) -> None:
        outcome.findings.append(Finding(key, what, traceback.format_exc()))

    try:
        with _alarm(LONGEST_SECONDS) if alarm else _alarm(None):
            one(random.Random(key))
        outcome.accepted += 1
    except UserError as error:
        if len(str(error)) > LONGEST_MESSAGE:
            found(f"a message of {len(str(error)):,} characters")
        else:
            outcome.refused += 1
    except Wrong as error:
        found(f"wrong: {error}")
    except _Hang as hang:
        found(f"hangs over {LONGEST_SECONDS:.0f} s in {_place(hang, -2)}")
    except Exception as error:
        found(f"{type(error).__name__} in {_place(error, -1)}")
    took, grew = time.process_time() - start, _peak_bytes() - peak
    if took > LONGEST_SECONDS and len(outcome.findings) == known:
        outcome.findings.append(Finding(key, f"takes {took:.1f} s", ""))
    if grew > MOST_BYTES:
        outcome.findings.append(Finding(key, f"takes {grew / 2**20:,.0f} MB", ""))


def _place(error: BaseException, depth: int) -> str:
    frame = traceback.extract_tb(error.__traceback__)[depth]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise _Hang

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak_bytes() -> int:
    """Peak bytes since the last reset; 0 where the process may not reset its peak, for then it says nothing."""
    return cost.peak_memory(CPU) or 0


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes of a file after a few bits flipped, a cut, a hole, a repetition or foreign bytes."""
    if not data:
        return data
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = min(int(rng.expovariate(8) * len(raw)) if rng.random() < 0.5 else rng.randrange(len(raw)), len(raw) - 1)
        length = rng.choice((1, 4, 16, len(raw) // 4 + 1))
        match rng.randrange(6):
            case 0 | 1:
                raw[at] ^= 1 << rng.randrange(8)
            case 2:
                raw[at : at + length] = rng.randbytes(length)
            case 3:
                del raw[at : at + length]
            case 4:
                raw[at:at] = raw[at : at + length]
            case 5:
                del raw[at:]
        if not raw:
            break
    return bytes(raw)
