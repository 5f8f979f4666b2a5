"""Every method, loss and class of backbone traced on a GPU that is not there: no tensor is left on the CPU.

See `bench.conformance.fake_cuda`. Traced are the forward pass with the loss, the training loop around its backward
pass, and an evaluation up to the copy of its counts to the host.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

import methods
from bench.config.settings import TrainSettings
from bench.conformance import suite
from bench.conformance.fake_cuda import DEVICE, FakeCuda
from bench.conformance.subject import Subject
from bench.conformance.tiny import backbone, batch
from bench.core.evaluate import EvalSet, counts, encode
from bench.core.model import DualEncoder, Features
from bench.core.state import StateFiles
from bench.core.train import Batch, TrainBatches, fit
from methods import losses
from methods.base import Method
from methods.losses import Loss

_DRAWS = "draws a number on the CPU at each forward pass in training and compares it there; a fake tensor has none"
pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14"), reason="older releases of torch ask the driver even for fake tensors"
)

# Strict: an excuse that is no longer needed is an error.
NOT_TRACED_FORWARD = {"peft loha": _DRAWS, "peft lokr": _DRAWS}
WAITS_IN_A_STEP = NOT_TRACED_FORWARD | {
    "peft adalora": "the library reads the threshold of its ranks on the host, once a step in which it allocates them"
}

LOSSES: list[Loss] = [each.loss for name in losses.names() for each in suite.loss_subjects(losses.get(name))]
SUBJECTS: list[Subject] = [each for name in methods.names() for each in suite.method_subjects(methods.get(name))]
# The loop does not depend on the class of the backbone.
TRAINED = [each for each in SUBJECTS if each.kind == "CLIP" and each.method is not None and each.method.trains]


def cases(excuses: dict[str, str], subjects: list[Subject] = SUBJECTS) -> list:
    found = []
    for subject in subjects:
        reason = excuses.get(subject.label)
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        found.append(pytest.param(subject, marks=marks, id=f"{subject.label.replace(' ', '-')}-{subject.kind}"))
    return found


@pytest.fixture
def gpu() -> FakeCuda:
    return FakeCuda()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peft library's remarks on its own settings
        yield


def on_gpu(gpu: FakeCuda, subject: Subject, objectives: list[Loss]) -> DualEncoder:
    """The subject's model in training mode, with all these losses' parameters, on the fake GPU."""
    model = backbone(subject.kind)
    assert subject.method is not None
    subject.method.attach(model)
    for loss in objectives:
        loss.attach(model)
    gpu.model(model)
    return model.train()


def assert_float32_on_gpu(*found: Tensor | None) -> None:
    for tensor in found:
        assert tensor is None or (tensor.device, tensor.dtype) == (DEVICE, torch.float32)


# --- forward and losses -----------------------------------------------------------------------------------------------


def trace_losses(gpu: FakeCuda, subject: Subject, bf16: bool) -> int:
    """Trace a batch's features and every loss in training mode; gives back how many losses that were."""
    model, data = on_gpu(gpu, subject, LOSSES), gpu.batch(batch())
    seen: dict[float | None, Features] = {}  # losses with the same second view share their features
    with gpu.on():
        assert model.teacher is not None
        model.teacher.after_epoch(1, 2, model.trainable())
        for loss in LOSSES:
            if loss.second_view not in seen:
                with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                    seen[loss.second_view] = model(data.images, data.tokens, loss.second_view)
            features = seen[loss.second_view]
            assert_float32_on_gpu(features.image, features.text, features.image_view, features.text_view)
            value = loss(features, data.image_ids, model)
            for penalty in model.penalties:
                value = value + penalty()
            assert_float32_on_gpu(value)
            assert value.shape == ()
    return len(LOSSES)


@pytest.mark.parametrize("subject", cases(NOT_TRACED_FORWARD))
def test_forward_and_every_loss(gpu: FakeCuda, subject: Subject):
    """In bf16 and in float32: the features and each loss are float32 on the GPU."""
    assert trace_losses(gpu, subject, bf16=True) == trace_losses(gpu, subject, bf16=False) > 0


def test_autocast_is_on(gpu: FakeCuda):
    """Without a GPU, torch turns `autocast("cuda")` off: then bf16 would be traced in float32."""
    weight = gpu.tensor(torch.zeros(3, 3))
    with gpu.on():
        with torch.autocast("cuda", torch.bfloat16):
            assert (weight @ weight).dtype == torch.bfloat16
        assert (weight @ weight).dtype == torch.float32


