"""`retrieval`: recall by counting beside the literature's recall by sorting, at RSICD's size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32

from bench.core.evaluate import caption_counts, counts, image_counts, to_ranks
from bench.core.ranks import KS, metrics
from benchmarks.measure import Row, Timing, alternate, check_equal, copy_rate, matmul_rate, timed

IMAGES, EACH, DIM = 1093, 5, 512  # RSICD's test set
LARGE = (20_000, 64)  # images and dimensions of the large case: its scores alone take 8 GB


def argsort_recall(
    i2t: Float32[np.ndarray, "images captions"], t2i: Float32[np.ndarray, "captions images"]
) -> list[float]:
    """The six recalls as released scripts compute them: each row sorted, and each correct item looked up in it."""
    each = i2t.shape[1] // len(i2t)
    found = []
    for scores, correct in ((i2t, lambda row: range(each * row, each * (row + 1))), (t2i, lambda row: [row // each])):
        ranks = np.zeros(len(scores))
        for row, values in enumerate(scores):
            order = np.argsort(values)[::-1]
            ranks[row] = min(np.where(order == item)[0][0] for item in correct(row))
        found += [100.0 * float((ranks < k).mean()) for k in KS]
    return found


def rows(*, images: int = IMAGES, each: int = EACH, dim: int = DIM, rounds: int = 7, large: bool = False) -> list[Row]:
    """From the similarities, which the scripts are given in both directions; and from the embeddings."""
    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(n, dim, generator=generator) for n in (images, images * each))
    owner, texts = torch.arange(images).repeat_interleave(each), torch.arange(images * each)
    image = F.normalize(image, dim=-1)
    text = F.normalize(image[owner] + 0.35 * noise, dim=-1)
    scores = text @ image.T
    both = scores.T.contiguous().numpy(), scores.numpy()

    def counted() -> list[float]:
        return _recalls(image_counts(scores, texts, owner), caption_counts(scores, texts, owner))

    def counted_all() -> list[float]:
        return _recalls(*counts(image, text, texts, owner)[:2])

    def sorted_all() -> list[float]:
        product = image @ text.T
        return argsort_recall(product.numpy(), np.ascontiguousarray(product.T.numpy()))

    check_equal("recall", counted(), argsort_recall(*both))
    check_equal("recall", counted_all(), sorted_all())
    reading = 4 * scores.numel() / copy_rate()
    facts: dict[str, Any] = {"mean recall": float(np.mean(counted()))}
    found = [
        Row(
            f"recall {images} x {len(text)}, from scores",
            *_sides(alternate(counted, lambda: argsort_recall(*both), rounds), "argsort of both directions"),
            target=40,
            limit_seconds=reading,
            facts=facts,
        ),
        Row(
            f"recall {images} x {len(text)}, from embeddings",
            *_sides(alternate(counted_all, sorted_all, rounds), "product and argsort"),
            limit_seconds=2 * scores.numel() * dim / matmul_rate() + reading,
        ),
    ]
    return found + ([large_row()] if large else [])


def large_row(images: int = LARGE[0], each: int = EACH, dim: int = LARGE[1]) -> Row:
    """Time and memory of counting at a size whose scores no longer fit one block."""
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(n, dim, generator=generator), dim=-1) for n in (images, images * each))
    owner, texts = torch.arange(images).repeat_interleave(each), torch.arange(images * each)
    timing = Timing()
    timed(lambda: counts(image, text, texts, owner), timing)
    # The product is computed twice; both counts read it.
    limit = 4 * image.shape[0] * text.shape[0] * dim / matmul_rate()
    return Row(f"recall {images} x {len(text)}, dim {dim}", timing, limit_seconds=limit)


def _sides(timings: tuple[Timing, Timing], baseline: str) -> tuple[Timing, str, Timing]:
    return timings[0], baseline, timings[1]


def _recalls(i2t: torch.Tensor, t2i: torch.Tensor) -> list[float]:
    found = metrics(to_ranks(i2t), to_ranks(t2i))
    return [float(found[f"{side}_r{k}"]) for side in ("i2t", "t2i") for k in KS]
