"""CLIP-Adapter: a residual bottleneck on the embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder, bottlenecks


class CLIPAdapter(Method):
    """`f <- r ReLU(W2 ReLU(W1 f)) + (1 - r) f` on a tower's embedding f, without biases.

    As released: the image embedding alone, a bottleneck of a quarter, r = 0.2, both matrices with torch's random start.
    The paper's equation has no ReLU behind W2: `form: equation` follows it and starts W2 at zero, so that every cosine
    starts as the backbone's. `preset: table` gives the published table's 524,288 parameters on ViT-B-32: both
    embeddings, 512 -> 256 -> 512.
    """

    name = "clip_adapter"
    title = "CLIP-Adapter"
    paper = "Gao et al. 2021, arXiv 2110.04544"
    grad_towers = ()  # its layers lie behind the towers
    presets = {"paper": {}, "table": {"bottleneck": 256, "towers": "both"}}
    knob = "bottleneck"
    examples = {"": {"bottleneck": 4}, "both": {"bottleneck": 4, "towers": "both", "form": "equation"}}
    bottleneck: int = Field(128, ge=1)
    """Width of the bottleneck."""
    ratio: float = Field(0.2, gt=0, lt=1)
    """Share of the adapted embedding in the sum with the backbone's."""
    towers: Literal["image", "text", "both"] = "image"
    """Whose embeddings are adapted."""
    form: Literal["released", "equation"] = "released"
    """released: a ReLU behind W2 and a random start; equation: neither, the start is the backbone's."""

    @property
    def starts_elsewhere(self) -> str | None:  # type: ignore[override]
        return "both matrices start at random, as released" if self.form == "released" else None

    def attach(self, model: DualEncoder) -> None:
        def new() -> bottlenecks.EmbeddingAdapter:
            return bottlenecks.EmbeddingAdapter(model.embed_dim, self.bottleneck, self.ratio, self.form == "released")

        if self.towers != "text":
            model.image_head = new()
        if self.towers != "image":
            model.text_head = new()

    def trainable_params(self, shape: ModelShape) -> int | None:
        return (2 if self.towers == "both" else 1) * 2 * shape.embed_dim * self.bottleneck
