"""Frozen weights under autocast: cast once, not in every step, and never seen by whoever reads their values."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import methods
from bench.core.held import held_weights
from bench.core.model import DualEncoder
from tests.test_backbone import batch, tiny


class Casts(TorchDispatchMode):
    """Counts the casts of these tensors to bfloat16."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.places, self.count = {weight.data_ptr() for weight in weights}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.count += args[0].data_ptr() in self.places
        return func(*args, **(kwargs or {}))


def adapted(name: str, **settings) -> DualEncoder:
    model = tiny()
    torch.manual_seed(0)
    methods.get(name)(**settings).attach(model)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.train()


def step(model: DualEncoder) -> list[torch.Tensor]:
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        features = model(*batch(4))
    loss = (features.image * features.text).sum()
    loss.backward()
    return [loss.detach(), *(each.grad for each in model.trainable().values())]


def frozen(model: DualEncoder) -> list[torch.Tensor]:
    return [each for each in model.parameters() if not each.requires_grad]


@pytest.mark.parametrize("name", ["lora", "bitfit", "harma", "coop", "ssf"])
def test_a_step_casts_no_frozen_layer(name):
    counts = {}
    for held in (False, True):
        model = adapted(name)
        with held_weights(model, "bf16" if held else "fp32"), Casts(frozen(model)) as casts:
            step(model)
        counts[held] = casts.count
    assert counts[False] > 20
    assert counts[True] <= 4  # the projections to the embeddings, and what is no layer in front of the blocks


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lora", {}),
        ("bitfit", {}),
        ("harma", {"bottleneck": 16, "heads": 4}),
        ("vpt", {}),
        ("ssf", {}),
        ("peft", {"type": "LORA", "r": 4, "use_dora": True}),
        ("peft", {"type": "LOHA", "r": 4}),
    ],
)
def test_the_numbers_are_the_same(name, settings):
    plain, held = adapted(name, **settings), adapted(name, **settings)
    with held_weights(held, "bf16"):
        found = step(held)
    for a, b in zip(step(plain), found, strict=True):
        assert torch.equal(a, b)
        assert torch.isfinite(a).all()


def test_other_passes_and_readers_see_float32():
    model = adapted("lora")
    before = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    with torch.no_grad():
        plain = model.eval().encode_image(batch(2)[0])
    with held_weights(model, "bf16"):
        step(model.train())
        assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == before
        with torch.no_grad():
            assert torch.equal(model.eval().encode_image(batch(2)[0]), plain)
        with pytest.raises(RuntimeError), torch.autocast("cpu", torch.bfloat16):
            model.encode_image(torch.zeros(1, 3, 7, 7))  # a pass that fails gives the weights back, too
        assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
