"""CLIP-Adapter: a residual bottleneck on the embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder, bottlenecks


class CLIPAdapter(Method):
    """`f <- r W2 ReLU(W1 f) + (1 - r) f` on a tower's embedding f, without biases: the paper's equation.

    As published: the image embedding alone, a bottleneck of a quarter, r = 0.2. W2 starts at zero, so every cosine
    starts as the backbone's; the released code starts at random and has one more ReLU behind W2. `preset: table` gives
    the published table's 524,288 parameters on ViT-B-32: both embeddings, 512 -> 256 -> 512.
    """

    name = "clip_adapter"
    paper = "Gao et al. 2021, arXiv 2110.04544"
    grad_towers = ()  # its layers lie behind the towers
    presets = {"paper": {}, "table": {"bottleneck": 256, "towers": "both"}}
    knob = "bottleneck"
    examples = {"": {"bottleneck": 4}, "both": {"bottleneck": 4, "towers": "both"}}
    bottleneck: int = Field(128, ge=1)
    """Width of the bottleneck."""
    ratio: float = Field(0.2, gt=0, lt=1)
    """Share of the adapted embedding in the sum with the backbone's."""
    towers: Literal["image", "text", "both"] = "image"
    """Whose embeddings are adapted."""

    def attach(self, model: DualEncoder) -> None:
        if self.towers != "text":
            model.image_head = bottlenecks.EmbeddingAdapter(model.embed_dim, self.bottleneck, self.ratio)
        if self.towers != "image":
            model.text_head = bottlenecks.EmbeddingAdapter(model.embed_dim, self.bottleneck, self.ratio)

    def trainable_params(self, shape: ModelShape) -> int | None:
        return (2 if self.towers == "both" else 1) * 2 * shape.embed_dim * self.bottleneck
