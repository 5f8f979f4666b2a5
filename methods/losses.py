"""The registry of losses: settings here, without torch; the maths is in `bench/core/losses.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from bench.settings import Settings
from methods.base import ModelShape, check_slots
from methods.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from bench.core.backbone import DualEncoder, Features


class Loss(Settings):
    """Base class of all losses: a scalar from a batch of embeddings; any method can be trained with any of them."""

    name: ClassVar[str]
    paper: ClassVar[str]
    params: ClassVar[int] = 0  # parameters of its own that are trained along
    # Settings under which the conformance suite tries it, by a short label.
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}}

    @property
    def second_view(self) -> float | None:
        """Element-wise dropout rate of a second pass the loss wants to see; None: one pass is enough."""
        return None

    def check(self, shape: ModelShape) -> None:
        """Raise UserError if this backbone can't give what the loss wants; called while a sweep is planned."""
        if self.second_view is not None:
            check_slots(f"loss {self.name}", shape, ("image", "text"))

    def attach(self, model: DualEncoder) -> None:
        """Add the loss's own trainable parameters, if it has any, to `model.extras`."""

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        """The batch's loss (scalar). `image_ids` (batch,) tells which pairs show the same image."""
        raise NotImplementedError(f"{type(self).__name__}.__call__")


class InfoNCE(Loss):
    """CLIP's symmetric cross-entropy at the backbone's own temperature (trained only by full fine-tuning).

    `targets: image` counts every caption of the same image in the batch as a positive, with equal shares.
    """

    name = "info_nce"
    paper = "Radford et al. 2021, arXiv 2103.00020"
    examples = {"": {}, "image": {"targets": "image"}}
    targets: Literal["pair", "image"] = "pair"

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        from bench.core import losses

        ids = image_ids if self.targets == "image" else None
        return losses.info_nce(features.image, features.text, model.logit_scale, ids)


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
        import torch

        clip = model.clip
        trained = getattr(clip, "logit_bias", None) is not None
        scale, bias = (clip.logit_scale, clip.logit_bias) if trained else (math.log(10.0), -10.0)
        model.extras["siglip_scale"] = torch.nn.Parameter(torch.tensor(float(scale)))  # type: ignore[arg-type]
        model.extras["siglip_bias"] = torch.nn.Parameter(torch.tensor(float(bias)))  # type: ignore[arg-type]

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        from bench.core import losses

        ids = image_ids if self.targets == "image" else None
        scale, bias = model.extras["siglip_scale"].exp(), model.extras["siglip_bias"]
        return losses.sigmoid(features.image, features.text, scale, bias, ids)


class Triplet(Loss):
    """Hinge triplets on cosines: against the hardest negative of the batch, or the sum over all."""

    name = "triplet"
    paper = "Faghri et al. 2018, arXiv 1707.05612 (VSE++: hardest); Kiros et al. 2014, arXiv 1411.2539 (sum)"
    examples = {"": {}, "sum": {"negatives": "sum"}}
    margin: float = Field(0.2, ge=0)
    negatives: Literal["hardest", "sum"] = "hardest"

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        from bench.core import losses

        triplet = losses.hardest_triplet if self.negatives == "hardest" else losses.sum_triplet
        return triplet(features.image, features.text, self.margin)


class HMMC(Loss):
    """Hardest-negative triplets between image and text, and between each and its own view under dropout."""

    name = "hmmc"
    paper = "Yuan, Zhan, Xiong 2023, arXiv 2308.12509"
    margin: float = Field(0.2, ge=0)
    view_dropout: float = Field(0.2, gt=0, lt=1)
    image_weight: float = Field(1.0, ge=0)
    text_weight: float = Field(1.0, ge=0)

    @property
    def second_view(self) -> float | None:
        return self.view_dropout

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        from bench.core import losses

        assert features.image_view is not None
        assert features.text_view is not None
        total = losses.hardest_triplet(features.image, features.text, self.margin)
        total = total + self.image_weight * losses.hardest_triplet(features.image, features.image_view, self.margin)
        return total + self.text_weight * losses.hardest_triplet(features.text, features.text_view, self.margin)


class HarMALoss(Loss):
    """HarMA's two losses: contrastive with same-image targets and a trained temperature, plus adaptive triplets."""

    name = "harma"
    paper = "Huang 2024, arXiv 2404.18253"
    params = 1
    margin: float = Field(0.2, ge=0)
    temperature: float = Field(0.07, gt=0)
    triplet_weight: float = Field(1.0, ge=0)

    def attach(self, model: DualEncoder) -> None:
        import torch

        model.extras["temperature"] = torch.nn.Parameter(torch.tensor(self.temperature))

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor:
        from bench.core import losses

        contrastive = losses.info_nce(features.image, features.text, 1 / model.extras["temperature"], image_ids)
        return contrastive + self.triplet_weight * losses.adaptive_triplet(features.image, features.text, self.margin)


LOSSES: Registry[Loss] = Registry(
    kind="loss",
    base=Loss,
    entry_points="petl_bench.losses",
    built_in={
        "info_nce": "methods.losses:InfoNCE",
        "siglip": "methods.losses:SigLIP",
        "triplet": "methods.losses:Triplet",
        "hmmc": "methods.losses:HMMC",
        "harma": "methods.losses:HarMALoss",
    },
)

get = LOSSES.get
names = LOSSES.names
