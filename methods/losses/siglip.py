"""SigLIP's loss: every pair on its own."""

from __future__ import annotations

import math
from typing import Literal

from methods.lazy import DualEncoder, F, Features, Tensor, torch
from methods.losses.base import Loss


def sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, image_ids: Tensor | None = None) -> Tensor:
    """`-1/n sum_ij log sigmoid(z_ij (scale * S_ij + bias))`, z = 1 for positives, else -1 (SigLIP, arXiv 2303.15343).

    With `image_ids` (batch,) every text whose image has the same id is a positive; without, only pair i is.
    """
    logits = scale * image @ text.T + bias
    if image_ids is None:
        positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    else:
        positive = image_ids[:, None] == image_ids[None, :]
    return -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(logits)


class SigLIP(Loss):
    """A sigmoid of every pair on its own, with a trained temperature and bias.

    They start at the backbone's where it was trained with them, else as in the paper: 10 and -10.
    `targets: image` counts every caption of the same image in the batch as a positive.
    """

    name = "siglip"
    paper = "Zhai et al. 2023, arXiv 2303.15343"
    examples = {"": {}, "image": {"targets": "image"}}
    params = 2
    targets: Literal["pair", "image"] = "pair"

    def attach(self, model: DualEncoder) -> None:
        clip = model.clip
        trained = getattr(clip, "logit_bias", None) is not None
        scale, bias = (clip.logit_scale, clip.logit_bias) if trained else (math.log(10.0), -10.0)
        model.extras["siglip_scale"] = torch.nn.Parameter(torch.tensor(float(scale)))  # type: ignore[arg-type]
        model.extras["siglip_bias"] = torch.nn.Parameter(torch.tensor(float(bias)))  # type: ignore[arg-type]

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        ids = image_ids if self.targets == "image" else None
        scale, bias = model.extras["siglip_scale"].exp(), model.extras["siglip_bias"]
        return sigmoid(features.image, features.text, scale, bias, ids)
