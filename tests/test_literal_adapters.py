"""Adapters and LoRA against a second, literal transcription; faults planted in the project's modules are caught."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core import model as core
from methods.layers import bottlenecks
from methods.layers.tuners import inject
from tests.literal import (
    HEADS,
    TOLERANCE,
    Case,
    Mask,
    affine,
    after_attention,
    attend,
    caught,
    compared,
    gelu,
    image_embedding,
    layer_norm,
    mlp,
    quick_gelu,
    relu,
    text_embedding,
    unit,
)


def linear(x: Tensor, w: dict, name: str) -> Tensor:
    return affine(x, w[f"{name}.weight"], w[f"{name}.bias"])


def normed_attention(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    normed = [layer_norm(token, w, f"{name}.ln_1") for token in x]
    return attend(normed, w, f"{name}.attn", HEADS[side], causal=side == "text")


def plain_block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    return [token + mlp(token, w, name) for token in after_attention(x, w, name, side)]


# --- the methods ----------------------------------------------------------------------------------------------------


def tanh_gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def houlsby_block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    def adapted(m: Tensor, place: str) -> Tensor:
        return m + linear(tanh_gelu(linear(m, w, f"{name}.{place}.down")), w, f"{name}.{place}.up")

    r = [token + adapted(m, "after_attn") for token, m in zip(x, normed_attention(x, w, name, side), strict=True)]
    return [token + adapted(mlp(token, w, name), "after_mlp") for token in r]


KEPT = torch.tensor([0.0, 2.0, 2.0, 2.0, 0.0, 2.0, 2.0, 2.0])  # a mask of a bottleneck's dropout


def adaptformer_block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    a = f"{name}.beside_mlp"
    out = []
    for r in after_attention(x, w, name, side):
        z = relu(linear(r, w, f"{a}.down")) * KEPT
        out.append(r + mlp(r, w, name) + w[f"{a}.scale"] * linear(z, w, f"{a}.up"))
    return out


def clip_adapted(head: str, embedding):
    """An encoder with CLIP-Adapter on its embedding, as released: a ReLU behind each matrix, 0.2 to 0.8."""

    def encode(item: Tensor, w: dict, block) -> Tensor:
        f = embedding(item, w, block)
        down, up = w[f"{head}.down.weight"], w[f"{head}.up.weight"]
        z = relu(torch.stack([(row * f).sum() for row in down]))
        return unit(0.2 * relu(torch.stack([(row * z).sum() for row in up])) + 0.8 * f)

    return encode


def convolved(tokens: list[Tensor], w: dict, name: str, edge: int) -> list[Tensor]:
    """A 3x3 convolution over edge x edge tokens, with zeros around them."""
    kernel, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    out = []
    for y in range(edge):
        for x in range(edge):
            total = bias
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < edge and 0 <= x + dx < edge:
                        near = tokens[(y + dy) * edge + x + dx]
                        total = total + torch.stack([(row * near).sum() for row in kernel[:, :, dy + 1, dx + 1]])
            out.append(total)
    return out


# Stochastic depth in the second image block, for each of the three samples: attention and MLP and what is beside them.
DEPTH = {
    "after_attn": [2.0, 0.0, 2.0],
    "beside_attn": [0.0, 2.0, 2.0],
    "after_mlp": [2.0, 2.0, 0.0],
    "beside_mlp": [2.0, 0.0, 0.0],
}
CONVPASS = {"bottleneck": 8, "scale": 0.7, "drop_path": 0.5}


def convpass_block(sample: int):
    def block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
        if side == "text":
            return plain_block(x, w, name, side)
        kept = {place: DEPTH[place][sample] if name.endswith("1") else 1.0 for place in DEPTH}

        def bypass(place: str, norm: str, tokens: list[Tensor]) -> list[Tensor]:
            a = f"{name}.{place}.branch"
            low = [quick_gelu(linear(layer_norm(token, w, f"{name}.{norm}"), w, f"{a}.down")) for token in tokens]
            mixed = convolved(low[:1], w, f"{a}.conv", 1) + convolved(low[1:], w, f"{a}.conv", 2)
            return [0.7 * kept[place] * linear(quick_gelu(each) * KEPT, w, f"{a}.up") for each in mixed]

        attended = [kept["after_attn"] * each for each in normed_attention(x, w, name, side)]
        beside = bypass("beside_attn", "ln_1", x)
        r = [token + one + other for token, one, other in zip(x, attended, beside, strict=True)]
        beside = bypass("beside_mlp", "ln_2", r)
        return [token + kept["after_mlp"] * mlp(token, w, name) + other for token, other in zip(r, beside, strict=True)]

    return block


class Samples:
    """An image encoder whose block is another one for each of the three samples, in order."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: Tensor, w: dict, block) -> Tensor:
        self.calls += 1
        return unit(image_embedding(image, w, block((self.calls - 1) % 3)))


