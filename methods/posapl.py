"""POSAPL: bottlenecks with self-attention in every block, and the outputs of four blocks fused behind a tower."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bench.config.errors import UserError
from methods.base import Method, ModelShape, TowerShape, check_pools_as_clip
from methods.lazy import DualEncoder, posapl, tags

TAG_BOTTLENECK = 128  # of the tag stream's MLP in each block


class POSAPL(Method):
    """`x <- x + m + Up(z + MHA(z))` with m = MLP(LN x), z = Down m, in every block of both towers, and at the end of
    each tower a correction from the outputs of blocks 6, 8, 10 and 12: see `methods.layers.posapl.SideFusion`.

    As released: bottleneck 128 with 8 heads; `fusion: progressive` is the form for RSITMD, `parallel` that for RSICD;
    8,948,736 parameters on ViT-B-32 either way. The adapters attend to all tokens, without a causal or padding mask, so
    the embedding of a caption depends on its padding. On other depths the blocks are counted back from the last.

    The part-of-speech stream is off by default, for it needs a tagger. `tags: input` (released for RSITMD; 9,474,048
    parameters) adds an MLP of the embedded names of the words' tags to the caption's token embeddings; `tags: blocks`
    (for RSICD; 11,054,592) also adds an MLP of that stream behind the attention of each text block:
    `methods.layers.tags`. The released tags are those of spaCy's en_core_web_sm, which is not on PyPI. Here they are
    those of textblob's PatternTagger, which is installed with all it needs (the extra `tags`), under spaCy's names; the
    two differ on some words, such as auxiliary verbs.
    """

    name = "posapl"
    title = "POSAPL"
    paper = "POSAPL 2025, the released code (github.com/LiShuo1001/POSAPL)"
    default_loss = "posapl"
    needs_slots = ("image", "text")
    presets = {"rsitmd": {"tags": "input"}, "rsicd": {"fusion": "parallel", "tags": "blocks"}}
    knob = "bottleneck"
    trims_text = False
    examples = {
        "": {"bottleneck": 8, "heads": 2, "fused": 2, "stride": 1},
        "parallel": {"bottleneck": 8, "heads": 2, "fused": 2, "stride": 1, "fusion": "parallel"},
    }
    bottleneck: int = Field(128, ge=1)
    """Width of the bottleneck."""
    heads: int = Field(8, ge=1)
    """Heads of the attention inside the bottleneck."""
    fusion: Literal["progressive", "parallel"] = "progressive"
    """How the outputs of blocks are fused: one into the next, or as a sum, which leaves out the last block's."""
    fused: int = Field(4, ge=2)
    """The outputs of how many blocks are fused, the last block's included."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Blocks from one of these to the next; null: 2 as released, or 1 where the towers have too few blocks for 2."""
    tags: Literal["none", "input", "blocks"] = "none"
    """Where the part-of-speech stream is added: nowhere, to the token embeddings, or there and in every text block."""

    @model_validator(mode="after")
    def _heads_divide(self) -> POSAPL:
        if self.bottleneck % self.heads:
            raise ValueError(f"bottleneck {self.bottleneck} must be a multiple of the heads ({self.heads})")
        return self

    @property
    def knob_step(self) -> int:
        return self.heads

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        check_pools_as_clip(self.name, shape)
        shallow = min(tower.layers for tower in shape.towers)
        stride = self._stride(shallow)
        span = (self.fused - 1) * stride + 1
        if span > shallow:
            raise UserError(
                f"{self.name}: fused {self.fused} with stride {stride} spans {span} blocks; the shallower tower "
                f"has {shallow}"
            )
        if self.tags != "none" and find_spec("textblob") is None:
            raise UserError(
                f"{self.name}: tags: {self.tags} needs a part-of-speech tagger, which is not installed: "
                "`pip install textblob` (the extra `tags`), or set tags: none"
            )

    def _stride(self, blocks: int) -> int:
        """The stride in towers of which the shallower one has so many blocks."""
        if self.stride is not None:
            return self.stride
        return 2 if 2 * (self.fused - 1) < blocks else 1

    def attach(self, model: DualEncoder) -> None:
        model.check_pools_at_class_token(self.name)
        stride = self._stride(min(len(model.image_blocks.list), len(model.text_blocks.list)))
        for side, tower, norm in (("image", model.image_blocks, "ln_post"), ("text", model.text_blocks, "ln_final")):
            blocks = tower.slotted()
            for block in blocks:
                block.fill(after_mlp=posapl.AttentiveBottleneck(tower.width, self.bottleneck, self.heads))
            fusion = posapl.SideFusion(
                tower.width, self.fused, progressive=self.fusion == "progressive", image=side == "image"
            )
            last = len(blocks) - 1
            sources = [last - k * stride for k in reversed(range(self.fused))]
            for index, tap in zip(sources, fusion.taps, strict=False):  # parallel fusion does not read the last one
                blocks[index].fill(exit=tap)
            model.layer(side, norm).fill(after=fusion)
        if self.tags != "none":
            self._attach_tags(model)

    def _attach_tags(self, model: DualEncoder) -> None:
        own = model.tower_parameters("text").items()
        positions = next(parameter for name, parameter in own if name.endswith("positional_embedding"))
        stream = tags.Tap()
        model.replace_token_embedding(lambda plain: tags.TaggedEmbedding(plain, positions, stream))
        if self.tags == "blocks":
            for block in model.text_blocks.slotted():
                block.fill(beside_attn=tags.TagAdapter(stream, model.text_blocks.width, TAG_BOTTLENECK))

    def trainable_params(self, shape: ModelShape) -> int | None:
        def tower(side: TowerShape) -> int:
            attention = 4 * self.bottleneck * (self.bottleneck + 1)
            adapter = 2 * side.width * self.bottleneck + self.bottleneck + side.width + attention
            return side.layers * adapter + self.fused * side.width * (side.width + 1)

        width = shape.text.width
        stream = 2 * width * (width + 1) if self.tags != "none" else 0
        if self.tags == "blocks":
            stream += shape.text.layers * (2 * width * TAG_BOTTLENECK + TAG_BOTTLENECK + width)
        return sum(map(tower, shape.towers)) + stream
