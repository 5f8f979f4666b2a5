"""Methods against literal transcriptions of their formulas: plain loops, no shared code, random weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import methods
from tests.test_backbone import batch, tiny


def random_start(model) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(torch.randn_like(parameter) * 0.3)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.stack([torch.stack([weight @ token + bias for token in sample]) for sample in x])


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attention(x: Tensor, mha, heads: int) -> Tensor:
    """Every token of a sample attends to all tokens of that sample."""
    size = x.shape[-1] // heads
    weights, biases = mha.in_proj_weight.chunk(3), mha.in_proj_bias.chunk(3)
    mixed = torch.zeros_like(x)
    for sample in range(x.shape[0]):
        q, k, v = (x[sample] @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for token in range(x.shape[1]):
                scores = torch.stack([q[token, part] @ k[other, part] / math.sqrt(size) for other in range(x.shape[1])])
                shares = torch.exp(scores) / torch.exp(scores).sum()
                mixed[sample, token, part] = sum(share * v[other, part] for other, share in enumerate(shares))
    return linear(mixed, mha.out_proj.weight, mha.out_proj.bias)


def harma_by_hand(block, x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    x = x + block.attn(block.ln_1(x), block.ln_1(x), block.ln_1(x), need_weights=False, attn_mask=mask)[0]
    m = block.mlp(block.ln_2(x))
    a = block.after_mlp
    h = gelu(linear(m, a.down.weight, a.down.bias))
    u = attention(h, a.attention, heads)
    if a.shared is not None:
        s, d = a.shared, sigmoid(a.shared.gate)
        low = linear(u, s.down.weight, s.down.bias)
        u = u + linear(d * attention(low, s.attention, heads) + (1 - d) * low, s.up.weight, s.up.bias)
    u = attention(u, a.attention, heads)
    b, g = sigmoid(a.inner_gate), sigmoid(a.gate)
    adapted = m + linear(b * h + (1 - b) * u, a.up.weight, a.up.bias)
    return x + g * adapted + (1 - g) * m


def compare(by_hand: Tensor, block, x: Tensor, mask: Tensor | None) -> None:
    got = block(x, attn_mask=mask)
    assert torch.allclose(got, by_hand, atol=1e-5, rtol=1e-5)
    parameters = [p for p in block.parameters() if p.requires_grad]
    weights = torch.randn_like(got)
    ours = torch.autograd.grad((got * weights).sum(), parameters, allow_unused=True)  # the other tower's share of MRS
    theirs = torch.autograd.grad((by_hand * weights).sum(), parameters, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-4, rtol=1e-4)


def blocks(model):
    """The first block of each tower with an input and the tower's mask."""
    torch.manual_seed(3)
    yield model.image_blocks.list[0], torch.randn(2, 5, 48), None
    yield model.text_blocks.list[0], torch.randn(2, 6, 32), model.clip.attn_mask[:6, :6]


def test_harma():
    model = tiny()
    methods.get("harma")(bottleneck=16, heads=4).attach(model)
    random_start(model)
    for block, x, mask in blocks(model.eval()):
        compare(harma_by_hand(block, x, 4, mask), block, x, mask)
    assert model.image_blocks.list[0].after_mlp.shared is None
    assert model.text_blocks.list[0].after_mlp.shared is not None


def test_mrs_adapter():
    model = tiny()
    methods.get("mrs_adapter")(bottleneck=8, shared_dim=8, dropout=0.0).attach(model)
    random_start(model)
    for side, (block, x, mask) in zip(("image", "text"), blocks(model.eval()), strict=True):
        w = block.beside_mlp.module
        r = x + block.attn(block.ln_1(x), block.ln_1(x), block.ln_1(x), need_weights=False, attn_mask=mask)[0]
        z = linear(r, w.down[side].weight, w.down[side].bias).clamp(min=0)
        own = linear(z, w.up[side].weight, w.up[side].bias)
        shared = linear(z, w.up_shared.weight, w.up_shared.bias)
        assert shared.shape[-1] == 8
        compare(r + block.mlp(block.ln_2(r)) + torch.cat([own, shared], dim=-1), block, x, mask)


def test_deep_prompts_replace_each_other():
    """VPT: in block i attention sees the patches and that block's own tokens, nothing of the last block's."""
    model = tiny()
    methods.get("vpt")(n_ctx=3).attach(model)
    model.eval()
    images, _ = batch()
    visual = model.clip.visual
    x = visual._embeds(images)
    for index, block in enumerate(model.image_blocks.list):
        tokens = block.enter.tokens
        assert len(tokens) == 3, index
        y = torch.cat([x, tokens.expand(len(x), -1, -1)], dim=1)
        y = y + block.attn(block.ln_1(y), block.ln_1(y), block.ln_1(y), need_weights=False)[0]
        y = y + block.mlp(block.ln_2(y))
        x = y[:, :-3]
    by_hand = visual._pool(x)[0] @ visual.proj
    assert torch.allclose(model.encode_image(images), by_hand, atol=1e-5)


def test_coop_puts_its_tokens_behind_the_start_token():
    model = tiny()
    methods.get("coop")(n_ctx=4, prompt_depth=1).attach(model)
    clip, (_, ids) = model.clip, batch()
    words = torch.nn.functional.embedding(ids, clip.token_embedding.weight)
    tokens = clip.token_embedding.tokens.expand(len(ids), -1, -1)
    x = torch.cat([words[:, :1], tokens, words[:, 1:-4]], dim=1) + clip.positional_embedding
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
    end = ids.argmax(dim=1) + 4
    by_hand = x[torch.arange(len(ids)), end] @ clip.text_projection
    assert torch.allclose(model.encode_text(ids), by_hand, atol=1e-5)
