"""One run as settings: `RunSpec`, its text in run.yaml, and its content-hashed id. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

import methods
from bench import data
from bench.config import backbones, hub
from bench.config.document import Document, Dumper, read_document
from bench.config.parse import parse
from bench.config.settings import (
    AnyDataset,
    BackboneSettings,
    BehaviourSettings,
    CoreSettings,
    EvaluationSettings,
    Settings,
    TrainSettings,
    dataset_class,
    describe_dataset,
)
from methods import losses
from methods.base import Method, describe
from methods.losses import Loss

# Raised when the same `train.augment` gives other pictures. 2: RandAugment as released with HarMA, and crops of small
# pictures from their own pixels.
AUGMENTATION = 2
RUN_ID = re.compile(r".+-s\d+-[0-9a-f]{8}")


@dataclass(frozen=True)
class RunSpec:
    """One run, fully resolved: its `to_dict()` alone reproduces it."""

    sweep: str
    dataset: AnyDataset
    backbone: BackboneSettings
    method: Method
    loss: Loss
    train: TrainSettings
    seed: int
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    core: CoreSettings = field(default_factory=CoreSettings)
    behaviour: BehaviourSettings = field(default_factory=BehaviourSettings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in run.yaml and result.json. What came later is there only where it is set: ids stay."""
        evaluation = self.evaluation.model_dump(mode="json", exclude_defaults=True)
        behaviour = self.behaviour.model_dump(mode="json", exclude_defaults=True)
        return {
            "sweep": self.sweep,
            "dataset": describe_dataset(self.dataset),
            "backbone": self.backbone.model_dump(mode="json"),
            "method": describe(self.method),
            "loss": describe(self.loss),
            "train": self.train.model_dump(mode="json"),
            "seed": self.seed,
            **({"evaluation": evaluation} if evaluation else {}),
            "core": self.core.model_dump(mode="json"),
            **({"behaviour": behaviour} if behaviour else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], document: Document | None = None) -> RunSpec:
        """The inverse of `to_dict`; UserError for what does not fit."""
        document = document or Document(data, {(): "run"})
        flat = parse(_Run, data, "run", document)

        def named(section: str, registry: Any) -> Any:
            settings = dict(getattr(flat, section))
            found = registry.get(str(settings.pop("name", "")))
            return parse(found, settings, section, document, (section,))

        method, loss = named("method", methods), named("loss", losses)
        dataset: AnyDataset = parse(dataset_class(flat.dataset), flat.dataset, "dataset", document, ("dataset",))
        parts = flat.train, flat.seed, flat.evaluation, flat.core, flat.behaviour
        return cls(flat.sweep, dataset, flat.backbone, method, loss, *parts)

    @classmethod
    def load(cls, path: Path) -> RunSpec:
        """Read a run.yaml; UserError, with file and line, for what does not fit."""
        document = read_document(path)
        return cls.from_dict(document.data, document)

    def dump(self) -> str:
        """The text of run.yaml."""
        return yaml.dump(self.to_dict(), Dumper=Dumper, sort_keys=False, allow_unicode=True)

    def trainable_params(self) -> int | None:
        """Closed form of what the run trains, the loss's own parameters included; None where none is known."""
        count = self.method.trainable_params(backbones.model_shape(self.backbone.model))
        return count if count is None or not self.method.trains else count + self.loss.params

    @cached_property
    def run_id(self) -> str:
        """`<method>[-<settings that differ from the defaults>]-s<seed>-<hash8>`, safe as a folder's name.

        The hash covers all settings, and data and weights by content. It does not cover the sweep's name, the paths of
        data and weights, a dataset's title, the number of loaders, `core`, `behaviour`, and settings that came later
        (`Settings.added`) at their defaults. UserError if data or weights are missing.
        """
        content = replace(self, behaviour=BehaviourSettings()).to_dict()
        del content["sweep"], content["core"], content["train"]["workers"]
        parts = {"dataset": self.dataset, "backbone": self.backbone, "method": self.method, "loss": self.loss}
        for part, settings in {**parts, "train": self.train}.items():
            for key in set(settings.added) - _departures(settings).keys():
                del content[part][key]
        if self.train.augment != "none":
            content["augmentation"] = AUGMENTATION
        for key in ("root", "annotations", "file", "title", "exclude"):
            content["dataset"].pop(key, None)
        if backbones.is_file(self.backbone.weights):
            del content["backbone"]["weights"]
        if hub.scheme(self.backbone.model) == hub.LOCAL:
            del content["backbone"]["model"]
        content["identity"] = [data_identity(self.dataset), weights_identity(self.backbone)]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return "-".join([*self._short(), f"s{self.seed}", digest])

    def own(self) -> list[str]:
        """The settings of method and loss that are not the defaults, with dotted keys: `["method.rank"]`."""
        parts: dict[str, Settings] = {"method": self.method, "loss": self.loss}
        return [f"{part}.{key}" for part, settings in parts.items() for key in _departures(settings)]

    def _short(self) -> Iterator[str]:
        yield _safe(self.method.name)[:100]
        parts = _differing(self.method)
        if self.loss.name != self.method.default_loss:
            parts.append(self.loss.name)
        parts += _differing(self.loss)
        if self.train.lr != TrainSettings().lr:
            parts.append(f"lr{self.train.lr:g}")
        if self.evaluation.interpolate:
            parts.append("interpolated")
        if self.evaluation.protocol != "strict":
            parts.append(self.evaluation.protocol)
        if not self.evaluation.test:
            parts.append("trial")
        if parts:
            yield _safe("-".join(parts))[:60].rstrip("-")


# The train settings that matter for a method that does not train.
EVALUATION = ("augment", "captions", "eval_batch_size", "workers")


def untrained(spec: RunSpec) -> RunSpec:
    """The one run of a method that does not train: seed 0, default loss, evaluation settings only."""
    kept = {key: getattr(spec.train, key) for key in EVALUATION}
    loss = losses.get(spec.method.default_loss)()
    return replace(spec, seed=0, loss=loss, train=TrainSettings(**kept), evaluation=EvaluationSettings())


class _Run(Settings):
    sweep: str
    dataset: dict[str, Any]
    backbone: BackboneSettings
    method: dict[str, Any]
    loss: dict[str, Any]
    train: TrainSettings
    seed: int
    evaluation: EvaluationSettings = EvaluationSettings()
    core: CoreSettings = CoreSettings()
    behaviour: BehaviourSettings = BehaviourSettings()


@cache
def data_identity(dataset: AnyDataset) -> str:
    """`bench.data.identity`, computed once in a process: the annotation files must not change in the meantime."""
    return data.identity(dataset)


@cache
def weights_identity(backbone: BackboneSettings) -> str:
    """`bench.config.backbones.identity`, computed once in a process."""
    return backbones.identity(backbone)


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text)


def _departures(settings: Settings) -> dict[str, Any]:
    """The settings that are not their defaults; one without a default is among them."""
    fields = type(settings).model_fields
    given = {key: getattr(settings, key) for key in fields} | (settings.model_extra or {})
    found = {}
    for key, value in given.items():
        field = fields.get(key)
        if field is None or field.is_required() or value != field.get_default(call_default_factory=True):
            found[key] = value
    return found


def _differing(settings: Settings) -> list[str]:
    found = []
    for key, value in _departures(settings).items():
        shown = "+".join(map(str, value)) if isinstance(value, tuple | list) else value
        found.append(f"{key}{shown:g}" if isinstance(shown, float) else f"{key}{shown}")
    return found
