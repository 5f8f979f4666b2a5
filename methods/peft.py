"""The peft library's tuners, by its own config names: `peft: {type: VERA, r: 64, targets: [attn.q, mlp.c_fc]}`."""

from __future__ import annotations

import dataclasses
import difflib
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from bench.errors import UserError
from methods.base import Method, ModelShape, Target, check_slots

if TYPE_CHECKING:
    from bench.core.backbone import DualEncoder


class Peft(Method):
    """Any tuner of the library that replaces linear layers: LORA (rsLoRA, DoRA and PiSSA are settings of it), ADALORA,
    IA3, OFT, BOFT, VERA, LOHA, LOKR, ... All other settings are those of the tuner's config in the library.

    `targets` are layers in CLIP's terms, in every block of `towers`. Where attention is targeted, its packed
    projection is split into q, k, v and out first (equal to 1e-7). Tuners have no closed forms here: parameters are
    counted on a model without memory, which is exact but imports torch while a sweep is planned.
    """

    model_config = ConfigDict(extra="allow")

    name = "peft"
    paper = "the peft library, github.com/huggingface/peft, and each tuner's own paper"
    needs_slots = ("image", "text")
    knob = "r"
    examples = {
        "lora": {"type": "LORA", "r": 2, "use_rslora": True},
        "dora": {"type": "LORA", "r": 2, "use_dora": True, "targets": ("attn.q", "mlp.c_fc")},
        "pissa": {"type": "LORA", "r": 2, "init_lora_weights": "pissa"},
        "adalora": {"type": "ADALORA", "init_r": 3, "target_r": 2, "tinit": 1, "tfinal": 1},
        "ia3": {"type": "IA3", "targets": ("attn.k", "mlp.c_proj"), "feedforward_modules": ["mlp.c_proj"]},
        "oft": {"type": "OFT", "oft_block_size": 8},
        "boft": {"type": "BOFT", "boft_block_size": 8},
        "vera": {"type": "VERA", "r": 8, "targets": ("attn.q", "mlp.c_fc")},
        "loha": {"type": "LOHA", "r": 2, "towers": "text"},
        "lokr": {"type": "LOKR", "r": 2, "towers": "image"},
    }
    type: str
    targets: tuple[Target, ...] = Field(("attn.q", "attn.v"), min_length=1)
    towers: Literal["both", "image", "text"] = "both"

    @classmethod
    def extra_depth(cls, key: str) -> int | None:
        """The library's lists of layers are lists; a list anywhere else is an axis of the grid."""
        return 1 if key.endswith("_modules") else 0

    def config(self) -> Any:
        """The library's config; UserError for a type or a setting that it does not have."""
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig
        from peft.tuners.tuners_utils import BaseTuner

        tuners = {
            kind.value: PEFT_TYPE_TO_CONFIG_MAPPING[kind]
            for kind, cls in PEFT_TYPE_TO_TUNER_MAPPING.items()
            if issubclass(cls, BaseTuner)
        }
        if self.type not in tuners:
            raise UserError(_unknown("peft", "type", self.type, sorted(tuners)))
        ours = {field.name for field in dataclasses.fields(PeftConfig)} | {"target_modules", "modules_to_save"}
        allowed = {field.name for field in dataclasses.fields(tuners[self.type])} - ours
        given = {**(self.model_extra or {})}
        for key in given:
            if key not in allowed:
                raise UserError(_unknown(f"peft {self.type}", "key", key, sorted(allowed)))
        if "total_step" in allowed:
            given.setdefault("total_step", 2**31)  # the tuner is told at the first step
        try:
            return tuners[self.type](**given)
        except (TypeError, ValueError) as error:
            raise UserError(f"peft {self.type}: {error}") from error

    def check(self, shape: ModelShape) -> None:
        check_slots(self.name, shape, ("image", "text") if self.towers == "both" else (self.towers,))
        self.trainable_params(shape)

    def attach(self, model: DualEncoder) -> None:
        from methods.layers.tuners import attach

        attach(model, self.config(), self.towers, self.targets)

    def trainable_params(self, shape: ModelShape) -> int | None:
        return _count(self.model_dump_json(), shape)

    @property
    def mergeable(self) -> bool:
        return True

    def merge(self, model: DualEncoder) -> None:
        from methods.layers.tuners import merge

        merge(model)


def _unknown(owner: str, what: str, word: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(word, allowed, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{owner}: unknown {what} '{word}'{hint} (allowed: {', '.join(allowed)})"


@cache
def _count(settings: str, shape: ModelShape) -> int:
    """What the tuner trains on a backbone of this shape; UserError if it can't go there."""
    from methods.layers.tuners import count

    method = Peft.model_validate_json(settings)
    return count(method.config(), shape, method.towers, method.targets)
