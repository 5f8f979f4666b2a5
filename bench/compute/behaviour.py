"""What adaptation did to a model: its test set and others, by the frozen backbone and by the adapted model."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import methods
from bench import data
from bench.compute import adapted
from bench.compute.build import deterministic, shortcuts_of
from bench.config.errors import GpuLost, UserError
from bench.config.files import write_bytes
from bench.core import geometry, ranks
from bench.core.evaluate import encode, score
from bench.core.inputs import Inputs
from bench.core.weights import Backbone, load_backbone
from bench.data import Dataset
from bench.data.captions import clean
from bench.plan.spec import RunSpec
from bench.store import behaviour as store
from bench.store import openings
from bench.store.behaviour import Classification, Geometry, Measured, Role, TestSet
from bench.store.record import Scores


@dataclass(frozen=True)
class Embedded:
    """One model's L2-normalised float32 embeddings of a test set: of its images, of each caption, of its prompts."""

    images: Tensor
    captions: Tensor
    prompts: Tensor


@dataclass(frozen=True)
class _Set:
    """A test set as one backbone takes it: which image a caption belongs to, each image's class from 0, else -1.

    names: of the classes, if images are to be classified by them; else empty.
    """

    inputs: Inputs
    owner: Tensor
    classes: Tensor
    names: tuple[str, ...]
    templates: tuple[str, ...]


def record(
    run_dir: Path, spec: RunSpec, model: Backbone, dataset: Dataset, prepared: dict[Hashable, Any]
) -> list[TestSet]:
    """Measure what the run's settings ask for of its adapted model, and write it to the run's folder.

    dataset: the run's own. prepared: what was read of it for this backbone, and kept for the next run on both. What
    can't be measured is noted in the file, and the run goes on.
    """
    asked = asked_of(spec)
    found = measure(run_dir, spec, model, dataset, prepared) if asked else []
    if asked:
        store.write(run_dir, found, asked)
    return found


def asked_of(spec: RunSpec) -> dict[str, Any]:
    """The run's settings of this kind as plain data; empty if nothing is asked for."""
    return spec.behaviour.model_dump(mode="json", exclude_defaults=True)


