"""CLIP's contrastive loss."""

from __future__ import annotations

from typing import Literal

from methods.lazy import DualEncoder, F, Features, Tensor, torch
from methods.losses.base import Loss


def info_nce(image: Tensor, text: Tensor, scale: Tensor, image_ids: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy of `scale * cosine`, the mean of both directions (CLIP, arXiv 2103.00020).

    With `image_ids` (batch,) every text whose image has the same id is a positive, in equal shares:
    P_ij = 1[same image] / row sum (HarMA, arXiv 2404.18253). Without, only pair i is positive.
    """
    logits = scale * image @ text.T
    if image_ids is None:
        targets = torch.eye(len(logits), device=logits.device)
    else:
        targets = (image_ids[:, None] == image_ids[None, :]).float()
        targets = targets / targets.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


class InfoNCE(Loss):
    """CLIP's symmetric cross-entropy at the backbone's own temperature (trained only by full fine-tuning).

    `targets: image` counts every caption of the same image in the batch as a positive, with equal shares.
    """

    name = "info_nce"
    paper = "Radford et al. 2021, arXiv 2103.00020"
    examples = {"": {}, "image": {"targets": "image"}}
    targets: Literal["pair", "image"] = "pair"

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        ids = image_ids if self.targets == "image" else None
        return info_nce(features.image, features.text, model.logit_scale, ids)