# --- evaluation -------------------------------------------------------------------------------------------------------


def trace_evaluation(gpu: FakeCuda, subject: Subject) -> None:
    model, data = on_gpu(gpu, subject, []), gpu.batch(batch())
    numbers = gpu.tensor(torch.arange(8))
    split = EvalSet(lambda: [data.images] * 2, lambda: [data.tokens] * 2, numbers, numbers)
    with gpu.on(), torch.inference_mode():
        features = encode(model, split)
        i2t, t2i, finite = counts(*features, split.caption_text, split.caption_image)
    assert_float32_on_gpu(*features)
    assert (i2t.shape, t2i.shape, finite.shape) == ((3, 8), (3, 8), ())
    assert i2t.device == t2i.device == finite.device == DEVICE
    assert model.training


@pytest.mark.parametrize("subject", cases({}))
def test_evaluation(gpu: FakeCuda, subject: Subject):
    """Two batches of images and of texts; all that is copied to the host are the counts and one flag."""
    trace_evaluation(gpu, subject)


# --- the training loop ------------------------------------------------------------------------------------------------


class _Enough(Exception):
    """Ends the loop where an epoch would."""


def trace_training(gpu: FakeCuda, subject: Subject, steps: int = 2) -> None:
    """Trace the core's own loop for some steps; the backward pass is replaced by one that makes gradients."""
    model, data = on_gpu(gpu, subject, [subject.loss]), gpu.batch(batch())

    def backward(_: Tensor) -> None:
        for parameter in model.trainable().values():
            parameter.grad = torch.empty_like(parameter)

    def batches(epoch: int, skip: int) -> Generator[Batch, None, None]:
        yield from [data] * steps
        raise _Enough

    settings = TrainSettings(epochs=1, precision="bf16", clip_grad_norm=1.0)
    with gpu.on(), patch.object(Tensor, "backward", backward), torch.random.fork_rng(devices=[]):
        fit(
            model,
            loss=subject.loss,
            batches=TrainBatches(batches, per_epoch=2 * steps),
            validation=EvalSet(list, list, data.image_ids, data.image_ids),
            settings=settings,
            seed=0,
            files=StateFiles(Path(os.devnull) / "state.pt"),
        )


@pytest.mark.parametrize("subject", cases(WAITS_IN_A_STEP, TRAINED))
def test_a_training_step_waits_for_nothing(gpu: FakeCuda, subject: Subject):
    """Loss, gradient norm, optimizer and what a method does after a step need no number on the host."""
    with pytest.raises(_Enough):
        trace_training(gpu, subject)


# --- planted faults ---------------------------------------------------------------------------------------------------


class Planted(Method):
    """A method whose branch computes `change(x)` behind the first image block's MLP."""

    name = "planted"
    paper = "none, for tests"

    def attach(self, model: DualEncoder) -> None:
        model.image_blocks.slotted()[0].fill(after_mlp=self.branch())

    def branch(self) -> nn.Module:
        raise NotImplementedError


class _Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(96))
        self.constant = torch.ones(96)  # a real one must be registered as a buffer

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class ConstantInForward(Planted):
    class Branch(_Branch):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale + torch.linspace(0, 1, 96)

    def branch(self) -> nn.Module:
        return self.Branch()


class ConstantInAttach(Planted):
    class Branch(_Branch):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale * self.constant

    def branch(self) -> nn.Module:
        return self.Branch()


class LooksAtValues(Planted):
    class Branch(_Branch):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale if self.scale.sum() > 0 else x

    def branch(self) -> nn.Module:
        return self.Branch()


FAULTS = {
    ConstantInForward: "two devices, cpu and cuda:0|two devices, cuda:0 and cpu",
    ConstantInAttach: "convert all Tensors to FakeTensors",
    LooksAtValues: "_local_scalar_dense",
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.items())
def test_a_planted_fault_is_caught(gpu: FakeCuda, fault: type[Planted], message: str):
    subject, *_ = suite.method_subjects(fault)
    for trace in (lambda: trace_losses(gpu, subject, False), lambda: trace_evaluation(gpu, subject)):
        with pytest.raises(Exception, match=message):
            trace()
    with pytest.raises(Exception, match=message):
        trace_training(gpu, subject)
