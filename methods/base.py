"""What a method is: typed settings, `attach`, and the closed form of what it trains. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from bench.config.errors import UserError
from bench.config.settings import Settings
from bench.config.shapes import ModelShape, TowerShape
from methods.lazy import DualEncoder

__all__ = ["Method", "ModelShape", "Target", "TowerShape"]

# The linear layers of a block, for methods that adapt layers by name.
Target = Literal["attn.q", "attn.k", "attn.v", "attn.out", "mlp.c_fc", "mlp.c_proj"]


class Method(Settings):
    """Base class of all methods. An instance is one configuration: its fields are the settings of the sweep file.

    A subclass says what it is (the class variables below), implements `attach` and `trainable_params`, and is
    registered by a line in `methods/__init__.py`, by an entry point of the group `petl_bench.methods`, or by
    `--plugin FILE`. Its defaults are those of its own paper. The methods shipped here import torch inside `attach`
    only, so that planning a sweep stays instant; a method of your own need not. `python -m bench.check` tells
    whether a class keeps what it promises.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    default_loss: ClassVar[str] = "info_nce"
    trains: ClassVar[bool] = True
    needs_slots: ClassVar[tuple[str, ...]] = ()  # the towers ("image", "text") whose blocks it fills
    # Named sets of settings for sweep files (`preset: table`); `table` is what the published Params columns count.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # The whole-number setting that a parameter budget is solved for, such as the rank: the more, the more parameters.
    # None: the count is fixed. May be a property.
    knob: ClassVar[str | None] = None
    # Why the output differs from the backbone's before any training; None: it does not. May be a property.
    starts_elsewhere: ClassVar[str | None] = None
    # Whether a caption's embedding is the same with its padding cut off, as CLIP's own is. May be a property.
    trims_text: ClassVar[bool] = True
    # Settings under which the conformance suite tries it, by a short label; small ones, on towers of 2 and 3 blocks.
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}}

    def attach(self, model: DualEncoder) -> None:
        """Add the trainable parts to a frozen model, in place. What has `requires_grad` afterwards is trained.

        New branches start so that the output equals the backbone's, or `starts_elsewhere` says why they can't.
        """
        raise NotImplementedError(f"{type(self).__name__}.attach")

    def trainable_params(self, shape: ModelShape) -> int | None:
        """Closed form of the number of parameters that `attach` makes trainable; None where none is known."""
        return None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if taken := {"preset", "recipe", "train", "loss"} & set(cls.model_fields):
            raise TypeError(f"{cls.__name__}: settings can't be named {', '.join(taken)}: a sweep file uses these")

    def check(self, shape: ModelShape) -> None:
        """Raise UserError if this backbone can't take the method; called while a sweep is planned."""
        check_slots(self.name, shape, self.needs_slots)

    @property
    def knob_step(self) -> int:
        """The knob takes whole multiples of this."""
        return 1

    @property
    def mergeable(self) -> bool:
        """Whether `merge` can fold what was trained into the backbone's own weights."""
        return False

    def merge(self, model: DualEncoder) -> None:
        """Fold what was trained into the backbone's own weights, so that it costs nothing at inference."""
        raise UserError(f"{self.name} cannot be merged into the backbone")


def check_slots(owner: str, shape: ModelShape, sides: Iterable[str]) -> None:
    """Raise UserError, with the tower's name, if a tower's blocks can't take slots."""
    for side in sides:
        tower: TowerShape = getattr(shape, side)
        if tower.slots is not None:
            raise UserError(
                f"{owner} needs open_clip's own transformer blocks, but the {side} tower of '{shape.model}' is "
                f"{tower.kind}: {tower.slots}. Choose another backbone, or what works on embeddings alone, such as "
                "linear_probe with info_nce."
            )


def check_depth(owner: str, depth: int | str, layers: int) -> int:
    """The number of prompted blocks that `prompt_depth` ("all" or a number) means in a tower of so many layers."""
    if isinstance(depth, str):
        return layers
    if depth > layers:
        raise UserError(
            f"{owner}: prompt_depth {depth} exceeds the tower's {layers} blocks; give 1 to {layers} or 'all'"
        )
    return depth


def sides_by_depth(image_layers: int, text_layers: int) -> list[tuple[str, ...]]:
    """The towers that have a block at each depth: both, and below the shallower one's last block the other alone."""
    layers = {"image": image_layers, "text": text_layers}
    return [tuple(side for side in layers if depth < layers[side]) for depth in range(max(layers.values()))]


def check_context(owner: str, n_ctx: int, shape: ModelShape) -> None:
    """Raise UserError if so many prompts leave no room for words."""
    if n_ctx > shape.text.tokens - 3:
        raise UserError(f"{owner}: {n_ctx} prompts leave no room for words in a context of {shape.text.tokens}")


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain data with the name first: what run.yaml and result.json hold."""
    values: Mapping[str, Any] = settings.model_dump(mode="json")
    return {"name": type(settings).name, **values}  # type: ignore[attr-defined]
