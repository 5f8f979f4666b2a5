"""Every setting in words, from its type: key, default, values, meaning. docs/settings.md is made of it. No torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import methods
from bench.config.settings import (
    SCHEDULERS,
    BackboneSettings,
    BehaviourSettings,
    CaptionSettings,
    CoreSettings,
    DatasetSettings,
    EvaluationSettings,
    ReportSettings,
    Settings,
    TrainSettings,
    TuneSettings,
)
from bench.plan import recipes
from methods import losses
from methods.base import Method

KINDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}
NEEDED = "(give it)"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
INTRODUCTION = """\
# Settings

Every key of a sweep file. A list where one value is expected is an axis of the grid. `--set section.key=value` on the
command line overrides a key. This page is made from the types by `petl-bench methods --reference`, and a test checks
that it is current.

```yaml
name: rsitmd                                  # names the folders of results and report
recipe: common                                # settings by name; what follows overrides them key by key
dataset: {name: rsitmd, root: $RSITMD_ROOT}   # environment variables are filled in
backbone: {model: ViT-B-32-quickgelu, weights: openai}
train: {epochs: 20, lr: 2e-4}
loss: info_nce                                # for all methods, in place of each one's own
grid:
  seed: [0, 1, 2]
  budget: [0.1M, 1M]                          # trainable parameters: each method is brought to these counts
  method: [zero_shot, lora: {rank: [2, 8]}, harma: {preset: table, train: {lr: 1e-4}}]
slurm: {partition: gpu}
```

Beside its own settings, a method in the grid takes `preset`, `recipe`, `loss`, `train`, `evaluation`, `backbone` and
`dataset`, which hold for it alone.
"""

RECIPES = """\
Named settings with their source: a file each in `bench/plan/recipes/`. `recipe: name` at the top of a sweep file holds
for all its runs, `harma: {recipe: harma-released}` for one method. Of a key's values the last in this order wins: its
default, the sweep's recipe, the sweep's sections, an entry's recipe, the entry's own settings, `--set`. The table of a
report names each row's recipe, marks the rows that depart from theirs, and lists the keys."""


@dataclass(frozen=True)
class Setting:
    """One key: its default and the values that it takes, in words, and its meaning."""

    key: str
    default: str
    values: str
    meaning: str


def settings_of(cls: type[Settings]) -> list[Setting]:
    """The settings of a block, a method or a loss, in their order."""
    schema = cls.model_json_schema()
    required = schema.get("required", [])
    return [
        Setting(
            key,
            "(give it)"
            if key in required
            else plain(found.get("default", {} if found.get("type") == "object" else None)),
            values(found),
            found.get("description", ""),
        )
        for key, found in schema.get("properties", {}).items()
    ]


def plain(value: Any) -> str:
    """A value as a sweep file has it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def values(schema: Mapping[str, Any]) -> str:
    """What a setting with this JSON schema takes, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(values(each) for each in schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {values(schema['prefixItems'][0])}"
        return f"list of {values(schema.get('items', {}))}"
    if "$ref" in schema:
        return "mapping"
    words = KINDS.get(str(schema.get("type")), "mapping" if schema.get("type") == "object" else "anything")
    bounds = " and ".join(f"{sign} {schema[name]:g}" for name, sign in BOUNDS.items() if name in schema)
    return f"{words} {bounds}".rstrip()


def first_paragraph(cls: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def page() -> str:
    """docs/settings.md."""
    out = [INTRODUCTION]
    blocks: dict[str, type[Settings]] = {
        "dataset": DatasetSettings,
        "dataset: {name: captions}": CaptionSettings,
        "backbone": BackboneSettings,
        "train": TrainSettings,
        "evaluation": EvaluationSettings,
        "behaviour": BehaviourSettings,
        "tune": TuneSettings,
        "report": ReportSettings,
        "core": CoreSettings,
        **SCHEDULERS,
    }
    for name, cls in blocks.items():
        out += [f"## `{name}`", first_paragraph(cls), _table(cls)]
    out += ["## Recipes", RECIPES]
    for name in recipes.names():
        out += [f"### `{name}`", f"```yaml\n{recipes.text(name)}```"]
    out += ["## Methods", "`petl-bench methods NAME` says more of each, with its counts on a backbone."]
    for name in methods.METHODS.built_in:
        out += _section(name, methods.get(name))
    out += ["## Losses"]
    for name in losses.LOSSES.built_in:
        out += _section(name, losses.get(name))
    return "\n\n".join(out).replace("\n\n- ", "\n- ") + "\n"


def _section(name: str, cls: type[Settings]) -> Iterator[str]:
    yield f"### `{name}`"
    yield first_paragraph(cls)
    if cls.model_fields:
        yield _table(cls)
    if issubclass(cls, Method) and (example := next((each for each in cls.examples.values() if each), None)):
        yield f"Example: `{name}: {{{', '.join(f'{key}: {plain(value)}' for key, value in example.items())}}}`"


def _table(cls: type[Settings]) -> str:
    head = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for each in settings_of(cls):
        default = "–" if each.default == NEEDED else f"`{each.default}`"
        head.append(f"| `{each.key}` | {default} | {each.values} | {each.meaning} |")
    return "\n".join(head)
