"""MMA's adapter (CVPR 2024)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.core.taps import Tap


class _ScaleGradient(torch.autograd.Function):
    """The identity; the gradient is multiplied by a constant on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*shape"], factor: float) -> Float[Tensor, "*shape"]:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], None]:  # type: ignore[override]
        return ctx.factor * gradient, None


def drawn(layer: nn.Linear) -> nn.Linear:
    """The layer with a normal Kaiming weight by fan-out (gain of ReLU) and a bias of zero, in place."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


class MultiModalAdapter(nn.Module):
    """`s Up(ReLU(Shared(ReLU(Down n))))` with n from `tap`, which is behind the block's first LayerNorm.

    It stands beside the MLP, but reads the block's input, not the MLP's. `shared` serves both towers at one depth. The
    scale s counts for the value and for the gradient that leaves towards n; the gradients of the adapter's own weights
    are those of s = 1.
    """

    def __init__(self, width: int, shared: nn.Linear, scale: float) -> None:
        super().__init__()
        self.tap = Tap()
        self.down = drawn(nn.Linear(width, shared.in_features))
        self.shared = shared
        self.up = drawn(nn.Linear(shared.out_features, width))
        self.scale = scale

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        normed = _ScaleGradient.apply(self.tap.take(), self.scale)
        branch = self.scale * self.up(F.relu(self.shared(F.relu(self.down(normed)))))
        scaled: Tensor = _ScaleGradient.apply(branch, 1 / self.scale)
        return scaled
