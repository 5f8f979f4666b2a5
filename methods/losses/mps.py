"""MPS-CLIP's loss on whole images: HarMA's two parts at a fixed temperature."""

from __future__ import annotations

from pydantic import Field

from methods.lazy import DualEncoder, Features, Float, Int, Tensor, torch
from methods.losses.base import Loss
from methods.losses.harma import adaptive_triplet
from methods.losses.info_nce import info_nce


class MPSLoss(Loss):
    """Contrastive with same-image targets at a temperature that is not trained, plus HarMA's adaptive triplets.

    The released code has further terms for crops of an image, which are left out with them: see `mps_adapter`.
    """

    name = "mps"
    paper = "MPS-CLIP 2026, arXiv 2601.18190"
    margin: float = Field(0.2, ge=0)
    """By how much a matching pair must be more similar."""
    temperature: float = Field(0.07, gt=0)
    """Of the contrastive part: it divides the cosines."""

    def __call__(self, features: Features, image_ids: Int[Tensor, " batch"], model: DualEncoder) -> Float[Tensor, ""]:
        scale = torch.tensor(1 / self.temperature, device=features.image.device)
        contrastive = info_nce(features.image, features.text, scale, image_ids)
        return contrastive + adaptive_triplet(features.image, features.text, self.margin)
