"""The training loop that every method shares, and the evaluation it chooses epochs by."""

from __future__ import annotations

import hashlib
import math
import pickle
import time
from collections.abc import Callable, Iterable
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
    """Image-to-text and text-to-image ranks of a split, encoded and scored in float32; the model's mode is restored."""
    was_training = model.training
    model.eval()
    image_features = torch.cat([model.encode_image(images, normalize=True) for images in split.images()])
    text_features = torch.cat([model.encode_text(tokens, normalize=True) for tokens in split.texts()])
    model.train(was_training)
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


def fit(
    model: DualEncoder,
    loss_fn: LossFunction,
    second_view: float | None,
    batches: Callable[[int], Iterable[Batch]],
    batches_per_epoch: int,
    validation: EvalSet,
    settings: TrainSettings,
    seed: int,
    folder: Path,
    on_progress: Callable[..., None],
) -> Fit:
    """Train what has `requires_grad`, and keep the adapter of the epoch with the best validation mean recall.

    `batches(epoch)` yields an epoch's batches, from 1. After every epoch the whole state is saved to the folder;
    called again there, training goes on behind the last saved epoch and ends with the same numbers: everything random
    in an epoch follows from (seed, epoch) alone. Ties between epochs go to the earlier one.
    Raises FloatingPointError when the loss is not finite.
    """
    trainable = model.trainable()
    optimizer = make_optimizer(trainable.values(), settings)
    device = next(model.parameters()).device
    steps_per_epoch = math.ceil(batches_per_epoch / settings.accumulate)
    total = steps_per_epoch * settings.epochs
    fit, first_epoch = _resume(folder, trainable, optimizer)
    store.write_history(folder / store.HISTORY, fit.history)  # a kill may have come between the state and this

    for epoch in range(first_epoch, settings.epochs + 1):
        started = time.perf_counter()
        torch.manual_seed(seed_for(seed, "epoch", epoch))
        _train_mode(model)
        cost.reset_peak_memory(device)
        loss_sum, pairs = torch.zeros((), device=device), 0
        for index, batch in enumerate(batches(epoch)):
            step = (epoch - 1) * steps_per_epoch + index // settings.accumulate
            lr = settings.lr * lr_factor(step, total, steps_per_epoch, settings)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                features = model(batch.images, batch.tokens, second_view)
            loss = loss_fn(features, batch.image_ids, model)
            window = index // settings.accumulate * settings.accumulate
            (loss / min(settings.accumulate, batches_per_epoch - window)).backward()
            loss_sum += loss.detach()
            pairs += len(batch.images)
            if (index + 1) % settings.accumulate == 0 or index + 1 == batches_per_epoch:
                if settings.clip_grad_norm is not None:
                    nn.utils.clip_grad_norm_(trainable.values(), settings.clip_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                _clamp_logit_scale(model)
            on_progress("train", epoch=epoch, step=index + 1, steps=batches_per_epoch, loss_sum=loss_sum)
        train_loss = float(loss_sum) / batches_per_epoch
        if not math.isfinite(train_loss):
            raise FloatingPointError(
                f"the training loss is {train_loss} in epoch {epoch}; lower train.lr (now {settings.lr:g})"
            )
        seconds = time.perf_counter() - started
        fit.peak_bytes = max(fit.peak_bytes or 0, cost.peak_memory(device) or 0) or None
        on_progress("validate", epoch=epoch)
        metrics = retrieval.metrics(*evaluate(model, validation))
        fit.seconds += seconds
        fit.pairs += pairs
        fit.history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "lr": lr,
                "val_mean_recall": metrics["mean_recall"],
                "seconds": round(seconds, 3),
            }
        )
        if fit.best_epoch is None or metrics["mean_recall"] > fit.best_metrics["mean_recall"]:
            fit.best_epoch, fit.best_metrics = epoch, metrics
            model.save_adapter(fit.best_file(folder))
        _save(folder, epoch, fit, trainable, optimizer)
        store.write_history(folder / store.HISTORY, fit.history)
        on_progress("validate", epoch=epoch, val_mean_recall=fit.best_metrics["mean_recall"])
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


def _save(
    folder: Path, epoch: int, fit: Fit, trainable: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Write the state after an epoch atomically; then drop adapters that are no longer the best."""
    state = {
        "epoch": epoch,
        "trainable": {name: p.detach() for name, p in trainable.items()},
        "optimizer": optimizer.state_dict(),
        "fit": asdict(fit),
        "threads": torch.get_num_threads(),
    }
    part = folder / f".{store.STATE}.part"
    with store.disk_errors(part):
        torch.save(state, part)
        part.replace(folder / store.STATE)
    for old in folder.glob("best-*.safetensors"):
        if old != fit.best_file(folder):
            old.unlink()


def _resume(folder: Path, trainable: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> tuple[Fit, int]:
    """Load the folder's state, if there is one; returns the fit so far and the next epoch."""
    path = folder / store.STATE
    if not path.is_file():
        return Fit(), 1
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        fit, threads, epoch = Fit(**state["fit"]), int(state["threads"]), int(state["epoch"])
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(state["trainable"][name])
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = type(error).__name__
        raise UserError(
            f"the checkpoint {path} can't be read ({reason}); delete it to start this run afresh"
        ) from error
    optimizer.load_state_dict(state["optimizer"])
    torch.set_num_threads(threads)  # sums on a CPU round by how they are split
    return fit, epoch + 1
