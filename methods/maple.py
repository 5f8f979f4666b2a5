"""MaPLe: text prompts in several blocks, and image prompts made from them by linear layers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from methods.base import Method, ModelShape, check_context, check_depth
from methods.lazy import DualEncoder, prompts


class MaPLe(Method):
    """Each of the first `prompt_depth` blocks has `n_ctx` prompts: P_i in the text tower, `Linear_i(P_i)` in the image
    tower. 3,555,072 parameters on ViT-B-32 with the paper's 2 prompts in 9 blocks, most of them in the couplings.

    Differs from the released code in two points: the prompts start random, not at "a photo of a"; the image prompts
    join the sequence behind ln_pre, not in front of it.
    """

    name = "maple"
    paper = "Khattak et al. 2023, arXiv 2210.03117"
    needs_slots = ("image", "text")
    knob = "n_ctx"
    starts_elsewhere = "the prompts take part in attention"
    examples = {"": {"prompt_depth": 2}, "shallow": {"prompt_depth": 1, "n_ctx": 3}}
    n_ctx: int = Field(2, ge=1)
    """Learned tokens in each tower."""
    prompt_depth: Annotated[int, Field(ge=1)] | Literal["all"] = 9
    """In how many blocks, from the first, there are learned tokens."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the tokens at the start."""

    def _depth(self, image_layers: int, text_layers: int) -> int:
        return check_depth(self.name, self.prompt_depth, min(image_layers, text_layers))

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        check_context(self.name, self.n_ctx, shape)

    def attach(self, model: DualEncoder) -> None:
        image, text = model.image_blocks, model.text_blocks
        depth = self._depth(len(image.list), len(text.list))
        by_block = [prompts.normal_prompts(self.n_ctx, text.width, self.init_std) for _ in range(depth)]
        prompts.prompt_text(model, self.name, by_block)
        prompts.prompt_image(model, [prompts.Coupled(tokens, image.width) for tokens in by_block])

    def trainable_params(self, shape: ModelShape) -> int | None:
        image, text = shape.towers
        a_block = self.n_ctx * text.width + (text.width + 1) * image.width
        return self._depth(image.layers, text.layers) * a_block
