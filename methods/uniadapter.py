"""UniAdapter: adapters in both towers that share their down-projection."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from methods.base import Method, ModelShape, sides_by_depth
from methods.lazy import DualEncoder, bottlenecks, nn

PROJECTIONS = ("visual.proj", "text_projection")
VISUAL_STD = 0.02  # of the image tower's up-projection at the start


class UniAdapter(Method):
    """`x <- r + MLP(LN2 r) + s Up_tower(ReLU(Down LN r))` on the residual r; block i of both towers shares Down.

    As released: parallel to the MLP, on the residual before its norm, with a trained LayerNorm of its own in front; a
    bottleneck of 512, s = 0.1, and the projections to the embeddings trained too. Up starts at zero in the text tower
    alone: the released code sets no other to zero, so in the image tower Up starts at random, with deviation 0.02.

    The authors adapt BLIP. Its towers have one width; where CLIP's differ, Down is shared in part, see
    `methods.layers.bottlenecks.SharedDownBottleneck`. Its text tower normalises behind the residual, and CLIP's in
    front. Its cross-modal part, with an up-projection and a LayerNorm for it, does not exist in CLIP. 13,290,496
    parameters on ViT-B-32, 655,360 of them the projections; the published table's 0.55M is not reproduced by any
    natural reading.
    """

    name = "uniadapter"
    title = "UniAdapter"
    paper = "Lu et al. 2023, arXiv 2302.06605"
    needs_slots = ("image", "text")
    knob = "bottleneck"
    starts_elsewhere = "the image tower's up-projections start at random, as released"
    examples = {"": {"bottleneck": 4}, "alone": {"bottleneck": 4, "projections": False}}
    bottleneck: int = Field(512, ge=1)
    """Width of the bottleneck."""
    scale: float = Field(0.1, gt=0)
    """Factor on the output of the bottleneck."""
    projections: bool = True
    """Whether the projections to the embeddings are trained, too."""

    def attach(self, model: DualEncoder) -> None:
        towers = {"image": model.image_blocks, "text": model.text_blocks}
        for depth, sides in enumerate(sides_by_depth(*(len(blocks.list) for blocks in towers.values()))):
            module = bottlenecks.SharedDownBottleneck(
                {side: towers[side].width for side in sides}, self.bottleneck, self.scale
            )
            for side in sides:
                towers[side].slotted()[depth].fill(beside_mlp=bottlenecks.Door(module, side, serial=False))
            if "image" in sides:
                nn.init.normal_(module.up["image"].weight, std=VISUAL_STD)  # type: ignore[arg-type]
        for name, parameter in model.clip.named_parameters():
            if self.projections and name.removeprefix("text.").startswith(PROJECTIONS):
                parameter.requires_grad_(True)

    def trainable_params(self, shape: ModelShape) -> int | None:
        def module(sides: Iterable[str]) -> int:
            widths = [getattr(shape, side).width for side in sides]
            norms, down = 2 * sum(set(widths)), (max(widths) + 1) * self.bottleneck
            return norms + down + sum((self.bottleneck + 1) * width for width in widths)

        adapters = sum(map(module, sides_by_depth(shape.image.layers, shape.text.layers)))
        if not self.projections:
            return adapters
        if shape.image.ends is None or shape.text.ends is None:
            return None
        return adapters + shape.image.ends.projection + shape.text.ends.projection
