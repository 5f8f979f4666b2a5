"""`step`: a training step of the core's own loop beside the same step as stock and released code do it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Generator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.compute.build import build
from bench.core.inputs import Inputs
from bench.core.model import DualEncoder
from bench.core.state import StateFiles
from bench.core.train import Batch, TrainBatches, fit
from bench.plan.spec import RunSpec
from benchmarks import measure
from benchmarks.baselines import LORA_RANK, stock_step
from benchmarks.measure import Row, Timing, check_equal, matmul_rate, start_memory, timed, working_memory
from benchmarks.work import draw_dataset, inputs_of, load, run_spec

# So small that rounding does not grow from step to step: the losses of all rounds must agree.
LR = 1e-7
# Dropout at a rate at which nothing is dropped: its work is done, and both ways compute the same.
NEVER = 1e-9


@dataclass(frozen=True)
class Subject:
    """A method with its loss, what it is measured against, and the ratio that is to be reached."""

    what: str
    baseline: str
    target: float
    method: dict[str, Any]
    loss: dict[str, Any] | None = None


ATTENTION = ("attn.q", "attn.k", "attn.v", "attn.out")
SUBJECTS = (
    Subject("full fine-tuning", "stock open_clip", 1.4, {"name": "full_finetune"}),
    Subject("LoRA q, k, v, out", "peft, fused", 1.65, {"name": "lora", "rank": LORA_RANK, "targets": ATTENTION}),
    Subject(
        "MRS-Adapter, HMMC",
        "four passes",
        1.6,
        {"name": "mrs_adapter", "dropout": 0.0},
        {"name": "hmmc", "view_dropout": NEVER},
    ),
    Subject("HarMA", "released form", 1.1, {"name": "harma"}),
)


def rows(
    captions: Sequence[str],
    *,
    model: str = "ViT-B-32",
    batch: int = 16,
    rounds: int = 5,
    subjects: Sequence[Subject] = SUBJECTS,
    method: dict[str, Any] | None = None,
) -> list[Row]:
    """One row a method. `method`: settings that replace those of its subject, for other sizes of the model."""
    rate = matmul_rate()
    count = batch * (rounds + 1)
    with tempfile.TemporaryDirectory(prefix="petl-benchmark-") as name:
        dataset = draw_dataset(Path(name) / "data", count, [captions[i % len(captions)] for i in range(count)])
        train = {"epochs": 1, "batch_size": batch, "lr": LR, "warmup": 0.0, "schedule": "constant", "workers": 0}
        train |= {"clip_grad_norm": None, "betas": [0.9, 0.999]}
        return [
            step_row(
                subject,
                run_spec(dataset, subject.method | (method or {}), train, model=model, loss=subject.loss),
                Path(name),
                rounds=rounds,
                rate=rate,
            )
            for subject in subjects
        ]


class _Enough(Exception):
    """Ends the core's loop before it validates and saves."""


def step_row(subject: Subject, spec: RunSpec, folder: Path, *, rounds: int, rate: float) -> Row:
    """The core's loop, with a step of the baseline on the same pairs between any two of its steps."""
    loaded = load(spec)
    plain = copy.deepcopy(loaded.backbone.model.clip)
    backbone = build(spec, torch.device("cpu"), loaded.backbone)
    _start_somewhere(backbone.model, known={name for name, _ in plain.named_parameters()})
    theirs = stock_step(spec.method.name, plain, backbone.model, lr=LR, loss=spec.loss)
    core = CoreSteps(inputs_of(spec, loaded, backbone), rounds, theirs)
    train = core.inputs.train_batches(spec.seed)
    try:
        fit(
            backbone.model,
            loss=spec.loss,
            batches=TrainBatches(core.alternating(train.open), train.per_epoch),
            validation=core.inputs.eval_set("val"),
            settings=spec.train,
            seed=spec.seed,
            files=StateFiles(folder / "state.pt"),
            on_progress=core.on_progress,
        )
    except _Enough:
        pass
    finally:
        train.close()
    check_equal(subject.what, core.losses, core.their_losses)
    facts = {"matrix GFLOP a step": core.flops / 1e9, "loss": core.losses[0]}
    return Row(subject.what, core.ours, subject.baseline, core.theirs, subject.target, core.flops / rate, facts)


def _start_somewhere(model: DualEncoder, known: Set[str]) -> None:
    """Fill what starts at zero, so that equal losses say something about the adapters.

    Not the backbone's own weights (`known`), nor LoRA's, whose parts the baseline has in another form.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if "lora" not in name and name.removeprefix("clip.") not in known and not parameter.any():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


class CoreSteps:
    """Times the steps of `bench.core.train.fit` from outside: from a batch given to the progress after its step."""

    def __init__(self, inputs: Inputs, rounds: int, their_step: Callable[..., float]) -> None:
        self.inputs, self.rounds, self.their_step = inputs, rounds, their_step
        self.ours, self.theirs = Timing(), Timing()
        self.losses: list[float] = []
        self.their_losses: list[float] = []
        self.flops = 0
        self._counter = FlopCounterMode(display=False)
        self._started, self._memory, self._sum = 0.0, None, 0.0

    def alternating(
        self, open_: Callable[[int, int], Generator[Batch, None, None]]
    ) -> Callable[[int, int], Generator[Batch, None, None]]:
        """The epoch's batches, each after a step of the baseline on the same pairs. The first round warms up."""

        def batches(epoch: int, skip: int) -> Generator[Batch, None, None]:
            for batch in open_(epoch, skip):
                given = self._plain(batch.image_ids)
                keep = bool(self.their_losses)
                self.their_losses.append(
                    timed(lambda given=given, ids=batch.image_ids: self.their_step(*given, ids), self.theirs, keep=keep)
                )
                self._memory = start_memory()
                if not keep:
                    self._counter.__enter__()
                self._started = measure.clock()
                yield batch

        return batches

    def on_progress(self, phase: str, loss_sum: Tensor | None = None, **facts: Any) -> None:
        """Called by the core after each step."""
        seconds = measure.clock() - self._started
        if phase != "train" or loss_sum is None:
            return
        if not self.losses:
            self._counter.__exit__(None, None, None)
            self.flops = self._counter.get_total_flops()
        else:
            self.ours.seconds.append(seconds)
            self.ours.note_peak(None if self._memory is None else working_memory(self._memory))
        self.losses.append(float(loss_sum) - self._sum)
        self._sum = float(loss_sum)
        if len(self.losses) == self.rounds + 1:
            raise _Enough

    def _plain(
        self, image_ids: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch 3 size size"], Int[Tensor, "batch context"]]:
        """The pixels and the whole token ids of these pairs; each image has one caption."""
        inputs, rows = self.inputs, image_ids.numpy()
        pixels, _ = inputs.training_pixels()
        return inputs.to_tensor(torch.from_numpy(pixels[rows])), inputs.tokens("train")[image_ids]
