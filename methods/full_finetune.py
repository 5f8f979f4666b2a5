"""Full fine-tuning: every weight of both towers, and the temperature."""

from __future__ import annotations

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder


class FullFinetune(Method):
    """Trains all of the backbone, `logit_scale` included: 151,277,313 parameters on ViT-B-32."""

    name = "full_finetune"
    paper = "Radford et al. 2021, arXiv 2103.00020"
    trains_backbone = True
    presets = {"paper": {}, "table": {}}

    def attach(self, model: DualEncoder) -> None:
        model.clip.requires_grad_(True)

    def trainable_params(self, shape: ModelShape) -> int | None:
        return shape.total_params
