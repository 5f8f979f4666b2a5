"""What would fail or wait on a GPU, shown on the CPU: copies, states that are loaded, operations that CUDA refuses.

`tests/test_fake_cuda.py` traces the forward passes, and `tests/gpu/` runs on a real card.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import methods
from bench import data
from bench.config.settings import BackboneSettings, DatasetSettings, TrainSettings
from bench.conformance import suite
from bench.conformance.subject import Subject
from bench.conformance.tiny import backbone, batch
from bench.core.inputs import Inputs
from bench.core.model import AfterStep, DualEncoder
from bench.core.weights import load_backbone
from methods import losses


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peft library's remarks on its own settings
        yield


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["none", "harma"])
def test_batches_are_copied_without_a_wait(root: Path, monkeypatch: pytest.MonkeyPatch, augment: str):
    """Pixels, tokens and image ids, in training and for evaluation, go from pinned memory to the GPU non-blocking.

    With an `augment`, what is drawn goes as well: one copy a batch, beside the tables of `BatchAugment`.
    """
    gpu = torch.device("cuda")
    pinned: list[Tensor] = []
    copies: list[tuple[torch.dtype, bool]] = []

    cast = Tensor.to

    def is_pinned(tensor: Tensor) -> bool:
        return any(tensor is each for each in pinned)

    def pin_memory(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    def to(tensor: Tensor, target: torch.device | torch.dtype, non_blocking: bool = False) -> Tensor:
        if target != gpu:
            return cast(tensor, target)
        copies.append((tensor.dtype, non_blocking and is_pinned(tensor)))
        return tensor

    dataset = data.load(DatasetSettings(name="ucm", root=str(root), split="karpathy"))
    loaded = load_backbone(BackboneSettings(model="tiny-clip", weights="random"))
    inputs = Inputs(dataset, loaded, TrainSettings(batch_size=8, workers=0, augment=augment), torch.device("cpu"))
    inputs.prepare_all(train=True)
    with closing(inputs.train_batches(seed=0)) as batches:
        expected = [batch.images for batch in batches.open(1, 0)]
    inputs.device = gpu  # only now: the constructor puts mean and deviation there
    monkeypatch.setattr(Tensor, "is_pinned", is_pinned)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", to)
    validation, training = inputs.eval_set("val"), inputs.train_batches(seed=0)
    tables = len(copies)
    got = [batch.images for batch in training.open(1, 0)]
    others = [*validation.images(), *validation.texts()]
    drawn = 0 if augment == "none" else 1
    assert tables == 5 * drawn
    assert len(copies) - tables == (3 + drawn) * training.per_epoch + len(others)
    assert {dtype for dtype, _ in copies[tables:]} == {torch.uint8, torch.int64}
    assert all(asynchronous for _, asynchronous in copies)
    assert torch.equal(torch.stack(got), torch.stack(expected))


# --- AdaLoRA's allocation ---------------------------------------------------------------------------------------------


def allocating() -> tuple[DualEncoder, AfterStep]:
    """A model with AdaLoRA after a backward pass, and what the method does after a step."""
    cls = methods.get("peft")
    model = backbone()
    cls(**cls.examples["adalora"]).attach(model)
    features = model.train()(batch().images, batch().tokens)
    (features.image.sum() + features.text.sum() + model.penalties[0]()).backward()
    [allocation] = model.after_step
    return model, allocation


def test_a_loaded_allocation_is_where_its_matrices_are():
    """The sums come from a file, on the CPU, while the model is on a GPU; here it is on the device `meta`."""
    _, saved = allocating()
    saved(1, 10)
    model, loaded = allocating()
    model.to("meta")
    loaded.load_state_dict(saved.state_dict())
    for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
        sums = getattr(loaded.allocator, name)
        assert sums
        assert {tensor.device.type for tensor in sums.values()} == {"meta"}


# --- operations that CUDA refuses to compute deterministically --------------------------------------------------------

# The list in torch.use_deterministic_algorithms, as dispatched; kthvalue was on it before torch 2.10.
REFUSED = re.compile(
    r"aten\.(kthvalue|median|nanmedian|histc|bincount|put_?|nll_loss2d_forward|_?ctc_loss_backward|max_unpool\w+|"
    r"\w*avg_pool3d_backward|_adaptive_avg_pool2d_backward|adaptive_max_pool2d_backward|fractional_max_pool\w+_backward|"
    r"_?upsample_\w*(linear|cubic)\w*_backward|reflection_pad\w+_backward|grid_sampler_\w+_backward)\b"
)
assert REFUSED.match("aten.kthvalue.default")
assert REFUSED.match("aten.upsample_bilinear2d_backward.default")
assert not REFUSED.match("aten.put_along.default")


class _Watch(TorchDispatchMode):
    """Collects the operations that a GPU would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if REFUSED.match(str(operation)) and torch.are_deterministic_algorithms_enabled():
            self.refused.add(str(operation))
        return operation(*args, **(kwargs or {}))


def refused_in_two_steps(subject: Subject) -> set[str]:
    """What a GPU would refuse in two training steps: forward, backward, and what the method does after each."""
    model = subject.attached(train=True)
    torch.use_deterministic_algorithms(True)
    try:
        with _Watch() as watch:
            for step in (1, 2):
                subject.loss_of(model, batch()).backward()
                for after_step in model.after_step:
                    after_step(step, 10)
    finally:
        torch.use_deterministic_algorithms(False)
    return watch.refused


TRAINED = [
    each
    for name in methods.names()
    for each in suite.method_subjects(methods.get(name))
    if each.kind == "CLIP" and each.method is not None and each.method.trains
]
WITH_LOSSES = [
    Subject(each.label, "CLIP", methods.get("full_finetune")(), each.loss)
    for name in losses.names()
    for each in suite.loss_subjects(losses.get(name))
]


@pytest.mark.parametrize("subject", TRAINED + WITH_LOSSES, ids=lambda each: each.label.replace(" ", "-"))
def test_no_operation_is_refused(subject: Subject):
    assert refused_in_two_steps(subject) == set()


def test_a_refused_operation_is_seen(monkeypatch: pytest.MonkeyPatch):
    [subject] = [each for each in WITH_LOSSES if each.label == "siglip"]
    sound = type(subject.loss).__call__
    faulty = lambda *args: sound(*args) + args[1].image.median(dim=1).values.sum()  # noqa: E731
    monkeypatch.setattr(type(subject.loss), "__call__", faulty)
    assert refused_in_two_steps(subject) == {"aten.median.dim"}