def convpass_masks(model: core.DualEncoder) -> None:
    for index, block in enumerate(model.image_blocks.list):
        for place in ("beside_attn", "beside_mlp"):
            bypass = getattr(block, place)
            bypass.branch.dropout = Mask(KEPT)
            assert bypass.drop_path.p == (0.5 if index else 0.0)
            bypass.drop_path = Mask(torch.tensor(DEPTH[place])[:, None, None]) if index else bypass.drop_path
        for place in ("after_attn", "after_mlp"):
            if index:
                assert getattr(block, place).p == 0.5
                setattr(block, place, Mask(torch.tensor(DEPTH[place])[:, None, None]))


def cross_modal_block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    def adapted(m: Tensor, place: str) -> Tensor:
        a = f"{name}.{place}.module"
        z = quick_gelu(linear(m, w, f"{a}.down.{side}"))
        return m + torch.cat([linear(z, w, f"{a}.up.{side}"), linear(z, w, f"{a}.up_shared")])

    r = [token + adapted(m, "after_attn") for token, m in zip(x, normed_attention(x, w, name, side), strict=True)]
    return [token + adapted(mlp(token, w, name), "after_mlp") for token in r]


def uniadapter_block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    """Image tokens have 16 features and text tokens 24: the last 8 of these have weights of their own."""
    a = f"{name}.beside_mlp.module"
    out = []
    for r in after_attention(x, w, name, side):
        normed = layer_norm(r, w, f"{a}.norm.{len(r)}")
        z = linear(normed[:16], w, f"{a}.down")
        if side == "text":
            z = z + torch.stack([(row * normed[16:]).sum() for row in w[f"{a}.wider.text.weight"]])
        out.append(r + mlp(r, w, name) + 0.1 * linear(relu(z), w, f"{a}.up.{side}"))
    return out


def lora_block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    """Rank 2 and alpha 3 on all layers but k."""

    def tuned(token: Tensor, layer: str) -> Tensor:
        if layer == "attn.k":
            return linear(token, w, f"{name}.{layer}")
        down, up = (w[f"{name}.{layer}.lora_{part}.default.weight"] for part in "AB")
        low = torch.stack([(row * token).sum() for row in down])
        update = torch.stack([(row * low).sum() for row in up])
        return linear(token, w, f"{name}.{layer}.base_layer") + 3 / 2 * update

    size = len(x[0]) // HEADS[side]
    normed = [layer_norm(token, w, f"{name}.ln_1") for token in x]
    q, k, v = ([tuned(token, f"attn.{part}") for token in normed] for part in "qkv")
    r = []
    for i, token in enumerate(x):
        mixed = []
        for head in range(HEADS[side]):
            part = slice(head * size, (head + 1) * size)
            seen = range(i + 1) if side == "text" else range(len(x))
            scores = [torch.exp((q[i][part] * k[j][part]).sum() / math.sqrt(size)) for j in seen]
            mixed.append(sum(score * v[j][part] for score, j in zip(scores, seen, strict=True)) / sum(scores))
        r.append(token + tuned(torch.cat(mixed), "attn.out"))
    return [token + tuned(gelu(tuned(layer_norm(token, w, f"{name}.ln_2"), "mlp.c_fc")), "mlp.c_proj") for token in r]


