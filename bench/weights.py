"""Backbones as far as they can be known without torch: model configs, their shapes, and what identifies weights."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.settings import cache_dir
from methods.base import ModelShape, TowerShape

if TYPE_CHECKING:
    from bench.spec import BackboneSettings

TINY_CLIP = "tiny-clip"
DEMO_DIR = Path(__file__).parent / "demo"
DEMO_WEIGHTS = DEMO_DIR / "tiny-clip.safetensors"
FILE_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
CUSTOM_BLOCK = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


def is_file(weights: str) -> bool:
    """Whether `weights` means a path rather than open_clip's tag, `random` or `demo`."""
    return os.sep in weights or weights.lower().endswith(FILE_ENDINGS)


@cache
def _config_files() -> dict[str, Path]:
    spec = find_spec("open_clip")  # finds the package without importing it, and so without torch
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "model_configs"
    return {path.stem: path for path in sorted(folder.glob("*.json"))} | {TINY_CLIP: DEMO_DIR / "tiny-clip.json"}


@cache
def model_config(model: str) -> dict[str, Any]:
    """open_clip's model config of that name; UserError with the nearest name if there is none."""
    files = _config_files()
    if model not in files:
        close = difflib.get_close_matches(model, files, n=3)
        hint = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
        raise UserError(f"backbone.model: open_clip has no model '{model}'{hint}")
    config: dict[str, Any] = json.loads(files[model].read_text(encoding="utf-8"))
    return config


def _slots(config: dict[str, Any], side: str) -> tuple[str, str | None]:
    """A tower's kind, and None if its blocks take slots, else the reason why not."""
    if config.get("timm_model_name"):
        return f"timm's {config['timm_model_name']}", "its blocks belong to timm"
    if config.get("hf_model_name"):
        return f"Hugging Face's {config['hf_model_name']}", "its blocks belong to transformers"
    if isinstance(config.get("layers"), list):
        return "a ModifiedResNet", "it has no transformer blocks"
    if config.get("block_type") == "custom" or any(config.get(key) for key in CUSTOM_BLOCK):
        return "a custom transformer", "its CustomResidualAttentionBlocks compute something else"
    return ("VisionTransformer" if side == "image" else "TextTransformer"), None


@cache
def model_shape(model: str) -> ModelShape:
    """Sizes of an open_clip model from its config alone, without torch and without building it."""
    return shape_of(model, model_config(model))


def shape_of(model: str, config: Mapping[str, Any]) -> ModelShape:
    """The same for a config at hand, under the name `model`."""
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    side = vision.get("image_size", 224)
    height, width = side if isinstance(side, list) else (side, side)
    patch = vision.get("patch_size", 16) or 32  # null for a ResNet, whose last map is 1/32 of the image
    image_kind, image_slots = _slots(vision, "image")
    text_kind, text_slots = _slots(text, "text")
    resnet = isinstance(vision.get("layers"), list)
    image_width, text_width = vision.get("width", 768), text.get("width", 512)
    image = TowerShape(
        kind=image_kind,
        width=image_width,
        layers=0 if resnet else vision.get("layers", 12),
        tokens=(height // patch) * (width // patch) + 1,
        mlp_width=int(image_width * vision.get("mlp_ratio", 4.0)),
        slots=image_slots,
    )
    words = TowerShape(
        kind=text_kind,
        width=text_width,
        layers=text.get("layers", 12),
        tokens=text.get("context_length", 77),
        mlp_width=int(text_width * text.get("mlp_ratio", 4.0)),
        slots=text_slots,
    )
    if not set(config) - PLAIN_MODEL:
        if image_slots is None and not set(vision) - PLAIN_IMAGE:
            ends = 3 * patch * patch * image.width + (1 + image.tokens) * image.width + 4 * image.width
            image = _counted(image, ends, embed)
        if text_slots is None and not set(text) - PLAIN_TEXT:
            ends = (text.get("vocab_size", 49408) + words.tokens) * words.width + 2 * words.width
            words = _counted(words, ends, embed)
    return ModelShape(model, image, words, embed, patch)


# CLIP's own anatomy; anything else (layer scale, attention pooling, a logit bias, ...) has no closed form here.
PLAIN_MODEL = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
PLAIN_IMAGE = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def _counted(tower: TowerShape, ends: int, embed_dim: int) -> TowerShape:
    """The shape with the number of its weights: embeddings and outer norms (`ends`), blocks, projection."""
    return replace(tower, params=ends + tower.layers * tower.block_params + tower.width * embed_dim)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, remembered by path, size and time so that large weights are read once."""
    try:
        stat = path.stat()
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
    note = cache_dir() / "hashes" / hashlib.sha256(key.encode()).hexdigest()
    if stat.st_size > 2**25 and note.is_file():
        return note.read_text(encoding="ascii")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if stat.st_size > 2**25:
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{os.getpid()}")
        part.write_text(digest, encoding="ascii")
        part.replace(note)
    return digest


def identity(backbone: BackboneSettings) -> str:
    """What makes two backbones the same for a run's id: content for files, name for tags, seed for random weights."""
    shape = model_shape(backbone.model)
    if backbone.weights == "random":
        return f"random:{backbone.seed}"
    if backbone.weights == "demo":
        if shape.model != TINY_CLIP:
            raise UserError(f"backbone.weights: 'demo' belongs to the model '{TINY_CLIP}', not to '{shape.model}'")
        return f"sha256:{file_sha256(DEMO_WEIGHTS)}"
    if is_file(backbone.weights):
        path = Path(backbone.weights)
        if not path.is_file():
            raise UserError(
                f"backbone.weights: no file {path}; download the checkpoint of '{shape.model}' (open_clip, OpenAI, "
                "RemoteCLIP or GeoRSCLIP) and put its path there"
            )
        return f"sha256:{file_sha256(path)}"
    if shape.model == TINY_CLIP:
        raise UserError(f"backbone.weights: '{TINY_CLIP}' has no weights '{backbone.weights}'; use demo or random")
    return f"tag:{backbone.weights}"
