"""The conformance suite: what every method and every loss must keep, as small named checks on tiny random CLIPs.

`check_method` and `check_loss` run them and give back one `Outcome` each; `python -m bench.check` prints them as a
table. A check raises AssertionError with what it saw, or `Skip` where it does not apply. An excuse is a reason why one
check is expected to fail for one method; a check that passes or does not apply in spite of its excuse fails for that.
"""

from __future__ import annotations

import itertools
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bench.conformance import attaching, encoding, objective, shortcuts, training
from bench.conformance.subject import LOSS_CHECKS, METHOD_CHECKS, Skip, Subject, built
from bench.conformance.tiny import CLASSES
from methods import losses
from methods.base import DoesNotFit, Method
from methods.losses import Loss

CHECKS_IN = (attaching, training, encoding, shortcuts, objective)  # the modules whose checks are in the tables

Excuses = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Outcome:
    """One check of one subject: "passed", "failed", "excused" or "not applicable", and why if not passed."""

    check: str
    subject: str
    kind: str
    state: str
    reason: str = ""
    seconds: float = field(default=0.0, compare=False)


def run_check(name: str, subject: Subject, excuse: str | None = None) -> Outcome:
    """Run one check; with an excuse it is expected to fail, and passing is what fails."""
    check = (METHOD_CHECKS | LOSS_CHECKS)[name]
    started = time.perf_counter()
    state, reason = "passed", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's remarks on its own settings
            check(subject)
    except Skip as skip:
        state, reason = "not applicable", str(skip)
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        state = "failed"
        if not isinstance(error, AssertionError):
            last = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {reason} ({last.filename}:{last.lineno})"
    if excuse is not None and state == "failed":
        state, reason = "excused", excuse
    elif excuse is not None and state == "passed":
        state, reason = "failed", f"passes, so this excuse is out of date: {excuse}"
    elif excuse is not None and state == "not applicable":
        state, reason = "failed", f"does not apply ({reason}), so this excuse is out of date: {excuse}"
    return Outcome(name, subject.label, subject.kind, state, reason, time.perf_counter() - started)


def method_subjects(cls: type[Method]) -> list[Subject]:
    """A method under each of its examples, on each class of backbone that it does not refuse."""
    made = [(f"{cls.name} {label}".strip(), built(cls, settings)) for label, settings in cls.examples.items()]
    loss = built(losses.get(cls.default_loss), {})
    found = [Subject(label, kind, method, loss) for label, method in made for kind in CLASSES]
    return [each for each in found if each.kind == CLASSES[0] or not _refused(each)]


def _refused(subject: Subject) -> bool:
    """Whether the method says while a sweep is planned that it does not work on this class."""
    assert subject.method is not None
    try:
        subject.method.check(subject.shape)
    except DoesNotFit:
        return True
    return False


def loss_subjects(cls: type[Loss]) -> list[Subject]:
    """A loss under each of its examples."""
    made = [(f"{cls.name} {label}".strip(), built(cls, settings)) for label, settings in cls.examples.items()]
    return [Subject(label, "CLIP", None, loss) for label, loss in made]


def check_method(cls: type[Method], excuses: Excuses | None = None) -> list[Outcome]:
    """Every check of a method. `excuses` maps (label or name, check) to the reason why it is expected to fail."""
    return list(_run(method_subjects(cls), METHOD_CHECKS, excuses or {}))


def check_loss(cls: type[Loss], excuses: Excuses | None = None) -> list[Outcome]:
    """Every check of a loss."""
    return list(_run(loss_subjects(cls), LOSS_CHECKS, excuses or {}))


def excuse_for(subject: Subject, check: str, excuses: Excuses) -> str | None:
    """The reason given for the subject's own label, else for its class or one that it extends."""
    classes = type(subject.loss if subject.method is None else subject.method).__mro__
    names = [subject.label, *(cls.__dict__["name"] for cls in classes if "name" in cls.__dict__)]
    return next((excuses[name, check] for name in names if (name, check) in excuses), None)


def _run(subjects: Iterable[Subject], checks: Iterable[str], excuses: Excuses) -> Iterator[Outcome]:
    for subject, check in itertools.product(subjects, list(checks)):
        yield run_check(check, subject, excuse_for(subject, check, excuses))
