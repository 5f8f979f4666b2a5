"""The best items of every query: by the ranks' scores, with ties in an order that prefers nothing, and their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.config.errors import UserError
from bench.core import evaluate, found
from bench.core.evaluate import best, best_items, counts
from bench.core.found import BEST, Found
from tests.test_retrieval import embeddings_with_ties


def by_definition(scores: np.ndarray) -> list[list[int]]:
    """The best items of each row: by score, then by the order of ties."""
    order = np.arange(scores.shape[1]) * 2654435761 % 2**32
    return [np.lexsort((-order, -row))[:BEST].tolist() for row in scores]


@pytest.mark.parametrize("block", [2**26, 1500, 200])
def test_the_best_items_are_those_of_the_whole_matrix_for_any_block(monkeypatch, block):
    image, text, caption_text, caption_image = given = embeddings_with_ties(37, 90, 230)
    monkeypatch.setattr(evaluate, "BLOCK", block)
    top = best(image, text, caption_text)
    scores = (image @ text.T)[:, caption_text].numpy()
    assert top.captions.tolist() == by_definition(scores)
    assert top.images.tolist() == by_definition(scores.T)

    _, t2i, _ = counts(*given)
    for caption, (above, tied, _) in enumerate(t2i.T.tolist()):
        place = np.flatnonzero(top.images[caption] == int(caption_image[caption]))
        assert above <= place[0] <= above + tied if len(place) else above + tied >= BEST


def test_ties_prefer_neither_the_first_nor_the_last_items():
    """A collapsed model finds items from all over the dataset, and so the right one by chance."""
    items = best_items(torch.zeros(2, 1000))
    assert items[0].tolist() == items[1].tolist()
    assert items[0].min() < 250
    assert items[0].max() > 750
    assert best_items(torch.tensor([[-0.0, 0.0, 1.0, -1.0]]))[0, 0] == 2
    assert best_items(torch.tensor([[-0.0, 0.0, 1.0, -1.0]]))[0, 3] == 3


def test_the_file_holds_what_was_written_and_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "top.npz"
    rng = np.random.default_rng(0)
    written = Found(rng.integers(0, 300, (60, 10)), rng.integers(0, 60, (300, 10)))
    path.write_bytes(found.to_npz(written))
    read = found.from_npz(path)
    assert (read.captions == written.captions).all()
    assert (read.images == written.images).all()
    assert np.load(path)["images"].dtype == np.uint8
    for content in (b"", b"PK", found.to_npz(Found(written.captions, written.images[:200]))):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"top\.npz"):
            found.from_npz(path)
