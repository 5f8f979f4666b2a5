"""Full fine-tuning: every weight of both towers, and the temperature."""

from __future__ import annotations

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder


class FullFinetune(Method):
    """Trains all of the backbone, `logit_scale` included: 151,277,313 parameters on ViT-B-32.

    SigLIP's `logit_bias` stays: a softmax does not see it, and the loss `siglip` trains a copy of it.
    """

    name = "full_finetune"
    title = "Full fine-tuning"
    paper = "Radford et al. 2021, arXiv 2103.00020"
    trains_backbone = True
    presets = {"paper": {}, "table": {}}

    def attach(self, model: DualEncoder) -> None:
        for side in ("image", "text"):
            for parameter in model.tower_parameters(side).values():
                parameter.requires_grad_(True)
        model.clip.logit_scale.requires_grad_(True)  # type: ignore[union-attr,operator]

    def trainable_params(self, shape: ModelShape) -> int | None:
        return None if shape.total_params is None else shape.total_params - shape.logit_bias
