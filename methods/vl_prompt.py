"""VL-Prompt: learned tokens in both towers, independent of each other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from methods.base import Method, ModelShape, check_context, check_depth
from methods.lazy import DualEncoder, prompts

Depth = Annotated[int, Field(ge=1)] | Literal["all"]


class VLPrompt(Method):
    """VPT's tokens in the image tower and CoOp's in the text tower; a baseline without released code.

    The defaults give the published table's 468,992 parameters on ViT-B-32: tokens for every block in the image tower,
    at the input alone in the text tower.
    """

    name = "vl_prompt"
    title = "VL-Prompt"
    paper = "baseline of Yuan, Zhan, Xiong 2023, arXiv 2308.12509"
    needs_slots = ("image", "text")
    presets = {"paper": {}, "table": {}}
    knob = "image_n_ctx"
    starts_elsewhere = "the prompts take part in attention"
    examples = {"": {"image_n_ctx": 3, "text_n_ctx": 4}, "deep": {"image_n_ctx": 2, "text_n_ctx": 2, "text_depth": 2}}
    image_n_ctx: int = Field(50, ge=1)
    """Learned tokens in the image tower."""
    image_depth: Depth = "all"
    """In how many of its blocks, from the first."""
    text_n_ctx: int = Field(16, ge=1)
    """Learned tokens in the text tower."""
    text_depth: Depth = 1
    """In how many of its blocks, from the first."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the text tokens at the start."""

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        check_context(self.name, self.text_n_ctx, shape)

    def attach(self, model: DualEncoder) -> None:
        image, text = model.image_blocks, model.text_blocks
        image_depth = check_depth(self.name, self.image_depth, len(image.list))
        text_depth = check_depth(self.name, self.text_depth, len(text.list))
        prompts.prompt_image(
            model, [prompts.uniform_prompts(self.image_n_ctx, image.width, model.patch) for _ in range(image_depth)]
        )
        prompts.prompt_text(
            model,
            self.name,
            [prompts.normal_prompts(self.text_n_ctx, text.width, self.init_std) for _ in range(text_depth)],
        )

    def trainable_params(self, shape: ModelShape) -> int | None:
        image = check_depth(self.name, self.image_depth, shape.image.layers) * self.image_n_ctx * shape.image.width
        return image + check_depth(self.name, self.text_depth, shape.text.layers) * self.text_n_ctx * shape.text.width
