"""POSAPL, MPS-CLIP's adapter, MMA, UniPT and LoReFT against a literal transcription, and faults that it sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core import model as core
from methods import losses
from methods.layers import mma, mps, posapl, reft, unipt
from methods.losses import posapl as posapl_loss
from tests.literal import (
    IMAGE_IDS,
    TOLERANCE,
    adapted,
    affine,
    after_attention,
    attend,
    cosine,
    data,
    encode_image,
    encode_text,
    gelu,
    layer_norm,
    mlp,
    sigma,
    value,
    weights,
)

Tokens = list[Tensor]


def relu(x: Tensor) -> Tensor:
    return torch.stack([number if number > 0 else number * 0 for number in x])


def linear(x: Tensor, w: dict, name: str) -> Tensor:
    return affine(x, w[f"{name}.weight"], w[f"{name}.bias"])


def average(tokens: Tokens) -> Tensor:
    return sum(tokens) / len(tokens)


def plain_block(x: Tokens, w: dict, name: str, side: str) -> Tokens:
    return [token + mlp(token, w, name) for token in after_attention(x, w, name, side)]


def states_of(item: Tensor, w: dict, block: Callable, side: str) -> list[Tokens]:
    """The tokens in front of the first block and behind each of the two."""
    states: list[Tokens] = []

    def recording(x: Tokens, w: dict, name: str, side: str) -> Tokens:
        if not states:
            states.append(x)
        states.append(block(x, w, name, side))
        return states[-1]

    (encode_image if side == "image" else encode_text)(item, w, recording)
    return states


def normalised(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).sum())


# --- the methods ------------------------------------------------------------------------------------------------------


def tag_mlp(x: Tensor, w: dict, name: str) -> Tensor:
    return linear(relu(linear(x, w, f"{name}.down")), w, f"{name}.up")


def posapl_block(x: Tokens, w: dict, name: str, side: str) -> Tokens:
    x = after_attention(x, w, name, side)
    if side == "text" and f"{name}.beside_attn.mlp.up.bias" in w:
        x = [token + tag_mlp(tag, w, f"{name}.beside_attn.mlp") for token, tag in zip(x, w["stream"], strict=True)]
    m = [mlp(token, w, name) for token in x]
    z = [linear(token, w, f"{name}.after_mlp.down") for token in m]
    looked = attend(z, w, f"{name}.after_mlp.attention", 2, causal=False)
    return [
        token + own + linear(low + seen, w, f"{name}.after_mlp.up")
        for token, own, low, seen in zip(x, m, z, looked, strict=True)
    ]


def fused(states: list[Tokens], w: dict, name: str, side: str, fusion: str) -> Tokens:
    """a_2 for each token, from the outputs of both blocks."""

    def pooled(tokens: Tokens) -> Tokens:
        return [average(tokens)] * len(tokens) if side == "image" else tokens

    _, first, second = states
    a = pooled([relu(linear(token, w, f"{name}.steps.0")) for token in first])
    if fusion == "progressive":
        a = pooled([one + other for one, other in zip(a, second, strict=True)])
    return [linear(token, w, f"{name}.last") for token in a]


def posapl_embeddings(
    images: Tensor, ids: Tensor, w: dict, fusion: str, tagged: Callable = lambda ids, w: w
) -> tuple[Tokens, Tokens]:
    image, text = [], []
    for each in images:
        states = states_of(each, w, posapl_block, "image")
        added = fused(states, w, "visual.ln_post.after", "image", fusion)[0]
        image.append(normalised((layer_norm(states[-1][0], w, "visual.ln_post") + added) @ w["visual.proj"]))
    for each in ids:
        states, end = states_of(each, tagged(each, w), posapl_block, "text"), int(each.argmax())
        added = fused(states, w, "ln_final.after", "text", fusion)[end]
        text.append(normalised((layer_norm(states[-1][end], w, "ln_final") + added) @ w["text_projection"]))
    return image, text


def mps_block(x: Tokens, w: dict, name: str, side: str) -> Tokens:
    x, a = plain_block(x, w, name, side), f"{name}.exit"
    h = [gelu(linear(token, w, f"{a}.down")) for token in x]
    u = [linear(token, w, f"{a}.project") for token in attend(h, w, f"{a}.attention", 2, causal=False)]
    dim = len(u[0])
    placed = []
    for at, token in enumerate(u):
        normed = layer_norm(token, w, f"{a}.mix.norm_in")
        place = [at / 10_000 ** (2 * (i // 2) / dim) for i in range(dim)]
        place = [math.sin(angle) if i % 2 == 0 else math.cos(angle) for i, angle in enumerate(place)]
        placed.append(normed + torch.tensor(place))
    looked = attend(placed, w, f"{a}.mix.attention", 2, causal=False)
    v = [token + layer_norm(token + seen, w, f"{a}.mix.norm_out") for token, seen in zip(u, looked, strict=True)]
    wide = [torch.stack([(row[:, 0] * token).sum() for row in w[f"{a}.mix.widen.weight"]]) for token in v]
    kernel, bias = w[f"{a}.mix.along.weight"], w[f"{a}.mix.along.bias"]
    along = []
    for at in range(len(wide)):
        numbers = []
        for channel in range(2 * dim):
            seen = [(offset, at + offset - 2) for offset in range(5) if 0 <= at + offset - 2 < len(wide)]
            numbers.append(
                bias[channel] + sum(kernel[channel, 0, offset] * wide[other][channel] for offset, other in seen)
            )
        along.append(relu(torch.stack(numbers)))
    out = []
    for token, before, mixed in zip(x, v, along, strict=True):
        narrow = torch.stack([(row[:, 0] * mixed).sum() for row in w[f"{a}.mix.narrow.weight"]])
        out.append(token + linear(sigma(w[f"{a}.gate"]) * (before + narrow), w, f"{a}.up"))
    return out


MMA_SCALE = 0.5


def mma_block(x: Tokens, w: dict, name: str, side: str) -> Tokens:
    out = []
    for before, after in zip(x, after_attention(x, w, name, side), strict=True):
        normed = layer_norm(before, w, f"{name}.ln_1")
        # The value of `normed` with MMA_SCALE times its gradient, and below the reverse.
        n = MMA_SCALE * normed + (1 - MMA_SCALE) * normed.detach()
        hidden = relu(linear(relu(linear(n, w, f"{name}.beside_mlp.down")), w, f"{name}.beside_mlp.shared"))
        branch = linear(hidden, w, f"{name}.beside_mlp.up")
        out.append(after + mlp(after, w, name) + MMA_SCALE * branch.detach() + (branch - branch.detach()))
    return out


def unipt_head(a: Tensor, states: list[Tokens], end: int, seen: int, w: dict) -> Tensor:
    """The embedding from `a`, the states' first `seen` tokens and the token at `end`."""
    q = linear(relu(a), w, "query")
    merged, scores = [], []
    for k, state in enumerate(states):
        t = [linear(relu(token), w, f"down.{k}") for token in state[:seen]]
        near = [(q * token).sum() for token in t]
        near = [score if score > 0 else score * 0 for score in near]
        total = sum(near) if sum(near) > 1e-6 else 1e-6
        merged.append(sum(score * token for score, token in zip(near, t, strict=True)) / total + t[end])
        scores.append(torch.exp((w["gate.weight"][0] * q * average(t)).sum()))
    mixed = sum(score * c for score, c in zip(scores, merged, strict=True)) / sum(scores)
    return a + linear(relu(mixed), w, "up")


