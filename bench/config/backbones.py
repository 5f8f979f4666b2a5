"""The backbones there are: open_clip's model configs, models that ship with the harness, what identifies weights.

No torch: open_clip's configs are read from its folder without importing it.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import hub
from bench.config.errors import UserError
from bench.config.files import exists, file_sha256, is_regular
from bench.config.shapes import ModelShape, shape_of

if TYPE_CHECKING:
    from bench.config.settings import BackboneSettings

FILE_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")


@dataclass(frozen=True)
class BuiltIn:
    """A model that ships with the harness: its config file, its weights by name, and the function that reads them.

    `read(path)` gives a state dict (name -> tensor) that fits the model.
    """

    config: Path
    weights: Mapping[str, Path]
    read: Callable[[Path], Any]


BUILT_IN: dict[str, BuiltIn] = {}


def register(model: str, built_in: BuiltIn) -> None:
    """Make a model known under a name that open_clip does not use."""
    BUILT_IN[model] = built_in


def is_file(weights: str) -> bool:
    """Whether `weights` means a path rather than open_clip's tag, `random` or the name of built-in weights."""
    return os.sep in weights or weights.lower().endswith(FILE_ENDINGS)


@cache
def _open_clip_configs() -> dict[str, Path]:
    spec = find_spec("open_clip")  # finds the package without importing it, and so without torch
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "model_configs"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def model_names() -> list[str]:
    """The names of open_clip's own models."""
    return list(_open_clip_configs())


@cache
def model_config(model: str) -> dict[str, Any]:
    """open_clip's model config of that name; UserError with the nearest name if there is none.

    Also of a model on the Hugging Face Hub or in a folder, see `bench.config.hub`.
    """
    if hub.scheme(model):
        return hub.config_of(model)
    files = _open_clip_configs() | {name: built_in.config for name, built_in in BUILT_IN.items()}
    if model not in files:
        close = difflib.get_close_matches(model, files, n=3)
        hint = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
        raise UserError(f"backbone.model: open_clip has no model '{model}'{hint}")
    config: dict[str, Any] = json.loads(files[model].read_text(encoding="utf-8"))
    return config


@cache
def model_shape(model: str) -> ModelShape:
    """Sizes of a model from its config alone, without building it; UserError for an unknown one, and for CoCa."""
    config = model_config(model)
    if "multimodal_cfg" in config:
        raise UserError(f"backbone.model: '{model}' is a CoCa model, which is not supported")
    try:
        return shape_of(model, config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:  # a config that others wrote
        raise UserError(f"backbone.model: the config of '{model}' can't be read ({error!r})") from None


def identity(backbone: BackboneSettings) -> str:
    """What makes two backbones the same for a run's id: content for files, name for tags, seed for random weights.

    For a model on the Hugging Face Hub or in a folder, its config's content, and the commit or the content.
    UserError for weights that are not there or that belong to another model.
    """
    shape, weights = model_shape(backbone.model), backbone.weights
    if known := hub.scheme(backbone.model):
        own = hub.identity(backbone.model, weights)
        if own is None and weights != "random" and not is_file(weights):
            raise UserError(
                f"backbone.weights: '{weights}' does not belong to '{backbone.model}'; use {hub.OWN_WEIGHTS[known]} "
                "(the weights beside its config), a file, or random"
            )
        return f"{own or _identity(shape, backbone)} of {hub.config_identity(backbone.model)}"
    if weights in hub.OWN_WEIGHTS.values():
        raise UserError(
            f"backbone.weights: '{weights}' is for a model {' or '.join(each + '...' for each in hub.OWN_WEIGHTS)}"
        )
    return _identity(shape, backbone)


def _identity(shape: ModelShape, backbone: BackboneSettings) -> str:
    weights = backbone.weights
    if weights == "random":
        return f"random:{backbone.seed}"
    for model, built_in in BUILT_IN.items():
        if weights in built_in.weights and model != shape.model:
            raise UserError(f"backbone.weights: '{weights}' belongs to the model '{model}', not to '{shape.model}'")
    own = BUILT_IN[shape.model].weights if shape.model in BUILT_IN else {}
    if weights in own:
        return f"sha256:{file_sha256(own[weights])}"
    if is_file(weights):
        path = Path(weights)
        if not is_regular(path):
            if exists(path) and not path.is_dir():
                raise UserError(f"backbone.weights: {path} is no regular file; copy the checkpoint to a disk")
            raise UserError(
                f"backbone.weights: no file {path}; download the checkpoint of '{shape.model}' (open_clip, OpenAI, "
                "RemoteCLIP or GeoRSCLIP) and put its path there"
            )
        return f"sha256:{file_sha256(path)}"
    if own:
        raise UserError(f"backbone.weights: '{shape.model}' has no weights '{weights}'; use {', '.join(own)} or random")
    return f"tag:{weights}"
