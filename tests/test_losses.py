"""Losses against plain loops written from the papers' formulas."""

import math

import pytest
import torch

from bench.core.model import Features
from methods import losses
from methods.losses.harma import adaptive_triplet
from methods.losses.info_nce import info_nce
from methods.losses.triplet import hardest_triplet
from tests.test_backbone import tiny


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 8, generator=generator), torch.randn(5, 8, generator=generator)
    return tuple(torch.nn.functional.normalize(x, dim=-1).requires_grad_() for x in (a, b))


def cosine(a, b):
    return [[sum(x * y for x, y in zip(u, v, strict=True)) for v in b.tolist()] for u in a.tolist()]


def cross_entropy(logits, targets):
    rows = []
    for row, target in zip(logits, targets, strict=True):
        total = math.log(sum(math.exp(x) for x in row))
        rows.append(sum(t * (total - x) for x, t in zip(row, target, strict=True)))
    return sum(rows) / len(rows)


@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 1]])
def test_info_nce(pair, ids):
    s = [[20 * x for x in row] for row in cosine(*pair)]
    same = [[float(i == j if ids is None else ids[i] == ids[j]) for j in range(5)] for i in range(5)]
    targets = [[x / sum(row) for x in row] for row in same]
    wanted = (cross_entropy(s, targets) + cross_entropy(list(map(list, zip(*s, strict=True))), targets)) / 2
    got = info_nce(*pair, torch.tensor(20.0), None if ids is None else torch.tensor(ids))
    assert got.item() == pytest.approx(wanted, rel=1e-5)


def test_hardest_triplet(pair):
    s = cosine(*pair)
    wanted = sum(
        max(max(0, 0.2 + s[i][j] - s[i][i]) for j in range(5) if j != i)
        + max(max(0, 0.2 + s[j][i] - s[i][i]) for j in range(5) if j != i)
        for i in range(5)
    )
    assert hardest_triplet(*pair, 0.2).item() == pytest.approx(wanted, rel=1e-5)


def test_adaptive_triplet(pair):
    s = cosine(*pair)

    def weighted(c):
        return (1 - math.exp(-c)) ** 2 * c

    wanted = 0.5 * sum(
        weighted(max(0, 0.2 + s[i][j] - s[i][i])) + weighted(max(0, 0.2 + s[j][i] - s[i][i]))
        for i in range(5)
        for j in range(5)
        if i != j
    )
    got = adaptive_triplet(*pair, 0.2)
    assert got.item() == pytest.approx(wanted, rel=1e-5)
    got.backward()
    assert pair[0].grad is not None
    assert torch.isfinite(pair[0].grad).all()


def test_identical_pairs_leave_no_violation():
    features = torch.eye(4)
    assert float(hardest_triplet(features, features, 0.2)) == 0
    assert float(adaptive_triplet(features, features, 0.2)) == 0


def test_the_temperature_of_harma_never_crosses_zero():
    model = tiny()
    loss = losses.get("harma")()
    loss.attach(model)
    temperature = model.extras["temperature"]
    embeddings = torch.nn.functional.normalize(torch.randn(3, 8), dim=-1)
    for start in (-0.5, 0.0, 1e-5):
        with torch.no_grad():
            temperature.fill_(start)
        value = loss(Features(embeddings, embeddings), torch.arange(3), model)
        assert float(temperature.detach()) == pytest.approx(1e-3)
        value.backward()  # and it can be trained away from there
        assert torch.isfinite(temperature.grad)