def unipt_embeddings(model: core.DualEncoder, images: Tensor, ids: Tensor) -> tuple[Tokens, Tokens]:
    w = weights(model)
    image_head, text_head = dict(model.image_head.named_parameters()), dict(model.text_head.named_parameters())
    image, text = [], []
    for each in images:
        states = states_of(each, w, plain_block, "image")
        a = layer_norm(states[-1][0], w, "visual.ln_post") @ w["visual.proj"]
        image.append(normalised(unipt_head(a, states, 0, len(states[0]), image_head)))
    for each in ids:
        states, end = states_of(each, w, plain_block, "text"), int(each.argmax())
        a = layer_norm(states[-1][end], w, "ln_final") @ w["text_projection"]
        text.append(normalised(unipt_head(a, states, end, end + 1, text_head)))
    return image, text


def reft_block(x: Tokens, w: dict, name: str, side: str) -> Tokens:
    rows: Tokens = []
    for row in w[f"{name}.exit.rows"]:
        rest = row - sum(((row * other).sum() * other for other in rows), torch.zeros(len(row)))
        rows.append(normalised(rest))
    out = []
    for h in plain_block(x, w, name, side):
        wanted = linear(h, w, f"{name}.exit.source")
        out.append(h + sum((wanted[at] - (row * h).sum()) * row for at, row in enumerate(rows)))
    return out


