"""MRS-Adapter: one bottleneck module serves every block of both towers, with a slice shared between them."""

from __future__ import annotations

from pydantic import Field

from bench.config.errors import UserError
from methods.base import Method, ModelShape
from methods.lazy import DualEncoder, F, bottlenecks


class MRSAdapter(Method):
    """`x <- r + MLP(LN r) + Ad(r)`: parallel to the MLP, on the residual r before its LayerNorm.

    `Ad(r) = concat[Up_tower(z), Up_shared(z)]` with `z = dropout(ReLU(Down_tower r))`: the shared slice is the last
    `shared_dim` output dimensions of either tower. The up-projections start at zero, so the start equals the backbone
    exactly. 161,088 parameters on ViT-B-32. The backbone is frozen, as in the paper; the released training freezes
    nothing.
    """

    name = "mrs_adapter"
    paper = "Yuan, Zhan, Xiong 2023, arXiv 2308.12509"
    default_loss = "hmmc"
    needs_slots = ("image", "text")
    presets = {"paper": {}, "table": {}}
    knob = "bottleneck"
    examples = {"": {"bottleneck": 8, "shared_dim": 8}}
    bottleneck: int = Field(64, ge=1)
    """Width of the bottleneck."""
    shared_dim: int = Field(64, ge=1)
    """Output dimensions of the up-projection that both towers share."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout inside the bottleneck."""

    def attach(self, model: DualEncoder) -> None:
        towers = {"image": model.image_blocks, "text": model.text_blocks}
        widths = {side: blocks.width for side, blocks in towers.items()}
        module = bottlenecks.TwoTowerBottleneck(widths, self.bottleneck, self.shared_dim, F.relu, self.dropout)
        for side, blocks in towers.items():
            for block in blocks.slotted():
                block.fill(beside_mlp=bottlenecks.Door(module, side, serial=False))

    def trainable_params(self, shape: ModelShape) -> int | None:
        def tower(width: int) -> int:
            own = width - self.shared_dim
            return width * self.bottleneck + self.bottleneck + (self.bottleneck + 1) * own

        return tower(shape.image.width) + tower(shape.text.width) + (self.bottleneck + 1) * self.shared_dim

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        narrow = min(shape.image.width, shape.text.width)
        if self.shared_dim >= narrow:
            raise UserError(f"mrs_adapter: shared_dim {self.shared_dim} must be below the towers' width {narrow}")
