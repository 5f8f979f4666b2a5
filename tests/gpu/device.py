"""The device under test: the first CUDA device, or the CPU in its place."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from bench.core.evaluate import EvalSet
from bench.core.train import Batch

VARIABLE = "PETL_BENCH_GPU_TESTS"
STAND_IN = os.environ.get(VARIABLE) == "cpu"
DEVICE = torch.device("cpu" if STAND_IN else "cuda")

needs_cuda = pytest.mark.skipif(STAND_IN, reason="needs CUDA itself")


def require_device() -> None:
    """Skip the calling module where there is neither a CUDA device nor a stand-in."""
    if not STAND_IN and not torch.cuda.is_available():
        pytest.skip("no CUDA device", allow_module_level=True)


def put(batch: Batch) -> Batch:
    """The batch on the device."""
    return Batch(batch.images.to(DEVICE), batch.tokens.to(DEVICE), batch.image_ids.to(DEVICE))


def put_split(split: EvalSet) -> EvalSet:
    """The split on the device."""
    return EvalSet(
        lambda: (images.to(DEVICE) for images in split.images()),
        lambda: (tokens.to(DEVICE) for tokens in split.texts()),
        split.caption_text,
        split.caption_image,
    )


def dropout_of_the_cpu(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In place of `F.dropout`: the mask is drawn on the CPU, so that it is the same for all devices."""
    if not training or p == 0:
        return x
    return x * (torch.rand(x.shape) >= p).to(x.device, x.dtype) / (1 - p)


def largest_difference(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference of two tensors, over the larger of 1 and the largest value of the first."""
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return float((one - other).abs().max() / one.abs().max().clamp(min=1))


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what is trained, by name, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