# --- the losses -------------------------------------------------------------------------------------------------------


def contrastive(image: Tokens, text: Tokens, factor: Tensor | float) -> Tensor:
    total, n = torch.zeros(()), len(image)
    for rows, columns in ((image, text), (text, image)):
        for i in range(n):
            logits = [factor * cosine(rows, columns, i, j) for j in range(n)]
            log_sum = torch.log(sum(torch.exp(logit) for logit in logits))
            same = [j for j in range(n) if IMAGE_IDS[j] == IMAGE_IDS[i]]
            total = total - sum((logits[j] - log_sum) / len(same) for j in same) / n / 2
    return total


def violations(image: Tokens, text: Tokens, margin: float) -> list[Tensor]:
    found = []
    for rows, columns in ((image, text), (text, image)):
        for i in range(len(image)):
            for j in range(len(image)):
                c = margin + cosine(rows, columns, i, j) - cosine(image, text, i, i)
                if i != j and c > 0:
                    found.append(c)
    return found


def posapl_objective(image: Tokens, text: Tokens, w: dict) -> Tensor:
    return contrastive(image, text, w["logit_scale"]) + sum(c * c for c in violations(image, text, 0.1)) / 2


def mps_objective(image: Tokens, text: Tokens) -> Tensor:
    return contrastive(image, text, 1 / 0.07) + sum(
        (1 - torch.exp(-c)) ** 2 * c / 2 for c in violations(image, text, 0.2)
    )


# --- the comparisons --------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A model of the project, and what the transcription gives: embeddings, a number made of them, its gradients."""

    model: core.DualEncoder
    image: Tokens
    text: Tokens
    total: Tensor
    loss: str = ""

    def __post_init__(self) -> None:
        self.gradients = torch.autograd.grad(self.total, list(self.model.trainable().values()))

    def compare(self) -> None:
        """Embeddings, the number and all gradients agree to 1e-5 of the largest value in each."""
        features = self.model(*data())
        if self.loss:
            total = losses.get(self.loss)()(features, torch.tensor(IMAGE_IDS), self.model)
        else:
            total = value(features.image, features.text)
        theirs = (torch.stack(self.image), torch.stack(self.text), self.total)
        for ours, other in zip((features.image, features.text, total), theirs, strict=True):
            close(ours, other, "forward")
        trained = self.model.trainable()
        gradients = torch.autograd.grad(total, list(trained.values()))
        for name, ours, other in zip(trained, gradients, self.gradients, strict=True):
            assert other.abs().max() > 0, name
            close(ours, other, name)


def close(ours: Tensor, other: Tensor, name: str) -> None:
    largest = max(1.0, float(other.detach().abs().max()))
    assert float((ours - other).detach().abs().max()) < TOLERANCE * largest, name


def by_value(image: Tokens, text: Tokens) -> Tensor:
    return value(torch.stack(image), torch.stack(text))


def prepared(name: str, **settings) -> core.DualEncoder:
    """The method at random weights and CLIP's own biases away from zero, without dropout."""
    model = adapted(name, **settings).eval()
    with torch.no_grad():
        for key, parameter in model.clip.named_parameters():
            if key.endswith("bias") and not parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model


def case_posapl(fusion: str) -> Case:
    model = prepared("posapl", bottleneck=6, heads=2, fused=2, stride=1, fusion=fusion)
    image, text = posapl_embeddings(*data(), weights(model), fusion)
    return Case(model, image, text, posapl_objective(image, text, weights(model)), "posapl")


def case_blocks(model: core.DualEncoder, block: Callable, objective: Callable = by_value, loss: str = "") -> Case:
    images, ids = data()
    w = weights(model)
    image, text = [encode_image(each, w, block) for each in images], [encode_text(each, w, block) for each in ids]
    return Case(model, image, text, objective(image, text), loss)


def case_unipt() -> Case:
    model = prepared("unipt", dim=6)
    for head in (model.image_head, model.text_head):
        head.gate.bias.requires_grad_(False)  # is no part of the computation
    image, text = unipt_embeddings(model, *data())
    return Case(model, image, text, by_value(image, text))


CASES: dict[str, Callable[[], Case]] = {
    "posapl progressive": lambda: case_posapl("progressive"),
    "posapl parallel": lambda: case_posapl("parallel"),
    "mps_adapter": lambda: case_blocks(
        prepared("mps_adapter", bottleneck=4, heads=2), mps_block, mps_objective, loss="mps"
    ),
    "mma": lambda: case_blocks(prepared("mma", bottleneck=5, first_block=1, scale=MMA_SCALE), mma_block),
    "unipt": case_unipt,
    "reft": lambda: case_blocks(prepared("reft", rank=3), reft_block),
}
case = cache(lambda name: CASES[name]())


