"""A second, literal transcription of CLIP, in plain loops, and how a model is held to one.

Nothing here is shared with the project or with torch's own layers: tokens, heads, anchors and negatives are looped over
one by one. `w` maps open_clip's and the adapters' parameter names to tensors. A transcription of a method is a block,
`block(x, w, name, side)`: from the tokens of one sample in front of a block to those behind it. A `Case` is a method
with its transcription: `compared` holds outputs and gradients to it, `caught` plants a fault in the project's module
and tells whether the outputs then differ from the transcription's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import open_clip
import pytest
import torch
from torch import Tensor, nn

import methods
from bench.core import model as core

CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 7, "vocab_size": 20, "width": 24, "heads": 3, "layers": 2},
}
HEADS = {"image": 2, "text": 3}
IMAGE_IDS = [0, 1, 1]
TOLERANCE = 1e-5

# --- CLIP, token by token ---------------------------------------------------------------------------------------------


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.stack([(weight[row] * x).sum() + bias[row] for row in range(len(weight))])


def layer_norm(x: Tensor, w: dict, name: str) -> Tensor:
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    return (x - mean) / torch.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def relu(x: Tensor) -> Tensor:
    return torch.stack([value if value > 0 else value * 0 for value in x])


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def sigma(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def attend(tokens: list[Tensor], w: dict, name: str, heads: int, causal: bool) -> list[Tensor]:
    """Each token of one sample looks at the tokens of that sample, at those up to itself if causal."""
    width = len(tokens[0])
    size = width // heads
    packed, bias = w[f"{name}.in_proj_weight"], w[f"{name}.in_proj_bias"]
    q, k, v = (
        [
            affine(token, packed[part * width : (part + 1) * width], bias[part * width : (part + 1) * width])
            for token in tokens
        ]
        for part in range(3)
    )
    out = []
    for i in range(len(tokens)):
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            seen = range(i + 1) if causal else range(len(tokens))
            scores = [torch.exp((q[i][part] * k[j][part]).sum() / math.sqrt(size)) for j in seen]
            mixed.append(sum(score * v[j][part] for score, j in zip(scores, seen, strict=True)) / sum(scores))
        out.append(affine(torch.cat(mixed), w[f"{name}.out_proj.weight"], w[f"{name}.out_proj.bias"]))
    return out


def after_attention(x: list[Tensor], w: dict, name: str, side: str) -> list[Tensor]:
    normed = [layer_norm(token, w, f"{name}.ln_1") for token in x]
    attended = attend(normed, w, f"{name}.attn", HEADS[side], causal=side == "text")
    return [token + more for token, more in zip(x, attended, strict=True)]


def mlp(token: Tensor, w: dict, name: str) -> Tensor:
    hidden = gelu(
        affine(layer_norm(token, w, f"{name}.ln_2"), w[f"{name}.mlp.c_fc.weight"], w[f"{name}.mlp.c_fc.bias"])
    )
    return affine(hidden, w[f"{name}.mlp.c_proj.weight"], w[f"{name}.mlp.c_proj.bias"])


def image_embedding(image: Tensor, w: dict, block, mask: Tensor | None = None) -> Tensor:
    """Before its length is set to one, as `text_embedding`."""
    kernel = w["visual.conv1.weight"]
    tokens = [w["visual.class_embedding"]]
    for top in (0, 8):
        for left in (0, 8):
            patch = image[:, top : top + 8, left : left + 8]
            tokens.append(torch.stack([(kernel[channel] * patch).sum() for channel in range(len(kernel))]))
    tokens = [token + w["visual.positional_embedding"][at] for at, token in enumerate(tokens)]
    x = [layer_norm(token, w, "visual.ln_pre") for token in tokens]
    if mask is not None:
        x = [token * mask[at] for at, token in enumerate(x)]
    for index in range(2):
        x = block(x, w, f"visual.transformer.resblocks.{index}", "image")
    return layer_norm(x[0], w, "visual.ln_post") @ w["visual.proj"]


def text_embedding(ids: Tensor, w: dict, block, mask: Tensor | None = None) -> Tensor:
    x = [w["token_embedding.weight"][word] + w["positional_embedding"][at] for at, word in enumerate(ids)]
    if mask is not None:
        x = [token * mask[at] for at, token in enumerate(x)]
    for index in range(2):
        x = block(x, w, f"transformer.resblocks.{index}", "text")
    end = int(ids.argmax())
    return layer_norm(x[end], w, "ln_final") @ w["text_projection"]


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).sum())


def encode_image(image: Tensor, w: dict, block, mask: Tensor | None = None) -> Tensor:
    return unit(image_embedding(image, w, block, mask))


def encode_text(ids: Tensor, w: dict, block, mask: Tensor | None = None) -> Tensor:
    return unit(text_embedding(ids, w, block, mask))


def cosine(a: list[Tensor], b: list[Tensor], i: int, j: int) -> Tensor:
    return (a[i] * b[j]).sum()


# --- the comparison ---------------------------------------------------------------------------------------------------


def adapted(name: str, *, vocabulary: int = 20, **settings) -> core.DualEncoder:
    """A random tiny CLIP with the method, in eval mode, all weights of its adapter and all biases random, none zero."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIG)
    config["text_cfg"]["vocab_size"] = vocabulary
    model = core.DualEncoder(open_clip.CLIP(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        methods.get(name)(**settings).attach(model)
        for parameter in model.trainable().values():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model.eval()


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    ids = torch.tensor([[18, 3, 5, 19, 0, 0, 0], [18, 7, 19, 0, 0, 0, 0], [18, 2, 9, 4, 11, 6, 19]])
    return torch.randn(3, 3, 16, 16), ids


def weights(model: core.DualEncoder) -> dict[str, Tensor]:
    """All parameters by all the names they have, a shared one by several."""
    heads = {name: p for name, p in model.named_parameters() if name.startswith(("image_head.", "text_head."))}
    return dict(model.clip.named_parameters(remove_duplicate=False)) | heads


def relative(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest value of the second, or over 1 if that is smaller."""
    return float((one - other).detach().abs().max()) / max(1.0, float(other.detach().abs().max()))


def agree(model: core.DualEncoder, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """Embeddings, the loss and all gradients, to 1e-5 of the largest value in each; the largest difference there is."""
    found = [0.0]

    def close(name: str, one: Tensor, other: Tensor) -> None:
        found.append(relative(one, other))
        assert found[-1] < TOLERANCE, name

    for one, other in zip(ours, theirs, strict=True):
        close("output", one, other)
    trained = list(model.trainable().items())
    parameters = [parameter for _, parameter in trained]
    for (name, _), one, other in zip(
        trained, torch.autograd.grad(ours[-1], parameters), torch.autograd.grad(theirs[-1], parameters), strict=True
    ):
        assert other.abs().max() > 0, name
        close(name, one, other)
    return max(found)


def value(image: Tensor, text: Tensor) -> Tensor:
    """A number that depends on every entry in another way."""
    return sum((at + 1) * (image[at] * text[at]).sum() for at in range(3)) + (image[0] ** 3).sum() + text[2].sin().sum()


@dataclass
class Case:
    """A method with settings, and its transcription: a block, and encoders where they differ from CLIP's.

    `prepare` changes the model before it is used, such as dropouts to masks.
    """

    name: str
    settings: dict
    block: Callable
    image: Callable = encode_image
    text: Callable = encode_text
    ids: Tensor | None = None
    prepare: Callable[[core.DualEncoder], object] = lambda model: None

    def model(self) -> core.DualEncoder:
        model = adapted(self.name, **self.settings)
        self.prepare(model)
        return model

    def outputs(self, model: core.DualEncoder) -> tuple[Tensor, ...]:
        images, ids = data()
        features = model(images, ids if self.ids is None else self.ids)
        return features.image, features.text, value(features.image, features.text)

    def by_hand(self, model: core.DualEncoder) -> tuple[Tensor, ...]:
        (images, ids), w = data(), weights(model)
        image = torch.stack([self.image(each, w, self.block) for each in images])
        text = torch.stack([self.text(each, w, self.block) for each in (ids if self.ids is None else self.ids)])
        return image, text, value(image, text)

    @cached_property
    def known(self) -> tuple[Tensor, ...]:
        """The transcription's outputs, computed once for all faults; while none is planted."""
        with torch.no_grad():
            return self.by_hand(self.model())


def compared(case: Case) -> float:
    """Holds a method to its transcription, outputs and gradients; the largest difference there is."""
    model = case.model()
    return agree(model, case.outputs(model), case.by_hand(model))


def caught(case: Case, monkeypatch: pytest.MonkeyPatch, target: str, fault: object) -> bool:
    """Whether the outputs differ from the transcription's once `fault` is in place of what `target` names."""
    known = case.known
    monkeypatch.setattr(target, fault)
    with torch.no_grad():
        ours = case.outputs(case.model())
    return any(relative(one, other) >= TOLERANCE for one, other in zip(ours, known, strict=True))


class Mask(nn.Module):
    """In place of a dropout: one of its masks, which both sides know."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask
