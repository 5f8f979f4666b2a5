"""A split's embeddings, similarities and ranks, in float32 whatever the training precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.core.model import DualEncoder
from bench.core.ranks import Ranks
from bench.core.towers import Prefix, Texts


@dataclass(frozen=True)
class EvalSet:
    """A split ready for scoring. `images()` and `texts()` yield batches on the device, in order.

    Texts are the different captions of the split: `caption_text` says which text each caption is, and `caption_image`
    which image it belongs to. Two images with one caption each, both "a river": one text, caption_text [0, 0],
    caption_image [0, 1].
    """

    images: Callable[[], Iterable[Float[Tensor, "batch 3 size size"] | Prefix]]
    texts: Callable[[], Iterable[Int[Tensor, "batch context"] | Texts | Prefix]]
    caption_text: Int[Tensor, " captions"]
    caption_image: Int[Tensor, " captions"]


@torch.inference_mode()
def evaluate(model: DualEncoder, split: EvalSet) -> tuple[Ranks, Ranks]:
    """Image-to-text and text-to-image ranks of a split, encoded in eval mode and scored in float32.

    Afterwards every module is in the mode in which it was. Raises FloatingPointError as `score` does.
    """
    image_features, text_features = encode(model, split)
    device = image_features.device
    return score(image_features, text_features, split.caption_text.to(device), split.caption_image.to(device))


def encode(model: DualEncoder, split: EvalSet) -> tuple[Float[Tensor, "images dim"], Float[Tensor, "texts dim"]]:
    """L2-normalised float32 embeddings of the split's images and unique texts, computed in eval mode.

    Afterwards every module is in the mode in which it was.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    image_features = torch.cat([model.encode_image(images, normalize=True) for images in split.images()])
    text_features = torch.cat([model.encode_text(tokens, normalize=True) for tokens in split.texts()])
    for module, training in modes.items():
        module.training = training
    return image_features, text_features


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
    i2t, t2i, finite = counts(image_features, text_features, caption_text, caption_image)
    if not finite:
        raise FloatingPointError("embeddings hold NaN or infinity: the training has diverged; lower the learning rate")
    return to_ranks(i2t), to_ranks(t2i)


def counts(
    image_features: Float[Tensor, "images dim"],
    text_features: Float[Tensor, "texts dim"],
    caption_text: Int[Tensor, " captions"],
    caption_image: Int[Tensor, " captions"],
) -> tuple[Int[Tensor, "3 images"], Int[Tensor, "3 captions"], Bool[Tensor, ""]]:
    """What `score` copies to the host: `count_ranks` in both directions, and whether all similarities are finite."""
    similarity = (image_features.float() @ text_features.float().T)[:, caption_text]
    images = torch.arange(len(image_features), device=similarity.device)
    correct = images[:, None] == caption_image[None, :]
    finite = torch.isfinite(similarity).all()
    return count_ranks(similarity, correct), count_ranks(similarity.T, correct.T), finite


def count_ranks(
    scores: Float[Tensor, "queries items"], correct: Bool[Tensor, "queries items"]
) -> Int[Tensor, "3 queries"]:
    """Rows `above`, `tied` and `own` of `Ranks`: for the best correct item of each query.

    `correct` says which items are correct; each query needs one. One query, scores [0.9, 0.5, 0.5], correct the last:
    above 1, tied 1, own 1.
    """
    best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
    wrong = ~correct
    above = ((scores > best) & wrong).sum(dim=1)
    tied = ((scores == best) & wrong).sum(dim=1)
    own = ((scores == best) & correct).sum(dim=1)
    return torch.stack([above, tied, own])


def to_ranks(counted: Int[Tensor, "3 queries"]) -> Ranks:
    """The rows of `count_ranks` as numpy arrays, in one copy to the host."""
    return Ranks(*counted.cpu().numpy())


def ranks_from_scores(scores: Float[Tensor, "queries items"], correct: Bool[Tensor, "queries items"]) -> Ranks:
    """Ranks of the best correct item of each query: see `count_ranks`."""
    return to_ranks(count_ranks(scores, correct))
