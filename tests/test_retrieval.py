"""Recall on matrices worked out by hand, with and without ties."""

import math

import numpy as np
import pytest
import torch

from bench.core.evaluate import ranks_from_scores, score
from bench.core.ranks import metrics


def eye_mask(images: int, captions_each: int) -> torch.Tensor:
    owner = torch.arange(images * captions_each) // captions_each
    return torch.arange(images)[:, None] == owner[None, :]


def test_two_by_four_by_hand():
    # Image 0 owns captions 0, 1; image 1 owns captions 2, 3.
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.8, 0.7, 0.6, 0.1]])
    i2t = ranks_from_scores(scores, eye_mask(2, 2))
    t2i = ranks_from_scores(scores.T, eye_mask(2, 2).T)
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
    i2t = ranks_from_scores(scores, eye_mask(4, 2))
    assert i2t.expected.tolist() == [7, 6, 1, 3]
    assert [i2t.recall(k) for k in (1, 5, 10)] == [25, 50, 100]


def test_a_tie_counts_by_its_chance():
    # The one correct item ties with two wrong ones behind one better: rank 2, 3 or 4 with chance 1/3 each.
    ranks = ranks_from_scores(torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1]]), torch.tensor([[0, 1, 0, 0, 0]]) == 1)
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
    ranks = ranks_from_scores(scores, correct)
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
