"""Linear probe: one linear layer on each tower's frozen embedding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder, nn


class LinearProbe(Method):
    """`Linear(embed_dim -> out_dim)` without bias on each embedding: 512 -> 1024 has the papers' 1,048,576 parameters.

    With `init: orthogonal` both layers start as the same matrix with orthonormal columns, which changes no cosine (but
    for rounding) unless `out_dim` is below the size of the embedding. `init: default` is torch's, near chance.
    """

    name = "linear_probe"
    title = "Linear probe"
    paper = "Radford et al. 2021, arXiv 2103.00020; sizes of Yuan, Zhan, Xiong 2023, arXiv 2308.12509"
    grad_towers = ()  # its layers lie behind the towers
    presets = {"paper": {}, "table": {}}
    knob = "out_dim"
    examples = {"": {"out_dim": 64}, "default": {"out_dim": 64, "init": "default"}}
    out_dim: int = Field(1024, ge=1)
    """Dimensions of the new embeddings."""
    init: Literal["orthogonal", "default"] = "orthogonal"
    """How the layers start: orthogonal keeps the backbone's similarities, default is torch's."""

    @property
    def starts_elsewhere(self) -> str | None:  # type: ignore[override]
        return None if self.init == "orthogonal" else "random projections keep no cosine"

    def attach(self, model: DualEncoder) -> None:
        image_head = nn.Linear(model.embed_dim, self.out_dim, bias=False)
        text_head = nn.Linear(model.embed_dim, self.out_dim, bias=False)
        if self.init == "orthogonal":
            nn.init.orthogonal_(image_head.weight)
            text_head.load_state_dict(image_head.state_dict())
        model.image_head, model.text_head = image_head, text_head

    def trainable_params(self, shape: ModelShape) -> int | None:
        return 2 * shape.embed_dim * self.out_dim
