"""The training loop that every method shares, and the evaluation it chooses epochs by."""

from __future__ import annotations

import hashlib
import math
import pickle
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench import store
from bench.core import cost, retrieval
from bench.core.backbone import DualEncoder
from bench.errors import UserError

if TYPE_CHECKING:
    from bench.spec import TrainSettings

LOGIT_SCALE_MAX = math.log(100)  # CLIP's own clamp on the trained temperature


@dataclass(frozen=True)
class Batch:
    """One batch on the device: images (batch, 3, size, size) float, tokens (batch, context), image_ids (batch,)."""

    images: Tensor
    tokens: Tensor
    image_ids: Tensor


@dataclass(frozen=True)
class EvalSet:
    """A split ready for scoring. `images()` and `texts()` yield batches on the device; texts are unique captions.

    caption_text (captions,) and caption_image (captions,) say which text and which image each caption is.
    """

    images: Callable[[], Iterable[Tensor]]
    texts: Callable[[], Iterable[Tensor]]
    caption_text: Tensor
    caption_image: Tensor


LossFunction = Callable[[Any, Tensor, DualEncoder], Tensor]


def seed_for(*parts: object) -> int:
    """A seed of its own for each purpose (attach, an epoch's order, an epoch's dropout), from the run's seed."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:4])


def lr_factor(step: int, total: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    """The learning rate of optimizer step `step` (from 0) as a fraction of `lr`: linear warm-up, then the schedule."""
    warmup = round(settings.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if settings.schedule == "linear":
        return 1 - done
    if settings.schedule == "step":
        return settings.step_gamma ** (step // steps_per_epoch // settings.step_epochs)
    return 1.0


def make_optimizer(parameters: Iterable[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW or Adam; weight decay on matrices only, not on biases, norms, gates and temperatures."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    cls = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.optimizer]
    return cls([group for group in groups if group["params"]], lr=settings.lr, betas=settings.betas, eps=settings.eps)


@torch.inference_mode()
def evaluate(model: DualEncoder, split: EvalSet) -> tuple[retrieval.Ranks, retrieval.Ranks]:
    """Image-to-text and text-to-image ranks of a split, encoded and scored in float32; all modes are restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    image_features = torch.cat([model.encode_image(images, normalize=True) for images in split.images()])
    text_features = torch.cat([model.encode_text(tokens, normalize=True) for tokens in split.texts()])
    for module, training in modes.items():
        module.training = training
    device = image_features.device
    return retrieval.score(image_features, text_features, split.caption_text.to(device), split.caption_image.to(device))


@dataclass
class Fit:
    """What training leaves behind; history has one row an epoch; seconds, pairs and peak are those of training."""

    best_epoch: int | None = None
    best_metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    pairs: int = 0
    peak_bytes: int | None = None

    def best_file(self, folder: Path) -> Path:
        return folder / f"best-{self.best_epoch:04d}.safetensors"

    def note_peak(self, device: torch.device) -> None:
        self.peak_bytes = max(self.peak_bytes or 0, cost.peak_memory(device) or 0) or None


@dataclass
class Part:
    """How far an epoch has come; `random` is the random state (CPU, then CUDA) that its next batch starts from."""

    loss_sum: Tensor
    batches: int = 0
    pairs: int = 0
    seconds: float = 0.0
    random: list[Tensor] | None = None


