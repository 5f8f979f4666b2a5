"""UniPT: a side network on each tower's hidden states; nothing is back-propagated through CLIP."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.base import Method, ModelShape, TowerShape, check_pools_as_clip
from methods.lazy import DualEncoder, unipt


class UniPT(Method):
    """Each embedding gets a mixture of its tower's hidden states added: see `methods.layers.unipt.SideNetwork`.

    The towers run forward alone, without a graph: the heads read the hidden states in front of the first block and
    behind each one, the embedding, and of a text where it ends, and nothing else. The paper's reduction D is
    `dim` = 512 / D on CLIPs with 512-dimensional embeddings: 9,584,642 parameters on ViT-B-32 by default (D = 1), with
    `preset: d4` 2,396,930 and with `preset: d16` 600,002. Differs from the released code in two points: the up-
    projection starts at zero, so that the start is the backbone's (`start: random` is the released one); padding is
    what lies behind the end token, where the released code takes every token 0, and with it each "!" of a caption.
    A bias of the mixture's weights is counted, as in the released code, but a softmax ignores it.
    """

    name = "unipt"
    title = "UniPT"
    paper = "Diao et al. 2024, arXiv 2308.14316 (CVPR)"
    grad_towers = ()  # its modules lie behind the towers
    needs_slots = ("image", "text")
    presets = {"paper": {}, "d4": {"dim": 128}, "d16": {"dim": 32}}
    knob = "dim"
    examples = {"": {"dim": 8}, "random": {"dim": 6, "start": "random"}}
    dim: int = Field(512, ge=1)
    """Width of the side network: the embedding's size divided by the paper's D."""
    start: Literal["backbone", "random"] = "backbone"
    """Whether the up-projection starts at zero or at random."""

    @property
    def starts_elsewhere(self) -> str | None:  # type: ignore[override]
        return "the up-projections start at random" if self.start == "random" else None

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        check_pools_as_clip(self.name, shape)

    def attach(self, model: DualEncoder) -> None:
        for side, tower in (("image", model.image_blocks), ("text", model.text_blocks)):
            blocks = tower.slotted()
            head = unipt.SideNetwork(
                tower.width,
                len(blocks),
                model.embed_dim,
                self.dim,
                text=side == "text",
                zero_start=self.start == "backbone",
            )
            blocks[0].fill(enter=head.states[0])
            for block, tap in zip(blocks, head.states[1:], strict=True):
                block.fill(exit=tap)
            if head.ids is not None:
                model.layer("text", "token_embedding").fill(before=head.ids)
            setattr(model, f"{side}_head", head)

    def trainable_params(self, shape: ModelShape) -> int | None:
        def tower(side: TowerShape) -> int:
            states = (side.layers + 1) * (side.width + 1) * self.dim
            return states + (shape.embed_dim + 1) * self.dim + (self.dim + 1) + (self.dim + 1) * shape.embed_dim

        return sum(map(tower, shape.towers))
