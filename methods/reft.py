"""ReFT: low-rank edits of the hidden states behind every block."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bench.config.errors import UserError
from methods.base import Method, ModelShape
from methods.lazy import DualEncoder, reft


class ReFT(Method):
    """LoReFT, `h <- h + R' (W h + b - R h)`, on the output h of every block of both towers; R has orthonormal rows.

    Each block has its own R, W and b: 122,976 parameters on ViT-B-32 with rank 4. It edits every token, where the paper
    edits some first and last tokens of a prompt to a language model; an image has no such order. `start: backbone`
    (W = R, b = 0) is the released code's identity start, `start: random` its default. R comes from a trained matrix by
    Gram-Schmidt; the released code uses torch's Householder parametrisation, which reaches the same matrices, but keeps
    a fixed square one beside each: steps of the optimizer differ.
    """

    name = "reft"
    title = "ReFT"
    paper = "Wu et al. 2024, arXiv 2404.03592"
    needs_slots = ("image", "text")
    knob = "rank"
    examples = {"": {}, "random": {"rank": 2, "start": "random"}}
    rank: int = Field(4, ge=1)
    """Rows of R: the dimensions of the subspace that is edited."""
    start: Literal["backbone", "random"] = "backbone"
    """Whether the edits start as none at all, or W and b at random."""

    @property
    def starts_elsewhere(self) -> str | None:  # type: ignore[override]
        return "W and b start at random" if self.start == "random" else None

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        narrow = min(tower.width for tower in shape.towers)
        if self.rank > narrow:
            raise UserError(f"{self.name}: rank {self.rank} exceeds the width {narrow} of the narrower tower")

    def attach(self, model: DualEncoder) -> None:
        for blocks in (model.image_blocks, model.text_blocks):
            for block in blocks.slotted():
                block.fill(exit=reft.LoReFT(blocks.width, self.rank, self.start == "random"))

    def trainable_params(self, shape: ModelShape) -> int | None:
        return sum(tower.layers * (2 * self.rank * tower.width + self.rank) for tower in shape.towers)