def fit(
    model: DualEncoder,
    loss_fn: LossFunction,
    second_view: float | None,
    batches: Callable[[int, int], Generator[Batch, None, None]],
    batches_per_epoch: int,
    validation: EvalSet,
    settings: TrainSettings,
    seed: int,
    folder: Path,
    on_progress: Callable[..., None],
    should_stop: Callable[[], bool] = lambda: False,
) -> Fit:
    """Train what has `requires_grad`, and keep the adapter of the epoch with the best validation mean recall.

    `batches(epoch, skip)` yields an epoch's batches, from 1, but for the first `skip`. After every epoch the whole
    state is saved to the folder, and also when `should_stop()`, asked after every optimizer step, says so. Called
    again there, training goes on behind what was saved and ends with the same numbers: everything random in an epoch
    follows from (seed, epoch) and, within it, from the random state that was saved. Ties between epochs go to the
    earlier one. Raises store.Stopped when told to stop, FloatingPointError when the loss is not finite.
    """
    trainable = model.trainable()
    optimizer = make_optimizer(trainable.values(), settings)
    device = next(model.parameters()).device
    steps_per_epoch = math.ceil(batches_per_epoch / settings.accumulate)
    total = steps_per_epoch * settings.epochs
    fit, first_epoch, resumed = _resume(folder, model, optimizer)
    store.write_history(folder / store.HISTORY, fit.history)  # a kill may have come between the state and this

    for epoch in range(first_epoch, settings.epochs + 1):
        part, resumed = resumed or Part(torch.zeros(())), None
        started = time.perf_counter() - part.seconds
        torch.manual_seed(seed_for(seed, "epoch", epoch))
        _train_mode(model)
        cost.reset_peak_memory(device)
        loss_sum = part.loss_sum.to(device)
        feed = batches(epoch, part.batches)
        for index, batch in enumerate(feed, part.batches):
            if part.random is not None:  # only now: a data loader draws from it when it starts
                _set_random_state(part.random, device)
                part.random = None
            step = (epoch - 1) * steps_per_epoch + index // settings.accumulate
            lr = settings.lr * lr_factor(step, total, steps_per_epoch, settings)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                features = model(batch.images, batch.tokens, second_view)
            loss = loss_fn(features, batch.image_ids, model)
            for penalty in model.penalties:
                loss = loss + penalty()
            window = index // settings.accumulate * settings.accumulate
            (loss / min(settings.accumulate, batches_per_epoch - window)).backward()
            loss_sum += loss.detach()
            part.pairs += len(batch.images)
            on_boundary = (index + 1) % settings.accumulate == 0 or index + 1 == batches_per_epoch
            if on_boundary:
                if settings.clip_grad_norm is not None:
                    nn.utils.clip_grad_norm_(trainable.values(), settings.clip_grad_norm)
                optimizer.step()
                for after_step in model.after_step:
                    after_step(step + 1, total)
                optimizer.zero_grad(set_to_none=True)
                _clamp_logit_scale(model)
            on_progress("train", epoch=epoch, step=index + 1, steps=batches_per_epoch, loss_sum=loss_sum)
            if on_boundary and should_stop():
                seconds = time.perf_counter() - started
                part = Part(loss_sum, index + 1, part.pairs, seconds, _random_state(device))
                fit.note_peak(device)
                _save(folder, epoch - 1, fit, model, optimizer, part)
                feed.close()  # ends the data loaders now, not when the last has forgotten the exception
                raise store.Stopped
        train_loss = float(loss_sum) / batches_per_epoch
        if not math.isfinite(train_loss):
            raise FloatingPointError(
                f"the training loss is {train_loss} in epoch {epoch}; lower train.lr (now {settings.lr:g})"
            )
        seconds = time.perf_counter() - started
        fit.note_peak(device)
        on_progress("validate", epoch=epoch)
        metrics = retrieval.metrics(*evaluate(model, validation))
        fit.seconds += seconds
        fit.pairs += part.pairs
        fit.history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "lr": optimizer.param_groups[0]["lr"],
                "val_mean_recall": metrics["mean_recall"],
                "seconds": round(seconds, 3),
            }
        )
        if fit.best_epoch is None or metrics["mean_recall"] > fit.best_metrics["mean_recall"]:
            fit.best_epoch, fit.best_metrics = epoch, metrics
            model.save_adapter(fit.best_file(folder))
        _save(folder, epoch, fit, model, optimizer)
        store.write_history(folder / store.HISTORY, fit.history)
        on_progress("validate", epoch=epoch, val_mean_recall=fit.best_metrics["mean_recall"])
        if epoch < settings.epochs and should_stop():
            raise store.Stopped
    return fit


def _train_mode(model: DualEncoder) -> None:
    """Training mode, but for batch norms: their statistics belong to the backbone and would drift."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@torch.no_grad()
def _clamp_logit_scale(model: DualEncoder) -> None:
    scale = model.clip.logit_scale
    if isinstance(scale, nn.Parameter) and scale.requires_grad:
        scale.clamp_(0, LOGIT_SCALE_MAX)


def _random_state(device: torch.device) -> list[Tensor]:
    """The states of the generators that training draws from: the CPU's, then the GPU's where there is one."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def _save(
    folder: Path,
    epoch: int,
    fit: Fit,
    model: DualEncoder,
    optimizer: torch.optim.Optimizer,
    part: Part | None = None,
) -> None:
    """Write the state after an epoch, or in `part` of the next, atomically; then drop adapters no longer the best."""
    state = {
        "epoch": epoch,
        "part": part and asdict(part),
        "trainable": {name: p.detach() for name, p in model.trainable().items()},
        "after_step": [each.state_dict() for each in model.after_step],
        "optimizer": optimizer.state_dict(),
        "fit": asdict(fit),
        "threads": torch.get_num_threads(),
    }
    part_file = folder / f".{store.STATE}.part"
    with store.disk_errors(part_file):
        torch.save(state, part_file)
        part_file.replace(folder / store.STATE)
    for old in folder.glob("best-*.safetensors"):
        if fit.best_epoch is None or old != fit.best_file(folder):
            old.unlink()


def saved_position(folder: Path) -> tuple[int, int]:
    """How far the folder's state has come: finished epochs, and batches done in the next; (0, 0) without a state."""
    try:
        state = torch.load(folder / store.STATE, map_location="cpu", weights_only=True, mmap=True)
        return int(state["epoch"]), int(state["part"]["batches"]) if state["part"] else 0
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError):
        return 0, 0


def _resume(folder: Path, model: DualEncoder, optimizer: torch.optim.Optimizer) -> tuple[Fit, int, Part | None]:
    """Load the folder's state, if there is one; the fit so far, the epoch to go on in, and what is done of that."""
    path = folder / store.STATE
    if not path.is_file():
        return Fit(), 1, None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        fit, threads, epoch = Fit(**state["fit"]), int(state["threads"]), int(state["epoch"])
        part = Part(**state["part"]) if state.get("part") else None
        with torch.no_grad():
            for name, parameter in model.trainable().items():
                parameter.copy_(state["trainable"][name])
        for each, saved in zip(model.after_step, state["after_step"], strict=True):
            each.load_state_dict(saved)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = type(error).__name__
        raise UserError(
            f"the checkpoint {path} can't be read ({reason}); delete it to start this run afresh"
        ) from error
    optimizer.load_state_dict(state["optimizer"])
    torch.set_num_threads(threads)  # sums on a CPU round by how they are split
    return fit, epoch + 1, part
