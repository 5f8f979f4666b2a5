"""The saved state of a training run: where it is, what is in it, and how training continues from it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from bench.config.errors import UserError
from bench.config.files import disk_errors
from bench.core import cost
from bench.core.model import DualEncoder
from bench.core.position import Position

RandomState = list[UInt8[Tensor, " _"]]  # of torch's CPU generator, then of the GPU's where there is one


@dataclass(frozen=True)
class StateFiles:
    """Where training keeps its state: one file, and in the same folder the adapter of the best epoch so far."""

    state: Path
    best: str = "best-{epoch:04d}.safetensors"

    def best_of(self, epoch: int | None) -> Path:
        """The file of the adapter as it was after this epoch."""
        return self.state.with_name(self.best.format(epoch=epoch or 0))

    def remove_best_but(self, epoch: int | None) -> None:
        """Delete the adapters of all epochs except this one."""
        pattern = self.best.partition("{")[0] + "*" + self.best.rpartition("}")[2]
        for old in self.state.parent.glob(pattern):
            if epoch is None or old != self.best_of(epoch):
                old.unlink()


@dataclass
class Fit:
    """What training has found: the best epoch with its validation metrics, and one row of `history` an epoch.

    `seconds`, `pairs` (of an image and a caption) and `peak_bytes` are those of training, without validation.
    """

    best_epoch: int | None = None
    best_metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    pairs: int = 0
    peak_bytes: int | None = None

    def note_peak(self, device: torch.device) -> None:
        """Take the device's peak memory since the last reset into account."""
        self.peak_bytes = max(self.peak_bytes or 0, cost.peak_memory(device) or 0) or None


@dataclass
class Part:
    """The part of an epoch that is done: its batches, the sum of their losses, and the random state afterwards."""

    loss_sum: Float[Tensor, ""]
    batches: int = 0
    pairs: int = 0
    seconds: float = 0.0
    random: RandomState | None = None


@dataclass(frozen=True)
class Resumed:
    """What training continues from: the fit so far, the epoch to continue in, and what is done of that epoch."""

    fit: Fit
    epoch: int
    part: Part | None


def random_state(device: torch.device) -> RandomState:
    """The states of the generators that training draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(states: RandomState, device: torch.device) -> None:
    """Put the generators back into the states that `random_state` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def save(
    files: StateFiles,
    *,
    epoch: int,
    fit: Fit,
    model: DualEncoder,
    optimizer: torch.optim.Optimizer,
    part: Part | None = None,
) -> None:
    """Write the state after `epoch` finished epochs (and `part` of the next) atomically; delete the older adapters.

    Raises UserError if the disk is full.
    """
    state = {
        "epoch": epoch,
        "part": part and asdict(part),
        "trainable": {name: p.detach() for name, p in model.trainable().items()},
        "after_step": [each.state_dict() for each in model.after_step],
        "teacher": model.teacher and model.teacher.state_dict(),
        "optimizer": optimizer.state_dict(),
        "fit": asdict(fit),
        "threads": torch.get_num_threads(),
    }
    part_file = files.state.with_name(f".{files.state.name}.part")
    with disk_errors(part_file):
        torch.save(state, part_file)
        part_file.replace(files.state)
    files.remove_best_but(fit.best_epoch)


def saved_position(files: StateFiles) -> Position:
    """How far the saved state has come; the start of the run if there is no state or it can't be read."""
    try:
        state = torch.load(files.state, map_location="cpu", weights_only=True, mmap=True)
        return Position(int(state["epoch"]), int(state["part"]["batches"]) if state["part"] else 0)
    except Exception:  # torch raises errors of a dozen types for a file that is not its own
        return Position()


def resume(files: StateFiles, model: DualEncoder, optimizer: torch.optim.Optimizer) -> Resumed:
    """Load the saved state, if there is one, into the model, the optimizer and torch's number of threads.

    Raises UserError if the state can't be read.
    """
    if not files.state.is_file():
        return Resumed(Fit(), 1, None)
    try:
        _check_whole(files.state)
        state: Mapping[str, Any] = torch.load(files.state, map_location="cpu", weights_only=True)
        fit, threads, epoch = Fit(**state["fit"]), int(state["threads"]), int(state["epoch"])
        part = Part(**state["part"]) if state.get("part") else None
        with torch.no_grad():
            for name, parameter in model.trainable().items():
                parameter.copy_(state["trainable"][name])
        for each, saved in zip(model.after_step, state["after_step"], strict=True):
            each.load_state_dict(saved)
        if model.teacher is not None:
            model.teacher.load_state_dict(state["teacher"], model.trainable())
        optimizer.load_state_dict(state["optimizer"])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch raises errors of a dozen types for a file that is not its own
        raise UserError(
            f"the checkpoint {files.state} can't be read ({type(error).__name__}: {error}); delete it to start "
            "this run afresh"
        ) from error
    torch.set_num_threads(threads)  # sums on a CPU round by how they are split
    return Resumed(fit, epoch + 1, part)


def _check_whole(path: Path) -> None:
    """Raise ValueError if a part of the file differs from its checksum in the archive, which torch.load ignores."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")
