"""Taps: what a head reads of its frozen tower, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch

import methods
from bench.conformance.tiny import CLASSES, backbone, batch
from bench.core.taps import Tap


def tapped(kind: str):
    """A tiny model with UniPT, whose heads are at random weights."""
    model = backbone(kind)
    torch.manual_seed(0)
    methods.get("unipt")(dim=6, start="random").attach(model)
    return model


def taps(head) -> list[Tap]:
    return [module for module in head.modules() if isinstance(module, Tap)]


def test_a_tap_passes_its_input_on_and_gives_it_once():
    tap, x = Tap(), torch.randn(2, 3)
    assert tap(x) is x
    assert tap.take() is x
    with pytest.raises(RuntimeError, match="a tap is empty"):
        tap.take()


def test_a_copy_starts_with_empty_taps():
    tap = Tap()
    tap(torch.ones(1, requires_grad=True) * 2)  # a tensor that copy.deepcopy refuses
    assert copy.deepcopy(tap).kept is None
    assert tap.kept is not None


@pytest.mark.parametrize("kind", CLASSES)
def test_nothing_goes_back_through_the_frozen_towers(kind):
    model, data = tapped(kind).train(), batch()
    model.clip.encode_image(data.images)
    model.text_head.ids(data.tokens)
    model.clip.encode_text(data.tokens)
    for head in (model.image_head, model.text_head):
        assert not any(tap.kept.requires_grad for tap in head.states)
        assert [len(head.states), len({id(tap.kept) for tap in head.states})] == [len(head.down)] * 2


@pytest.mark.parametrize("kind", CLASSES)
def test_a_head_can_be_fed_from_kept_activations(kind):
    """A head reads its embedding and its taps alone, so that the tower need not run again."""
    model, data = tapped(kind), batch()
    with torch.no_grad():
        whole = model(data.images, data.tokens)
        embeddings = model.clip.encode_image(data.images), model.clip.encode_text(model.text_head.ids(data.tokens))
    for head, embedding, expected in zip(
        (model.image_head, model.text_head), embeddings, (whole.image, whole.text), strict=True
    ):
        kept = [tap.take() for tap in taps(head)]
        fresh = copy.deepcopy(head)
        for tap, tensor in zip(taps(fresh), kept, strict=True):
            tap.kept = tensor
        found = torch.nn.functional.normalize(fresh(embedding).detach(), dim=-1)
        assert torch.allclose(found, expected, atol=1e-6)
