"""Partial fine-tuning: the last blocks of both towers."""

from __future__ import annotations

from pydantic import Field

from bench.config.errors import UserError
from methods.base import Method, ModelShape
from methods.lazy import DualEncoder

HEADS = (
    "visual.ln_post.",
    "visual.proj",
    "ln_final.",
    "text_projection",
    "visual.trunk.norm.",
    "visual.trunk.attn_pool.",
)


class LastBlock(Method):
    """Trains the last `blocks` blocks of both towers, and with `heads` the final LayerNorms and the projections.

    SigLIP's image tower has its attention pooling in place of a projection. 10,898,176 parameters on ViT-B-32.
    """

    name = "last_block"
    title = "Last block"
    paper = "baseline Partial-1 of Jia et al. 2022, arXiv 2203.12119"
    trains_backbone = True
    grad_towers = ()  # all but the last blocks are in front of what is trained
    needs_slots = ("image", "text")
    knob = "blocks"
    examples = {"": {}, "blocks": {"blocks": 2, "heads": False}}
    blocks: int = Field(1, ge=1)
    """How many of the last blocks of each tower are trained."""
    heads: bool = True
    """Whether the projections to the embeddings are trained, too."""

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        shallow = min(tower.layers for tower in shape.towers)
        if self.blocks > shallow:
            raise UserError(f"{self.name}: blocks {self.blocks} exceeds the {shallow} blocks of the shallower tower")

    def attach(self, model: DualEncoder) -> None:
        for tower in (model.image_blocks, model.text_blocks):
            for block in list(tower.list)[-self.blocks :]:
                block.requires_grad_(True)
        for side in ("image", "text"):
            for name, parameter in model.tower_parameters(side).items():
                if self.heads and name.removeprefix("text.").startswith(HEADS):
                    parameter.requires_grad_(True)

    def trainable_params(self, shape: ModelShape) -> int | None:
        if shape.image.ends is None or shape.text.ends is None:
            return None
        head = shape.image.ends.head + shape.text.ends.head if self.heads else 0
        return head + self.blocks * sum(tower.block_params for tower in shape.towers)
