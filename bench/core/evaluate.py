"""A split's embeddings, similarities and ranks, in float32 whatever the training precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.core.found import BEST, Found
from bench.core.model import DualEncoder
from bench.core.passes import Pictures, Prefix, Texts
from bench.core.ranks import Ranks

BLOCK = 2**26  # similarities that are held at once
TILE = 2**18  # similarities that are compared at once on a CPU: a megabyte, and as much for the comparison


@dataclass(frozen=True)
class EvalSet:
    """A split ready for scoring. `images()` and `texts()` yield batches on the device, in order.

    Texts are the different captions of the split: `caption_text` says which text each caption is, and `caption_image`
    which image it belongs to. Two images with one caption each, both "a river": one text, caption_text [0, 0],
    caption_image [0, 1].
    """

    images: Callable[[], Iterable[Float[Tensor, "batch 3 size size"] | Pictures | Prefix]]
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


@torch.inference_mode()
def evaluate_alike(
    model: DualEncoder, split: EvalSet, caption_words: Int[Tensor, " captions"]
) -> tuple[tuple[Ranks, Ranks], tuple[Ranks, Ranks], Found]:
    """What `evaluate` returns, the same ranks where an identical caption of another image is right too, and the best
    items of every query.

    caption_words: captions with the same number say the same; see `counts_alike`.
    """
    features = encode(model, split)
    device = features[0].device
    owned = split.caption_text.to(device), split.caption_image.to(device)
    return score(*features, *owned), score(*features, *owned, caption_words.to(device)), best(*features, owned[0])


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
    caption_words: Int[Tensor, " captions"] | None = None,
) -> tuple[Ranks, Ranks]:
    """Image-to-text ranks (of each image) and text-to-image ranks (of each caption), from L2-normalised embeddings.

    `caption_text` and `caption_image` are those of `EvalSet`: captions with the same words share an embedding and tie
    exactly. Similarities are float32 whatever the type of the embeddings: in bfloat16 many would tie. With
    `caption_words`, an identical caption of another image is right too: see `counts_alike`.

    Raises FloatingPointError if an embedding holds NaN or infinity.
    """
    given = image_features, text_features, caption_text, caption_image
    i2t, t2i, finite = counts(*given) if caption_words is None else counts_alike(*given, caption_words)
    if not finite:
        raise FloatingPointError("embeddings hold NaN or infinity: the training has diverged; lower the learning rate")
    return to_ranks(i2t), to_ranks(t2i)


def counts(
    image_features: Float[Tensor, "images dim"],
    text_features: Float[Tensor, "texts dim"],
    caption_text: Int[Tensor, " captions"],
    caption_image: Int[Tensor, " captions"],
) -> tuple[Int[Tensor, "3 images"], Int[Tensor, "3 captions"], Bool[Tensor, ""]]:
    """What `score` copies to the host: `above`, `tied` and `own` of `Ranks` by row, and whether all is finite.

    Counted without sorting. Up to `BLOCK` similarities are one matrix product; more are computed twice, in blocks of
    images and then of captions, so that `BLOCK` floats (268 MB) are held at a time, and on a GPU as many for comparing.
    A score is only compared with scores of the same product, and items with equal embeddings have one score, that of
    the first of them: MKL rounds products of other sizes otherwise (measured: up to 9 of 10 values in the last bit),
    and on some processors equal rows of one product too. So equal items tie exactly, whatever the blocks; a rank may
    depend on them where two scores are less than a rounding error apart. Nothing waits for a GPU. Exact up to 2^24
    captions.
    """
    images, texts = image_features.float(), text_features.float()
    finite = torch.isfinite(images).all() & torch.isfinite(texts).all()
    caption_text, column = firsts(texts)[caption_text], firsts(images)
    if len(texts) * len(images) <= BLOCK:
        scores = texts @ images.T
        return (
            image_counts(scores, caption_text, caption_image),
            caption_counts(scores, caption_text, caption_image, column),
            finite,
        )
    i2t, t2i = [], []
    for block in _blocks(len(images), len(texts)):
        i2t.append(image_counts(texts @ images[block].T, caption_text, caption_image - block.start))
    for block in _blocks(len(caption_text), len(images)):
        rows = torch.arange(block.stop - block.start, device=images.device)
        t2i.append(caption_counts(texts[caption_text[block]] @ images.T, rows, caption_image[block], column))
    return torch.cat(i2t, dim=1), torch.cat(t2i, dim=1), finite


def firsts(embeddings: Float[Tensor, "items dim"]) -> Int[Tensor, " items"]:
    """The index of the first item with exactly the same embedding, for each item. Rows a, b, a: [0, 1, 0].

    Found by a hash of 64 bits, and compared; should two embeddings share a hash, a later equal item may keep its own
    index. All on the embeddings' device, without waiting for it.
    """
    items, dim = embeddings.shape
    even = F.pad(embeddings, (0, 1)) if dim % 2 else embeddings
    bits = (even + 0.0).contiguous().view(torch.int64)  # -0.0 becomes 0.0
    mixed = torch.arange(1, bits.shape[1] + 1, device=bits.device) * -0x61C8864680B583EB  # products wrap around
    hashes = (bits * ((mixed ^ (mixed >> 29)) * -0x40A7B892E31B1A47 | 1)).sum(1)
    ordered, order = hashes.sort(stable=True)
    place = torch.arange(items, device=embeddings.device)
    begins = torch.ones_like(place, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    found = torch.empty_like(place)
    found[order] = order[torch.where(begins, place, 0).cummax(0).values]
    # On a GPU all are compared: to pick some would be to wait for it.
    rows = (found != place).nonzero()[:, 0] if embeddings.is_cpu else place
    equal = (embeddings[rows] == embeddings[found[rows]]).all(1)
    found[rows] = torch.where(equal, found[rows], rows)
    return found


def image_counts(
    scores: Float[Tensor, "texts images"], caption_text: Int[Tensor, " captions"], place: Int[Tensor, " captions"]
) -> Int[Tensor, "3 images"]:
    """`above`, `tied` and `own` of these images among all captions; `place` is the column of a caption's image.

    Captions whose place is outside of the matrix belong to other images.
    """
    count = scores.shape[1]
    outside = (place < 0) | (place >= count)
    place = place.clamp(0, count - 1)
    copies = torch.zeros(len(scores), device=scores.device).index_add_(
        0, caption_text, torch.ones(len(place), device=scores.device)
    )
    correct = scores[caption_text, place].masked_fill(outside, -torch.inf)
    best = scores.new_full((count,), -torch.inf).scatter_reduce_(0, place, correct, "amax")
    own = torch.zeros(count, dtype=torch.long, device=scores.device)
    own.index_add_(0, place, (correct == best[place]).long())
    above, level = scores.new_zeros(2, count)
    for tile in _tiles(scores):
        part, weights = scores[tile], copies[tile]
        held = torch.empty_like(part)  # floats, which torch compares into and adds up 5 times faster than booleans
        above += weights @ torch.gt(part, best, out=held)
        level += weights @ torch.ge(part, best, out=held)
    return torch.stack([above.long(), (level - above).long() - own, own])


def caption_counts(
    scores: Float[Tensor, "texts images"],
    caption_text: Int[Tensor, " captions"],
    caption_image: Int[Tensor, " captions"],
    column: Int[Tensor, " images"] | None = None,
) -> Int[Tensor, "3 captions"]:
    """`above`, `tied` and `own` of these captions among all images.

    `column`: of an image's score, which equal images share; by default its own.
    """
    counted = []
    copies = scores.new_ones(scores.shape[1])
    if column is not None:
        copies = torch.zeros_like(copies).index_add_(0, column, copies)
        caption_image = column[caption_image]
    for tile in _tiles(scores, len(caption_text)):
        part = scores.index_select(0, caption_text[tile])  # twice as fast as indexing
        correct = part.gather(1, caption_image[tile, None])
        held = torch.empty_like(part)
        above = torch.gt(part, correct, out=held) @ copies
        level = torch.ge(part, correct, out=held) @ copies
        counted.append(torch.stack([above, level - above - 1, torch.ones_like(above)]).long())
    return torch.cat(counted, dim=1)


def counts_alike(
    image_features: Float[Tensor, "images dim"],
    text_features: Float[Tensor, "texts dim"],
    caption_text: Int[Tensor, " captions"],
    caption_image: Int[Tensor, " captions"],
    caption_words: Int[Tensor, " captions"],
) -> tuple[Int[Tensor, "3 images"], Int[Tensor, "3 captions"], Bool[Tensor, ""]]:
    """As `counts`, where a caption is right for an image if it says the same as one of the image's own.

    `caption_words`: captions with the same number, below the number of captions, say the same. Two images with one
    caption each, both "a river" (words [0, 0]): each caption is right for both images, and both images for either.
    """
    images, texts = image_features.float(), text_features.float()
    finite = torch.isfinite(images).all() & torch.isfinite(texts).all()
    caption_text, column = firsts(texts)[caption_text], firsts(images)
    scores = texts @ images.T if len(texts) * len(images) <= BLOCK else None
    i2t, t2i = [], []
    for block in _blocks(len(images), len(caption_text)):
        count = block.stop - block.start
        row = caption_image - block.start
        said = torch.zeros(count + 1, len(caption_words), dtype=torch.bool, device=images.device)
        said[row.masked_fill((row < 0) | (row >= count), count), caption_words] = True  # other images': the last row
        part = scores[:, block] if scores is not None else texts @ images[block].T
        i2t.append(count_ranks(part[caption_text].T, said[:count, caption_words]))
    for block in _blocks(len(caption_text), len(images)):
        words = caption_words[block]
        row = torch.full((len(caption_words),), len(words), device=images.device)
        row[words] = torch.arange(len(words), device=images.device)
        said = torch.zeros(len(words) + 1, len(images), dtype=torch.bool, device=images.device)
        said[row[caption_words], caption_image] = True  # words that are not in the block: the last row
        part = scores[caption_text[block]] if scores is not None else texts[caption_text[block]] @ images.T
        t2i.append(count_ranks(part[:, column], said[row[words]]))
    return torch.cat(i2t, dim=1), torch.cat(t2i, dim=1), finite


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


def best(
    image_features: Float[Tensor, "images dim"],
    text_features: Float[Tensor, "texts dim"],
    caption_text: Int[Tensor, " captions"],
) -> Found:
    """The `BEST` captions of each image and images of each caption, by the scores and in the blocks of `counts`."""
    images, texts = image_features.float(), text_features.float()
    caption_text, column = firsts(texts)[caption_text], firsts(images)
    scores = texts @ images.T if len(texts) * len(images) <= BLOCK else None
    captions = [
        best_items((scores[:, block] if scores is not None else texts @ images[block].T).T, caption_text)
        for block in _blocks(len(images), len(texts))
    ]
    found = [
        best_items(scores[caption_text[block]] if scores is not None else texts[caption_text[block]] @ images.T, column)
        for block in _blocks(len(caption_text), len(images))
    ]
    return Found(*(torch.cat(each).cpu().numpy() for each in (captions, found)))


def best_items(
    scores: Float[Tensor, "queries columns"], column: Int[Tensor, " items"] | None = None
) -> Int[Tensor, "queries best"]:
    """The indices of the `BEST` items of each query, the best first. `column`: of each item, by default its own.

    Items of equal score are ordered by their index times an odd number, modulo 2^32: like shuffled, so that no place in
    the dataset is preferred, and the same on every device. Scores [0.5, 0.9, 0.5], of a collapsed model [0, 0, 0]: item
    1 is first, and of the collapsed model's the one that the order has first.
    """
    items = scores.shape[1] if column is None else len(column)
    order = torch.arange(items, device=scores.device) * 2654435761 % 2**32
    found, step = [], max(1, 2**22 // items)
    for start in range(0, len(scores), step):
        part = scores[start : start + step]
        bits = ((part if column is None else part[:, column]) + 0.0).contiguous().view(torch.int32)  # no -0.0
        whole = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # integers in the order of the floats
        found.append((whole * 2**32 + order).topk(min(BEST, items), dim=1).indices)
    return torch.cat(found)


def _blocks(queries: int, items: int) -> list[slice]:
    """Slices of the queries, of nearly equal size: a short last one would be multiplied by another kernel."""
    count = -(-queries // max(1, BLOCK // items))
    edges = [queries * number // count for number in range(count + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


def _tiles(scores: Float[Tensor, "rows columns"], rows: int | None = None) -> list[slice]:
    """Slices of the rows (default: those of `scores`) that fit a CPU's cache; all of them on other devices."""
    rows = len(scores) if rows is None else rows
    step = max(1, TILE // scores.shape[1]) if scores.device.type == "cpu" else max(1, rows)
    return [slice(start, start + step) for start in range(0, rows, step)]


def to_ranks(counted: Int[Tensor, "3 queries"]) -> Ranks:
    """The rows of `counts` as numpy arrays, in one copy to the host."""
    return Ranks(*counted.cpu().numpy())
