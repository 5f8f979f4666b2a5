"""Checks of what training a method does: gradients, frozen weights, seeds, precision."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from bench.conformance.subject import CLOSE, Skip, Subject, built, cosines, distance, on_method, tensors
from bench.conformance.tiny import batch
from bench.core.held import held_weights
from methods import losses


@on_method
def check_all_that_is_trainable_gets_gradients(subject: Subject) -> None:
    """Other checks show that nothing else is trained: the closed form, and the frozen weights."""
    model = subject.attached(perturbed=True, train=True)
    trainable = model.trainable()
    if not trainable:
        raise Skip("trains nothing")
    for _ in range(3):  # stochastic depth may leave a branch out for a whole batch
        subject.loss_of(model, batch()).backward()
        if all(parameter.grad is not None and parameter.grad.any() for parameter in trainable.values()):
            break
    for name, parameter in trainable.items():
        assert parameter.grad is not None, f"{name} is trainable, but gets no gradient"
        assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
        assert parameter.grad.any(), f"the gradient of {name} is zero throughout"


@on_method
def check_frozen_weights_bit_identical_after_training(subject: Subject) -> None:
    model = subject.attached()
    if not model.trainable():
        raise Skip("trains nothing")
    trained = {id(parameter) for parameter in model.trainable().values()}
    frozen = {name: tensor for name, tensor in tensors(model) if id(tensor) not in trained}
    if not frozen:
        raise Skip("nothing is frozen")
    before = {name: tensor.clone() for name, tensor in frozen.items()}
    with tempfile.TemporaryDirectory() as folder:
        subject.train(model, Path(folder))
    for name, tensor in tensors(model):
        if name in before:
            kind = "frozen" if isinstance(tensor, nn.Parameter) else "a buffer, which no file keeps"
            assert torch.equal(tensor, before[name]), f"{name} is {kind}, but drifted in training"


@on_method
def check_one_step_changes_the_output(subject: Subject) -> None:
    model = subject.attached()
    if not model.trainable():
        raise Skip("trains nothing")
    before = cosines(model)
    model.train()
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2)
    subject.loss_of(model, batch()).backward()
    optimizer.step()
    moved = distance(before, cosines(model.eval()))
    assert moved > CLOSE, f"the output moved by no more than {moved:.1e} in one step"


@on_method
def check_same_seed_same_result(subject: Subject) -> None:
    trained = []
    for _ in range(2):
        model = subject.attached(seed=4)
        if not model.trainable():
            raise Skip("trains nothing")
        with tempfile.TemporaryDirectory() as folder:
            subject.train(model, Path(folder), epochs=1)
        trained.append(model.trainable())
    differ = [name for name in trained[0] if not torch.equal(trained[0][name], trained[1][name])]
    assert not differ, f"{differ[0]} differs between two trainings with the same seed"


@on_method
def check_bf16_autocast_is_finite(subject: Subject) -> None:
    model = subject.attached(perturbed=True, train=True)
    with torch.autocast("cpu", torch.bfloat16):
        features = model(batch().images, batch().tokens, subject.loss.second_view)
    assert features.image.dtype == features.text.dtype == torch.float32, "embeddings leave autocast in another dtype"
    value = subject.loss(features, batch().image_ids, model)
    assert torch.isfinite(value), f"the loss is {float(value)} under bf16"
    if model.trainable():
        value.backward()
        bad = [name for name, p in model.trainable().items() if p.grad is not None and not torch.isfinite(p.grad).all()]
        assert not bad, f"the gradient of {bad[0]} is not finite under bf16"


@on_method
def check_held_weights_change_nothing(subject: Subject) -> None:
    """Training in bf16 multiplies by bfloat16 copies of frozen weights: see `bench.core.held`."""
    found = []
    for precision in ("fp32", "bf16"):  # of the weights: without copies, and with
        model = subject.attached(perturbed=True, train=True)
        if not model.trainable():
            raise Skip("trains nothing")
        with torch.random.fork_rng(devices=[]), held_weights(model, precision):
            torch.manual_seed(2)
            with torch.autocast("cpu", torch.bfloat16):
                features = model(batch().images, batch().tokens, subject.loss.second_view)
            value = subject.loss(features, batch().image_ids, model)
            value.backward()
        found.append([value.detach(), *(p.grad for p in model.trainable().values() if p.grad is not None)])
    assert len(found[0]) == len(found[1]), "other parameters get gradients with held weights"
    for plain, held in zip(*found, strict=True):
        assert torch.equal(plain, held), "numbers differ with held weights: a module reads a frozen layer's weight"


@on_method
def check_gradient_checkpointing_changes_nothing(subject: Subject) -> None:
    found = []
    for checkpointing in (False, True):
        model = subject.attached(perturbed=True, train=True)
        if not model.trainable():
            raise Skip("trains nothing")
        model.clip.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            value = subject.loss_of(model, batch())
            value.backward()
        found.append([value.detach(), *(p.grad for p in model.trainable().values() if p.grad is not None)])
    assert len(found[0]) == len(found[1]), "other parameters get gradients with gradient checkpointing"
    for plain, again in zip(*found, strict=True):
        assert torch.allclose(plain, again, atol=1e-5, rtol=1e-4), "gradients differ with gradient checkpointing"


@on_method
def check_trains_with_every_loss(subject: Subject) -> None:
    for name in losses.names():
        cls = losses.get(name)
        other = Subject(subject.label, subject.kind, subject.method, built(cls, next(iter(cls.examples.values()))))
        model = other.attached(perturbed=True, train=True)
        if model.teacher is not None:
            model.teacher.after_epoch(1, 2, model.trainable())
        own = [parameter for key, parameter in model.trainable().items() if not key.startswith("extras.")]
        if not own:
            raise Skip("trains nothing")
        value = other.loss_of(model, batch())
        assert torch.isfinite(value), f"the loss {name} is {float(value)}"
        value.backward()
        assert any(p.grad is not None and p.grad.any() for p in own), f"the loss {name} gives the method no gradient"