class Finished:
    """Measures finished runs, of which datasets and the frozen backbones' embeddings are kept for the next one."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Dataset, dict[Hashable, Any]]] = {}

    def record(self, run_dir: Path, spec: RunSpec) -> list[TestSet]:
        """As `record`, of the adapted model in the run's folder. UserError if it is no longer the one that was scored.

        `spec`: the run's, with what is asked for now.
        """
        found = adapted.load(run_dir)
        key = spec.dataset.model_dump_json() + spec.backbone.model_dump_json()
        if key not in self.kept:
            self.kept = {key: (data.load(spec.dataset), {})}
        dataset, prepared = self.kept[key]
        if dataset.sha256 != found.provenance["dataset_sha256"]:
            raise UserError(f"the annotations of {dataset.name} have changed since {run_dir} was scored")
        openings.note(run_dir, protocol=spec.evaluation.protocol, epoch=found.epoch, why=openings.MEASURED)
        with deterministic():
            return record(run_dir, spec, found.backbone, dataset, prepared)


def measure(
    run_dir: Path, spec: RunSpec, model: Backbone, dataset: Dataset, prepared: dict[Hashable, Any]
) -> list[TestSet]:
    """What the run's settings ask for, of its adapted model: its own test set first. Ranks go to the run's folder."""
    own = replace(dataset, train=(), val=(), sha256=data.test_sha256(dataset.test))
    found, device = [], next(model.model.parameters()).device
    for role, name, load in _asked(spec, own):
        try:
            dataset = load()
            if role == "own" or dataset.test != own.test:
                key = ("behaviour", dataset.sha256)
                kept = prepared if role == "own" else prepared.setdefault(key, {})
                found.append(_test_set(run_dir, role, dataset, spec, model, kept))
        except GpuLost:
            raise
        except Exception as error:
            if device.type == "cuda":
                torch.cuda.synchronize()  # a GPU that is lost is not a missing measure: this raises
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            found.append(TestSet(role=role, dataset=name, note=reason))
    return found


def _asked(spec: RunSpec, own: Dataset) -> Iterator[tuple[Role, str, Any]]:
    """Each test set that is asked for: its role, its name, and what loads it."""
    if spec.behaviour.geometry or spec.behaviour.classify:
        yield "own", own.name, lambda: own
    roles: tuple[Role, ...] = ("evaluate", "forgetting")
    for role in roles:
        for settings in getattr(spec.behaviour, role):
            yield role, settings.called, lambda settings=settings: data.load_test(settings)


def _test_set(
    run_dir: Path, role: Role, dataset: Dataset, spec: RunSpec, model: Backbone, prepared: dict[Hashable, Any]
) -> TestSet:
    """The frozen backbone and the adapted model on one test set."""
    device = next(model.model.parameters()).device
    inputs = _inputs(spec, dataset, model, device, prepared)
    key = ("frozen", dataset.sha256, spec.train.captions, inputs.resize, str(device), _asked_prompts(spec))
    if key not in prepared:
        plain = replace(spec, method=methods.get("zero_shot")())
        frozen = load_backbone(spec.backbone)
        frozen.model.to(device)
        prepared[key] = _embed(_set(plain, _inputs(plain, dataset, frozen, device, prepared)))
    before, here = prepared[key], _set(spec, inputs)
    after = _embed(here)
    same = before.images.shape == after.images.shape
    measured: dict[str, Any] = {}
    for side, embedded in zip(store.SIDES, (before, after), strict=True):
        found = _ranks(embedded, here)
        write_bytes(store.ranks_file(run_dir, dataset.sha256, side), ranks.to_npz(found))
        measured[side] = _measured(spec, embedded, here, found)
    return TestSet(
        role=role,
        dataset=dataset.name,
        sha256=dataset.sha256,
        **measured,
        drift_image=geometry.drift(after.images, before.images) if same else None,
        drift_text=geometry.drift(after.captions, before.captions) if same else None,
    )


def _inputs(
    spec: RunSpec, dataset: Dataset, backbone: Backbone, device: torch.device, prepared: dict[Hashable, Any]
) -> Inputs:
    short = shortcuts_of(spec, backbone.model)
    return Inputs(dataset, backbone, spec.train, device, prepared=prepared, shortcuts=short, core=spec.core)


def _asked_prompts(spec: RunSpec) -> tuple[str, ...]:
    return spec.behaviour.templates if spec.behaviour.classify else ()


def _set(spec: RunSpec, inputs: Inputs) -> _Set:
    items = inputs.items("test")
    names = sorted({item.label for item in items if item.label})
    classes = [names.index(item.label) if item.label else -1 for item in items]
    owner = inputs.eval_set("test").caption_image.to(inputs.device)
    asked = tuple(names) if spec.behaviour.classify and len(names) > 1 else ()
    return _Set(inputs, owner, torch.tensor(classes, device=inputs.device), asked, spec.behaviour.templates)


@torch.inference_mode()
def _embed(test: _Set) -> Embedded:
    """What the model of these inputs gives for the test set, and for the prompts of its classes."""
    inputs = test.inputs
    split = inputs.eval_set("test")
    said = [clean(each, inputs.settings.captions) for each in geometry.prompts(test.names, test.templates)]
    tokens = inputs.backbone.tokenizer(said) if said else None

    def texts() -> Iterator[Any]:
        yield from split.texts()
        if tokens is not None:
            yield from map(inputs.send, tokens.split(inputs.settings.eval_batch_size))

    images, found = encode(inputs.backbone.model, replace(split, texts=texts))
    count = len(found) - len(said)
    return Embedded(images, found[:count][split.caption_text.to(found.device)], found[count:])


def _ranks(found: Embedded, test: _Set) -> ranks.Saved:
    """The ranks of every query by one model's embeddings."""
    split = test.inputs.eval_set("test")
    of_caption = split.caption_text.to(found.captions.device)
    row = torch.empty(int(of_caption.max()) + 1, dtype=torch.long, device=of_caption.device)
    row[of_caption] = torch.arange(len(of_caption), device=of_caption.device)  # one caption of each different text
    i2t, t2i = score(found.images, found.captions[row], of_caption, test.owner)
    return ranks.Saved(i2t, t2i, np.array([len(item.captions) for item in test.inputs.items("test")]))


def _measured(spec: RunSpec, found: Embedded, test: _Set, ranked: ranks.Saved) -> Measured:
    """The measures of one model's embeddings."""
    return Measured(
        scores=Scores.model_validate(ranks.metrics(ranked.i2t, ranked.t2i)),
        geometry=_geometry(found, test) if spec.behaviour.geometry else None,
        classification=_classification(found, test) if test.names else None,
    )


def _geometry(found: Embedded, test: _Set) -> Geometry:
    sides = geometry.modality(found.images, test.classes), geometry.modality(found.captions, test.classes[test.owner])
    image, text = (store.Modality(**asdict(side)) if side else None for side in sides)
    return Geometry(
        modality_gap=geometry.modality_gap(found.images, found.captions),
        alignment=geometry.alignment(found.images, found.captions, test.owner),
        image=image,
        text=text,
    )


def _classification(found: Embedded, test: _Set) -> Classification:
    known = test.classes >= 0
    top, each = geometry.accuracy(found.images[known], found.prompts, test.classes[known], len(test.names))
    return Classification(accuracy=top, mean_per_class=each, classes=len(test.names), images=int(known.sum()))
