"""What a method is: typed settings, `attach`, and the closed form of what it trains. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bench.errors import UserError
from bench.settings import Settings

if TYPE_CHECKING:
    from bench.core.backbone import DualEncoder


@dataclass(frozen=True)
class TowerShape:
    """One tower's size. `slots` is None where its blocks take adapters and prompts, else the reason why not."""

    kind: str
    width: int
    layers: int
    tokens: int  # image: patches + class token; text: context length
    mlp_width: int
    slots: str | None = None


@dataclass(frozen=True)
class ModelShape:
    """What closed forms need to know of a backbone, read from open_clip's own model config without torch."""

    model: str
    image: TowerShape
    text: TowerShape
    embed_dim: int
    patch: int
    total_params: int | None  # None where no closed form is known: other towers than open_clip's own transformers

    @property
    def towers(self) -> tuple[TowerShape, TowerShape]:
        return self.image, self.text


class Method(Settings):
    """Base class of all methods. An instance is one configuration: its fields are the settings of the sweep file.

    A subclass says what it is (`name`, `paper`), implements `attach` and `trainable_params`, and is registered by a
    line in `methods/__init__.py` or by an entry point of the group `petl_bench.methods`. The methods shipped here
    import torch inside `attach` only, so that planning a sweep stays instant; a method of your own need not.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    default_loss: ClassVar[str] = "info_nce"
    trains: ClassVar[bool] = True
    needs_slots: ClassVar[tuple[str, ...]] = ()  # the towers ("image", "text") whose blocks it fills

    def attach(self, model: DualEncoder) -> None:
        """Add the trainable parts to a frozen model, in place. What has `requires_grad` afterwards is trained.

        New branches start so that the output equals the backbone's, or the docstring says why they can't.
        """
        raise NotImplementedError(f"{type(self).__name__}.attach")

    def trainable_params(self, shape: ModelShape) -> int | None:
        """Closed form of the number of parameters that `attach` makes trainable; None where none is known."""
        raise NotImplementedError(f"{type(self).__name__}.trainable_params")

    def check(self, shape: ModelShape) -> None:
        """Raise UserError if this backbone can't take the method; called while a sweep is planned."""
        check_slots(self.name, shape, self.needs_slots)


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


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain data with the name first: what run.yaml and result.json hold."""
    values: Mapping[str, Any] = settings.model_dump(mode="json")
    return {"name": type(settings).name, **values}  # type: ignore[attr-defined]
