"""What a method is: typed settings, `attach`, and the closed form of what it trains.

Importing this file imports no torch.
"""

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

    A subclass sets the class variables below, implements `attach` and `trainable_params`, and is registered by a line
    in `methods/__init__.py`, by an entry point of the group `petl_bench.methods`, or by `--plugin FILE`. Its defaults
    are those of its authors' code, or of the paper where there is none; what differs is in the docstring, with the
    reason. `python -m bench.check` runs the checks that every method must pass. docs/new-method.md builds one step by
    step.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    default_loss: ClassVar[str] = "info_nce"
    trains: ClassVar[bool] = True
    needs_slots: ClassVar[tuple[str, ...]] = ()  # the towers ("image", "text") whose blocks it fills
    # Named sets of settings for sweep files (`preset: table`); `table` has the count of the published Params columns.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # The whole-number setting that a parameter budget is solved for, such as the rank: more of it, more parameters.
    # None: the count is fixed. May be a property.
    knob: ClassVar[str | None] = None
    # Why the output before training differs from the backbone's; None: it does not. May be a property.
    starts_elsewhere: ClassVar[str | None] = None
    # The towers through which gradients flow in training, for estimates of its cost. May be a property.
    grad_towers: ClassVar[tuple[str, ...]] = ("image", "text")
    # Whether an embedding stays the same when the caption's padding is cut off, as CLIP's own does. May be a property.
    trims_text: ClassVar[bool] = True
    # Settings under which the conformance suite tries it, by a short label; small ones, on towers of 2 and 3 blocks.
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}}

    def attach(self, model: DualEncoder) -> None:
        """Add the trainable parts to a frozen model, in place. Parameters with `requires_grad` afterwards are trained.

        The output stays the backbone's until something is trained, or `starts_elsewhere` says why it can't.
        """
        raise NotImplementedError(f"{type(self).__name__}.attach")

    def trainable_params(self, shape: ModelShape) -> int | None:
        """How many parameters `attach` makes trainable, as a closed form; None where there is none."""
        return None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if taken := {"preset", "recipe", "train", "loss"} & set(cls.model_fields):
            raise TypeError(f"{cls.__name__}: settings can't be named {', '.join(taken)}: a sweep file uses these")

    def check(self, shape: ModelShape) -> None:
        """Raise UserError if the method does not fit this backbone; called while a sweep is planned."""
        check_slots(self.name, shape, self.needs_slots)

    @property
    def knob_step(self) -> int:
        """The knob's values are multiples of this."""
        return 1

    @property
    def mergeable(self) -> bool:
        """Whether `merge` is implemented for these settings."""
        return False

    def merge(self, model: DualEncoder) -> None:
        """Fold what was trained into the backbone's own weights. Raises UserError for methods that can't."""
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
    """The number of blocks with prompts: all `layers` of the tower, or `depth`. Raises UserError if it has fewer."""
    if isinstance(depth, str):
        return layers
    if depth > layers:
        raise UserError(
            f"{owner}: prompt_depth {depth} exceeds the tower's {layers} blocks; give 1 to {layers} or 'all'"
        )
    return depth


def sides_by_depth(image_layers: int, text_layers: int) -> list[tuple[str, ...]]:
    """For each depth, the towers that have a block there. 1 and 2 layers: [("image", "text"), ("text",)]."""
    layers = {"image": image_layers, "text": text_layers}
    return [tuple(side for side in layers if depth < layers[side]) for depth in range(max(layers.values()))]


def check_context(owner: str, n_ctx: int, shape: ModelShape) -> None:
    """Raise UserError if so many prompts leave no room for words in the text tower's context."""
    if n_ctx > shape.text.tokens - 3:
        raise UserError(f"{owner}: {n_ctx} prompts leave no room for words in a context of {shape.text.tokens}")


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain data with the name first: what run.yaml and result.json hold."""
    values: Mapping[str, Any] = settings.model_dump(mode="json")
    return {"name": type(settings).name, **values}  # type: ignore[attr-defined]
