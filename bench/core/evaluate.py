"""A split's embeddings, similarities and ranks, in float32 whatever the training precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.core.model import DualEncoder
from bench.core.ranks import Ranks


@dataclass(frozen=True)
class EvalSet:
    """A split ready for scoring. `images()` and `texts()` yield batches on the device; texts are unique captions.

    caption_text (captions,) and caption_image (captions,) say which text and which image each caption is.
    """

    images: Callable[[], Iterable[Tensor]]
    texts: Callable[[], Iterable[Tensor]]
    caption_text: Tensor
    caption_image: Tensor


@torch.inference_mode()
def evaluate(model: DualEncoder, split: EvalSet) -> tuple[Ranks, Ranks]:
    """Image-to-text and text-to-image ranks of a split, encoded and scored in float32; all modes are restored."""
    image_features, text_features = encode(model, split)
    device = image_features.device
    return score(image_features, text_features, split.caption_text.to(device), split.caption_image.to(device))


def encode(model: DualEncoder, split: EvalSet) -> tuple[Tensor, Tensor]:
    """Normalised float32 embeddings of the split's images and unique texts, in eval mode; all modes are restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    image_features = torch.cat([model.encode_image(images, normalize=True) for images in split.images()])
    text_features = torch.cat([model.encode_text(tokens, normalize=True) for tokens in split.texts()])
    for module, training in modes.items():
        module.training = training
    return image_features, text_features


def score(
    image_features: Tensor, text_features: Tensor, caption_text: Tensor, caption_image: Tensor
) -> tuple[Ranks, Ranks]:
    """Image-to-text and text-to-image ranks.

    image_features (images, dim) and text_features (texts, dim) are L2-normalised; caption_text (captions,) says which
    text a caption is, so that captions with the same words share a row and tie exactly; caption_image (captions,) says
    which image it belongs to. Similarities are float32 whatever the features' type.

    Raises FloatingPointError for embeddings that are not finite.
    """
    i2t, t2i, finite = counts(image_features, text_features, caption_text, caption_image)
    if not finite:
        raise FloatingPointError("embeddings hold NaN or infinity: the training has diverged; lower the learning rate")
    return to_ranks(i2t), to_ranks(t2i)


def counts(
    image_features: Tensor, text_features: Tensor, caption_text: Tensor, caption_image: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `score` copies to the host: `count_ranks` in both directions, and whether all similarities are finite."""
    similarity = (image_features.float() @ text_features.float().T)[:, caption_text]
    images = torch.arange(len(image_features), device=similarity.device)
    correct = images[:, None] == caption_image[None, :]
    finite = torch.isfinite(similarity).all()
    return count_ranks(similarity, correct), count_ranks(similarity.T, correct.T), finite


def count_ranks(scores: Tensor, correct: Tensor) -> Tensor:
    """Rows `above`, `tied` and `own` of `Ranks` as (3, queries), for the best correct item in each row of scores.

    scores (queries, items); `correct` is a bool mask of that shape.
    """
    best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
    wrong = ~correct
    above = ((scores > best) & wrong).sum(dim=1)
    tied = ((scores == best) & wrong).sum(dim=1)
    own = ((scores == best) & correct).sum(dim=1)
    return torch.stack([above, tied, own])


def to_ranks(counted: Tensor) -> Ranks:
    """`count_ranks`' rows as numpy arrays, in one copy to the host."""
    return Ranks(*counted.cpu().numpy())


def ranks_from_scores(scores: Tensor, correct: Tensor) -> Ranks:
    """Ranks of the best correct item in each row of scores (queries, items); `correct` is a bool mask of that shape."""
    return to_ranks(count_ranks(scores, correct))
