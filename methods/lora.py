"""LoRA: low-rank updates beside frozen linear layers, by the peft library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from methods.base import Method, ModelShape, Target, TowerShape, check_slots
from methods.lazy import DualEncoder, tuners


class LoRA(Method):
    """`W x + s B A x` on the targeted layers of every block, with s = alpha / rank; B starts at zero.

    open_clip has q, k and v in one matrix. Where attention is targeted, it is split into three `nn.Linear`s (equal to
    1e-7), so that each has an A of its own: `rank * (in + out)` parameters a targeted layer. The peft library on the
    packed layer would share A among them, adapt the output as well, and merge weights in every forward pass.
    `preset: table` is the published tables' LoRA of attention: 491,520 parameters on ViT-B-32 with q, k and v split,
    where the packed layer has 368,640. `preset: table_mlp` is that of the MLP: 614,400. `preset: clip_lora` is
    CLIP-LoRA as released (arXiv 2405.18541): q, k and v, rank 2, s = alpha / sqrt(rank), 184,320 parameters.
    """

    name = "lora"
    title = "LoRA"
    paper = "Hu et al. 2022, arXiv 2106.09685"
    needs_slots = ("image", "text")
    presets = {
        "paper": {},
        "table": {"rank": 4, "targets": ("attn.q", "attn.k", "attn.v", "attn.out")},
        "table_mlp": {"rank": 4, "targets": ("mlp.c_fc", "mlp.c_proj")},
        "clip_lora": {
            "rank": 2,
            "alpha": 1.0,
            "scaling": "sqrt",
            "dropout": 0.25,
            "targets": ("attn.q", "attn.k", "attn.v"),
        },
    }
    knob = "rank"
    examples = {
        "": {},
        "all": {"rank": 2, "targets": ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.c_fc", "mlp.c_proj")},
        "text": {"rank": 2, "towers": "text", "targets": ("mlp.c_fc",)},
    }
    rank: int = Field(4, ge=1)
    """Rank of each update."""
    alpha: float = Field(8.0, gt=0)
    """The update is scaled by alpha / rank, or by alpha / sqrt(rank)."""
    scaling: Literal["rank", "sqrt"] = "rank"
    """What alpha is divided by: the rank, or its square root."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of the update."""
    targets: tuple[Target, ...] = Field(("attn.q", "attn.v"), min_length=1)
    """The layers of a block that get an update."""
    towers: Literal["both", "image", "text"] = "both"
    """The towers that are adapted."""

    def check(self, shape: ModelShape) -> None:
        check_slots(self.name, shape, self._sides())

    def _sides(self) -> tuple[str, ...]:
        return ("image", "text") if self.towers == "both" else (self.towers,)

    def attach(self, model: DualEncoder) -> None:
        from peft import LoraConfig

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            use_rslora=self.scaling == "sqrt",
        )
        tuners.inject(model, config, self.towers, self.targets)

    @property
    def grad_towers(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._sides()

    def trainable_params(self, shape: ModelShape) -> int | None:
        def sizes(tower: TowerShape, target: str) -> int:
            return tower.width + (tower.width if target.startswith("attn.") else tower.mlp_width)

        towers: list[TowerShape] = [getattr(shape, side) for side in self._sides()]
        return sum(self.rank * sizes(tower, target) * tower.layers for tower in towers for target in set(self.targets))

    @property
    def mergeable(self) -> bool:
        return True

    def merge(self, model: DualEncoder) -> None:
        tuners.merge(model)
