"""A batch's gradients computed in parts of the batch, with the activations of one part in memory at a time.

A contrastive loss compares all pairs of a batch, so parts of it can't be trained one by one. Gradient caching (Gao et
al. 2021, arXiv 2101.06983) is exact: the embeddings of all parts are computed without a graph; the loss gives the
gradient at each embedding; then each part is computed again, with the same random numbers, and takes its share back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.core.model import Features
from bench.core.state import random_state, set_random_state

Forward = Callable[[slice], Features]  # the embeddings of these pairs of the batch
Objective = Callable[[Features], Float[Tensor, ""]]


class MicroBatches:
    """Backward passes through `size` pairs at a time. Where a GPU's memory is too small, `size` is halved.

    The gradients do not depend on `size` beyond rounding, except through what is random: dropout draws its numbers
    part by part.
    """

    def __init__(self, size: int, device: torch.device, trainable: Sequence[nn.Parameter]) -> None:
        self.size, self.device, self.trainable = size, device, trainable

    def backward(self, pairs: int, forward: Forward, objective: Objective) -> None:
        """Add the gradients of `objective`, of all `pairs` of a batch, to those of the parameters.

        Raises torch.OutOfMemoryError if even one pair does not fit.
        """
        random = random_state(self.device)
        before = [None if p.grad is None else p.grad.clone() for p in self.trainable]
        while not self._fits(pairs, forward, objective):
            # Not inside of the exception's handler: its traceback would keep the tensors of the pass that failed.
            smaller = (min(self.size, pairs) + 1) // 2
            warnings.warn(f"out of GPU memory: train.micro_batch {self.size} becomes {smaller}", stacklevel=2)
            self.size = smaller
            set_random_state(random, self.device)
            for parameter, grad in zip(self.trainable, before, strict=True):
                parameter.grad = None if grad is None else grad.clone()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _fits(self, pairs: int, forward: Forward, objective: Objective) -> bool:
        try:
            backward(pairs, self.size, forward, objective, self.device)
        except torch.OutOfMemoryError:
            if self.size == 1:
                raise
            return False
        return True


def backward(pairs: int, size: int, forward: Forward, objective: Objective, device: torch.device) -> None:
    """Add the gradients of `objective` to those of the parameters, with the activations of `size` pairs at a time."""
    parts = [slice(start, start + size) for start in range(0, pairs, size)]
    states, found, taught = [], [], []
    with torch.no_grad():
        for part in parts:
            states.append(random_state(device))
            features = forward(part)
            found.append(_embeddings(features))
            if features.teacher is not None:
                taught.append(_embeddings(features.teacher))
    whole = [torch.cat(each).requires_grad_() for each in zip(*found, strict=True)]
    teacher = Features(*map(torch.cat, zip(*taught, strict=True))) if taught else None
    objective(Features(*whole, teacher=teacher)).backward()
    after = random_state(device)
    for part, state in zip(parts, states, strict=True):
        set_random_state(state, device)
        pulled = [
            (embeddings, every.grad[part])
            for embeddings, every in zip(_embeddings(forward(part)), whole, strict=True)
            if embeddings.requires_grad and every.grad is not None
        ]
        if pulled:
            torch.autograd.backward([each for each, _ in pulled], [grad for _, grad in pulled])
    set_random_state(after, device)


def _embeddings(features: Features) -> list[Float[Tensor, "batch dim"]]:
    """Those that there are: two, or four with a second view."""
    found = (features.image, features.text, features.image_view, features.text_view)
    return [each for each in found if each is not None]
