"""HarMA, MRS-Adapter and SSF against a second, literal transcription: models, losses, gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bench.core import model as core
from methods import losses
from tests.literal import (
    HEADS,
    IMAGE_IDS,
    Case,
    Mask,
    adapted,
    affine,
    after_attention,
    agree,
    attend,
    caught,
    compared,
    cosine,
    data,
    encode_image,
    encode_text,
    gelu,
    layer_norm,
    mlp,
    sigma,
    weights,
)

DROPPED = torch.tensor([2.0, 0.0, 2.0, 2.0, 0.0, 2.0])  # one mask of the adapter's dropout at rate 0.5

# --- the methods ---------------------------------------------------------------------------------------------------


def harma_block(shared: str):
    def block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
        x = after_attention(x, w, name, side)
        m = [mlp(token, w, name) for token in x]
        a = f"{name}.after_mlp"
        h = [gelu(affine(token, w[f"{a}.down.weight"], w[f"{a}.down.bias"])) for token in m]
        u = attend(h, w, f"{a}.attention", 2, causal=False)
        if side == "text" or shared == "both":
            s = f"{a}.shared"
            d = sigma(w[f"{s}.gate"])
            low = [affine(token, w[f"{s}.down.weight"], w[f"{s}.down.bias"]) for token in u]
            looked = attend(low, w, f"{s}.attention", 2, causal=False)
            mixed = [d * other + (1 - d) * token for other, token in zip(looked, low, strict=True)]
            u = [token + affine(z, w[f"{s}.up.weight"], w[f"{s}.up.bias"]) for token, z in zip(u, mixed, strict=True)]
        u = attend(u, w, f"{a}.attention", 2, causal=False)
        b, g = sigma(w[f"{a}.inner_gate"]), sigma(w[f"{a}.gate"])
        out = []
        for token, own, left, right in zip(x, m, h, u, strict=True):
            adapted = own + affine(b * left + (1 - b) * right, w[f"{a}.up.weight"], w[f"{a}.up.bias"])
            out.append(token + g * adapted + (1 - g) * own)
        return out

    return block


def mrs_block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    r = after_attention(x, w, name, side)
    a = f"{name}.beside_mlp.module"
    out = []
    for token in r:
        z = affine(token, w[f"{a}.down.{side}.weight"], w[f"{a}.down.{side}.bias"])
        z = torch.stack([value if value > 0 else value * 0 for value in z]) * DROPPED
        own = affine(z, w[f"{a}.up.{side}.weight"], w[f"{a}.up.{side}.bias"])
        both = affine(z, w[f"{a}.up_shared.weight"], w[f"{a}.up_shared.bias"])
        out.append(token + mlp(token, w, name) + torch.cat([own, both]))
    return out


def ssf_block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    """A block with its layers one after another, each followed by its own scale and shift."""

    def tuned(values: Tensor, layer: str) -> Tensor:
        scale, shift = w[f"{name}.{layer}.after.scale"], w[f"{name}.{layer}.after.shift"]
        return torch.stack([scale[at] * value + shift[at] for at, value in enumerate(values)])

    def linear(values: Tensor, layer: str) -> Tensor:
        return tuned(affine(values, w[f"{name}.{layer}.weight"], w[f"{name}.{layer}.bias"]), layer)

    width = len(x[0])
    size = width // HEADS[side]
    normed = [tuned(layer_norm(token, w, f"{name}.ln_1"), "ln_1") for token in x]
    packed, bias = w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"]
    q, k, v = (
        [tuned(affine(token, packed[rows], bias[rows]), f"attn.{part}") for token in normed]
        for part, rows in (
            ("q", slice(0, width)),
            ("k", slice(width, 2 * width)),
            ("v", slice(2 * width, 3 * width)),
        )
    )
    out = []
    for i, token in enumerate(x):
        mixed = []
        for head in range(HEADS[side]):
            part = slice(head * size, (head + 1) * size)
            seen = range(i + 1) if side == "text" else range(len(x))
            scores = [torch.exp((q[i][part] * k[j][part]).sum() / math.sqrt(size)) for j in seen]
            mixed.append(sum(score * v[j][part] for score, j in zip(scores, seen, strict=True)) / sum(scores))
        token = token + linear(torch.cat(mixed), "attn.out_proj")
        hidden = gelu(linear(tuned(layer_norm(token, w, f"{name}.ln_2"), "ln_2"), "mlp.c_fc"))
        out.append(token + linear(hidden, "mlp.c_proj"))
    return out


# --- the losses ---------------------------------------------------------------------------------------------------


def harma_loss(image: list[Tensor], text: list[Tensor], temperature: Tensor) -> Tensor:
    n = len(image)
    contrastive = torch.zeros(())
    for rows, columns in ((image, text), (text, image)):
        for i in range(n):
            logits = [cosine(rows, columns, i, j) / temperature for j in range(n)]
            log_sum = torch.log(sum(torch.exp(logit) for logit in logits))
            same = [j for j in range(n) if IMAGE_IDS[j] == IMAGE_IDS[i]]
            contrastive = contrastive - sum((logits[j] - log_sum) / len(same) for j in same) / n / 2
    adaptive = torch.zeros(())
    for rows, columns in ((image, text), (text, image)):
        for i in range(n):
            for j in range(n):
                c = 0.2 + cosine(rows, columns, i, j) - cosine(image, text, i, i)
                if i != j and c > 0:
                    adaptive = adaptive + (1 - torch.exp(-c)) ** 2 * c / 2
    return contrastive + adaptive


def triplet(a: list[Tensor], b: list[Tensor]) -> Tensor:
    total = torch.zeros(())
    for i in range(len(a)):
        for pair in (lambda i, j: cosine(a, b, i, j), lambda i, j: cosine(a, b, j, i)):
            worst = torch.zeros(())
            for j in range(len(a)):
                if j != i:
                    violation = 0.2 + pair(i, j) - cosine(a, b, i, i)
                    worst = violation if violation > worst else worst
            total = total + worst
    return total


# --- the comparison ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", ["text", "both"])
def test_harma(shared):
    model = adapted("harma", bottleneck=8, heads=2, shared=shared)
    loss = losses.get("harma")()
    loss.attach(model)
    images, ids = data()
    features = model(images, ids)
    total = loss(features, torch.tensor(IMAGE_IDS), model)
    w, block = weights(model), harma_block(shared)
    image, text = [encode_image(each, w, block) for each in images], [encode_text(each, w, block) for each in ids]
    by_hand = harma_loss(image, text, model.extras["temperature"])
    agree(model, (features.image, features.text, total), (torch.stack(image), torch.stack(text), by_hand))


def test_mrs_adapter(monkeypatch):
    """Both dropouts are masks that both sides know; the second view's has rate 0.2, what is kept is divided by 0.8."""
    model = adapted("mrs_adapter", bottleneck=6, shared_dim=5)
    module = model.image_blocks.list[0].beside_mlp.module
    assert module.dropout.p == 0.5
    module.dropout = Mask(DROPPED)
    loss = losses.get("hmmc")()
    torch.manual_seed(2)
    masks = {16: (torch.rand(3, 5, 16) >= 0.2) / 0.8, 24: (torch.rand(3, 7, 24) >= 0.2) / 0.8}
    rates = []
    dropout = lambda x, rate: rates.append(rate) or x * masks[x.shape[-1]]  # noqa: E731
    monkeypatch.setattr(core, "F", SimpleNamespace(dropout=dropout, normalize=torch.nn.functional.normalize))
    images, ids = data()
    features = model(images, ids, second_view=loss.second_view)
    total = loss(features, torch.tensor(IMAGE_IDS), model)
    assert rates == [0.2, 0.2]
    w = weights(model)
    image, text = (
        [encode_image(each, w, mrs_block) for each in images],
        [encode_text(each, w, mrs_block) for each in ids],
    )
    image_view = [encode_image(each, w, mrs_block, masks[16][at]) for at, each in enumerate(images)]
    text_view = [encode_text(each, w, mrs_block, masks[24][at]) for at, each in enumerate(ids)]
    by_hand = triplet(image, text) + triplet(image, image_view) + triplet(text, text_view)
    ours = (features.image, features.text, features.image_view, features.text_view, total)
    agree(model, ours, (*map(torch.stack, (image, text, image_view, text_view)), by_hand))


