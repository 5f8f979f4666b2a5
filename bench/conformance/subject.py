"""What a check looks at: a method with settings on a tiny backbone, or a loss; and the tables that checks enter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bench.config.errors import UserError
from bench.config.settings import Settings, TrainSettings
from bench.config.shapes import ModelShape, shape_of
from bench.conformance.tiny import CONFIGS, backbone, batch, eval_set
from bench.core.model import DualEncoder
from bench.core.state import StateFiles
from bench.core.train import Batch, TrainBatches, fit
from methods.base import Method
from methods.losses import Loss

CLOSE = 1e-5  # largest difference of cosines that counts as rounding


class Skip(Exception):
    """Raised by a check that does not apply to a subject; its text is the reason."""


@dataclass(frozen=True)
class Subject:
    """A method with settings on one class of backbone, or a loss (then `method` is None)."""

    label: str
    kind: str
    method: Method | None
    loss: Loss

    @cached_property
    def shape(self) -> ModelShape:
        """The sizes of the tiny backbone."""
        return shape_of("tiny", CONFIGS[self.kind][0])

    def attached(self, seed: int = 0, perturbed: bool = False, train: bool = False) -> DualEncoder:
        """A tiny backbone with the method and its loss attached, in eval mode unless `train`.

        perturbed: every trained parameter gets some noise, as after training.
        """
        model = backbone(self.kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.method is not None:
                self.method.attach(model)
            self.loss.attach(model)
            if perturbed:
                with torch.no_grad():
                    for parameter in model.trainable().values():
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return model.train(train)

    def loss_of(self, model: DualEncoder, data: Batch) -> Tensor:
        """The loss of a batch (scalar), with the method's own terms."""
        features = model(data.images, data.tokens, self.loss.second_view)
        return self.loss(features, data.image_ids, model) + sum(penalty() for penalty in model.penalties)

    def train(
        self, model: DualEncoder, folder: Path, epochs: int = 2, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Train in the core's own loop, three batches an epoch, and leave the model as the last step left it."""
        settings = TrainSettings(
            epochs=epochs, batch_size=4, lr=1e-2, warmup=0.0, weight_decay=0.1, schedule="constant"
        )
        with torch.random.fork_rng(devices=[]):
            fit(
                model,
                loss=self.loss,
                batches=TrainBatches(lambda epoch, skip: (batch(3 * epoch + i) for i in range(skip, 3)), per_epoch=3),
                validation=eval_set(),
                settings=settings,
                seed=0,
                files=StateFiles(folder / "state.pt"),
                should_stop=should_stop,
            )
        model.eval()


def cosines(model: DualEncoder, data: Batch | None = None) -> Tensor:
    """All embeddings of a batch (2 * batch, dim), images first, L2-normalised."""
    data = data or batch()
    with torch.no_grad():
        features = model(data.images, data.tokens)
    return torch.cat([features.image, features.text])


def distance(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape."""
    return float((one - other).abs().max())


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all parameters and buffers that are not empty."""
    found = itertools.chain(model.named_parameters(), model.named_buffers())
    return ((name, tensor) for name, tensor in found if tensor.numel())


def address(tensor: Tensor) -> int:
    """Where a tensor's memory begins."""
    return tensor.untyped_storage().data_ptr()


S = TypeVar("S", bound=Settings)


def built(cls: type[S], settings: Mapping[str, Any]) -> S:
    """The class with these settings; UserError if they are not all it needs."""
    try:
        return cls(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{cls.name}: `examples` must give settings that work: {key}: {first['msg']}") from error  # type: ignore[attr-defined]


Check = Callable[[Subject], None]
METHOD_CHECKS: dict[str, Check] = {}
LOSS_CHECKS: dict[str, Check] = {}


def _into(table: dict[str, Check]) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        table[check.__name__.removeprefix("check_")] = check
        return check

    return register


on_method, on_loss = _into(METHOD_CHECKS), _into(LOSS_CHECKS)
