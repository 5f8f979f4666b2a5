"""Prompt methods against their definitions, block by block."""

from __future__ import annotations

import copy

import open_clip
import torch

import methods
from methods.layers import prompts
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


def test_maple_starts_at_a_photo_of_a():
    """As released: the first prompts are words, "of a" stays in front of every caption, deeper couplings are copies."""
    model = tiny()
    ids = open_clip.SimpleTokenizer().encode("a photo of a")
    assert tuple(ids) == prompts.WORDS
    words = model.token_embedding.weight[ids[:2]]
    methods.get("maple")(prompt_depth=2).attach(model)
    assert torch.equal(model.token_embedding.tokens, words)
    assert model.token_embedding.tokens.requires_grad
    assert model.token_rewrites[0](torch.tensor([[49406, 7, 49407, 0, 0, 0, 0]])).tolist() == [
        [49406, 0, 0, *ids[2:], 7, 49407]
    ]


def test_maple_starts_at_random_where_it_has_no_words():
    for changes, settings in (
        ({}, {"init": "random"}),
        ({}, {"n_ctx": 5}),
        ({"text_cfg": {"context_length": 24, "vocab_size": 500, "width": 32, "heads": 2, "layers": 2}}, {}),
    ):
        model = tiny(**changes)
        torch.manual_seed(3)
        method = methods.get("maple")(prompt_depth=2, **settings)
        method.attach(model)
        assert 0.01 < float(model.token_embedding.tokens.detach().std()) < 0.03
        assert model.token_rewrites[0](torch.arange(12)[None]).tolist()[0][: method.n_ctx + 2] == [
            *[0] * (method.n_ctx + 1),
            1,
        ]


def test_maples_deeper_couplings_start_as_copies():
    model = tiny(vision_cfg={"image_size": 32, "layers": 3, "width": 48, "head_width": 16, "patch_size": 8})
    model.clip.transformer.resblocks.append(copy.deepcopy(model.clip.transformer.resblocks[0]))
    methods.get("maple")(prompt_depth=3).attach(model)
    blocks = model.image_blocks.list
    first, second, third = (
        each.tokens.coupling.weight for each in (model.clip.visual.ln_pre.before, blocks[1].enter, blocks[2].enter)
    )
    assert torch.equal(second, third)
    assert second is not third
    assert not torch.equal(first, second)
