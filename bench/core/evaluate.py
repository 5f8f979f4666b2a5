"""A split's embeddings, similarities and ranks, in float32 whatever the training precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.core.model import DualEncoder
from bench.core.ranks import Ranks


@dataclass(frozen=True)
class EvalSet:
    """A split ready for scoring. `images()` and `texts()` yield batches on the device, in order.

    Texts are the different captions of the split: `caption_text` says which text each caption is, and `caption_image`
    which image it belongs to. Two images with one caption each, both "a river": one text, caption_text [0, 0],
    caption_image [0, 1].
    """

    images: Callable[[], Iterable[Float[Tensor, "batch 3 size size"]]]
    texts: Callable[[], Iterable[Int[Tensor, "batch context"]]]
    caption_text: Int[Tensor, " captions"]
    caption_image: Int[Tensor, " captions"]


@torch.inference_mode()
def evaluate(model: DualEncoder, split: EvalSet) -> tuple[Ranks, Ranks]:
    """Image-to-text and text-to-image ranks of a split, encoded in eval mode and scored in float32.

    Afterwards every module is in the mode in which it was. Raises FloatingPointError as `score` does.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    image_features = torch.cat([model.encode_image(images, normalize=True) for images in split.images()])
    text_features = torch.cat([model.encode_text(tokens, normalize=True) for tokens in split.texts()])
    for module, training in modes.items():
        module.training = training
    device = image_features.device
    return score(image_features, text_features, split.caption_text.to(device), split.caption_image.to(device))


def ranks_from_scores(scores: Float[Tensor, "queries items"], correct: Bool[Tensor, "queries items"]) -> Ranks:
    """Ranks of the best correct item of each query (row); `correct` says which items are. Each query needs one.

    One query, scores [0.9, 0.5, 0.5], correct the last: above 1, tied 1, own 1.
    """
    best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
    wrong = ~correct
    above = ((scores > best) & wrong).sum(dim=1)
    tied = ((scores == best) & wrong).sum(dim=1)
    own = ((scores == best) & correct).sum(dim=1)
    return Ranks(*(count.cpu().numpy().astype(np.int64) for count in (above, tied, own)))


def score(
    image_features: Float[Tensor, "images dim"],
    text_features: Float[Tensor, "texts dim"],
    caption_text: Int[Tensor, " captions"],
    caption_image: Int[Tensor, " captions"],
) -> tuple[Ranks, Ranks]:
    """Image-to-text ranks (of each image) and text-to-image ranks (of each caption), from L2-normalised embeddings.

    `caption_text` and `caption_image` are those of `EvalSet`: captions with the same words share an embedding and tie
    exactly. Similarities are float32 whatever the type of the embeddings: in bfloat16 many would tie.

    Raises FloatingPointError if a similarity is NaN or infinite.
    """
    similarity = (image_features.float() @ text_features.float().T)[:, caption_text]
    if not torch.isfinite(similarity).all():
        raise FloatingPointError("embeddings hold NaN or infinity: the training has diverged; lower the learning rate")
    images = torch.arange(len(image_features), device=similarity.device)
    correct = images[:, None] == caption_image[None, :]
    return ranks_from_scores(similarity, correct), ranks_from_scores(similarity.T, correct.T)
