"""Shuffled training captions: how many, which, where they go; and that nothing else changes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from bench import data
from bench.config.errors import UserError
from bench.config.settings import CaptionSettings, DatasetSettings
from bench.data.annotations import Item
from bench.data.shuffle import shuffled
from bench.plan.spec import RunSpec

ITEMS = tuple(Item(f"{i}.png", tuple(f"{i}-{k}" for k in range(1 + i % 4))) for i in range(30))  # 73 captions


def moved(items, share, seed=0) -> set[tuple[int, int]]:
    found = shuffled(items, share, seed)
    assert [(len(a.captions), a.image, a.label) for a in found] == [(len(a.captions), a.image, a.label) for a in items]
    texts = [Counter(c for item in each for c in item.captions) for each in (items, found)]
    assert texts[0] == texts[1], "captions are permuted: none is lost and none is doubled"
    places = [(i, k) for i, item in enumerate(items) for k in range(len(item.captions))]
    changed = {(i, k) for i, k in places if found[i].captions[k] != items[i].captions[k]}
    for i, k in changed:
        assert found[i].captions[k] not in items[i].captions, "a moved caption is another image's"
    return changed


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 1.0])
def test_so_many_captions_get_another_image(share):
    assert len(moved(ITEMS, share)) == round(share * 73)


def test_shares_are_nested_and_seeds_differ():
    sets = [moved(ITEMS, share) for share in (0.1, 0.2, 0.4, 0.8)]
    assert all(small < large for small, large in pairwise(sets))
    assert moved(ITEMS, 0.4, seed=1) != sets[2]


def test_the_same_on_every_machine():
    """Pinned: another hash, order or rounding would make published shares incomparable."""
    found = shuffled(ITEMS[:6], 0.5, seed=3)
    assert [item.captions for item in found] == [
        ("1-0",),
        ("2-2", "1-1"),
        ("2-0", "2-1", "3-2"),
        ("3-0", "3-1", "0-0", "5-1"),
        ("4-0",),
        ("5-0", "3-3"),
    ]


def test_the_order_of_the_files_does_not_matter():
    straight = {item.image: item for item in shuffled(ITEMS, 0.5, 0)}
    assert {item.image: item for item in shuffled(ITEMS[::-1], 0.5, 0)} == straight


def test_collisions_are_swapped_away():
    """Few images with many captions: almost every neighbour is of the own image."""
    items = [Item(f"{i}.png", tuple(f"{i}-{k}" for k in range(40))) for i in range(2)]
    assert len(moved(items, 1.0)) == 80


def test_too_few_images():
    items = [Item("a.png", ("1", "2", "3")), Item("b.png", ("4",))]
    with pytest.raises(UserError, match=r"shuffle_captions 1: 4 of 4 captions can't all move to other images"):
        shuffled(items, 1.0, 0)


def both(root: Path) -> list[tuple[type, dict]]:
    return [
        (DatasetSettings, {"name": "ucm", "root": str(root), "split": "karpathy"}),
        (CaptionSettings, {"name": "captions", "root": str(root), "file": "dataset.json"}),
        (DatasetSettings, {"name": "demo"}),
    ]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_training_alone_changes(root, which):
    cls, given = both(root)[which]
    plain, seed = data.load(cls(**given)), data.load(cls(**given, shuffle_seed=5))
    noisy = data.load(cls(**given, shuffle_captions=0.4))
    assert (noisy.val, noisy.test) == (plain.val, plain.test)
    assert seed == plain, "without a share the seed means nothing"
    pairs = [[(item.image, c) for item in each.train for c in item.captions] for each in (plain, noisy)]
    assert sum(a != b for a, b in zip(*pairs, strict=True)) > 0.3 * len(pairs[0])
    assert noisy.sha256 != plain.sha256
    assert noisy.split == f"{plain.split}, 40% of training captions shuffled by seed 0"


def spec(root: Path, which: int, **dataset) -> RunSpec:
    given = {"sweep": "t", "backbone": {"model": "tiny-clip", "weights": "random"}, "method": {"name": "zero_shot"}}
    given |= {"loss": {"name": "info_nce"}, "train": {}, "seed": 0, "dataset": both(root)[which][1] | dataset}
    found = RunSpec.from_dict(given)
    assert RunSpec.from_dict(found.to_dict()) == found
    return found


@pytest.mark.parametrize("which", [0, 1, 2])
def test_run_ids(root, which):
    plain = spec(root, which).run_id
    assert spec(root, which, shuffle_captions=0.0).run_id == plain
    options = [{"shuffle_captions": share, "shuffle_seed": seed} for share in (0.2, 0.4) for seed in (0, 1)]
    assert len({spec(root, which, **each).run_id for each in options} | {plain}) == 5


@pytest.mark.parametrize("which", [0, 1, 2])
def test_run_ids_from_before_these_settings_stay(root, which):
    """A run's id is a hash of its settings as text, and of what identifies its data: both are as they were."""
    assert not any("shuffle" in key for key in spec(root, which).to_dict()["dataset"])
    identities = {data.identity(spec(root, which, shuffle_captions=share).dataset) for share in (0.0, 0.4)}
    assert len(identities) == 1
