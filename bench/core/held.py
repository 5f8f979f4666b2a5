"""Frozen weights held in bfloat16 as well, so that autocast does not cast them anew in every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bench.core.layers import OpenAttention, OpenTimmAttention

# Layers that do nothing with their weights but multiply by them, which autocast does in bfloat16. What looks at a
# weight's values (DoRA's norms, OFT's rotations) does it outside of such a layer's forward, and sees float32.
LAYERS = (nn.Linear, nn.Conv2d, nn.MultiheadAttention, OpenAttention, OpenTimmAttention)


@contextmanager
def held_weights(model: nn.Module, precision: str) -> Iterator[None]:
    """Within it the forward passes under autocast use bfloat16 copies of frozen weights, with the same numbers.

    Other forward passes, and whoever reads the weights, have them in float32. It does nothing unless the precision is
    "bf16". The copies take two bytes a weight; autocast's own would take as much for the backward pass.
    """
    layers = [module for module in model.modules() if type(module) in LAYERS] if precision == "bf16" else []
    hooks = []
    for layer in layers:
        if owners := _frozen(layer):
            swap = _Swap(owners)
            hooks += [
                layer.register_forward_pre_hook(swap.enter),
                layer.register_forward_hook(swap.leave, always_call=True),
            ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Swap:
    """The frozen weights of one layer, and their copies."""

    def __init__(self, weights: list[tuple[nn.Module, str, nn.Parameter]]) -> None:
        self.weights = weights
        self.copies = [nn.Parameter(weight.to(torch.bfloat16), requires_grad=False) for _, _, weight in weights]

    def enter(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        kind = self.weights[0][2].device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16:
            for (owner, name, _), copy in zip(self.weights, self.copies, strict=True):
                owner._parameters[name] = copy

    def leave(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for owner, name, weight in self.weights:
            owner._parameters[name] = weight


def _frozen(layer: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """(module, name, weight) of the layer's frozen float32 weights."""
    return [
        (owner, name, weight)
        for owner in _owners(layer)
        for name, weight in owner.named_parameters(recurse=False)
        if not weight.requires_grad and weight.dtype == torch.float32
    ]


def _owners(layer: nn.Module) -> list[nn.Module]:
    """The modules whose weights a layer multiplies by without calling them.

    open_clip's attention has an output layer of a class that is not in `LAYERS`; timm's is a layer of its own.
    """
    if isinstance(layer, OpenTimmAttention):
        return [layer.qkv]
    if isinstance(layer, nn.MultiheadAttention | OpenAttention):
        return [layer, layer.out_proj]
    return [layer]