# --- the comparison -------------------------------------------------------------------------------------------------


def adaptformer_masks(model: core.DualEncoder) -> None:
    for blocks in (model.image_blocks, model.text_blocks):
        for block in blocks.list:
            assert block.beside_mlp.dropout.p == 0.1
            block.beside_mlp.dropout = Mask(KEPT)


CASES = {
    "adapter": Case("adapter", {"bottleneck": 4}, houlsby_block),
    "adaptformer": Case(
        "adaptformer", {"bottleneck": 8, "learned_scale": True}, adaptformer_block, prepare=adaptformer_masks
    ),
    "clip_adapter": Case(
        "clip_adapter",
        {"bottleneck": 6, "towers": "both"},
        plain_block,
        image=clip_adapted("image_head", image_embedding),
        text=clip_adapted("text_head", text_embedding),
    ),
    "convpass": Case("convpass", CONVPASS, convpass_block, image=Samples(), prepare=convpass_masks),
    "cross_modal_adapter": Case("cross_modal_adapter", {"bottleneck": 4, "shared_dim": 5}, cross_modal_block),
    "uniadapter": Case("uniadapter", {"bottleneck": 5}, uniadapter_block),
    "lora": Case(
        "lora",
        {"rank": 2, "alpha": 3.0, "targets": ("attn.q", "attn.v", "attn.out", "mlp.c_fc", "mlp.c_proj")},
        lora_block,
    ),
}
CASES["convpass"].text = lambda ids, w, block: unit(text_embedding(ids, w, block(0)))


@pytest.mark.parametrize("name", CASES)
def test_transcription(name: str):
    compared(CASES[name])


# --- planted faults -------------------------------------------------------------------------------------------------


def bottleneck(activation=None, residual: bool = True, scaled: bool = True, dropped: bool = True):
    """A bottleneck with another activation, or without residual, scale or dropout."""

    def forward(self, x: Tensor) -> Tensor:
        z = (activation or self.activation)(self.down(x))
        branch = self.up(self.dropout(z) if dropped else z) * (self.scale if scaled else 1)
        return x + branch if self.serial and residual else branch

    return forward


def embedding_adapter(outer: bool = True, swapped: bool = False):
    def forward(self, f: Tensor) -> Tensor:
        adapted = self.up(F.relu(self.down(f)))
        ratio = 1 - self.ratio if swapped else self.ratio
        return ratio * (F.relu(adapted) if outer else adapted) + (1 - ratio) * f

    return forward


def conv_bottleneck(class_token: bool = True, inner: bool = True, outer: bool = True, turned: bool = False):
    """Convpass whose convolution leaves the class token out or sees the grid turned, or without an activation."""

    def forward(self, x: Tensor) -> Tensor:
        low = self.down(x)
        low = (bottlenecks.quick_gelu(low) if inner else low).transpose(1, 2)
        grid = low[:, :, 1:].unflatten(2, (2, 2))
        patches = self.conv(grid.transpose(2, 3)).transpose(2, 3) if turned else self.conv(grid)
        token = self.conv(low[:, :, :1, None]).flatten(2) if class_token else low[:, :, :1]
        mixed = torch.cat([token, patches.flatten(2)], dim=2).transpose(1, 2)
        return self.scale * self.up(self.dropout(bottlenecks.quick_gelu(mixed) if outer else mixed))

    return forward


def two_towers(first: bool = False, activation=None):
    def forward(self, x: Tensor, side: str) -> Tensor:
        z = self.dropout((activation or self.activation)(self.down[side](x)))
        parts = [self.up[side](z), self.up_shared(z)]
        return torch.cat(parts[::-1] if first else parts, dim=-1)

    return forward


def shared_down(norm: bool = True, wider: bool = True, scaled: bool = True, activation=F.relu):
    def forward(self, x: Tensor, side: str) -> Tensor:
        normed = self.norm[str(x.shape[-1])](x) if norm else x
        z = self.down(normed[..., : self.common])
        if side in self.wider and wider:
            z = z + self.wider[side](normed[..., self.common :])
        return (self.scale if scaled else 1) * self.up[side](activation(z))

    return forward


