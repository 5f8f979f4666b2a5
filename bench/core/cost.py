"""What a run costs: FLOPs and memory; and the device that it ran on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.core.model import DualEncoder


def flops_per_pair(
    model: DualEncoder, images: Float[Tensor, "images 3 size size"], tokens: Int[Tensor, "texts context"]
) -> int:
    """Floating-point operations of the first image and the first text through both towers, forward only.

    Counted by torch in eval mode: matrix products, convolutions and attention; a multiply-add is two operations. The
    number is the same on every device: attention is computed by plain matrix products here, for torch's counter does
    not know every device's fused kernel. ViT-B-32 of open_clip: 14,777,163,776.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images[:1], tokens[:1])
    model.train(was_training)
    return int(counter.get_total_flops())


_refused = False  # whether this process may not reset its own peak: its peak since its start is not a run's


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of peak memory: the device's on CUDA, else this process's on Linux."""
    global _refused
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        _refused = False
    except OSError:
        _refused = True


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes since `reset_peak_memory`: allocated on CUDA, else resident.

    None where it is unknown: where the process may not reset its peak, or not on Linux.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _refused:
        return None
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def device_facts(device: torch.device) -> dict[str, Any]:
    """`device` (its name), `device_count` (how many GPUs, or CPUs, there are), `threads` (of torch on the CPU)."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        "device_count": torch.cuda.device_count() if cuda else (os.cpu_count() or 1),
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1].strip() if found else (platform.processor() or "cpu")
