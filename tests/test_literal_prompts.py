"""Prompt methods against a second, literal transcription; faults planted in the project's modules are caught."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from methods.layers import prompts
from tests.literal import (
    TOLERANCE,
    Case,
    affine,
    after_attention,
    caught,
    compared,
    layer_norm,
    mlp,
    unit,
)

PHOTO = (320, 1125, 539, 320)  # "a photo of a" in CLIP's tokenizer


def plain_block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    return [token + mlp(token, w, name) for token in after_attention(x, w, name, side)]


def prompted_ids(ids: list[int], learned: int, words: tuple[int, ...]) -> tuple[list[int | None], int]:
    """Start token, learned tokens (None), fixed words, caption, cut to the context; and where the end token is."""
    end = max(ids)
    longer = [ids[0], *[None] * learned, *words, *ids[1:]][: len(ids)]
    if end not in longer:
        longer[-1] = end
    return longer, longer.index(end)


def prompted_text(learned: int, words: tuple[int, ...] = ()):
    def encode(ids: Tensor, w: dict, block) -> Tensor:
        rewritten, end = prompted_ids(ids.tolist(), learned, words)
        tokens = iter(w["token_embedding.tokens"] if learned else ())
        x = [next(tokens) if word is None else w["token_embedding.weight"][word] for word in rewritten]
        x = [token + w["positional_embedding"][at] for at, token in enumerate(x)]
        for index in range(2):
            x = block(x, w, f"transformer.resblocks.{index}", "text")
        return unit(layer_norm(x[end], w, "ln_final") @ w["text_projection"])

    return encode


def own_tokens(w: dict, name: str) -> list[Tensor]:
    """The learned tokens that a block of the text or the image tower puts in, none in some."""
    return list(w[f"{name}.enter.tokens"]) if f"{name}.enter.tokens" in w else []


def text_prompts(x: list[Tensor], w: dict, name: str) -> list[Tensor]:
    tokens = own_tokens(w, name)
    return [x[0], *tokens, *x[1 + len(tokens) :]]


def image_prompts(x: list[Tensor], tokens: list[Tensor]) -> list[Tensor]:
    """Behind class token and four patches; in place of the prompts of the block before."""
    return [*x[:5], *tokens] if tokens else x


def independent_block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    """CoOp, VPT and both at once."""
    x = text_prompts(x, w, name) if side == "text" else image_prompts(x, own_tokens(w, name))
    return plain_block(x, w, name, side)


def maple_block(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    """The first image prompts come from the first text prompts and go through ln_pre, later ones don't."""
    if side == "text":
        return plain_block(text_prompts(x, w, name), w, name, side)
    place = "visual.ln_pre.before" if name.endswith("0") else f"{name}.enter"
    source = w[f"{place}.tokens.source"]
    coupling, bias = w[f"{place}.tokens.coupling.weight"], w[f"{place}.tokens.coupling.bias"]
    tokens = [affine(token, coupling, bias) for token in source]
    if name.endswith("0"):
        tokens = [layer_norm(token, w, "visual.ln_pre") for token in tokens]
    return plain_block(image_prompts(x, tokens), w, name, side)


# --- the comparison -------------------------------------------------------------------------------------------------


START, END = 49406, 49407
# Without padding for all that is put in: the last one loses words, and the end token moves to the last place.
LONG_IDS = torch.tensor(
    [[START, 3, END, 0, 0, 0, 0], [START, 7, 11, END, 0, 0, 0], [START, 2, 9, 4, 11, 6, END]], dtype=torch.long
)

CASES = {
    "coop": Case("coop", {"n_ctx": 2, "prompt_depth": 2}, independent_block, text=prompted_text(2)),
    "vpt": Case("vpt", {"n_ctx": 3, "prompt_depth": 2}, independent_block),
    "vl_prompt": Case(
        "vl_prompt",
        {"image_n_ctx": 2, "text_n_ctx": 3, "text_depth": 2},
        independent_block,
        text=prompted_text(3),
    ),
    "maple": Case("maple", {"n_ctx": 2, "prompt_depth": 2}, maple_block, text=prompted_text(2)),
    "maple-words": Case(
        "maple",
        {"n_ctx": 2, "prompt_depth": 2, "vocabulary": 49408},
        maple_block,
        text=prompted_text(2, PHOTO[2:]),
        ids=LONG_IDS,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_transcription(name: str):
    compared(CASES[name])


# --- planted faults -------------------------------------------------------------------------------------------------


def first_of_all(self, input: Tensor) -> Tensor:
    """In place of `PromptedEmbedding.forward`: the prompts in front of the start token."""
    x = nn.Embedding.forward(self, input)
    tokens = self.tokens.expand(len(x), -1, -1)
    return torch.cat([tokens, x[:, :1], x[:, 1 + len(self.tokens) :]], dim=1)


def in_front(self, x: Tensor) -> Tensor:
    """In place of `AppendTokens.forward`: the class token is no longer the first."""
    return torch.cat([prompts._expand(self.tokens, x), x], dim=1)


def not_overwritten(self, x: Tensor) -> Tensor:
    return x


def one_too_far(self, x: Tensor) -> Tensor:
    """In place of `OverwriteTokens.forward`: at the neighbours of the prompts of the block before."""
    start = (self.start % x.shape[1]) - 1
    return torch.cat([x[:, :start], prompts._expand(self.tokens, x), x[:, start + len(self.tokens) :]], dim=1)


def coupled_without_bias(self) -> Tensor:
    return self.source @ self.coupling.weight.T


placeholders, image_tokens = prompts.insert_placeholders, prompts.prompt_image


def end_token_lost(count: int, words=(), pool="argmax"):
    inserted = [0] * count + list(words)

    def rewrite(ids: Tensor) -> Tensor:
        middle = torch.tensor(inserted, dtype=ids.dtype).expand(len(ids), -1)
        return torch.cat([ids[:, :1], middle, ids[:, 1:]], dim=1)[:, : ids.shape[1]].contiguous()

    return rewrite


FAULTS = {
    "coop: in front of the start token": ("PromptedEmbedding.forward", first_of_all),
    "coop: deep prompts not put in": ("OverwriteTokens.forward", not_overwritten),
    "coop: deep prompts one too far": ("OverwriteTokens.forward", one_too_far),
    "coop: end token lost": ("insert_placeholders", end_token_lost),
    "vpt: in front of the class token": ("AppendTokens.forward", in_front),
    "vpt: deep prompts not put in": ("OverwriteTokens.forward", not_overwritten),
    "vl_prompt: deep prompts one too far": ("OverwriteTokens.forward", one_too_far),
    "maple: coupling without bias": ("Coupled.forward", coupled_without_bias),
    "maple: behind ln_pre": ("prompt_image", lambda model, by_block, before_norm: image_tokens(model, by_block)),
    "maple-words: fixed words lost": ("insert_placeholders", lambda count, words, pool: placeholders(count)),
    "maple-words: fixed words reversed": (
        "insert_placeholders",
        lambda count, words, pool: placeholders(count, tuple(reversed(words))),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_caught_without_a_fault(name: str, monkeypatch: pytest.MonkeyPatch):
    assert not caught(CASES[name], monkeypatch, "tests.literal.TOLERANCE", TOLERANCE)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch):
    target, module = FAULTS[fault]
    assert caught(CASES[fault.partition(":")[0]], monkeypatch, f"methods.layers.prompts.{target}", module)