def test_ssf():
    compared(SSF)


# --- planted faults -----------------------------------------------------------------------------------------------


def one_module(model: core.DualEncoder) -> torch.nn.Module:
    return model.image_blocks.list[0].beside_mlp.module


HARMA = Case("harma", {"bottleneck": 8, "heads": 2}, harma_block("text"))
SSF = Case("ssf", {}, ssf_block)
MRS = Case(
    "mrs_adapter",
    {"bottleneck": 6, "shared_dim": 5},
    mrs_block,
    prepare=lambda model: setattr(one_module(model), "dropout", Mask(DROPPED)),
)


def harma_forward(inner: bool = False, outer: bool = False, once: bool = False, shared: bool = True):
    """HarMA's adapter with its inner or outer gate the wrong way round, without its second attention, or without B."""

    def forward(self, m: Tensor) -> Tensor:
        h = torch.nn.functional.gelu(self.down(m))
        u = self.attention(h)
        if shared and self.shared is not None:
            u = self.shared(u)
        u = u if once else self.attention(u)
        b, g = torch.sigmoid(self.inner_gate), torch.sigmoid(self.gate)
        b, g = 1 - b if inner else b, 1 - g if outer else g
        return g * (m + self.up(b * h + (1 - b) * u)) + (1 - g) * m

    return forward


