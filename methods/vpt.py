"""Visual prompt tuning: learned tokens beside the patches of the image tower."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from methods.base import Method, ModelShape, check_depth
from methods.lazy import DualEncoder, prompts


class VPT(Method):
    """`n_ctx` learned tokens join the first block, and each later block up to `prompt_depth` replaces them by its own.

    `all` is VPT-deep (460,800 parameters on ViT-B-32), 1 is VPT-shallow. As released: uniform Xavier start, no dropout.
    Here the tokens follow the patches; in the released code they precede them, which makes no difference in a tower
    without masks. They join behind ln_pre, which the authors' ViT lacks, and are removed after the last block. The
    released code's default is 5 tokens, and its experiments tune the number; 50 is the published table's.
    """

    name = "vpt"
    title = "VPT"
    paper = "Jia et al. 2022, arXiv 2203.12119"
    grad_towers = ("image",)
    needs_slots = ("image",)
    presets = {"paper": {}, "table": {}}
    knob = "n_ctx"
    starts_elsewhere = "the prompts take part in attention"
    examples = {"deep": {"n_ctx": 3}, "shallow": {"n_ctx": 3, "prompt_depth": 1}}
    n_ctx: int = Field(50, ge=1)
    """Learned tokens beside the patches."""
    prompt_depth: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """In how many blocks, from the first, there are learned tokens."""

    def attach(self, model: DualEncoder) -> None:
        blocks = model.image_blocks
        depth = check_depth(self.name, self.prompt_depth, len(blocks.list))
        prompts.prompt_image(
            model, [prompts.uniform_prompts(self.n_ctx, blocks.width, model.patch) for _ in range(depth)]
        )

    def trainable_params(self, shape: ModelShape) -> int | None:
        return check_depth(self.name, self.prompt_depth, shape.image.layers) * self.n_ctx * shape.image.width
