"""LayerNorm tuning: gains and biases of the LayerNorms alone."""

from __future__ import annotations

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder, nn


class LNTuning(Method):
    """Trains every LayerNorm of both towers. 65,536 parameters on ViT-B-32."""

    name = "ln_tuning"
    title = "LN-tuning"
    paper = "Zhao et al. 2024, arXiv 2312.11420"
    trains_backbone = True

    def attach(self, model: DualEncoder) -> None:
        for module in model.clip.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)

    def trainable_params(self, shape: ModelShape) -> int | None:
        if shape.image.ends is None or shape.text.ends is None:
            return None
        blocks = sum(4 * tower.layers * tower.width for tower in shape.towers)
        return blocks + shape.image.ends.norms + shape.text.ends.norms
