"""BitFit: the biases alone."""

from __future__ import annotations

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder


class BitFit(Method):
    """Trains every bias of both towers, also those of the LayerNorms. 171,008 parameters on ViT-B-32."""

    name = "bitfit"
    title = "BitFit"
    paper = "Ben Zaken et al. 2022, arXiv 2106.10199"
    trains_backbone = True

    def attach(self, model: DualEncoder) -> None:
        for side in ("image", "text"):
            for name, parameter in model.tower_parameters(side).items():
                if name.endswith("bias"):
                    parameter.requires_grad_(True)

    def trainable_params(self, shape: ModelShape) -> int | None:
        if shape.image.ends is None or shape.text.ends is None:
            return None
        blocks = sum(tower.layers * (7 * tower.width + tower.mlp_width) for tower in shape.towers)
        return blocks + shape.image.ends.biases + shape.text.ends.biases
