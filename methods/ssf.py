"""SSF: a learned scale and shift of the features behind every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder, scale_shift


class SSF(Method):
    """`scale * y + shift` on the output y of both LayerNorms, q, k, v, the output projection and both MLP layers.

    In every block of both towers, each layer with its own: 337,920 parameters on ViT-B-32. After training they can be
    folded into the layers. The shift of k makes no difference, since a softmax ignores it; it is counted as in the
    paper. As released they start at random around the identity; `start_std: 0` starts at the backbone's output. The
    released code, for image towers, also adapts the patch embedding and the last LayerNorm; here both towers have the
    same set of layers, that of their blocks.
    """

    name = "ssf"
    title = "SSF"
    paper = "Lian et al. 2022, arXiv 2210.08823"
    needs_slots = ("image", "text")
    presets = {"paper": {}}
    examples = {"": {}, "identity": {"start_std": 0.0}}
    start_std: float = Field(0.02, ge=0)
    """Standard deviation of the random start around scale 1 and shift 0; 0: the output starts at the backbone's."""

    @property
    def starts_elsewhere(self) -> str | None:  # type: ignore[override]
        return "scales and shifts start at random" if self.start_std else None

    def attach(self, model: DualEncoder) -> None:
        for layer in _layers(model):
            layer.fill(after=scale_shift.ScaleShift(layer.outputs, self.start_std))

    def trainable_params(self, shape: ModelShape) -> int | None:
        return sum(tower.layers * 2 * (7 * tower.width + tower.mlp_width) for tower in shape.towers)

    @property
    def mergeable(self) -> bool:
        return True

    def merge(self, model: DualEncoder) -> None:
        for layer in _layers(model):
            own: Any = layer.take("after")
            scale, shift = own.scale.detach(), own.shift.detach()
            layer.weight.mul_(scale if layer.weight.ndim == 1 else scale[:, None])  # a LayerNorm's is a vector
            layer.bias.mul_(scale).add_(shift)


def _layers(model: DualEncoder) -> Iterator[Any]:
    for blocks in (model.image_blocks, model.text_blocks):
        for block in blocks.slotted():
            yield from block.layers()
