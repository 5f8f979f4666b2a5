"""Checks of a loss: a finite scalar that reaches both towers, prefers matching pairs, and trains alike after a stop."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.errors import Stopped
from bench.conformance.attaching import round_trip
from bench.conformance.subject import Subject, on_loss
from bench.core.model import DualEncoder, Features


def _features(seed: int = 0, requires_grad: bool = False) -> Features:
    generator = torch.Generator().manual_seed(seed)
    drawn = [F.normalize(torch.randn(4, 16, generator=generator), dim=-1) for _ in range(4)]
    image, text, image_view, text_view = (each.requires_grad_(requires_grad) for each in drawn)
    return Features(image, text, image_view, text_view)


def _map(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    assert features.image_view is not None
    assert features.text_view is not None
    image, text, image_view, text_view = map(
        change, (features.image, features.text, features.image_view, features.text_view)
    )
    return Features(image, text, image_view, text_view)


def _value(
    subject: Subject, features: Features, ids: Sequence[int] = (0, 1, 1, 2), model: DualEncoder | None = None
) -> Tensor:
    """The loss of the parts of these features that it asks for; a teacher has been through half of the epochs.

    The teacher knows the pairs by heart: it embeds an image and its text alike.
    """
    model = model or subject.attached()
    if subject.loss.second_view is None:
        features = Features(features.image, features.text)
    if model.teacher is not None:
        model.teacher.after_epoch(1, 2, {})
        features = replace(features, teacher=Features(features.image.detach(), features.image.detach()))
    return subject.loss(features, torch.tensor(ids), model)


@on_loss
def check_loss_settings_survive_yaml(subject: Subject) -> None:
    assert subject.loss.paper, "has no `paper`"
    round_trip(subject.loss)


@on_loss
def check_is_a_finite_scalar(subject: Subject) -> None:
    value = _value(subject, _features())
    assert value.shape == (), f"the loss has the shape {tuple(value.shape)}"
    assert torch.isfinite(value), f"the loss is {float(value)}"


@on_loss
def check_reaches_both_towers(subject: Subject) -> None:
    features = _features(requires_grad=True)
    _value(subject, features).backward()
    for side in ("image", "text"):
        gradient = getattr(features, side).grad
        assert gradient is not None, f"no gradient reaches the {side} tower"
        assert gradient.any(), f"the gradient of the {side} tower is zero"


@on_loss
def check_declares_its_parameters(subject: Subject) -> None:
    """`params` and `has_teacher` are what `attach` adds, and all parameters are trained."""
    model = subject.attached()
    found = sum(parameter.numel() for parameter in model.extras.values())
    assert found == subject.loss.params, f"adds {found} parameters; `params` says {subject.loss.params}"
    has = model.teacher is not None
    assert has == subject.loss.has_teacher, f"`has_teacher` is {subject.loss.has_teacher}, the model's teacher: {has}"
    if found:
        _value(subject, _features(), model=model).backward()
    idle = [name for name, parameter in model.extras.items() if parameter.grad is None]
    assert not idle, f"{idle} get no gradient" if idle else ""


@on_loss
def check_order_of_the_batch_does_not_matter(subject: Subject) -> None:
    order = torch.tensor([2, 0, 3, 1])
    features, ids = _features(), torch.tensor([0, 1, 1, 2])
    turned = _value(subject, _map(features, lambda x: x[order]), ids[order].tolist())
    moved = abs(float(_value(subject, features) - turned))
    assert moved < 1e-4, f"the loss moves by {moved:.1e} with the order of the batch"


@on_loss
def check_prefers_matching_pairs(subject: Subject) -> None:
    image = _features().image
    matched, crossed = (
        float(_value(subject, Features(image, text, image, text), (0, 1, 2, 3))) for text in (image, image.flip(0))
    )
    assert matched < crossed, f"{matched:.3g} for matching pairs, {crossed:.3g} for crossed ones"


@on_loss
def check_one_step_lowers_it(subject: Subject) -> None:
    features = _features(requires_grad=True)
    before = _value(subject, features)
    before.backward()

    def stepped(x: Tensor) -> Tensor:
        return x.detach() if x.grad is None else F.normalize(x.detach() - 1e-3 * F.normalize(x.grad, dim=-1), dim=-1)

    after = _value(subject, _map(features, stepped))
    assert after < before, f"a small step against the gradient takes it from {before:.6g} to {after:.6g}"


def _trained(subject: Subject, stops: Collection[int] = ()) -> dict[str, nn.Parameter]:
    """The parameters of both towers and of the loss after three epochs of three steps, as the same files give them.

    Training asks after each step and each epoch whether to stop: it does at the calls in `stops`, counted from 1 over
    all processes, and goes on with a new model.
    """
    calls = itertools.count(1)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(len(stops) + 1):
            model = subject.attached()
            model.clip.requires_grad_(True)
            with suppress(Stopped):
                subject.train(model, Path(folder), epochs=3, should_stop=lambda: next(calls) in stops)
    return model.trainable()


def _assert_same(one: dict[str, nn.Parameter], other: dict[str, nn.Parameter], when: str) -> None:
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differ, f"{differ[0]} differs {when}" if differ else ""


@on_loss
def check_same_seed_same_training(subject: Subject) -> None:
    _assert_same(_trained(subject), _trained(subject), "between two trainings with the same seed")


@on_loss
def check_resumes_to_the_same_numbers(subject: Subject) -> None:
    """Stopped after the first epoch and again within the second, training ends with the bits of one without a stop."""
    _assert_same(_trained(subject), _trained(subject, stops=(4, 6)), "after training that was stopped and resumed")
