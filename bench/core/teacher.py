"""A teacher for losses that distil: the model with the mean of its trained weights at the ends of the epochs so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.core.modes import in_eval_mode


class Teacher:
    """The running mean of the trained weights, one value an epoch. No module: neither state dict nor adapter hold it.

    `share` says how far training has come: finished epochs over all epochs. It is 0 in the first epoch, in which there
    is no teacher yet. Frozen weights and buffers are the model's own.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self.weights: dict[str, Float[Tensor, "*shape"]] = {}

    def after_epoch(self, epoch: int, epochs: int, trained: Mapping[str, nn.Parameter]) -> None:
        """Take the weights at the end of `epoch` (from 1) of `epochs` into the mean, which all epochs enter equally."""
        for name, parameter in trained.items():
            if name in self.weights:
                self.weights[name].lerp_(parameter.detach(), 1 / epoch)
            else:
                self.weights[name] = parameter.detach().clone()
        self.share = epoch / epochs

    @torch.no_grad()
    def __call__(self, model: nn.Module, *inputs: Any) -> Any:
        """What the model gives in eval mode with the mean weights: dropout is off, and no random number is drawn.

        Other tensors stand in for the parameters, whose values stay as they are. Under autocast that matters: it keeps
        the casts of parameters, and would give the teacher's to the student.
        """
        with in_eval_mode(model), self._in_place_of_parameters(model):
            return model(*inputs)

    @contextmanager
    def _in_place_of_parameters(self, model: nn.Module) -> Iterator[None]:
        # Not torch.func.functional_call: where a module serves several blocks, it leaves the means in the model.
        means = {parameter: self.weights[name] for name, parameter in model.named_parameters() if name in self.weights}
        places = [
            (owner, name, parameter)
            for owner in model.modules()
            for name, parameter in owner.named_parameters(recurse=False)
            if parameter in means
        ]
        try:
            for owner, name, parameter in places:
                owner._parameters[name] = nn.Parameter(means[parameter], requires_grad=False)
            yield
        finally:
            for owner, name, parameter in places:
                owner._parameters[name] = parameter

    def state_dict(self) -> dict[str, Any]:
        """What the epochs to come depend on, as tensors and plain values."""
        return {"share": self.share, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any], trained: Mapping[str, nn.Parameter]) -> None:
        """Take over what `state_dict` gave; each mean goes to the device of its parameter."""
        self.share = state["share"]
        self.weights = {name: mean.to(trained[name].device) for name, mean in state["weights"].items()}
