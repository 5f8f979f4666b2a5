"""Prompt methods against their definitions, block by block."""

from __future__ import annotations

import torch

import methods
from tests.test_backbone import batch, tiny


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
