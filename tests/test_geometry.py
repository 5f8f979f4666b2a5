"""The geometry of embeddings, drift and classification by names, each against plain numpy."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch

from bench.core import geometry


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    found = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)) + 0.3
    return torch.nn.functional.normalize(found, dim=-1)


IMAGES, TEXTS = unit(7, 5, 0), unit(14, 5, 1)
OWNER = torch.arange(7).repeat_interleave(2)
CLASSES = torch.tensor([0, 1, 0, -1, 2, 1, 0])


def test_gap_and_alignment():
    x, y = IMAGES.double().numpy(), TEXTS.double().numpy()
    gap = math.sqrt(sum((a - b) ** 2 for a, b in zip(x.mean(0), y.mean(0), strict=True)))
    assert geometry.modality_gap(IMAGES, TEXTS) == pytest.approx(gap)
    apart = [sum((x[i // 2] - y[i]) ** 2) for i in range(14)]
    assert geometry.alignment(IMAGES, TEXTS, OWNER) == pytest.approx(sum(apart) / 14, rel=1e-5)


@pytest.mark.parametrize("block", [1, 3, 1024])
def test_one_modality(block, monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK", block)
    found = geometry.modality(IMAGES, CLASSES)
    x = IMAGES.double().numpy()
    pairs = list(itertools.combinations(range(7), 2))
    kernel = [math.exp(-2 * ((x[i] - x[j]) ** 2).sum()) for i, j in pairs]
    assert found.uniformity == pytest.approx(math.log(np.mean(kernel)), rel=1e-5)
    assert found.similarity == pytest.approx(np.mean([x[i] @ x[j] for i, j in pairs]), rel=1e-5)
    alike = [x[i] @ x[j] for i, j in pairs if CLASSES[i] == CLASSES[j] >= 0]
    assert len(alike) == 4
    assert found.class_similarity == pytest.approx(np.mean(alike), rel=1e-5)
    singular = np.linalg.svd(x, compute_uv=False)
    shares = singular / singular.sum()
    assert found.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-5)


def test_extremes():
    same, apart = torch.eye(4)[:1].repeat(6, 1), torch.eye(4)
    equal, spread = geometry.modality(same), geometry.modality(apart)
    assert (equal.uniformity, equal.similarity, equal.effective_rank) == pytest.approx((0, 1, 1), abs=1e-5)
    assert (spread.uniformity, spread.similarity, spread.effective_rank) == pytest.approx((-4, 0, 4), abs=1e-5)
    assert equal.class_similarity is None
    assert geometry.modality(same[:1]) is None
    assert geometry.class_similarity(apart, torch.tensor([0, 1, 2, -1])) is None
    assert geometry.class_similarity(apart, torch.full((4,), -1)) is None


def test_drift():
    assert geometry.drift(IMAGES, IMAGES) == pytest.approx(0, abs=1e-6)
    assert geometry.drift(IMAGES, -IMAGES) == pytest.approx(2)
    assert geometry.drift(torch.eye(4)[:2], torch.eye(4)[[0, 2]]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "label", ["sparse_residential", "SparseResidential", "sparse-residential ", "sparse residential"]
)
def test_class_names(label):
    assert geometry.class_name(label) == "sparse residential"
    assert geometry.prompts(["x", label], ["{}.", "a {}"])[2:] == ["sparse residential.", "a sparse residential"]


def test_accuracy_by_hand_and_ties():
    count = 3
    prompted = torch.eye(4)[[0] * count + [1] * count + [2] * count]
    images = torch.eye(4)[[0, 0, 0, 1, 3]]  # the last ties among all three classes
    top, mean = geometry.accuracy(images, prompted, torch.tensor([0, 0, 1, 1, 1]), 3)
    assert top == pytest.approx(100 * (1 + 1 + 0 + 1 + 1 / 3) / 5)
    assert mean == pytest.approx(100 * (1 + (0 + 1 + 1 / 3) / 3) / 2), "the class without images does not count"


def test_a_class_is_the_mean_of_its_prompts():
    mixed = torch.eye(3)[[1, 0, 0, 1, 1, 1]]
    top, _ = geometry.accuracy(torch.eye(3)[[0, 1]], mixed, torch.tensor([0, 1]), 2)
    assert top == 100


def test_the_size_of_rsicd_takes_no_time():
    images, texts = unit(1093, 512, 2), unit(5465, 512, 3)
    start = time.process_time()
    geometry.modality(images), geometry.modality(texts, torch.arange(5465) % 30)
    assert time.process_time() - start < 5, "about half a second, and the machine may be loaded"
