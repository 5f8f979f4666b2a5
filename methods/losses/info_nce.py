"""CLIP's contrastive loss."""

from __future__ import annotations

from typing import Literal

from methods.lazy import DualEncoder, F, Features, Float, Int, Tensor, torch
from methods.losses.base import Loss


def info_nce(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    scale: Float[Tensor, ""] | Float[Tensor, " 1"],
    image_ids: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of `scale * cosine`, the mean over the batch and both directions (CLIP, arXiv 2103.00020).

    The targets are P_ij = 1[i = j]; with `image_ids` P_ij = 1[same image] / row sum (HarMA, arXiv 2404.18253). Three
    pairs, the first two of one image: rows (1/2, 1/2, 0), (1/2, 1/2, 0), (0, 0, 1).
    """
    logits = scale * image @ text.T
    if image_ids is None:
        targets = torch.eye(len(logits), device=logits.device)
    else:
        targets = (image_ids[:, None] == image_ids[None, :]).float()
        targets = targets / targets.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


class InfoNCE(Loss):
    """CLIP's symmetric cross-entropy at the backbone's own temperature; only some methods train that.

    With `targets: image` every caption of the same image in the batch is a positive, in equal shares.
    """

    name = "info_nce"
    paper = "Radford et al. 2021, arXiv 2103.00020"
    examples = {"": {}, "image": {"targets": "image"}}
    targets: Literal["pair", "image"] = "pair"
    """What counts as right: the pair alone, or every caption of the image."""

    def __call__(self, features: Features, image_ids: Int[Tensor, " batch"], model: DualEncoder) -> Float[Tensor, ""]:
        ids = image_ids if self.targets == "image" else None
        return info_nce(features.image, features.text, model.logit_scale, ids)