def serial_door(self, x: Tensor) -> Tensor:
    """In place of `Door.forward`: the residual is added where it must not be."""
    return x + self.module(x, self.side)


def split_attention(swapped: bool = False, masked: bool = True):
    def forward(self, query, key, value, need_weights=False, attn_mask=None):
        k, v = self.k(key), self.v(value)
        k, v = (v, k) if swapped else (k, v)
        heads = [each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.q(query), k, v)]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=attn_mask if masked else None)
        return self.out(mixed.transpose(1, 2).flatten(2)), None

    return forward


def inject_with_half_of_alpha(model, config, towers, targets):
    return inject(model, dataclasses.replace(config, lora_alpha=config.lora_alpha / 2), towers, targets)


LAYERS = "methods.layers.bottlenecks"
FAULTS = {
    "adapter: exact GELU": ("Bottleneck.forward", bottleneck(F.gelu)),
    "adapter: without residual": ("Bottleneck.forward", bottleneck(residual=False)),
    "adaptformer: GELU": ("Bottleneck.forward", bottleneck(F.gelu)),
    "adaptformer: without scale": ("Bottleneck.forward", bottleneck(scaled=False)),
    "adaptformer: without dropout": ("Bottleneck.forward", bottleneck(dropped=False)),
    "clip_adapter: without the second ReLU": ("EmbeddingAdapter.forward", embedding_adapter(outer=False)),
    "clip_adapter: ratio swapped": ("EmbeddingAdapter.forward", embedding_adapter(swapped=True)),
    "convpass: class token not convolved": ("ConvBottleneck.forward", conv_bottleneck(class_token=False)),
    "convpass: grid turned": ("ConvBottleneck.forward", conv_bottleneck(turned=True)),
    "convpass: without the first activation": ("ConvBottleneck.forward", conv_bottleneck(inner=False)),
    "convpass: without the second activation": ("ConvBottleneck.forward", conv_bottleneck(outer=False)),
    "convpass: without norm": ("Normed.forward", lambda self, x: self.drop_path(self.branch(x))),
    "convpass: no stochastic depth beside": ("Normed.forward", lambda self, x: self.branch(self._norm[0](x))),
    "cross_modal_adapter: shared slice first": ("TwoTowerBottleneck.forward", two_towers(first=True)),
    "cross_modal_adapter: exact GELU": ("TwoTowerBottleneck.forward", two_towers(activation=F.gelu)),
    "uniadapter: without norm": ("SharedDownBottleneck.forward", shared_down(norm=False)),
    "uniadapter: without the wider tower's own inputs": ("SharedDownBottleneck.forward", shared_down(wider=False)),
    "uniadapter: without scale": ("SharedDownBottleneck.forward", shared_down(scaled=False)),
    "uniadapter: GELU": ("SharedDownBottleneck.forward", shared_down(activation=F.gelu)),
    "uniadapter: residual twice": ("Door.forward", serial_door),
    "lora: k and v swapped": ("methods.layers.attention.SplitAttention.forward", split_attention(swapped=True)),
    "lora: without mask": ("methods.layers.attention.SplitAttention.forward", split_attention(masked=False)),
    "lora: alpha halved": ("methods.layers.tuners.inject", inject_with_half_of_alpha),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_caught_without_a_fault(name: str, monkeypatch: pytest.MonkeyPatch):
    assert not caught(CASES[name], monkeypatch, "tests.literal.TOLERANCE", TOLERANCE)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch):
    target, module = FAULTS[fault]
    target = target if target.startswith("methods.") else f"{LAYERS}.{target}"
    assert caught(CASES[fault.partition(":")[0]], monkeypatch, target, module)


# --- stochastic depth itself ----------------------------------------------------------------------------------------


def test_drop_path_drops_whole_items_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = bottlenecks.DropPath(0.25), torch.ones(4_000, 2, 3)
    dropped = drop(x)
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(x))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(x), x)
