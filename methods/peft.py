"""The peft library's tuners, by its own config names: `peft: {type: VERA, r: 64, targets: [attn.q, mlp.c_fc]}`."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

from pydantic import ConfigDict, Field

from bench.config.errors import UserError
from methods.base import Method, ModelShape, Target, check_slots
from methods.lazy import DualEncoder, tuners


class Peft(Method):
    """A tuner of the library that adapts linear layers: LORA (rsLoRA, DoRA and PiSSA are settings of it), ADALORA,
    IA3, OFT, BOFT, VERA, LOHA, LOKR, ... All other settings are those of the tuner's config in the library. The
    conformance suite runs the ones in `examples` alone.

    `targets` are layers in CLIP's terms, in every block of `towers`. Where attention is targeted, its packed projection
    is split into q, k, v and out first (equal to 1e-7). Parameters are counted on a model without memory, not by a
    closed form: the count is exact, but torch is imported while a sweep is planned.
    """

    model_config = ConfigDict(extra="allow")

    name = "peft"
    title = "PEFT"
    paper = "the peft library, github.com/huggingface/peft, and each tuner's own paper"
    needs_slots = ("image", "text")
    examples = {
        "lora": {"type": "LORA", "r": 2, "use_rslora": True},
        "dora": {"type": "LORA", "r": 2, "use_dora": True, "targets": ("attn.q", "mlp.c_fc")},
        "hra": {"type": "HRA", "r": 2},
        "fourierft": {"type": "FOURIERFT", "n_frequency": 20},
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
    """The library's name of the tuner, such as VERA; its own settings stand beside it."""
    targets: tuple[Target, ...] = Field(("attn.q", "attn.v"), min_length=1)
    """The layers of a block that are tuned."""
    towers: Literal["both", "image", "text"] = "both"
    """The towers that are adapted."""

    @property
    def knob(self) -> str | None:  # type: ignore[override]
        fields = self._fields() if self.type not in INVERSE_RANK else ()
        return next((key for key in ("init_r", "r") if key in fields), None)

    @property
    def starts_elsewhere(self) -> str | None:  # type: ignore[override]
        return "the library starts this tuner at random" if self.type in RANDOM_STARTS else None

    @classmethod
    def extra_depth(cls, key: str) -> int | None:
        """A list is one value for the library's lists of layers (`*_modules`), and an axis of the grid elsewhere."""
        return 1 if key.endswith("_modules") else 0

    def config(self) -> Any:
        """The library's config. Raises UserError for a type or a setting that the library does not have."""
        allowed = self._fields()
        given = {**(self.model_extra or {})}
        for key in given:
            if key not in allowed:
                raise UserError(_unknown(f"peft {self.type}", "key", key, sorted(allowed)))
        if given.get("init_lora_weights") in NEED_DATA:
            raise UserError(f"peft {self.type}: init_lora_weights {given['init_lora_weights']} needs a step with data")
        if "total_step" in allowed:
            given.setdefault("total_step", 2**31)  # set to the number of steps at the first one
        try:
            return _tuners()[self.type](**given)
        except Exception as error:  # the library raises all kinds for values that it does not allow
            raise UserError(f"peft {self.type}: {error}") from error

    def _fields(self) -> set[str]:
        """The settings of the tuner's config in the library, without those that the harness gives."""
        from peft import PeftConfig

        if self.type not in _tuners():
            raise UserError(_unknown("peft", "type", self.type, sorted(_tuners())))
        ours = {field.name for field in dataclasses.fields(PeftConfig)} | {"target_modules", "modules_to_save"}
        return {field.name for field in dataclasses.fields(_tuners()[self.type])} - ours

    def check(self, shape: ModelShape) -> None:
        check_slots(self.name, shape, ("image", "text") if self.towers == "both" else (self.towers,))
        self.trainable_params(shape)

    def attach(self, model: DualEncoder) -> None:
        tuners.attach(model, self.config(), self.towers, self.targets)

    @property
    def grad_towers(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("image", "text") if self.towers == "both" else (self.towers,)

    def trainable_params(self, shape: ModelShape) -> int | None:
        return _count(self.model_dump_json(), shape)

    @property
    def mergeable(self) -> bool:
        return True

    def merge(self, model: DualEncoder) -> None:
        tuners.merge(model)


# Tuners whose start differs from the backbone under every setting.
RANDOM_STARTS = ("C3A", "FOURIERFT", "UNILORA", "VBLORA")
INVERSE_RANK = ("OFT",)  # its r is a number of blocks: the more, the fewer parameters
# Whole numbers that say nothing about sizes: seeds, steps, factors.
NO_SIZE = re.compile("seed|prng|alpha|lambda|step|warmup|interval|^tinit$|^tfinal$|^deltaT$")
OF_ALL_WEIGHTS = ("n_frequency", "theta_d_length")  # they choose among a layer's weights
NEED_DATA = ("corda", "eva", "loftq")  # values of `init_lora_weights`


@cache
def _tuners() -> dict[str, Any]:
    """The configs of all tuners by type, without those that learn prompts."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    return {
        kind.value: PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        for kind, cls in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if issubclass(cls, BaseTuner)
    }


def _unknown(owner: str, what: str, word: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(word, allowed, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{owner}: unknown {what} '{word}'{hint} (allowed: {', '.join(allowed)})"


def _check_sizes(method: Peft, shape: ModelShape) -> None:
    """Raise UserError for a size beyond the layers themselves: to count the parameters, the tuner is built."""
    width = max(max(tower.width, tower.mlp_width) for tower in shape.towers)
    for key, value in (method.model_extra or {}).items():
        if NO_SIZE.search(key):
            continue
        most, of = width, "the widest layer"
        if key in OF_ALL_WEIGHTS:
            most, of = max(tower.width * tower.mlp_width for tower in shape.towers), "all weights of the largest layer"
        largest = max(_whole_numbers(value), default=0)
        if largest > most:
            raise UserError(
                f"peft {method.type}: {key} {largest} is too large for '{shape.model}': at most {most:,}, {of}"
            )


def _whole_numbers(value: Any) -> Iterator[int]:
    """The whole numbers in a value, also those in lists and in the values of mappings."""
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(each)
    elif isinstance(value, int):
        yield value


@cache
def _count(settings: str, shape: ModelShape) -> int:
    """How many parameters the tuner trains on a backbone of this shape. Raises UserError if it does not fit."""
    method = Peft.model_validate_json(settings)
    _check_sizes(method, shape)
    found = tuners.count(method.config(), shape, method.towers, method.targets)
    if not found:
        raise UserError(f"peft {method.type}: trains nothing on these targets")
    return found