@pytest.mark.parametrize("name", CASES)
def test_the_project_and_the_transcription_agree(name):
    case(name).compare()


# --- faults: each is one wrong term of the project's module, and the comparison sees it -------------------------------


def skip_dropped(self, m):
    return m + self.up(self.attention(self.down(m)))


def activated(self, m):
    z = F.relu(self.down(m))
    return m + self.up(z + self.attention(z))


def last_tokens_not_averaged(self):
    states = [tap.take() for tap in self.taps]
    a = self._pooled(F.relu(self.steps[0](states[0])))
    return a + states[-1][:, :1] if self.image else a + states[-1]


def not_rectified(self):
    return torch.stack([self._pooled(step(tap.take())) for step, tap in zip(self.steps, self.taps, strict=True)]).sum(0)


def gate_swapped(self, x):
    u = self.project(self.attention(F.gelu(self.down(x))))
    return x + self.up(torch.sigmoid(-self.gate) * self.mix(u))


def without_projection(self, x):
    u = self.attention(F.gelu(self.down(x)))
    return x + self.up(torch.sigmoid(self.gate) * self.mix(u))


def before_the_block(self, x):
    """Reads what enters the MLP, not what enters the block."""
    self.tap.take()
    return self.scale * self.up(F.relu(self.shared(F.relu(self.down(x)))))


def gradients_scaled(self, x):
    return self.scale * self.up(F.relu(self.shared(F.relu(self.down(self.tap.take())))))


def middle_not_rectified(self, x):
    normed = mma._ScaleGradient.apply(self.tap.take(), self.scale)
    return mma._ScaleGradient.apply(self.scale * self.up(self.shared(F.relu(self.down(normed)))), 1 / self.scale)


def rows_not_orthonormal(self):
    return self.rows


def added_only(self, h):
    return h + self.source(h) @ self.rotation()


FAULTS = {
    "posapl: no skip around the attention": ("posapl parallel", posapl.AttentiveBottleneck, "forward", skip_dropped),
    "posapl: an activation in the bottleneck": ("posapl parallel", posapl.AttentiveBottleneck, "forward", activated),
    "posapl: no mean before the last layer": (
        "posapl progressive",
        posapl.SideFusion,
        "_fused",
        last_tokens_not_averaged,
    ),
    "posapl: no ReLU in the fusion": ("posapl parallel", posapl.SideFusion, "_fused", not_rectified),
    "posapl: triplets not squared": (
        "posapl parallel",
        posapl_loss,
        "squared_triplet",
        lambda image, text, margin: sum(v.sum() for v in posapl_loss.violations(image @ text.T, margin)) / 2,
    ),
    "posapl: exponential scale": (
        "posapl parallel",
        core.DualEncoder,
        "logit_scale",
        property(lambda self: self.clip.logit_scale.exp().exp()),
    ),
    "mps: the gate's complement": ("mps_adapter", mps.G2Adapter, "forward", gate_swapped),
    "mps: no projection": ("mps_adapter", mps.G2Adapter, "forward", without_projection),
    "mps: no positions": ("mps_adapter", mps, "with_positions", lambda x: x),
    "mma: beside the MLP's input": ("mma", mma.MultiModalAdapter, "forward", before_the_block),
    "mma: gradients scaled": ("mma", mma.MultiModalAdapter, "forward", gradients_scaled),
    "mma: no ReLU behind the shared layer": ("mma", mma.MultiModalAdapter, "forward", middle_not_rectified),
    "unipt: no ReLU in front": ("unipt", unipt, "F", None),
    "reft: rows not orthonormal": ("reft", reft.LoReFT, "rotation", rows_not_orthonormal),
    "reft: the subspace is not cleared": ("reft", reft.LoReFT, "forward", added_only),
}


class NoReLU:
    """torch.nn.functional with another activation."""

    normalize = staticmethod(F.normalize)
    relu = staticmethod(F.gelu)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(monkeypatch, fault):
    name, owner, attribute, wrong = FAULTS[fault]
    found = case(name)
    monkeypatch.setattr(owner, attribute, NoReLU if wrong is None else wrong)
    with pytest.raises(AssertionError):
        found.compare()
