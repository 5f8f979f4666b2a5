"""Tiny random CLIPs and a batch for them: what the conformance suite runs methods and losses on."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from functools import cache
from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from bench.config.shapes import SIGLIP_SIZES, ViTSize
from bench.core.evaluate import EvalSet
from bench.core.model import DualEncoder
from bench.core.train import Batch

VOCABULARY, CONTEXT = 64, 24
TINY: dict[str, Any] = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 24, "layers": 3, "width": 96, "head_width": 24, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 80, "heads": 4, "layers": 2},
}
# Other widths, depths and proportions, for closed forms.
OTHERS: tuple[dict[str, Any], ...] = (
    {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "head_width": 32, "patch_size": 16, "mlp_ratio": 3},
        "text_cfg": {"context_length": 30, "vocab_size": 50, "width": 128, "heads": 2, "layers": 4, "mlp_ratio": 2},
    },
    {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 72, "head_width": 36, "patch_size": 8},
        "text_cfg": {"context_length": 24, "vocab_size": 40, "width": 96, "heads": 3, "layers": 2},
    },
)
RESNET: dict[str, Any] = TINY | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}}


def _siglip(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a SigLIP of the same sizes; its image tower, whose name has its sizes, is made known to timm."""
    vision = config["vision_cfg"]
    width, layers, ratio = vision["width"], vision["layers"], float(vision.get("mlp_ratio", 4))
    size = f"tiny{width}x{layers}"
    name = f"vit_{size}_patch{vision['patch_size']}_siglip_{vision['image_size']}"
    SIGLIP_SIZES[size] = ViTSize(width, layers, ratio)

    def make(num_classes: int, global_pool: str, **given: Any) -> VisionTransformer:
        """As timm's own functions that are named like models; `given` is about weights to download."""
        return VisionTransformer(
            vision["image_size"],
            vision["patch_size"],
            num_classes=num_classes,
            global_pool=global_pool,  # type: ignore[arg-type]
            embed_dim=width,
            depth=layers,
            num_heads=width // vision["head_width"],
            mlp_ratio=ratio,
            class_token=False,
        )

    make.__name__ = name
    make.__module__ = "timm.models.vision_transformer"
    register_model(make)
    image = {"image_size": vision["image_size"], "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
    text = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    return {
        "embed_dim": width,
        "init_logit_bias": -10,
        "vision_cfg": image,
        "text_cfg": config["text_cfg"] | text,
    }


# The classes of backbones that the suite runs on, each with configs: the first is the tiny one, the others have other
# sizes. SigLIP's differ in their towers: timm's image tower without class token, text without causal mask.
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "CLIP": [TINY, *OTHERS],
    "CustomTextCLIP": [TINY, *OTHERS],
    "SigLIP": list(
        map(_siglip, [TINY | {"vision_cfg": TINY["vision_cfg"] | {"width": 64, "head_width": 16}}, *OTHERS])
    ),
}
CLASSES = tuple(CONFIGS)


@cache
def _clip(kind: str, number: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = RESNET if kind == "ResNet" else CONFIGS[kind][number]
        cls = open_clip.CLIP if kind in ("CLIP", "ResNet") else open_clip.CustomTextCLIP
        clip: nn.Module = cls(**copy.deepcopy(config)).eval()
        if kind == "SigLIP":
            # timm starts weights so small that attention is even and half the image tower hardly matters.
            for module in clip.visual.modules():  # type: ignore[union-attr,operator]
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
        return clip


class _Dismantled(pickle.Pickler):
    """A model as its structure in `parts`, pickled without tensors, and the tensors, each once."""

    def __init__(self, model: nn.Module) -> None:
        self.parts, self.tensors, self.numbers = io.BytesIO(), list[Tensor](), dict[int, int]()
        super().__init__(self.parts, pickle.HIGHEST_PROTOCOL)
        self.dump(model)

    def persistent_id(self, thing: object) -> int | None:
        if not isinstance(thing, Tensor):
            return None
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.tensors)
            self.tensors.append(thing)
        return self.numbers[id(thing)]


class _Assembled(pickle.Unpickler):
    """Makes a model of what `_Dismantled` holds, with copies of the tensors; one that serves twice still does."""

    def __init__(self, found: _Dismantled) -> None:
        super().__init__(io.BytesIO(found.parts.getbuffer()))
        self.copies = [copy.deepcopy(tensor) for tensor in found.tensors]

    def persistent_load(self, number: int) -> Tensor:
        return self.copies[number]


@cache
def _dismantled(kind: str, number: int) -> _Dismantled:
    return _Dismantled(_clip(kind, number))


def backbone(kind: str = "CLIP", number: int = 0) -> DualEncoder:
    """A tiny frozen random CLIP: of one of `CLASSES`, or with a "ResNet" image tower. Always the same.

    `number` chooses one of the class's `CONFIGS`.
    Nothing is shared between two of them. A suite makes thousands: this takes a third of the time of `copy.deepcopy`.
    """
    return DualEncoder(_Assembled(_dismantled(kind, number)).load())


@dataclass(frozen=True)
class Pairs(Batch):
    """A batch of raw pictures and token ids."""

    images: Float[Tensor, "batch 3 size size"]
    tokens: Int[Tensor, "batch context"]


def batch(seed: int = 1, image_size: int = 24) -> Pairs:
    """Four images with a caption each, of different lengths, the second and third of the same image."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(4, CONTEXT, dtype=torch.long)
    for row, words in enumerate((3, 5, 9, 6)):
        tokens[row, 0] = VOCABULARY - 2
        tokens[row, 1 : words + 1] = torch.randint(1, VOCABULARY - 2, (words,), generator=generator)
        tokens[row, words + 1] = VOCABULARY - 1
    images = torch.randn(4, 3, image_size, image_size, generator=generator)
    return Pairs(images, tokens, torch.tensor([0, 1, 1, 2]))


def eval_set() -> EvalSet:
    """A split of four images with a caption each, other ones than `batch` gives by default."""
    held_out = batch(seed=9)
    return EvalSet(lambda: [held_out.images], lambda: [held_out.tokens], torch.arange(4), torch.arange(4))
