"""Gradients in parts of a batch: equal to those of the whole batch, also with dropout and when memory is short."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from torch import Tensor

import methods
from bench.conformance.subject import Subject
from bench.conformance.tiny import batch
from bench.core.micro import MicroBatches, backward
from bench.core.model import DualEncoder, Features
from methods import losses
from tests.test_train import train

CPU = torch.device("cpu")


def attached(name: str, loss: str, train: bool, **settings) -> tuple[Subject, DualEncoder]:
    subject = Subject(name, "CLIP", methods.get(name)(**settings), losses.get(loss)())
    return subject, subject.attached(perturbed=True, train=train)


def forward_of(subject: Subject, model: DualEncoder):
    data = batch()
    return lambda part: model(data.images[part], data.tokens[part], subject.loss.second_view)


def gradients(model: DualEncoder) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.trainable().values()]


CASES = [
    ("lora", "info_nce", {}),
    ("harma", "harma", {"bottleneck": 16, "heads": 4}),  # the loss has a parameter of its own
    ("coop", "siglip", {"n_ctx": 2}),  # no gradient in the image tower
    ("full_finetune", "info_nce", {}),  # the backbone's own temperature
]


@pytest.mark.parametrize(("name", "loss", "settings"), CASES)
@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_gradients_are_the_whole_batchs(name, loss, settings, size):
    subject, model = attached(name, loss, train=False, **settings)
    subject.loss_of(model, batch()).backward()
    whole = [grad.clone() for grad in gradients(model)]
    model.zero_grad(set_to_none=True)

    def objective(features: Features) -> Tensor:
        return subject.loss(features, batch().image_ids, model)

    backward(4, size, forward_of(subject, model), objective, CPU)
    for one, other in zip(whole, gradients(model), strict=True):
        assert torch.allclose(one, other, atol=1e-5 * (1 + float(one.abs().max())), rtol=0)


def reference(subject: Subject, model: DualEncoder, size: int) -> list[Tensor]:
    """The gradients with one graph over all parts, in which each draws its random numbers in turn."""
    torch.manual_seed(5)
    forward = forward_of(subject, model)
    parts = [forward(slice(start, start + size)) for start in range(0, 4, size)]
    fields = ("image", "text", "image_view", "text_view")
    features = Features(*(torch.cat([getattr(part, field) for part in parts]) for field in fields))
    subject.loss(features, batch().image_ids, model).backward()
    found = [grad.clone() for grad in gradients(model)]
    model.zero_grad(set_to_none=True)
    return found


def short_of_memory(model: DualEncoder, fits: int) -> tuple[list[int], torch.utils.hooks.RemovableHandle]:
    """Raise what CUDA raises where more than so many pairs have a graph; the sizes that were tried."""
    tried: list[int] = []

    def hook(_: torch.nn.Module, args: tuple) -> None:
        if torch.is_grad_enabled():
            tried.append(len(args[0]))
            if len(args[0]) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")

    return tried, model.register_forward_pre_hook(hook)


@pytest.mark.parametrize("size", [2, 4])
def test_dropout_and_the_second_view_are_the_same_in_both_passes(size):
    """At 4 the memory is short: the step is computed anew at 2, from the same random numbers and gradients."""
    subject, model = attached("mrs_adapter", "hmmc", train=True, bottleneck=8, shared_dim=8)
    expected = reference(subject, model, 2)
    for parameter in model.trainable().values():
        parameter.grad = torch.ones_like(parameter)  # of batches before, in the same optimizer step
    torch.manual_seed(5)
    micro = MicroBatches(size, CPU, list(model.trainable().values()))
    tried, hook = short_of_memory(model, fits=2)

    def objective(features: Features) -> Tensor:
        return subject.loss(features, batch().image_ids, model)

    def run() -> None:
        micro.backward(4, forward_of(subject, model), objective)

    if size == 4:
        with pytest.warns(UserWarning, match="micro_batch 4 becomes 2"):
            run()
    else:
        run()
    hook.remove()
    assert micro.size == 2
    assert tried == ([4, 2, 2] if size == 4 else [2, 2])
    for one, other in zip(expected, gradients(model), strict=True):
        assert torch.allclose(one + 1, other, atol=1e-5 * (1 + float(one.abs().max())), rtol=0)


def test_one_pair_that_does_not_fit_is_an_error():
    subject, model = attached("lora", "info_nce", train=True)
    short_of_memory(model, fits=0)
    micro = MicroBatches(1, CPU, list(model.trainable().values()))
    with pytest.raises(torch.OutOfMemoryError):
        micro.backward(4, forward_of(subject, model), lambda features: subject.loss(features, batch().image_ids, model))


def test_training_in_micro_batches_ends_with_the_same_weights(tmp_path):
    numbers = count()
    models = [train(tmp_path / str(next(numbers)), 4, micro_batch=size)[0] for size in (None, 1, 3)]
    for other in models[1:]:
        for one, two in zip(models[0].trainable().values(), other.trainable().values(), strict=True):
            assert torch.allclose(one, two, atol=1e-5)
