"""What a run costs: FLOPs and memory; and the device that it ran on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.core.model import DualEncoder


def flops_per_pair(model: DualEncoder, images: Tensor, tokens: Tensor) -> int:
    """Floating-point operations of one image and one caption through both towers, forward (a multiply-add is two)."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images[:1], tokens[:1])
    model.train(was_training)
    return int(counter.get_total_flops())


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring peak memory anew: the device's on CUDA, else this process's (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes since `reset_peak_memory`: allocated on CUDA, else resident in this process; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def device_facts(device: torch.device) -> dict[str, Any]:
    """The device's name, how many of its kind there are, and the threads that torch computes with on the CPU."""
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
