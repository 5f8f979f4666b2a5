"""Modules around frozen layers: names stay, every layer is reached, copies are whole, written weights count."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bench.config.errors import UserError
from bench.conformance.tiny import CLASSES, backbone, batch
from bench.core.blocks import SlottedBlock
from bench.core.held import held_weights
from bench.core.layers import Layer, OpenAttention
from bench.core.model import DualEncoder
from tests.test_held import Casts


class Add(nn.Module):
    """Adds `amount`, a trained number, to the input; gives the number itself if `alone`."""

    def __init__(self, amount: float, alone: bool = False) -> None:
        super().__init__()
        self.amount, self.alone = nn.Parameter(torch.tensor(amount)), alone

    def forward(self, x):
        return self.amount if self.alone else x + self.amount


def uneven(kind: str) -> DualEncoder:
    """A backbone whose biases and norms are random, too; open_clip starts them at zero and one."""
    model = backbone(kind)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def embeddings(model: DualEncoder) -> torch.Tensor:
    data = batch()
    with torch.no_grad():
        features = model(data.images, data.tokens)
    return torch.cat([features.image, features.text])


def blocks(model: DualEncoder) -> list[SlottedBlock]:
    return [*model.image_blocks.slotted(), *model.text_blocks.slotted()]


def reachable(model: DualEncoder) -> list[Layer]:
    found = [layer for block in blocks(model) for layer in block.layers()]
    outside = [("image", name) for name in model.image_blocks.outside] + [("text", "ln_final")]
    return found + [model.layer(*each) for each in outside]


@pytest.mark.parametrize("kind", CLASSES)
def test_reaching_a_layer_changes_neither_names_nor_output(kind):
    model = uneven(kind)
    before, state = embeddings(model), model.state_dict()
    assert len(reachable(model)) == 8 * 5 + (3 if kind == "SigLIP" else 4)  # it has no ln_pre
    assert list(model.state_dict()) == list(state)
    assert all(tensor.data_ptr() == state[name].data_ptr() for name, tensor in model.state_dict().items())
    assert torch.allclose(embeddings(model), before, atol=1e-6)


def test_other_layers_than_those_of_attention_are_bit_equal():
    model = backbone()
    before = embeddings(model)
    for block in blocks(model):
        for name in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            block.layer(name).fill(after=nn.Identity())
    assert torch.equal(embeddings(model), before)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("slot", ["before", "beside", "after"])
def test_a_module_in_any_slot_of_any_layer_counts(kind, slot):
    plain = embeddings(backbone(kind))
    for number in range(len(reachable(backbone(kind)))):
        model = backbone(kind)
        layer = reachable(model)[number]
        torch.manual_seed(0)
        beside = nn.Conv2d(3, layer.outputs, 8, 8) if layer.name == "conv1" else nn.Linear(layer.inputs, layer.outputs)
        layer.fill(**{slot: beside if slot == "beside" else nn.Tanh()})
        moved = (embeddings(model) - plain).abs().max()
        assert moved > 1e-4, layer.name


def test_slots_are_in_this_order():
    """`after(L(before(x)) + beside(before(x)))`: with x = 1, L(x) = 10 x: (10 * 2 + (2 + 3)) * 7."""

    class Times(nn.Module):
        def forward(self, x):
            return x * 7

    linear = nn.Linear(1, 1)
    nn.init.constant_(linear.weight, 10.0)
    nn.init.zeros_(linear.bias)
    Layer("x", linear).fill(before=Add(1.0), beside=Add(3.0), after=Times())
    assert float(linear(torch.ones(1, 1)).detach()) == 175


def test_a_slot_is_filled_once_and_can_be_emptied():
    layer = backbone().text_blocks.slotted()[0].layer("attn.q")
    module = Add(1.0)
    layer.fill(after=module)
    with pytest.raises(ValueError, match=r"the slot 'after' of attn\.q is taken"):
        layer.fill(beside=Add(1.0), after=Add(1.0))
    assert layer.take("after") is module
    for slot in ("after", "beside", "weight"):
        with pytest.raises(ValueError, match="is empty"):
            layer.take(slot)
    with pytest.raises(ValueError, match="no slot 'around'; it has before, beside, after"):
        layer.fill(around=module)
    layer.fill(after=module)


def test_what_can_not_be_reached_is_named():
    model = backbone()
    with pytest.raises(ValueError, match=r"no layer 'attn.out_proj'; it has ln_1, attn.q"):
        model.image_blocks.slotted()[0].layer("attn.out_proj")
    with pytest.raises(ValueError, match="the text tower has no layer 'ln_pre' outside of its blocks; it has token_"):
        model.layer("text", "ln_pre")
    with pytest.raises(UserError, match="takes no adapters"):
        backbone("ResNet").layer("image", "conv1")
    block = model.text_blocks.slotted()[0]
    block.attn = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(TypeError, match="Identity is no attention of open_clip"):
        block.layer("attn.q")


def test_sizes():
    model = backbone()
    sizes = {layer.name: (layer.inputs, layer.outputs) for layer in model.image_blocks.slotted()[0].layers()}
    assert sizes == dict.fromkeys(("ln_1", "ln_2", "attn.q", "attn.k", "attn.v", "attn.out"), (96, 96)) | {
        "mlp.c_fc": (96, 384),
        "mlp.c_proj": (384, 96),
    }
    patches = model.layer("image", "conv1")
    assert (patches.inputs, patches.outputs, patches.bias) == (3, 96, None)


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_written_into_the_weights_is_what_the_model_has(kind):
    """Each layer times 2 in a slot, then the same folded into its weight and bias."""

    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    model = uneven(kind)
    layers = [layer for block in blocks(model) for layer in block.layers()]
    for layer in layers:
        layer.fill(after=Twice())
    slotted = embeddings(model)
    for layer in layers:
        layer.take("after")
        layer.weight.mul_(2)
        layer.bias.mul_(2)
    assert torch.allclose(embeddings(model), slotted, atol=1e-5)
    plain = backbone(kind)
    plain.load_state_dict(model.state_dict())  # into open_clip's own blocks
    assert torch.allclose(embeddings(plain), slotted, atol=1e-5)


def test_a_copy_has_modules_of_its_own():
    model = backbone()
    for layer in reachable(model):
        layer.fill(before=Add(0.0), beside=Add(0.1, alone=True), after=Add(0.2))
    before, other = embeddings(model), copy.deepcopy(model)
    assert torch.equal(embeddings(other), before)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn(()))
    assert torch.equal(embeddings(other), before)
    assert not torch.equal(embeddings(model), before)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_wrapper_around_the_first_text_layer_does_not_stop_the_text(kind):
    """open_clip asks `mlp.c_fc.weight` of the first block for the type of the embeddings."""
    model = backbone(kind)
    before = embeddings(model)
    block = model.text_blocks.slotted()[0]
    block.mlp.c_fc = nn.Sequential(block.mlp.c_fc)  # type: ignore[assignment]
    assert torch.equal(embeddings(model), before)


def test_a_layer_with_trained_weights_stays_trained():
    """Attention that is opened after its weights were set to be trained."""
    model = backbone()
    block = model.text_blocks.slotted()[0]
    block.attn.in_proj_bias.requires_grad_(True)
    block.layer("attn.q").fill(after=Add(0.0))
    assert isinstance(block.attn, OpenAttention)
    data = batch()
    model(data.images, data.tokens).text.sum().backward()
    gradient = block.attn.in_proj_bias.grad
    assert gradient is not None
    assert all(part.any() for part in (gradient[:80], gradient[160:]))  # a softmax does not see the keys' bias


def test_held_weights_reach_the_opened_attention():
    """A step in bf16 casts no weight of it; see bench.core.held."""
    counts = {}
    for precision in ("fp32", "bf16"):
        model = backbone()
        for block in blocks(model):
            for layer in block.layers():
                layer.fill(after=Add(0.0))
        packed = [weight for name, weight in model.named_parameters() if ".attn." in name and weight.ndim == 2]
        data = batch()
        with held_weights(model, precision), Casts(packed) as casts, torch.autocast("cpu", torch.bfloat16):
            model(data.images, data.tokens)
        counts[precision] = casts.count
    assert counts["fp32"] >= 10
    assert counts["bf16"] == 0
