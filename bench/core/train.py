"""The training loop that every method shares."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.config.errors import Stopped
from bench.config.settings import TrainSettings
from bench.core import cost, state
from bench.core.evaluate import EvalSet, evaluate
from bench.core.model import DualEncoder, Features
from bench.core.ranks import metrics
from bench.core.state import Fit, Part, StateFiles

LOGIT_SCALE_MAX = math.log(100)  # CLIP's own clamp on the trained temperature


@dataclass(frozen=True)
class Batch:
    """One batch on the device: images (batch, 3, size, size) float, tokens (batch, context), image_ids (batch,)."""

    images: Tensor
    tokens: Tensor
    image_ids: Tensor


@dataclass(frozen=True)
class TrainBatches:
    """The batches of every epoch. `open(epoch, skip)` yields an epoch's batches, from 1, without the first `skip`."""

    open: Callable[[int, int], Generator[Batch, None, None]]
    per_epoch: int


class Objective(Protocol):
    """What training minimises: a loss of a batch's embeddings, and the second view that it wants (see `Features`)."""

    @property
    def second_view(self) -> float | None: ...

    def __call__(self, features: Features, image_ids: Tensor, model: DualEncoder) -> Tensor: ...


def seed_for(*parts: object) -> int:
    """A seed of its own for each purpose (attach, an epoch's order, an epoch's dropout), from the run's seed."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:4])


def lr_factor(step: int, *, total: int, steps_per_epoch: int, settings: TrainSettings) -> float:
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


def _never() -> bool:
    return False


def _ignore(*_: Any, **__: Any) -> None:
    pass


def fit(
    model: DualEncoder,
    *,
    loss: Objective,
    batches: TrainBatches,
    validation: EvalSet,
    settings: TrainSettings,
    seed: int,
    files: StateFiles,
    on_progress: Callable[..., None] = _ignore,
    on_history: Callable[[Sequence[Mapping[str, Any]]], None] = _ignore,
    should_stop: Callable[[], bool] = _never,
) -> Fit:
    """Train what has `requires_grad`, and keep the adapter of the epoch with the best validation mean recall.

    After every epoch the whole state is saved to `files`, and also when `should_stop()`, asked after every optimizer
    step, says so. Called again with the same files, training continues from what was saved and ends with the same
    numbers: everything random in an epoch follows from (seed, epoch) and, within it, from the random state that was
    saved. Ties between epochs go to the earlier one. `on_progress(phase, **facts)` hears of every step,
    `on_history(rows)` gets one row for each finished epoch.

    Raises Stopped when asked to stop, FloatingPointError when the loss is not finite.
    """
    trainable = model.trainable()
    optimizer = make_optimizer(trainable.values(), settings)
    device = next(model.parameters()).device
    steps_per_epoch = math.ceil(batches.per_epoch / settings.accumulate)
    total = steps_per_epoch * settings.epochs
    found = state.resume(files, model, optimizer)
    done, resumed = found.fit, found.part
    on_history(done.history)  # a kill may have come between the state and this

    for epoch in range(found.epoch, settings.epochs + 1):
        part, resumed = resumed or Part(torch.zeros(())), None
        started = time.perf_counter() - part.seconds
        torch.manual_seed(seed_for(seed, "epoch", epoch))
        _train_mode(model)
        cost.reset_peak_memory(device)
        loss_sum = part.loss_sum.to(device)
        feed = batches.open(epoch, part.batches)
        for index, batch in enumerate(feed, part.batches):
            if part.random is not None:  # only now: a data loader draws from it when it starts
                state.set_random_state(part.random, device)
                part.random = None
            step = (epoch - 1) * steps_per_epoch + index // settings.accumulate
            lr = settings.lr * lr_factor(step, total=total, steps_per_epoch=steps_per_epoch, settings=settings)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                features = model(batch.images, batch.tokens, loss.second_view)
            value = loss(features, batch.image_ids, model)
            for penalty in model.penalties:
                value = value + penalty()
            window = index // settings.accumulate * settings.accumulate
            (value / min(settings.accumulate, batches.per_epoch - window)).backward()
            loss_sum += value.detach()
            part.pairs += len(batch.images)
            on_boundary = (index + 1) % settings.accumulate == 0 or index + 1 == batches.per_epoch
            if on_boundary:
                if settings.clip_grad_norm is not None:
                    nn.utils.clip_grad_norm_(trainable.values(), settings.clip_grad_norm)
                optimizer.step()
                for after_step in model.after_step:
                    after_step(step + 1, total)
                optimizer.zero_grad(set_to_none=True)
                _clamp_logit_scale(model)
            on_progress("train", epoch=epoch, step=index + 1, steps=batches.per_epoch, loss_sum=loss_sum)
            if on_boundary and should_stop():
                seconds = time.perf_counter() - started
                part = Part(loss_sum, index + 1, part.pairs, seconds, state.random_state(device))
                done.note_peak(device)
                state.save(files, epoch=epoch - 1, fit=done, model=model, optimizer=optimizer, part=part)
                feed.close()  # ends the data loaders now, not when the last has forgotten the exception
                raise Stopped
        train_loss = float(loss_sum) / batches.per_epoch
        if not math.isfinite(train_loss):
            raise FloatingPointError(
                f"the training loss is {train_loss} in epoch {epoch}; lower train.lr (now {settings.lr:g})"
            )
        seconds = time.perf_counter() - started
        done.note_peak(device)
        on_progress("validate", epoch=epoch)
        scores = metrics(*evaluate(model, validation))
        done.seconds += seconds
        done.pairs += part.pairs
        done.history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "lr": optimizer.param_groups[0]["lr"],
                "val_mean_recall": scores["mean_recall"],
                "seconds": round(seconds, 3),
            }
        )
        if done.best_epoch is None or scores["mean_recall"] > done.best_metrics["mean_recall"]:
            done.best_epoch, done.best_metrics = epoch, scores
            model.save_adapter(files.best_of(epoch))
        state.save(files, epoch=epoch, fit=done, model=model, optimizer=optimizer)
        on_history(done.history)
        on_progress("validate", epoch=epoch, val_mean_recall=done.best_metrics["mean_recall"])
        if epoch < settings.epochs and should_stop():
            raise Stopped
    return done


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
