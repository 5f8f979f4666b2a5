"""MRS-Adapter: one bottleneck module serves every block of both towers, with a slice shared between them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bench.config.errors import UserError
from methods.base import Method, ModelShape
from methods.lazy import DualEncoder, F, bottlenecks


class MRSAdapter(Method):
    """`x <- r + MLP(LN r) + Ad(r)`: parallel to the MLP, on the residual r before its LayerNorm.

    `Ad(r) = concat[Up_tower(z), Up_shared(z)]` with `z = dropout(ReLU(Down_tower r))`: the shared slice is the last
    `shared_dim` output dimensions of either tower. The up-projections start at zero, so the start equals the backbone
    exactly. 161,088 parameters on ViT-B-32.

    The paper says that these alone are trained, and so is the default here. The released training freezes nothing:
    `backbone: trained` does the same, 151,438,401 parameters with the temperature, to measure what the claim is worth.
    """

    name = "mrs_adapter"
    title = "MRS-Adapter"
    paper = "Yuan, Zhan, Xiong 2023, arXiv 2308.12509"
    default_loss = "hmmc"
    needs_slots = ("image", "text")
    presets = {"paper": {}, "table": {}}
    knob = "bottleneck"
    added = ("backbone",)
    examples = {
        "": {"bottleneck": 8, "shared_dim": 8},
        "trained": {"bottleneck": 8, "shared_dim": 8, "backbone": "trained"},
    }
    bottleneck: int = Field(64, ge=1)
    """Width of the bottleneck."""
    shared_dim: int = Field(64, ge=1)
    """Output dimensions of the up-projection that both towers share."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout inside the bottleneck."""
    backbone: Literal["frozen", "trained"] = "frozen"
    """frozen, as the paper says; trained with the adapter, as the released code does."""

    def attach(self, model: DualEncoder) -> None:
        model.clip.requires_grad_(self.backbone == "trained")
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

        own = tower(shape.image.width) + tower(shape.text.width) + (self.bottleneck + 1) * self.shared_dim
        if self.backbone == "frozen":
            return own
        return None if shape.total_params is None else own + shape.total_params

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        narrow = min(shape.image.width, shape.text.width)
        if self.shared_dim >= narrow:
            raise UserError(f"mrs_adapter: shared_dim {self.shared_dim} must be below the towers' width {narrow}")
