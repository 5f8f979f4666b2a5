"""The sequential adapter: a bottleneck behind the sublayers of every block."""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field

from methods.base import Method, ModelShape, TowerShape
from methods.lazy import DualEncoder, F, bottlenecks, nn

Place = Literal["after_attn", "after_mlp"]


class Adapter(Method):
    """`A(m) = m + Up(GELU(Down m))` on a sublayer's output m, before the residual addition.

    As released: a module behind attention and one behind the MLP of every block, GELU in its tanh approximation, both
    matrices from a normal distribution of deviation 0.001 that is cut off at twice that, and all LayerNorms of the
    towers trained too. `start_std: 0` starts at the backbone's output: Down at torch's own start, Up at zero.
    `preset: table` gives the published table's 165,248 parameters on ViT-B-32: one module a tower, behind the MLP of
    all its blocks.
    """

    name = "adapter"
    title = "Adapter"
    paper = "Houlsby et al. 2019, arXiv 1902.00751"
    needs_slots = ("image", "text")
    presets = {"paper": {}, "table": {"places": ("after_mlp",), "shared": True, "layer_norms": False}}
    knob = "bottleneck"
    examples = {
        "": {"bottleneck": 256},  # what it adds at the start is more than rounding
        "shared": {
            "bottleneck": 4,
            "shared": True,
            "places": ("after_mlp",),
            "layer_norms": False,
            "gelu": "erf",
            "start_std": 0.0,
        },
    }
    bottleneck: int = Field(64, ge=1)
    """Width of the bottleneck."""
    places: tuple[Place, ...] = Field(("after_attn", "after_mlp"), min_length=1)
    """Behind which sublayers of a block."""
    shared: bool = False
    """One bottleneck for all blocks of a tower."""
    layer_norms: bool = True
    """Whether all LayerNorms of the towers are trained, too."""
    gelu: Literal["tanh", "erf"] = "tanh"
    """GELU in its tanh approximation as released, or exactly."""
    start_std: float = Field(1e-3, ge=0)
    """Standard deviation of both matrices at the start; 0: the output starts at the backbone's."""

    @property
    def starts_elsewhere(self) -> str | None:  # type: ignore[override]
        return "the matrices start at small random numbers, as released" if self.start_std else None

    def attach(self, model: DualEncoder) -> None:
        if self.layer_norms:
            for module in model.clip.modules():
                if isinstance(module, nn.LayerNorm):
                    module.requires_grad_(True)
        for blocks in (model.image_blocks, model.text_blocks):
            one = self._new(blocks.width) if self.shared else None
            for block in blocks.slotted():
                block.fill(**{place: one or self._new(blocks.width) for place in dict.fromkeys(self.places)})

    def _new(self, width: int) -> bottlenecks.Bottleneck:
        gelu = partial(F.gelu, approximate="tanh" if self.gelu == "tanh" else "none")
        module = bottlenecks.Bottleneck(width, self.bottleneck, gelu, serial=True)
        if std := self.start_std:
            for layer in (module.down, module.up):
                nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        return module

    def trainable_params(self, shape: ModelShape) -> int | None:
        def tower(side: TowerShape) -> int:
            module = 2 * side.width * self.bottleneck + self.bottleneck + side.width
            modules = 1 if self.shared else side.layers * len(set(self.places))
            return modules * module + (side.layers * 4 * side.width if self.layer_norms else 0)

        if not self.layer_norms:
            return sum(map(tower, shape.towers))
        if shape.total_params is None:
            return None
        return sum(map(tower, shape.towers)) + 4 * shape.image.width + 2 * shape.text.width  # ln_pre, ln_post, ln_final
