"""LoRA: low-rank updates beside frozen linear layers, by the peft library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from methods.base import Method, ModelShape, TowerShape

if TYPE_CHECKING:
    from bench.core.backbone import DualEncoder

Target = Literal["attn.q", "attn.k", "attn.v", "attn.out", "mlp.c_fc", "mlp.c_proj"]
ATTENTION = ("attn.q", "attn.k", "attn.v", "attn.out")


class LoRA(Method):
    """`W x + alpha/rank * B A x` on the targeted layers of every block; B starts at zero.

    open_clip packs q, k and v in one matrix. Where attention is targeted, the pack is split into three `nn.Linear`s
    first (equal to 1e-7), so each of q, k, v gets its own A: `rank * (in + out)` parameters a targeted layer. peft on
    the packed layer would share A among them, always adapt the output too, and merge weights at every step.
    """

    name = "lora"
    paper = "Hu et al. 2022, arXiv 2106.09685"
    needs_slots = ("image", "text")
    rank: int = Field(4, ge=1)
    alpha: float = Field(8.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[Target, ...] = Field(("attn.q", "attn.v"), min_length=1)

    def attach(self, model: DualEncoder) -> None:
        import peft

        from methods.layers import split_attention

        names = []
        for blocks in (model.image_blocks, model.text_blocks):
            for prefix, block in blocks.named_blocks():
                if any(target in ATTENTION for target in self.targets):
                    split_attention(block)
                names += [f"{prefix}.{target}" for target in self.targets]
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=names,
            bias="none",
        )
        peft.inject_adapter_in_model(config, model.clip)

    def trainable_params(self, shape: ModelShape) -> int | None:
        def sizes(tower: TowerShape, target: str) -> int:
            return tower.width + (tower.width if target in ATTENTION else tower.mlp_width)

        return sum(
            self.rank * sizes(tower, target) * tower.layers for tower in shape.towers for target in set(self.targets)
        )
