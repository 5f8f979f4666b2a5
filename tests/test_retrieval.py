"""Recall on matrices worked out by hand, with and without ties."""

import math

import numpy as np
import pytest
import torch

from bench.core import evaluate
from bench.core.evaluate import counts, firsts, score
from bench.core.ranks import Ranks, metrics


def ranks_from_scores(scores: torch.Tensor, caption_image: list[int]) -> tuple[Ranks, Ranks]:
    """Both directions' ranks from similarities (images, captions): against unit vectors images have them exactly."""
    captions = scores.shape[1]
    return score(scores, torch.eye(captions), torch.arange(captions), torch.tensor(caption_image))


def dense_counts(scores: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    """`above`, `tied` and `own` of each row by their definition."""
    best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
    level = scores == best
    return torch.stack([(scores > best).sum(1), (level & ~correct).sum(1), (level & correct).sum(1)])


def embeddings_with_ties(images: int, texts: int, captions: int) -> tuple[torch.Tensor, ...]:
    """Sixteenths, whose products are exact; images share texts, and own one twice."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randint(-3, 4, (each, 8), generator=generator) / 16 for each in (images, texts))
    caption_text = torch.randint(texts, (captions,), generator=generator)
    caption_text[:texts] = torch.arange(texts)
    caption_image = torch.randint(images, (captions,), generator=generator)
    caption_image[:images] = torch.arange(images)
    caption_text[-2:], caption_image[-2:] = 1, 2
    return image, text, caption_text, caption_image


@pytest.mark.parametrize(
    ("block", "tile"), [(2**26, 2**18), (2**26, 50), (1500, 2**18), (200, 64), (1, 1)], ids=lambda size: str(size)
)
def test_counts_are_those_of_the_whole_matrix_for_any_block(monkeypatch, block, tile):
    image, text, caption_text, caption_image = given = embeddings_with_ties(37, 90, 230)
    monkeypatch.setattr(evaluate, "BLOCK", block)
    monkeypatch.setattr(evaluate, "TILE", tile)
    i2t, t2i, finite = counts(*given)
    scores = (image @ text.T)[:, caption_text]
    correct = torch.arange(37)[:, None] == caption_image
    assert i2t.tolist() == dense_counts(scores, correct).tolist()
    assert t2i.tolist() == dense_counts(scores.T, correct.T).tolist()
    assert finite
    assert i2t[1].any()
    assert t2i[1].any()
    assert (i2t[2] > 1).any()


def test_counts_of_real_numbers_are_those_of_the_whole_matrix():
    """Rounded products, where only the exact values of one and the same product can be compared."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(n, 64, generator=generator)) for n in (211, 800))
    _, _, caption_text, caption_image = embeddings_with_ties(211, 800, 1055)
    i2t, t2i, _ = counts(image, text, caption_text, caption_image)
    scores = (text @ image.T).T[:, caption_text]
    correct = torch.arange(211)[:, None] == caption_image
    assert i2t.tolist() == dense_counts(scores, correct).tolist()
    assert t2i.tolist() == dense_counts(scores.T, correct.T).tolist()


@pytest.mark.parametrize("block", [2**26, 4000])
def test_a_collapsed_model_ties_everywhere_in_any_block(monkeypatch, block):
    """Equal rows of one product are rounded equally, wherever they are; those of two products need not be."""
    monkeypatch.setattr(evaluate, "BLOCK", block)
    same = torch.nn.functional.normalize(torch.randn(1, 512, generator=torch.Generator().manual_seed(0)))
    owner = torch.arange(500) // 5
    i2t, t2i, _ = counts(same.expand(100, -1), same.expand(500, -1), torch.arange(500), owner)
    assert i2t.unique(dim=1).tolist() == [[0], [495], [5]]
    assert t2i.unique(dim=1).tolist() == [[0], [99], [1]]


def test_blocks_cover_all_queries_and_differ_by_one_at_most(monkeypatch):
    monkeypatch.setattr(evaluate, "BLOCK", 1000)
    blocks = evaluate._blocks(103, 100)
    assert [index for block in blocks for index in range(103)[block]] == list(range(103))
    assert {len(range(103)[block]) for block in blocks} == {9, 10}


def test_two_by_four_by_hand():
    # Image 0 owns captions 0, 1; image 1 owns captions 2, 3.
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.8, 0.7, 0.6, 0.1]])
    i2t, t2i = ranks_from_scores(scores, [0, 0, 1, 1])
    assert i2t.expected.tolist() == [1, 3]  # image 1's best caption (0.6) stands behind 0.8 and 0.7
    assert t2i.expected.tolist() == [1, 2, 1, 2]
    assert i2t.recall(1) == 50
    assert i2t.recall(5) == 100
    assert t2i.recall(1) == 50
    assert (i2t.tied == 0).all()


