"""MaPLe: text prompts in several blocks, and image prompts made from them by linear layers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from methods.base import Method, ModelShape, check_context, check_depth
from methods.lazy import DualEncoder, prompts

WORDS = 4  # of "a photo of a"


class MaPLe(Method):
    """Each of the first `prompt_depth` blocks has `n_ctx` prompts: P_i in the text tower, `Linear_i(P_i)` in the image
    tower. 3,555,072 parameters on ViT-B-32 with the paper's 2 prompts in 9 blocks, most of them in the couplings.

    As released: the first prompts start at the words "a photo", and "of a" stays as fixed words in front of every
    caption; the other prompts start at random, and their couplings as copies of one; the first image prompts join the
    sequence in front of ln_pre. With another tokenizer than CLIP's, with more prompts than these four words, and with
    `init: random`, all prompts start at random and no word is added.
    """

    name = "maple"
    title = "MaPLe"
    paper = "Khattak et al. 2023, arXiv 2210.03117"
    needs_slots = ("image", "text")
    knob = "n_ctx"
    starts_elsewhere = "the prompts take part in attention"
    examples = {"": {"prompt_depth": 2}, "shallow": {"prompt_depth": 1, "n_ctx": 3}}
    n_ctx: int = Field(2, ge=1)
    """Learned tokens in each tower."""
    prompt_depth: Annotated[int, Field(ge=1)] | Literal["all"] = 9
    """In how many blocks, from the first, there are learned tokens."""
    init: Literal["words", "random"] = "words"
    """How the first block's tokens start: at the words "a photo of a", where those left over stay fixed; or random."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the random tokens at the start."""

    def _depth(self, image_layers: int, text_layers: int) -> int:
        return check_depth(self.name, self.prompt_depth, min(image_layers, text_layers))

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        check_context(self.name, max(self.n_ctx, WORDS if self.init == "words" else 0), shape)

    def attach(self, model: DualEncoder) -> None:
        image, text = model.image_blocks, model.text_blocks
        depth = self._depth(len(image.list), len(text.list))
        by_block = [prompts.normal_prompts(self.n_ctx, text.width, self.init_std) for _ in range(depth)]
        words: tuple[int, ...] = ()
        if self.init == "words" and (start := prompts.word_prompts(model, self.n_ctx)):
            by_block[0], words = start
        prompts.prompt_text(model, self.name, by_block, words)
        coupled = [prompts.Coupled(tokens, image.width) for tokens in by_block]
        for deeper in coupled[2:]:
            deeper.coupling.load_state_dict(coupled[1].coupling.state_dict())
        prompts.prompt_image(model, coupled, before_norm=True)

    def trainable_params(self, shape: ModelShape) -> int | None:
        image, text = shape.towers
        a_block = self.n_ctx * text.width + (text.width + 1) * image.width
        return self._depth(image.layers, text.layers) * a_block
