"""Cross-Modal Adapter: bottlenecks in both towers whose up-projections share a slice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from bench.config.errors import UserError
from methods.base import Method, ModelShape, sides_by_depth
from methods.lazy import DualEncoder, bottlenecks, nn

Place = Literal["after_attn", "after_mlp"]


class CrossModalAdapter(Method):
    """`m <- m + concat[Up_tower(z), Up_shared(z)]`, `z = QuickGELU(Down_tower m)`, on a sublayer's output m.

    The shared slice is the last `shared_dim` output dimensions; block i of one tower shares it with block i of the
    other, if there is one. As released: bottleneck 8 behind attention and MLP of every block, 519,168 parameters on
    ViT-B-32 (the paper says 0.52M), and all matrices from a normal distribution of deviation 0.01, biases zero; its
    authors warn that smaller numbers converge more slowly. `start_std: 0` starts at the backbone's output: Down at
    torch's own start, Up at zero. `preset: table` gives the published table's 164,208: one module of 64 behind the MLP
    of all 24 blocks.
    """

    name = "cross_modal_adapter"
    title = "Cross-Modal Adapter"
    paper = "Jiang et al. 2022, arXiv 2211.09623"
    needs_slots = ("image", "text")
    presets = {"paper": {}, "table": {"bottleneck": 64, "places": ("after_mlp",), "shared": True}}
    knob = "bottleneck"
    examples = {
        "": {"bottleneck": 4, "shared_dim": 8},
        "shared": {"bottleneck": 4, "shared_dim": 8, "shared": True, "places": ("after_mlp",), "start_std": 0.0},
    }
    bottleneck: int = Field(8, ge=1)
    """Width of the bottleneck."""
    shared_dim: int = Field(16, ge=1)
    """Output dimensions of the up-projection that both towers share."""
    places: tuple[Place, ...] = Field(("after_attn", "after_mlp"), min_length=1)
    """Behind which sublayers of a block."""
    shared: bool = False
    """One module for all blocks."""
    start_std: float = Field(0.01, ge=0)
    """Standard deviation of all matrices at the start; 0: the output starts at the backbone's."""

    @property
    def starts_elsewhere(self) -> str | None:  # type: ignore[override]
        return "the matrices start at small random numbers, as released" if self.start_std else None

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        narrow = min(shape.image.width, shape.text.width)
        if self.shared_dim >= narrow:
            raise UserError(f"{self.name}: shared_dim {self.shared_dim} must be below the towers' width {narrow}")

    def attach(self, model: DualEncoder) -> None:
        towers = {"image": model.image_blocks, "text": model.text_blocks}

        def new(sides: Iterable[str]) -> bottlenecks.TwoTowerBottleneck:
            widths = {side: towers[side].width for side in sides}
            module = bottlenecks.TwoTowerBottleneck(widths, self.bottleneck, self.shared_dim, bottlenecks.quick_gelu)
            if self.start_std:
                for layer in (*module.down.values(), *module.up.values(), module.up_shared):
                    nn.init.normal_(layer.weight, std=self.start_std)  # type: ignore[arg-type]
            return module

        one = new(towers) if self.shared else None
        for place in dict.fromkeys(self.places):
            for depth, sides in enumerate(sides_by_depth(*(len(blocks.list) for blocks in towers.values()))):
                module = one or new(sides)
                for side in sides:
                    towers[side].slotted()[depth].fill(**{place: bottlenecks.Door(module, side, serial=True)})

    def trainable_params(self, shape: ModelShape) -> int | None:
        def module(sides: Iterable[str]) -> int:
            widths = [getattr(shape, side).width for side in sides]
            own = sum(
                (width + 1) * self.bottleneck + (self.bottleneck + 1) * (width - self.shared_dim) for width in widths
            )
            return own + (self.bottleneck + 1) * self.shared_dim

        if self.shared:
            return module(("image", "text"))
        return len(set(self.places)) * sum(map(module, sides_by_depth(shape.image.layers, shape.text.layers)))
