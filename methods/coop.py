"""CoOp: learned context tokens in the text tower."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from methods.base import Method, ModelShape, check_context, check_depth
from methods.lazy import DualEncoder, prompts


class CoOp(Method):
    """Puts `n_ctx` learned vectors between the start token and the caption, in SigLIP's tower in front of the caption.

    As released: 16 vectors, from a normal distribution of deviation 0.02, at the input only: 8,192 parameters on
    ViT-B-32. There a class name follows them, and here a caption. `preset: table` is the deep variant that gives the
    published tables' 98,304: each later block overwrites the prompts' positions with vectors of its own. Captions of
    more than the context minus `n_ctx` tokens are cut; they keep their end token.
    """

    name = "coop"
    title = "CoOp"
    paper = "Zhou et al. 2022, arXiv 2109.01134"
    grad_towers = ("text",)
    needs_slots = ("text",)
    presets = {"paper": {}, "table": {"prompt_depth": "all"}}
    knob = "n_ctx"
    starts_elsewhere = "the prompts take part in attention"
    examples = {"shallow": {"n_ctx": 4}, "deep": {"n_ctx": 3, "prompt_depth": "all"}}
    n_ctx: int = Field(16, ge=1)
    """Learned tokens in front of the caption."""
    prompt_depth: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """In how many blocks, from the first, there are learned tokens."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the tokens at the start."""

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        check_context(self.name, self.n_ctx, shape)

    def attach(self, model: DualEncoder) -> None:
        blocks = model.text_blocks
        depth = check_depth(self.name, self.prompt_depth, len(blocks.list))
        prompts.prompt_text(
            model, self.name, [prompts.normal_prompts(self.n_ctx, blocks.width, self.init_std) for _ in range(depth)]
        )

    def trainable_params(self, shape: ModelShape) -> int | None:
        return check_depth(self.name, self.prompt_depth, shape.text.layers) * self.n_ctx * shape.text.width
