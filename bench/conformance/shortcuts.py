"""Checks that what the core leaves out (`bench.core.shortcuts`) changes nothing: embeddings, gradients, training."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.config.settings import TrainSettings
from bench.conformance.subject import CLOSE, Skip, Subject, built, distance, on_method
from bench.conformance.tiny import CLASSES, Pairs, batch, eval_set
from bench.core import shortcuts
from bench.core.feed import ImageFeed, Source, TextFeed
from bench.core.model import DualEncoder
from bench.core.prefix_cache import PrefixCache
from bench.core.shortcuts import Shortcuts
from bench.core.state import StateFiles
from bench.core.train import Batch, TrainBatches, fit
from methods import losses


@on_method
def check_shortcuts_change_nothing(subject: Subject) -> None:
    """Short captions and cached activations give the numbers of whole inputs, and the same training, dropout aside."""
    if subject.loss.second_view is not None:  # other random numbers for other lengths
        loss = built(losses.get("info_nce"), {})
        subject = Subject(subject.label, subject.kind, subject.method, loss)
    model, pairs = _without_dropout(subject), _pairs()
    assert subject.method is not None
    found = shortcuts.find(model, trims_text=subject.method.trims_text, second_view=None)
    if found == Shortcuts():
        raise Skip("there is nothing to leave out")
    shortened = copy.deepcopy(model)
    shortcuts.apply(shortened, found)
    plain, short = _feed(model, pairs, Shortcuts()), _feed(shortened, pairs, found)
    everything = torch.arange(len(pairs.images))
    _compare_features((model.eval(), shortened.eval()), (plain(everything), short(everything)), f"with {found}")
    if not model.trainable():
        return
    _compare_gradients(subject, (model.train(), shortened.train()), (plain(everything), short(everything)))
    if subject.kind == CLASSES[0]:  # what the loop does is the same on the others
        _compare_trainings(subject, pairs, found)


def _compare_trainings(subject: Subject, pairs: Pairs, found: Shortcuts) -> None:
    everything, trained = torch.arange(len(pairs.images)), []
    for each in (Shortcuts(), found):
        model = _without_dropout(subject)
        shortcuts.apply(model, each)
        feed = _feed(model, pairs, each)
        _train(subject, model, feed)
        trained.append(model)
        both = _feed(model, pairs, Shortcuts())(everything), feed(everything)
        _compare_features((model.eval(), model), both, "after training")
    one, other = (_feed(model, pairs, Shortcuts())(everything) for model in trained)
    with torch.no_grad():
        features = [model(data.images, data.tokens) for model, data in zip(trained, (one, other), strict=True)]
    moved = max(distance(features[0].image, features[1].image), distance(features[0].text, features[1].text))
    assert moved < 10 * CLOSE, f"training with shortcuts leads to embeddings that differ by {moved:.1e}"


def _pairs() -> Pairs:
    """Twelve pairs, in which captions and pictures repeat; none of the captions fills the context."""
    parts = [batch(1), batch(2), batch(1)]
    ids = torch.cat([part.image_ids for part in parts])
    return Pairs(torch.cat([part.images for part in parts]), torch.cat([part.tokens for part in parts]), ids)


def _without_dropout(subject: Subject) -> DualEncoder:
    model = subject.attached(perturbed=True, train=True)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    with torch.no_grad():
        once, again = (model(batch().images, batch().tokens) for _ in range(2))
    if not torch.equal(once.image, again.image) or not torch.equal(once.text, again.text):
        raise Skip("in training it is random beside its dropout layers")
    return model


@dataclass(frozen=True)
class _Feed:
    """Batches of these pairs by index, with what is left out of them."""

    images: ImageFeed
    texts: TextFeed
    image_ids: Tensor

    def __call__(self, index: Tensor) -> Batch:
        return Batch(self.images(index), self.texts(index), self.image_ids[index])


def _feed(model: DualEncoder, pairs: Pairs, found: Shortcuts) -> _Feed:
    def send(tensor: Tensor) -> Tensor:
        return tensor

    source = Source(model, PrefixCache(None, {}, torch.device("cpu"), 0.0), (), send)
    return _Feed(
        ImageFeed(
            source,
            [],
            lambda index: pairs.images[index],
            lambda: iter([pairs.images]),
            depth=found.image,
            pooled="image" in found.pooled,
        ),
        TextFeed(source, pairs.tokens, cut=found.cuts_text, depth=found.text, pooled="text" in found.pooled),
        pairs.image_ids,
    )


def _train(subject: Subject, model: DualEncoder, feed: _Feed) -> None:
    """Three steps in the core's own loop, with an eps that keeps gradients of rounding alone from being steps."""
    settings = TrainSettings(epochs=1, batch_size=4, lr=1e-2, warmup=0.0, schedule="constant", eps=1e-3)

    def batches(epoch: int, skip: int) -> Iterator[Batch]:
        yield from map(feed, torch.randperm(12, generator=torch.Generator().manual_seed(epoch)).split(4)[skip:])

    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        fit(
            model,
            loss=subject.loss,
            batches=TrainBatches(batches, per_epoch=3),  # type: ignore[arg-type]
            validation=eval_set(),
            settings=settings,
            seed=0,
            files=StateFiles(Path(folder) / "state.pt"),
        )


def _compare_features(models: tuple[DualEncoder, DualEncoder], batches: tuple[Batch, Batch], when: str) -> None:
    with torch.no_grad():
        one, other = (model(data.images, data.tokens) for model, data in zip(models, batches, strict=True))
    for side, moved in (("image", distance(one.image, other.image)), ("text", distance(one.text, other.text))):
        assert moved < CLOSE, f"the {side} embeddings move by {moved:.1e} {when}"


def _compare_gradients(subject: Subject, models: tuple[DualEncoder, DualEncoder], batches: tuple[Batch, Batch]) -> None:
    found = []
    for model, data in zip(models, batches, strict=True):
        model.zero_grad(set_to_none=True)
        value = subject.loss_of(model, data)
        value.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.trainable().values()]
        found.append([value.detach(), *grads])
    for name, one, other in zip(["the loss", *model.trainable()], *found, strict=True):
        scale = 1 + float(one.abs().max())
        assert distance(one, other) < CLOSE * scale, f"{name} has another value or gradient with shortcuts"
