"""SigLIP's loss: each pair of the batch is classified as matching or not."""

from __future__ import annotations

import math
from typing import Literal

from methods.lazy import DualEncoder, F, Features, Float, Int, Tensor, torch
from methods.losses.base import Loss


def sigmoid(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    image_ids: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """`-1/n sum_ij log sigmoid(z_ij (scale * S_ij + bias))`, S the cosines of n pairs (SigLIP, arXiv 2303.15343).

    z_ij is 1 for positives and -1 for others. Positive are i = j, and with `image_ids` all captions of the same image.
    """
    logits = scale * image @ text.T + bias
    if image_ids is None:
        positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    else:
        positive = image_ids[:, None] == image_ids[None, :]
    return -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(logits)


class SigLIP(Loss):
    """The sigmoid loss with a trained factor and bias, which start at the backbone's if it has a bias, else as in the
    paper at 10 and -10. With `targets: image` every caption of the same image in the batch is a positive.
    """

    name = "siglip"
    paper = "Zhai et al. 2023, arXiv 2303.15343"
    examples = {"": {}, "image": {"targets": "image"}}
    params = 2
    targets: Literal["pair", "image"] = "pair"
    """What counts as right: the pair alone, or every caption of the image."""

    def attach(self, model: DualEncoder) -> None:
        clip = model.clip
        trained = getattr(clip, "logit_bias", None) is not None
        scale, bias = (clip.logit_scale, clip.logit_bias) if trained else (math.log(10.0), -10.0)
        model.extras["siglip_scale"] = torch.nn.Parameter(torch.tensor(float(scale)))  # type: ignore[arg-type]
        model.extras["siglip_bias"] = torch.nn.Parameter(torch.tensor(float(bias)))  # type: ignore[arg-type]

    def __call__(self, features: Features, image_ids: Int[Tensor, " batch"], model: DualEncoder) -> Float[Tensor, ""]:
        ids = image_ids if self.targets == "image" else None
        scale, bias = model.extras["siglip_scale"].exp(), model.extras["siglip_bias"]
        return sigmoid(features.image, features.text, scale, bias, ids)
