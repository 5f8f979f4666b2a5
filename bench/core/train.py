"""The training loop that every method shares."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.config.errors import Stopped
from bench.config.settings import TrainSettings
from bench.core import cost, state
from bench.core.evaluate import EvalSet, evaluate
from bench.core.micro import MicroBatches
from bench.core.model import DualEncoder, Features
from bench.core.passes import Pictures, Prefix, Texts
from bench.core.ranks import metrics
from bench.core.state import Fit, Part, StateFiles

LOGIT_SCALE_MAX = math.log(100)  # CLIP's own clamp on the trained temperature


def _never() -> bool:
    return False


def _ignore(*_: Any, **__: Any) -> None:
    pass


@dataclass(frozen=True)
class Batch:
    """One batch on the device: normalised pictures, their captions' token ids, and which image each picture is.

    Pictures and captions can also be what frozen layers gave for them, and token ids be cut: see `bench.core.passes`.
    """

    images: Float[Tensor, "batch 3 size size"] | Pictures | Prefix
    tokens: Int[Tensor, "batch context"] | Texts | Prefix
    image_ids: Int[Tensor, " batch"]


@dataclass(frozen=True)
class TrainBatches:
    """The batches of every epoch. `open(epoch, skip)` yields those of an epoch (from 1) without the first `skip`.

    One epoch is open at a time. `close()` ends the processes that load them, if there are any.
    """

    open: Callable[[int, int], Generator[Batch, None, None]]
    per_epoch: int
    close: Callable[[], None] = _ignore


@runtime_checkable
class Objective(Protocol):
    """What training minimises: a loss of a batch's embeddings, and the dropout rate of the second view it needs.

    See `DualEncoder.forward` for the second view; None: the loss needs none.
    """

    @property
    def second_view(self) -> float | None: ...

    def __call__(
        self, features: Features, image_ids: Int[Tensor, " batch"], model: DualEncoder
    ) -> Float[Tensor, ""]: ...


def seed_for(*parts: object) -> int:
    """A seed in [0, 2^32) that depends on all parts: on the run's seed, and on what it is for ("epoch", 3)."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:4])


def lr_factor(step: int, *, total: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total`, as a fraction of `train.lr`.

    A linear warm-up over the first `warmup * total` steps, then the schedule over the others. 4 steps, `linear` and no
    warm-up: 1, 0.75, 0.5, 0.25.
    """
    warmup = round(settings.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if settings.schedule == "linear":
        return 1 - done
    if settings.schedule == "step":
        return settings.step_gamma ** ((step // steps_per_epoch + 1) // settings.step_epochs)
    return 1.0


def make_optimizer(parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW or Adam for these parameters by name; weight decay falls on those that `settings.decay` says.

    matrices: on matrices and kernels (2 dimensions or more), not on biases, norms, gates. not_biases: on all but what
    is called a bias, as HarMA's released code does. all: on every parameter, as with torch's optimizers as they come.
    """
    decays: Callable[[str, nn.Parameter], bool] = {
        "matrices": lambda _, p: p.ndim >= 2,
        "not_biases": lambda name, _: not name.endswith("bias"),
        "all": lambda *_: True,
    }[settings.decay]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in parameters.items() if decays(name, p)], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in parameters.items() if not decays(name, p)], "weight_decay": 0.0},
    ]
    cls = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.optimizer]
    groups = [group for group in groups if group["params"]]
    # On the CPU torch's default takes a pass over memory for each operation; on a GPU it has few of its own accord.
    fused = all(p.device.type == "cpu" for p in parameters.values()) or None
    return cls(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


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

    The whole state is saved to `files` after every epoch, and after the first optimizer step at which `should_stop()`
    is true. Called again with the same files, training continues from the saved state and ends with the same numbers:
    everything random in an epoch follows from (seed, epoch), and from the random state that was saved within it. Of
    epochs with the same recall the earliest is kept. `on_progress(phase, **facts)` is called after every step,
    `on_history(rows)` after every epoch with one row for each finished epoch.

    Raises Stopped after saving for `should_stop`, FloatingPointError if the loss of an epoch is not finite, and
    UserError if the saved state can't be read or the disk is full.
    """
    trainable = model.trainable()
    optimizer = make_optimizer(trainable, settings)
    device = next(model.parameters()).device
    micro = MicroBatches(settings.micro_batch, device, list(trainable.values())) if settings.micro_batch else None
    steps_per_epoch = math.ceil(batches.per_epoch / settings.accumulate)
    total = steps_per_epoch * settings.epochs
    found = state.resume(files, model, optimizer)
    done, resumed = found.fit, found.part
    on_history(done.history)  # the process may have been killed after the state was saved, before this

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
            window = index // settings.accumulate * settings.accumulate
            divisor = min(settings.accumulate, batches.per_epoch - window)
            loss_sum += _backward(model, loss, batch, settings, divisor=divisor, micro=micro)
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
                feed.close()  # lets go of the data loaders now, not when the exception is garbage
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
        if model.teacher is not None:
            model.teacher.after_epoch(epoch, settings.epochs, trainable)
        if done.best_epoch is None or scores["mean_recall"] > done.best_metrics["mean_recall"]:
            done.best_epoch, done.best_metrics = epoch, scores
            model.save_adapter(files.best_of(epoch))
        state.save(files, epoch=epoch, fit=done, model=model, optimizer=optimizer)
        on_history(done.history)
        on_progress("validate", epoch=epoch, val_mean_recall=done.best_metrics["mean_recall"])
        if epoch < settings.epochs and should_stop():
            raise Stopped
    return done


def _backward(
    model: DualEncoder,
    loss: Objective,
    batch: Batch,
    settings: TrainSettings,
    *,
    divisor: int,
    micro: MicroBatches | None,
) -> Float[Tensor, ""]:
    """Add a batch's gradients, divided by `divisor`, to those of the parameters; returns the loss, not divided."""
    kind = batch.image_ids.device.type
    total = torch.zeros((), device=batch.image_ids.device)

    def forward(pairs: slice) -> Features:
        with torch.autocast(kind, torch.bfloat16, enabled=settings.precision == "bf16"):
            features: Features = model(batch.images[pairs], batch.tokens[pairs], loss.second_view)
        return features

    def objective(features: Features) -> Float[Tensor, ""]:
        value = loss(features, batch.image_ids, model)
        for penalty in model.penalties:
            value = value + penalty()
        total.copy_(value.detach())
        return value / divisor

    if micro is None:
        objective(forward(slice(None))).backward()
    else:
        micro.backward(len(batch.image_ids), forward, objective)
    return total


def _train_mode(model: DualEncoder) -> None:
    """Training mode for all but batch norms: their statistics belong to the frozen backbone and would drift."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@torch.no_grad()
def _clamp_logit_scale(model: DualEncoder) -> None:
    scale = model.clip.logit_scale
    if isinstance(scale, nn.Parameter) and scale.requires_grad:
        scale.clamp_(0, LOGIT_SCALE_MAX)
