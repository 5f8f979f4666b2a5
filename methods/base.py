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

__all__ = ["DoesNotFit", "Method", "ModelShape", "Target", "TowerShape"]

# The linear layers of a block, for methods that adapt layers by name.
Target = Literal["attn.q", "attn.k", "attn.v", "attn.out", "mlp.c_fc", "mlp.c_proj"]


class DoesNotFit(UserError):
    """A method that a backbone can't take; `why` says why in a few words, without the names of both."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class Method(Settings):
    """Base class of all methods. An instance is one configuration: its fields are the settings of the sweep file.

    A subclass sets the class variables below, implements `attach` and `trainable_params`, and is registered by a line
    in `methods/__init__.py`, by an entry point of the group `petl_bench.methods`, or by `--plugin FILE`. Its defaults
    are those of its authors' code, or of the paper where there is none; what differs is in the docstring, with the
    reason. `python -m bench.check` runs the checks that every method must pass. docs/new-method.md builds one step by
    step.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""  # as papers write it, in LaTeX tables and figures; default: the name, as "My Method"
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
    # Whether what it trains are weights of the backbone itself, and nothing else. May be a property.
    trains_backbone: ClassVar[bool] = False
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
    def called(cls) -> str:
        """What papers call the method."""
        return cls.title or readable(cls.name)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if taken := {"preset", "recipe", "train", "loss", "evaluation"} & set(cls.model_fields):
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

    @property
    def interpolates(self) -> bool:
        """Whether weights between the backbone's and the trained ones make a model (`evaluation.interpolate`)."""
        return self.trains_backbone or self.mergeable

    def merge(self, model: DualEncoder) -> None:
        """Fold what was trained into the backbone's own weights. Raises UserError for methods that can't."""
        raise UserError(f"{self.name} cannot be merged into the backbone")


def readable(name: str) -> str:
    """A name as a title: `my_method` is My Method."""
    return " ".join(word[:1].upper() + word[1:] for word in name.split("_") if word) or name


def check_slots(owner: str, shape: ModelShape, sides: Iterable[str]) -> None:
    """Raise UserError, with the tower's name, if a tower's blocks can't take slots."""
    for side in sides:
        tower: TowerShape = getattr(shape, side)
        if tower.slots is not None:
            raise DoesNotFit(
                f"{owner} needs transformer blocks as CLIP and SigLIP have them, but the {side} tower of "
                f"'{shape.model}' is {tower.kind}: {tower.slots}. Choose another backbone, or what works on embeddings "
                "alone, such as linear_probe with info_nce.",
                why=f"the {side} tower takes no adapters or prompts: {tower.slots}",
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
    """Raise UserError if the text tower's embedding is at no place that prompts can keep, or no room is left for words.

    See `methods.layers.prompts.insert_placeholders`, which knows the places.
    """
    if shape.text.pool not in ("argmax", "last"):
        why = f"the text tower pools by '{shape.text.pool}'; prompts need the end token or the last place"
        raise DoesNotFit(
            f"{owner}: on '{shape.model}' {why}. Choose another backbone, or a method without prompts in the text.", why
        )
    if n_ctx > shape.text.tokens - 3:
        why = f"{n_ctx} prompts leave no room for words in a context of {shape.text.tokens}"
        raise DoesNotFit(f"{owner}: {why}", why)


def check_pools_as_clip(owner: str, shape: ModelShape) -> None:
    """Raise UserError unless an image's embedding is its class token's, and a text's that of its end token."""
    if not shape.image.class_token:
        why = "the image tower has no class token"
    elif shape.text.pool != "argmax":
        why = f"the text tower pools by '{shape.text.pool}', not at the end token"
    else:
        return
    raise DoesNotFit(f"{owner}: on '{shape.model}' {why}. Choose another backbone or another method.", why)


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain data with the name first: what run.yaml and result.json hold."""
    values: Mapping[str, Any] = settings.model_dump(mode="json")
    return {"name": type(settings).name, **values}  # type: ignore[attr-defined]
