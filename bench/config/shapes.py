"""The sizes of a CLIP model, read from its open_clip config: what closed forms of parameter counts need. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# What a tower's config may not hold if its blocks are to be open_clip's plain ResidualAttentionBlocks.
CUSTOM_BLOCK = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


@dataclass(frozen=True)
class TowerShape:
    """One tower's size.

    `slots` is None if its blocks take adapters and prompts, else the reason why not. `params` counts all its weights;
    None if it is not built like CLIP's own towers, for then no closed form is known.
    """

    kind: str
    width: int
    layers: int
    tokens: int  # image: patches + class token; text: context length
    mlp_width: int
    slots: str | None = None
    params: int | None = None

    @property
    def block_params(self) -> int:
        """The weights of one of open_clip's own blocks: attention, MLP, two LayerNorms."""
        attention, norms = 4 * self.width * (self.width + 1), 4 * self.width
        return attention + norms + 2 * self.width * self.mlp_width + self.mlp_width + self.width


@dataclass(frozen=True)
class ModelShape:
    """What closed forms need to know of a backbone, read from open_clip's own model config without torch."""

    model: str
    image: TowerShape
    text: TowerShape
    embed_dim: int
    patch: int

    @property
    def towers(self) -> tuple[TowerShape, TowerShape]:
        """The image tower and the text tower."""
        return self.image, self.text

    @property
    def total_params(self) -> int | None:
        """All weights, the temperature included; None where no closed form is known."""
        if self.image.params is None or self.text.params is None:
            return None
        return self.image.params + self.text.params + 1


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


def shape_of(model: str, config: Mapping[str, Any]) -> ModelShape:
    """The sizes of the model that this open_clip config describes; `model` is its name."""
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
