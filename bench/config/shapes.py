"""The sizes of a CLIP model, read from its open_clip config: what closed forms of parameter counts need. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# What a tower's config may not hold if its blocks are to be open_clip's plain ResidualAttentionBlocks.
CUSTOM_BLOCK = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


@dataclass(frozen=True)
class ViTSize:
    """The size of a vision transformer of timm, whose config has its name alone."""

    width: int
    layers: int
    mlp_ratio: float = 4.0


# SigLIP's image towers by what their names have between `vit_` and `_patch`: timm 1.0, vision_transformer.py.
SIGLIP_SIZES = {
    "base": ViTSize(768, 12),
    "large": ViTSize(1024, 24),
    "so400m": ViTSize(1152, 27, 3.7362),
    "giantopt": ViTSize(1536, 40),
}
SIGLIP_NAME = re.compile(r"vit_(?P<size>\w+)_patch(?P<patch>\d+)_siglip_\d+")


@dataclass(frozen=True)
class Ends:
    """Numbers of weights outside of a tower's blocks: all, biases, those of LayerNorms; and `head`, behind the blocks.

    The head is the last LayerNorm, the projection to the embedding, and SigLIP's attention pooling, which has none.
    """

    params: int
    biases: int
    norms: int
    head: int
    projection: int


@dataclass(frozen=True)
class TowerShape:
    """One tower's size.

    `slots` is None if its blocks take adapters and prompts, else the reason why not. `ends` is None if it is not built
    like CLIP's or SigLIP's own towers, for then no closed form is known.
    """

    kind: str
    width: int
    layers: int
    tokens: int  # image: patches + class token; text: context length
    mlp_width: int
    slots: str | None = None
    ends: Ends | None = None
    class_token: bool = False  # whether the first token stands for the whole image
    causal: bool = False  # whether a token sees only those before it; then a text's padding changes nothing
    pool: str | None = None  # which token becomes a text's embedding: "argmax" (CLIP's end token), "last" (place), ...

    @property
    def params(self) -> int | None:
        """All its weights; None where no closed form is known."""
        return None if self.ends is None else self.ends.params + self.layers * self.block_params

    @property
    def block_params(self) -> int:
        """The weights of one block with slots: attention, MLP, two LayerNorms."""
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
    logit_bias: bool = False  # whether the model has SigLIP's bias on the scaled cosines

    @property
    def patches(self) -> int:
        """How many patches an image has."""
        return self.image.tokens - self.image.class_token

    @property
    def towers(self) -> tuple[TowerShape, TowerShape]:
        """The image tower and the text tower."""
        return self.image, self.text

    @property
    def total_params(self) -> int | None:
        """All weights, with the temperature and SigLIP's bias; None where no closed form is known."""
        if self.image.params is None or self.text.params is None:
            return None
        return self.image.params + self.text.params + 1 + self.logit_bias


def _slots(config: Mapping[str, Any], side: str) -> tuple[str, str | None]:
    """A tower's kind, and None if its blocks take slots, else the reason why not."""
    if _siglip_size(config) is not None:
        return f"timm's {config['timm_model_name']}", None
    if config.get("timm_model_name"):
        return f"timm's {config['timm_model_name']}", "its blocks are timm's, and not those of SigLIP"
    if config.get("hf_model_name"):
        return f"Hugging Face's {config['hf_model_name']}", "its blocks belong to transformers"
    if isinstance(config.get("layers"), list):
        return "a ModifiedResNet", "it has no transformer blocks"
    if config.get("block_type") == "custom" or any(config.get(key) for key in CUSTOM_BLOCK):
        return "a custom transformer", "its CustomResidualAttentionBlocks compute something else"
    return ("VisionTransformer" if side == "image" else "TextTransformer"), None


def _siglip_size(vision: Mapping[str, Any]) -> tuple[ViTSize, int] | None:
    """The size of a SigLIP image tower and the edge of its patches in pixels; None for other towers."""
    name = SIGLIP_NAME.fullmatch(vision.get("timm_model_name") or "")
    if name is None or name["size"] not in SIGLIP_SIZES:
        return None
    return SIGLIP_SIZES[name["size"]], int(name["patch"])


