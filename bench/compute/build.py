"""What a run computes with: its device, its data, and its backbone with the method and the loss attached."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench import data
from bench.config import backbones
from bench.config.errors import GpuLost, UserError
from bench.core import shortcuts
from bench.core.inputs import Inputs
from bench.core.model import DualEncoder
from bench.core.shortcuts import Shortcuts
from bench.core.train import seed_for
from bench.core.weights import Backbone, load_backbone
from bench.data import Dataset
from bench.plan.spec import RunSpec

DEVICES = Path("/dev")  # with a file for each NVIDIA GPU of the machine


def pick_device() -> torch.device:
    """The first visible GPU; the CPU where no GPU was allotted.

    Where one was, but CUDA does not start: UserError if torch is built without CUDA, else GpuLost, since another node
    or process may do better.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    given = allotted_gpu()
    if given is None:
        return torch.device("cpu")
    otherwise = "to compute on the CPU, which may take days, set CUDA_VISIBLE_DEVICES to nothing"
    if not torch.backends.cuda.is_built():
        raise UserError(
            f"a GPU is there ({given}), but torch {torch.__version__} is built without CUDA: install a build with it; "
            f"{otherwise}"
        )
    try:
        torch.cuda.init()
        reason = "it sees no GPU"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
    raise GpuLost(
        f"a GPU is there ({given}), but CUDA does not start: {reason}; try nvidia-smi on this machine; {otherwise}"
    )


def allotted_gpu() -> str | None:
    """What says that this process was given a GPU, as "CUDA_VISIBLE_DEVICES=0"; None if nothing does."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return None if visible.strip() in ("", "-1", "NoDevFiles") else f"CUDA_VISIBLE_DEVICES={visible}"
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if os.environ.get(name):
            return f"{name}={os.environ[name]}"
    if "SLURM_JOB_ID" in os.environ:
        return None  # a job without a GPU on a machine with some: their files are there, but closed to it
    return next((str(path) for path in sorted(DEVICES.glob("nvidia[0-9]*"))), None)


@contextmanager
def deterministic() -> Iterator[None]:
    """Inside, the same seed gives the same numbers on the same hardware; torch's settings are put back afterwards.

    cuBLAS reads its own setting before its first use: that one stays.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    matmul, cudnn, memory = torch.backends.cuda.matmul, torch.backends.cudnn, torch.utils.deterministic
    before = matmul.allow_tf32, cudnn.allow_tf32, memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    matmul.allow_tf32 = cudnn.allow_tf32 = False  # float32 is to mean it
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, memory.fill_uninitialized_memory = before  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(strict, warn_only=warns)


@dataclass(frozen=True)
class Loaded:
    """A run's dataset and its plain backbone; `prepared` holds what was read of the dataset for this backbone."""

    dataset: Dataset
    backbone: Backbone
    prepared: dict[Hashable, Any] = field(default_factory=dict)


_kept: dict[str, Loaded] = {}  # the last one, for a process with several runs


def load(spec: RunSpec, keep: bool) -> Loaded:
    """The run's dataset and backbone.

    With `keep` they stay in this process for its next run, and this one gets a copy of the backbone. Images and weights
    must not change in the meantime.
    """
    if not keep:
        return Loaded(data.load(spec.dataset), load_backbone(spec.backbone))
    settings = spec.dataset.model_dump_json(), spec.backbone.model_dump_json()
    key = json.dumps([*settings, data.identity(spec.dataset), backbones.identity(spec.backbone)])
    if key not in _kept:
        _kept.clear()
        _kept[key] = Loaded(data.load(spec.dataset), load_backbone(spec.backbone))
    kept = _kept[key]
    return replace(kept, backbone=replace(kept.backbone, model=copy.deepcopy(kept.backbone.model)))


def build(spec: RunSpec, device: torch.device, loaded: Backbone | None = None) -> Backbone:
    """The backbone with the run's method and loss attached, on the device, its start fixed by the run's seed.

    `loaded`: the run's backbone, where it has been loaded already; it is changed. AssertionError if the number of
    trainable parameters is not what the method's closed form says.
    """
    backbone = loaded or load_backbone(spec.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(spec.seed, "attach"))
        spec.method.attach(backbone.model)
        if spec.method.trains:
            spec.loss.attach(backbone.model)
    expected, found = spec.trainable_params(), backbone.model.trainable_params()
    assert expected in (None, found), f"{spec.method.name} trains {found} parameters; its closed form says {expected}"
    backbone.model.to(device)
    return backbone


def shortcuts_of(spec: RunSpec, model: DualEncoder) -> Shortcuts:
    """What need not be computed in the run with this model, to which its method and loss are attached.

    The model is changed as that needs it (`shortcuts.apply`).
    """
    if spec.core.shortcuts == "off":
        return Shortcuts()
    found = shortcuts.find(model, trims_text=spec.method.trims_text, second_view=spec.loss.second_view)
    shortcuts.apply(model, found)
    return found


def preflight(specs: Sequence[RunSpec], on_pixels: Callable[[int, int], None] | None = None) -> None:
    """Prepare what runs share, and find what the user has to fix before any run starts.

    Loads each backbone's weights once and fills the pixel caches. UserError for missing or corrupt images and weights.
    """
    by_backbone: dict[str, list[RunSpec]] = {}
    for spec in specs:
        by_backbone.setdefault(spec.backbone.model_dump_json(), []).append(spec)
    for group in by_backbone.values():
        backbone = load_backbone(group[0].backbone)
        seen = set()
        for spec in group:
            key = (spec.dataset.model_dump_json(), spec.train.augment, spec.method.trains)
            if key not in seen:
                seen.add(key)
                inputs = Inputs(data.load(spec.dataset), backbone, spec.train, torch.device("cpu"), on_pixels=on_pixels)
                inputs.prepare_all(train=spec.method.trains)