def test_four_images_two_captions_each_by_hand():
    scores = torch.tensor(
        [
            [0.1, 0.2, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4],  # own 0, 1: best 0.2 is 7th
            [0.9, 0.1, 0.3, 0.2, 0.8, 0.7, 0.6, 0.5],  # own 2, 3: best 0.3 is 6th
            [0.1, 0.2, 0.3, 0.4, 0.9, 0.0, 0.5, 0.6],  # own 4, 5: 1st
            [0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.7, 0.0],  # own 6, 7: 3rd
        ]
    )
    i2t, _ = ranks_from_scores(scores, [0, 0, 1, 1, 2, 2, 3, 3])
    assert i2t.expected.tolist() == [7, 6, 1, 3]
    assert [i2t.recall(k) for k in (1, 5, 10)] == [25, 50, 100]


def test_a_tie_counts_by_its_chance():
    # The one correct item ties with two wrong ones behind one better: rank 2, 3 or 4 with chance 1/3 each.
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1], [0.0] * 5])
    both, _ = ranks_from_scores(scores, [1, 0, 1, 1, 1])
    ranks = Ranks(both.above[:1], both.tied[:1], both.own[:1])
    assert ranks.expected.tolist() == [3]
    assert ranks.recall(1) == 0
    assert ranks.recall(2) == pytest.approx(100 / 3)
    assert ranks.recall(3) == pytest.approx(200 / 3)
    assert ranks.recall(4) == pytest.approx(100)
    assert ranks.bounds(2) == (0, 100)


def test_ties_agree_with_random_orders():
    rng = np.random.default_rng(0)
    scores = torch.tensor(rng.integers(0, 3, size=(1, 12)) / 2.0)
    correct = torch.zeros(1, 12, dtype=torch.bool)
    correct[0, [2, 5, 7]] = True
    both, _ = ranks_from_scores(torch.cat([scores, torch.zeros(1, 12)]).float(), (~correct[0]).int().tolist())
    ranks = Ranks(both.above[:1], both.tied[:1], both.own[:1])
    draws = []
    for _ in range(4000):
        order = np.lexsort((rng.random(12), -scores[0].numpy()))
        draws.append(1 + np.flatnonzero(correct[0].numpy()[order])[0])
    assert ranks.expected[0] == pytest.approx(np.mean(draws), abs=0.1)
    for k in (1, 2, 3):
        assert ranks.recall(k) == pytest.approx(100 * np.mean(np.array(draws) <= k), abs=3)


def test_a_collapsed_model_scores_chance():
    images, each = 40, 5
    owner = torch.arange(images * each) // each
    same = torch.nn.functional.normalize(torch.ones(1, 8), dim=-1)
    i2t, t2i = score(same.expand(images, 8), same, torch.zeros(images * each, dtype=torch.long), owner)
    found = metrics(i2t, t2i)
    for k in (1, 5, 10):
        assert found[f"t2i_r{k}"] == pytest.approx(100 * k / images)
        chance = 1 - math.comb(images * each - each, k) / math.comb(images * each, k)
        assert found[f"i2t_r{k}"] == pytest.approx(100 * chance)
    assert found["mean_recall_optimistic"] == 100
    assert found["mean_recall_pessimistic"] == 0
    assert found["i2t_ties"] == images
    assert found["t2i_ties"] == images * each


def test_captions_that_repeat_across_images_tie_exactly():
    features = torch.nn.functional.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    # Two images with the same single caption (text 0), a third with its own (text 1).
    i2t, t2i = score(features, features[[0, 2]], torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]))
    assert i2t.tied.tolist()[:2] == [1, 1]
    assert t2i.tied.tolist() == [0, 0, 0]
    assert t2i.expected.tolist() == [1, 2 + int(features[2] @ features[0] > features[1] @ features[0]), 1]


def test_perfect_and_sizes():
    features = torch.eye(6)
    owner = torch.arange(30) // 5
    texts = features[owner]
    i2t, t2i = score(features, texts, torch.arange(30), owner)
    found = metrics(i2t, t2i)
    assert found["mean_recall"] == 100
    assert (found["images"], found["captions"]) == (6, 30)


def test_nan_is_an_error_not_a_recall():
    features = torch.full((2, 4), torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        score(features, features, torch.arange(2), torch.arange(2))


@pytest.mark.parametrize("dim", [7, 8])
def test_the_first_of_equal_embeddings_is_found(dim):
    rows = torch.randn(5, dim, generator=torch.Generator().manual_seed(0))
    rows[0], rows[1] = 0.0, -0.0
    picked = torch.tensor([2, 0, 3, 2, 1, 4, 2, 0])
    assert firsts(rows[picked]).tolist() == [0, 1, 2, 0, 1, 5, 0, 1]