def shape_of(model: str, config: Mapping[str, Any]) -> ModelShape:
    """The sizes of the model that this open_clip config describes; `model` is its name."""
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    plain = not set(config) - PLAIN_MODEL
    image, patch = _image_tower(vision, embed if plain else None)
    words = _text_tower(text, embed if plain else None)
    return ModelShape(model, image, words, embed, patch, config.get("init_logit_bias") is not None)


# The anatomy of CLIP and SigLIP; anything else (layer scale, attention pooling of CoCa, ...) has no closed form here.
PLAIN_MODEL = {
    "embed_dim",
    "quick_gelu",
    "custom_text",
    "init_logit_bias",
    "init_logit_scale",
    "vision_cfg",
    "text_cfg",
}
PLAIN_IMAGE = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
PLAIN_SIGLIP = {"image_size", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj"}
PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "no_causal_mask", "pool_type"}
PLAIN_TEXT |= {"eos_id", "proj_bias", "proj_type", "hf_tokenizer_name", "tokenizer_kwargs", "norm_kwargs", "act_kwargs"}


def _image_tower(config: Mapping[str, Any], embed_dim: int | None) -> tuple[TowerShape, int]:
    """The tower, and the edge of its patches in pixels. Weights are not counted without `embed_dim`."""
    side = config.get("image_size", 224)
    height, width = side if isinstance(side, list) else (side, side)
    kind, slots = _slots(config, "image")
    found = _siglip_size(config)
    size, patch = found or (
        ViTSize(config.get("width", 768), config.get("layers", 12), config.get("mlp_ratio", 4.0)),
        config.get("patch_size", 16) or 32,  # null for a ResNet, whose last map is 1/32 of the image
    )
    class_token = found is None
    tower = TowerShape(
        kind=kind,
        width=size.width,
        layers=0 if isinstance(size.layers, list) else size.layers,
        tokens=(height // patch) * (width // patch) + class_token,
        mlp_width=int(size.width * size.mlp_ratio),
        slots=slots,
        class_token=class_token,
    )
    if embed_dim is None or slots is not None:
        return tower, patch
    w, pixels = tower.width, 3 * patch * patch * tower.width
    ends = None
    if found is None and not set(config) - PLAIN_IMAGE:
        head = 2 * w + w * embed_dim
        ends = Ends(
            params=pixels + (1 + tower.tokens) * w + 2 * w + head,
            biases=2 * w,
            norms=4 * w,
            head=head,
            projection=w * embed_dim,
        )
    elif found is not None and not set(config) - PLAIN_SIGLIP and config.get("timm_pool") == "map":
        # The pooling is a block with a learned token as query and one LayerNorm in place of two.
        head = 2 * w + tower.block_params - w
        biases = 2 * w + 6 * w + tower.mlp_width
        ends = Ends(params=pixels + w + tower.tokens * w + head, biases=biases, norms=4 * w, head=head, projection=0)
    return replace(tower, ends=ends), patch


def _text_tower(config: Mapping[str, Any], embed_dim: int | None) -> TowerShape:
    """The tower. Weights are not counted without `embed_dim`."""
    kind, slots = _slots(config, "text")
    w = config.get("width", 512)
    tower = TowerShape(
        kind=kind,
        width=w,
        layers=config.get("layers", 12),
        tokens=config.get("context_length", 77),
        mlp_width=int(w * config.get("mlp_ratio", 4.0)),
        slots=slots,
        causal=not config.get("no_causal_mask", False) and not config.get("hf_model_name"),
        pool=None if config.get("hf_model_name") else config.get("pool_type", "argmax"),
    )
    if embed_dim is None or slots is not None or set(config) - PLAIN_TEXT:
        return tower
    bias = embed_dim if config.get("proj_bias") else 0
    projection = 0 if config.get("proj_type") == "none" else w * embed_dim + bias
    ends = Ends(
        params=(config.get("vocab_size", 49408) + tower.tokens) * w + 2 * w + projection,
        biases=w + (bias if projection else 0),
        norms=2 * w,
        head=2 * w + projection,
        projection=projection,
    )
    return replace(tower, ends=ends)
