"""Backbones with their weights: from open_clip, from a checkpoint file, or drawn at random.

Checkpoint files come from others and are not trusted: nothing but tensors is ever built from them.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Int, Shaped
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.config import backbones, hub
from bench.config.errors import UserError
from bench.config.settings import BackboneSettings
from bench.core.model import DualEncoder

OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
STORAGE_DTYPES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone with what its inputs need.

    mean and std are per channel, for pixels in [0, 1]. resize is how pictures are resized for it: "crop" (the shorter
    side, then the centre) or "squash". sha256 is that of `state_sha256`.
    """

    model: DualEncoder
    tokenizer: Callable[[list[str]], Int[Tensor, "texts context"]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str
    sha256: str


def load_backbone(settings: BackboneSettings) -> Backbone:
    """Build an open_clip model, one of its own list, of the Hub or of a folder, and load its weights.

    It is frozen, on the CPU, in float32 and eval mode.

    Raises UserError for weights that can't be found, downloaded or read, that don't fit the model, or that were trained
    with another GELU than the model has.
    """
    backbones.model_shape(settings.model)  # refuses what is not supported
    built_in = backbones.BUILT_IN.get(settings.model)
    if built_in is not None and settings.model not in open_clip.list_models():
        open_clip.add_model_config(built_in.config)
    identity = backbones.identity(settings)  # missing files are reported before anything is built
    if identity.startswith("tag:"):
        _check_tag(settings.model, settings.weights)
        clip = _create(settings.model, settings.weights)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            clip = _create(settings.model)
        if hub.identity(settings.model, settings.weights) is not None:
            _load_file(clip, settings.model, hub.weights_of(settings.model))
        elif built_in is not None and settings.weights in built_in.weights:
            clip.load_state_dict(built_in.read(built_in.weights[settings.weights]))
        elif settings.weights != "random":
            _load_file(clip, settings.model, Path(settings.weights))
    clip.eval()
    preprocess: dict[str, Any] = clip.visual.preprocess_cfg  # type: ignore[union-attr,assignment]
    return Backbone(
        DualEncoder(clip),
        _tokenizer(settings.model),
        tuple(preprocess["mean"]),
        tuple(preprocess["std"]),
        "squash" if preprocess["resize_mode"] == "squash" else "crop",
        state_sha256(clip),
    )


def check_weights(settings: BackboneSettings) -> None:
    """Raise UserError for weights that `load_backbone` would refuse; nothing is downloaded."""
    if backbones.identity(settings).startswith("tag:"):
        _check_tag(settings.model, settings.weights)
    else:
        load_backbone(settings)


def _tokenizer(model: str) -> Callable[[list[str]], Int[Tensor, "texts context"]]:
    # open_clip reads the config of a model on the Hub again, over the network: only a tokenizer from there needs that.
    remote = backbones.model_config(model)["text_cfg"].get("hf_tokenizer_name")
    name = f"{hub.LOCAL}{hub.folder_of(model)}" if hub.scheme(model) and not remote else model
    try:
        found: Callable[[list[str]], Int[Tensor, "texts context"]] = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        hint = (
            f". It is '{remote}' on the Hugging Face Hub. On a machine without internet: load it elsewhere, and copy "
            "the Hub's cache (HF_HOME, by default ~/.cache/huggingface) here"
        )
        raise UserError(
            f"backbone: the tokenizer of '{model}' can't be loaded here ({reason}){hint if remote else ''}"
        ) from error
    return found


def _create(model: str, tag: str | None = None) -> nn.Module:
    # open_clip warns that a model starts random even when that is wanted, and logs what it raises as well.
    logging.disable(logging.ERROR)
    try:
        name = f"{hub.LOCAL}{hub.folder_of(model)}" if hub.scheme(model) else model
        clip: nn.Module = open_clip.create_model(
            name, pretrained=tag, precision="fp32", pretrained_text=False, load_weights=hub.scheme(model) is None
        )
    except (RuntimeError, OSError) as error:
        what = f"weights '{tag}' of '{model}'" if tag else f"the model '{model}'"
        reason = str(error).removeprefix(f"Failed to download weights for tag '{tag}': ").splitlines()[0].rstrip(".")
        raise UserError(
            f"backbone: {what} can't be loaded here ({reason}). On a machine without internet: "
            "download the checkpoint elsewhere and give its path as backbone.weights"
        ) from error
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        if not hub.scheme(model):
            raise
        raise UserError(
            f"backbone.model: the model '{model}' can't be built: {error!r}; repair its {hub.CONFIG}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return clip


def _check_tag(model: str, tag: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(model)
    twin = model.removesuffix("-quickgelu") if model.endswith("-quickgelu") else f"{model}-quickgelu"
    needs_quick = (open_clip.pretrained.get_pretrained_cfg(model, tag) or {}).get("quick_gelu", False)
    has_quick = bool(backbones.model_config(model).get("quick_gelu", False))
    if tag in tags and needs_quick == has_quick:
        return
    if tag in tags or tag in open_clip.list_pretrained_tags_by_model(twin):
        raise UserError(
            f"backbone: weights '{tag}' were trained with {'GELU' if has_quick else 'QuickGELU'}, but the model "
            f"'{model}' has {'QuickGELU' if has_quick else 'GELU'}; use model: {twin}"
        )
    raise UserError(
        f"backbone.weights: '{tag}' is neither a file nor one of open_clip's tags for '{model}' "
        f"({', '.join(tags) or 'none'}); give a tag, a path, or random"
    )


def _load_file(clip: nn.Module, model: str, path: Path) -> None:
    state, openai = read_state_dict(path)
    if openai and not backbones.model_config(model).get("quick_gelu", False):
        raise UserError(
            f"backbone: {path} is an OpenAI checkpoint, trained with QuickGELU, but the model '{model}' has GELU; "
            f"use model: {model}-quickgelu"
        )
    if hasattr(clip, "text") and "positional_embedding" in state:
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    state.pop("text.transformer.embeddings.position_ids", None)
    own = clip.state_dict()
    if "logit_scale" in state and state["logit_scale"].numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(own["logit_scale"].shape)
    missing, extra = own.keys() - state.keys(), state.keys() - own.keys()
    shapes = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or extra or shapes:
        odd = sorted(missing)[:2] + sorted(extra)[:2] + sorted(shapes)[:2]
        raise UserError(
            f"backbone.weights: {path} does not fit '{model}': {len(missing)} tensors missing, {len(extra)} unknown, "
            f"{len(shapes)} of another shape (such as {', '.join(odd)}); choose the model it was trained as"
        )
    for name, tensor in state.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"backbone.weights: {path}: {name} is {kind}, not floating point; save it as float32")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"backbone.weights: {path}: {name} has values that are no numbers (NaN, infinite, or beyond float32): "
                "training diverged or the file is damaged; take another checkpoint"
            )
    clip.load_state_dict(state)


def state_sha256(module: nn.Module) -> str:
    """sha256 over names and bytes of a module's tensors: the same weights give the same hash, from any file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- checkpoint files -------------------------------------------------------------------------------------------------


def read_state_dict(path: Path) -> tuple[dict[str, Shaped[Tensor, " ..."]], bool]:
    """A CLIP checkpoint's tensors by name, float ones in float32, and whether it is OpenAI's (so with QuickGELU).

    Reads safetensors; `torch.save`d state dicts, bare (RemoteCLIP, GeoRSCLIP) or under `state_dict` (open_clip's
    training checkpoints, with or without `module.`); and OpenAI's TorchScript archives, without running their code.
    Raises UserError if the file is none of these.
    """
    try:
        _refuse_compressed(path)
        if path.suffix.lower() == ".safetensors":
            content: Any = load_file(path)
        elif _is_torchscript(path):
            content = _torchscript_tensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a broken file can make these readers raise nearly anything
        raise UserError(
            f"backbone.weights: {path} can't be read as a checkpoint ({type(error).__name__}); expected safetensors, "
            "or tensors alone saved by torch.save; if it was cut off or is a download page, download it again"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"backbone.weights: {path} holds no state dict of tensors")
    openai = all(key in content for key in OPENAI_EXTRAS)
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(value, Tensor) or key in OPENAI_EXTRAS:
            continue
        name = key.removeprefix("module.") if isinstance(key, str) else repr(key)
        fault = "has a key that is no name" if not isinstance(key, str) else _fault(value, path.stat().st_size)
        if fault or name in state:
            what = f"{name} {fault}" if fault else f"two tensors named {name}"
            raise UserError(f"backbone.weights: {path}: {what}; save a plain state dict of dense tensors")
        state[name] = value.float() if value.is_floating_point() else value
    return state, openai


def _fault(tensor: Tensor, file_bytes: int) -> str | None:
    """Why a tensor is no weights: a kind that torch can't copy into a model, or one that would fill the memory."""
    if tensor.is_meta:
        return "has no values (a meta tensor)"
    if tensor.is_quantized:
        return "is quantized"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "is sparse or nested"
    if tensor.is_complex():
        return "is complex"
    if tensor.numel() > file_bytes:  # a few values, repeated by strides of 0
        return "is larger than the file"
    return None


def _refuse_compressed(path: Path) -> None:
    """UserError for an archive that torch did not write: it compresses nothing but code."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED and "/code/" not in info.filename:
                raise UserError(
                    f"backbone.weights: {path} is an archive with compressed parts ({info.filename}), which torch does "
                    "not write; unpack it, or save the state dict by torch.save"
                )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Object:
    """Stands in for a TorchScript module: keeps its attributes, runs nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _TensorsOnly(pickle.Unpickler):
    """Unpickles a TorchScript archive's data with tensors and plain containers as the only things it can build."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}/data.pkl"))
        self.archive, self.prefix = archive, prefix
        self.storages: dict[str, Shaped[Tensor, " ..."]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return type(name, (_Object,), {})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda flat, offset, size, stride, *_: flat.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch.jit._pickle":
            return lambda data, *_: data
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a checkpoint")

    def persistent_load(self, key: Any) -> Any:
        _, dtype, name, _, _ = key
        if name not in self.storages:  # several tensors may be views of one storage
            data = bytearray(self.archive.read(f"{self.prefix}/data/{name}"))
            self.storages[name] = torch.frombuffer(data, dtype=dtype)
        return self.storages[name]


def _torchscript_tensors(path: Path) -> dict[str, Shaped[Tensor, " ..."]]:
    with zipfile.ZipFile(path) as archive:
        prefix = archive.namelist()[0].split("/")[0]
        root = _TensorsOnly(archive, prefix).load()
    tensors: dict[str, Shaped[Tensor, " ..."]] = {}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, Tensor):
            tensors[name] = node
        elif isinstance(node, _Object):
            for key, child in vars(node).items():
                walk(child, f"{name}.{key}" if name else key)

    walk(root, "")
    for key in OPENAI_EXTRAS:  # plain attributes in some exports, tensors in others: either way they mark the file
        if hasattr(root, key):
            tensors.setdefault(key, torch.tensor(0))
    return tensors
