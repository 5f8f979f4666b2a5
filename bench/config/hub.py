"""Models in open_clip's own folder format: on the Hugging Face Hub, or in a local folder. No torch.

Such a folder has open_clip_config.json, with {model_cfg, preprocess_cfg}, and a file of weights. As in open_clip,
`hf-hub:org/name` is one on the Hub, and `local-dir:FOLDER` one on this machine.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from bench.config.errors import UserError
from bench.config.files import file_sha256, is_folder, is_regular, read_small

LOCAL, HUB = "local-dir:", "hf-hub:"
OWN_WEIGHTS = {LOCAL: "folder", HUB: "hub"}  # what backbone.weights says for the weights that lie beside the config
CONFIG = "open_clip_config.json"
_WEIGHTS = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("model.safetensors", "pytorch_model.bin"),
)
_LARGEST = 2**20  # bytes of a config


def scheme(model: str) -> str | None:
    """`local-dir:` or `hf-hub:` if the model's name begins with it."""
    return next((each for each in OWN_WEIGHTS if model.startswith(each)), None)


def absolute(model: str) -> str:
    """The name with the folder of `local-dir:` as an absolute path; other names as they are."""
    if scheme(model) != LOCAL:
        return model
    return LOCAL + os.path.abspath(os.path.expanduser(model.removeprefix(LOCAL)))  # noqa: PTH100, PTH111


@cache
def folder_of(model: str) -> Path:
    """The folder with the model's config: the local one, or that in Hugging Face's cache, into which it is downloaded.

    UserError if there is none, or if it can't be downloaded.
    """
    name = model.removeprefix(scheme(model) or "")
    if scheme(model) == HUB:
        return _fetch(name, CONFIG).parent
    folder = Path(os.path.expanduser(name))  # noqa: PTH111
    if not is_folder(folder):
        raise UserError(f"backbone.model: no folder {folder}")
    if not is_regular(folder / CONFIG):
        raise UserError(
            f"backbone.model: no {CONFIG} in {folder}; {LOCAL} takes a folder in open_clip's format, such as a copy of "
            "an open_clip model on the Hugging Face Hub"
        )
    return folder


def config_of(model: str) -> dict[str, Any]:
    """The model's open_clip config; UserError if the file is none."""
    path = folder_of(model) / CONFIG
    try:
        found = json.loads(read_small(path, _LARGEST))["model_cfg"]
        if not all(isinstance(found[key], dict) for key in ("vision_cfg", "text_cfg")) or not found["embed_dim"]:
            raise KeyError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"backbone.model: {path} is no open_clip config; expected "
            '{"model_cfg": {"embed_dim", "vision_cfg", "text_cfg"}, "preprocess_cfg"}'
        ) from None
    assert isinstance(found, dict)
    return found


def identity(model: str, weights: str) -> str | None:
    """What makes config and weights the same for a run's id; None if the weights are not those beside the config.

    Of a local folder the content; of the Hub the commit, since the weights may not be here yet.
    """
    known = scheme(model)
    if known is None or weights != OWN_WEIGHTS[known]:
        return None
    return f"commit:{folder_of(model).name}" if known == HUB else f"sha256:{file_sha256(weights_of(model))}"


def config_identity(model: str) -> str:
    """Hash (hex) of a model's config file."""
    return file_sha256(folder_of(model) / CONFIG)


def weights_of(model: str) -> Path:
    """The file of weights beside the model's config, downloaded if need be; UserError if there is none."""
    folder = folder_of(model)
    if scheme(model) == LOCAL:
        found = next((folder / name for name in _WEIGHTS if is_regular(folder / name)), None)
        if found is None:
            raise UserError(
                f"backbone.weights: no file of weights ({', '.join(_WEIGHTS)}) in {folder}; put it there, or give its "
                "path as backbone.weights"
            )
        return found
    names = (_WEIGHTS[0], _WEIGHTS[2])  # the names that open_clip gives them on the Hub
    here = next((folder / name for name in names if is_regular(folder / name)), None)
    if here is not None:
        return here
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository = model.removeprefix(HUB)
    try:
        return _fetch(repository, names[0], folder.name)
    except UserError as error:
        cause = error.__cause__  # the network or the disk are no reason to take another file
        if not isinstance(cause, EntryNotFoundError) or isinstance(cause, LocalEntryNotFoundError):
            raise
        return _fetch(repository, names[1], folder.name)


def _fetch(repository: str, file: str, commit: str | None = None) -> Path:
    """A file of a repository on the Hub: the one in the cache, else downloaded."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    home = constants.HF_HUB_CACHE
    try:
        found = try_to_load_from_cache(repository, file, cache_dir=home, revision=commit)
        return Path(
            found if isinstance(found, str) else hf_hub_download(repository, file, revision=commit, cache_dir=home)
        )
    except Exception as error:  # the client raises exceptions of its own and of its HTTP library
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        raise UserError(
            f"backbone: {file} of '{HUB}{repository}' is not in {home} and can't be downloaded ({reason}). On a "
            f"machine without internet: download the repository elsewhere, copy its folder here, and set "
            f"backbone.model to {LOCAL}FOLDER and backbone.weights to {OWN_WEIGHTS[LOCAL]}"
        ) from error
