"""Checks of a loss: a finite scalar that reaches both towers and prefers matching pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.conformance.attaching import round_trip
from bench.conformance.subject import Subject, on_loss
from bench.core.model import Features


def _features(seed: int = 0, requires_grad: bool = False) -> Features:
    generator = torch.Generator().manual_seed(seed)
    drawn = [F.normalize(torch.randn(4, 16, generator=generator), dim=-1) for _ in range(4)]
    return Features(*(each.requires_grad_(requires_grad) for each in drawn))


def _map(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    assert features.image_view is not None
    assert features.text_view is not None
    return Features(*map(change, (features.image, features.text, features.image_view, features.text_view)))


def _value(subject: Subject, features: Features, ids: Sequence[int] = (0, 1, 1, 2)) -> Tensor:
    if subject.loss.second_view is None:
        features = Features(features.image, features.text)
    return subject.loss(features, torch.tensor(ids), subject.attached())


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
    """`params` is what `attach` adds, and all of it is trained."""
    model = subject.attached()
    found = sum(parameter.numel() for parameter in model.extras.values())
    assert found == subject.loss.params, f"adds {found} parameters; `params` says {subject.loss.params}"
    features = _features() if subject.loss.second_view else Features(_features().image, _features().text)
    if found:
        subject.loss(features, torch.tensor([0, 1, 1, 2]), model).backward()
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