def swapped_gate_of_b(self, u: Tensor) -> Tensor:
    d, low = torch.sigmoid(self.gate), self.down(u)
    return u + self.up((1 - d) * self.attention(low) + d * low)


def shared_slice_first(self, x: Tensor, side: str) -> Tensor:
    z = self.dropout(self.activation(self.down[side](x)))
    return torch.cat([self.up_shared(z), self.up[side](z)], dim=-1)


def without_relu(self, x: Tensor, side: str) -> Tensor:
    z = self.dropout(self.down[side](x))
    return torch.cat([self.up[side](z), self.up_shared(z)], dim=-1)


ADAPTER, TWO_TOWERS = (
    "methods.layers.harma.HarmaAdapter.forward",
    "methods.layers.bottlenecks.TwoTowerBottleneck.forward",
)
SCALE_SHIFT = "methods.layers.scale_shift.ScaleShift.forward"
FAULTS = {
    "harma: inner gate swapped": (HARMA, ADAPTER, harma_forward(inner=True)),
    "harma: outer gate swapped": (HARMA, ADAPTER, harma_forward(outer=True)),
    "harma: attention once": (HARMA, ADAPTER, harma_forward(once=True)),
    "harma: without the shared module": (HARMA, ADAPTER, harma_forward(shared=False)),
    "harma: gate of the shared module swapped": (HARMA, "methods.layers.harma.HarmaShared.forward", swapped_gate_of_b),
    "mrs_adapter: shared slice first": (MRS, TWO_TOWERS, shared_slice_first),
    "mrs_adapter: without ReLU": (MRS, TWO_TOWERS, without_relu),
    "ssf: without shift": (SSF, SCALE_SHIFT, lambda self, x: x * self.scale),
    "ssf: shift before scale": (SSF, SCALE_SHIFT, lambda self, x: (x + self.shift) * self.scale),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch):
    case, target, module = FAULTS[fault]
    assert caught(case, monkeypatch, target, module)
