"""One run from its settings to its result: train, choose the epoch by the protocol, score the test set once."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.compute import behaviour, interpolate
from bench.compute.build import Loaded, build, deterministic, load, pick_device, shortcuts_of
from bench.compute.loggers import Log, Rows
from bench.compute.progress import Progress
from bench.config.errors import GpuLost, Stopped, UserError
from bench.config.files import write_bytes, write_json
from bench.core import cost, found, ranks, shortcuts
from bench.core.evaluate import evaluate, evaluate_alike
from bench.core.held import held_weights
from bench.core.inputs import Inputs
from bench.core.model import DualEncoder
from bench.core.position import Position
from bench.core.state import Fit, StateFiles, saved_position
from bench.core.train import fit
from bench.data.duplicates import numbered
from bench.plan.spec import RUN_ID, RunSpec
from bench.store import folder, openings, provenance, record, testset
from bench.store.attempts import GPUS_HELD, end_attempt, start_attempt
from bench.store.record import Cost, Failure, Metrics, Record, Scores, Selection
from methods import registry


def execute(
    run_dir: Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    keep: bool = False,
    job: str | None = None,
) -> Record:
    """Compute a run and return its result, which is also written to result.json.

    A finished run is returned as it is. A failure is caught and recorded with its traceback; an interrupt passes
    through and leaves the checkpoint, from which the next call continues. `keep`: dataset and backbone stay in this
    process for its next run. `job`: the id of the cluster job that this process belongs to.

    RunLocked if another process computes the run; Stopped once the run has saved its state because `should_stop()`;
    GpuLost if a CUDA error ended the run and this process can't use the GPU any more, or never could.
    """
    with folder.claim(run_dir):
        done = record.read(run_dir)
        if done is not None and done.finished:
            folder.tidy(run_dir)
            return done
        started = datetime.now(UTC)
        gc.collect()  # what earlier runs of this process left counts towards this one's memory
        torch.cuda.empty_cache()
        threads = torch.get_num_threads()
        spec = RunSpec.load(run_dir / folder.RUN)
        files = StateFiles(run_dir / folder.STATE, folder.BEST)
        start_attempt(run_dir, gpus=_gpus_held(job), job=job, at=saved_position(files))
        device = torch.device("cpu")
        parts: dict[str, Any]
        try:
            device = pick_device()
            with deterministic():
                parts = {"status": "finished", **_compute(spec, device, run_dir, files, should_stop, keep)}
        except Exception as error:
            # What breaks while a scheduler ends everything around the run proves nothing: the saved state counts.
            if isinstance(error, Stopped) or should_stop():
                _note_stop(run_dir, saved_position(files))
                raise Stopped(run_dir.name) from error
            if isinstance(error, GpuLost) or gpu_is_lost():
                end_attempt(run_dir, "lost", reached=saved_position(files))
                reason = str(error).splitlines()[0] if str(error) else repr(error)
                raise GpuLost(f"{run_dir.name}: {reason}") from error
            parts = {"status": "failed", "error": _describe(error), "provenance": _origin(device)}
        finally:
            torch.set_num_threads(threads)  # a resumed run has those that it started with
        parts["provenance"] |= {
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        result = Record(run_id=run_dir.name, sweep=spec.sweep, spec=spec.to_dict(), **parts)
        record.write(run_dir, result)
        reached = Position(spec.train.epochs) if result.finished else saved_position(files)
        end_attempt(run_dir, result.status, reached=reached)
        (run_dir / folder.PROGRESS).unlink(missing_ok=True)
        if result.finished:
            folder.tidy(run_dir)
        return result


def gpu_is_lost() -> bool:
    """Whether this process can't use CUDA any more, as after an illegal memory access or a failed assertion on the GPU.

    Such an error poisons the CUDA context: each later call fails with it. Running out of memory does not.
    """
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _note_stop(run_dir: Path, reached: Position) -> None:
    progress = folder.read_progress(run_dir) or {}
    write_json(run_dir / folder.PROGRESS, progress | {"phase": "stopped", "updated": time.time()})
    end_attempt(run_dir, "stopped", reached=reached)


def _gpus_held(job: str | None) -> float:
    """How many GPUs this run keeps from others: its share of a pool's, else all of its job's, else the one it uses."""
    if not torch.cuda.is_available():
        return 0.0
    if GPUS_HELD in os.environ:
        return float(os.environ[GPUS_HELD])
    visible = torch.cuda.device_count()
    return visible if job else min(visible, 1)


def check_is_own(spec: RunSpec, run_dir: Path) -> None:
    """Raise UserError if a folder with a run's id for a name holds the settings of another run, so that they differ.

    Settings written by hand may lie in a folder of any other name.
    """
    if RUN_ID.fullmatch(run_dir.name) and run_dir.name != spec.run_id:
        raise UserError(
            f"{run_dir / folder.RUN} is not what this run was planned with: its settings have the id {spec.run_id}. "
            "It was edited, or data or weights have changed; start the sweep again, which writes it anew, or copy it "
            "to a folder with that id as its name"
        )


def _origin(device: torch.device) -> dict[str, Any]:
    return _code() | cost.device_facts(device)


@cache
def _code() -> dict[str, Any]:
    """`provenance.describe` once a process, which has loaded its code: git and the packages' versions take 0.3 s."""
    return provenance.describe()


def _flops_per_pair(spec: RunSpec, model: DualEncoder, inputs: Inputs, loaded: Loaded) -> int:
    """`cost.flops_per_pair`, counted once for all runs of this process that differ in seed and training alone."""
    key = ("flops", type(spec.method), spec.method.model_dump_json())
    if key not in loaded.prepared:
        split = "test" if spec.evaluation.test else "val"
        with shortcuts.computing_everything(model):
            loaded.prepared[key] = cost.flops_per_pair(model, *inputs.one_pair(split))
    found: int = loaded.prepared[key]
    return found


def _compute(
    spec: RunSpec, device: torch.device, run_dir: Path, files: StateFiles, should_stop: Callable[[], bool], keep: bool
) -> dict[str, Any]:
    """Everything between the settings and the parts of the record."""
    check_is_own(spec, run_dir)
    progress = Progress(run_dir, spec.train.epochs if spec.method.trains else 0)
    progress("data")
    loaded = load(spec, keep)
    backbone = build(spec, device, loaded.backbone)
    model = backbone.model
    if spec.train.grad_checkpointing:
        model.clip.set_grad_checkpointing(True)  # type: ignore[operator]
    parameters = {"trainable_params": model.trainable_params(), "total_params": model.total_params()}
    shares = spec.evaluation.interpolate
    if shares:
        interpolate.check(spec.method)
    inputs = Inputs(
        loaded.dataset,
        backbone,
        spec.train,
        device,
        prepared=loaded.prepared,
        shortcuts=shortcuts_of(spec, model),
        core=spec.core,
    )
    validation = inputs.eval_set("val")
    if spec.method.trains:
        batches = inputs.train_batches(spec.seed)

        def note(rows: Rows) -> None:
            folder.write_history(run_dir, rows)
            log(rows)

        with closing(batches), closing(Log(spec, run_dir)) as log, held_weights(model, spec.train.precision):
            done = fit(
                model,
                loss=spec.loss,
                batches=batches,
                validation=validation,
                settings=spec.train,
                seed=spec.seed,
                files=files,
                protocol=spec.evaluation.protocol,
                test=_test_of(spec, inputs, run_dir),
                on_progress=progress,
                on_history=note,
                should_stop=should_stop,
            )
        model.load_adapter(files.best_of(done.best_epoch))
    else:
        done = Fit(best_metrics=ranks.metrics(*evaluate(model, validation)))  # without training, no cost of training
    model.save_adapter(run_dir / folder.ADAPTER)
    between = None
    if shares:
        line = interpolate.Line(model, spec.method, build(spec, torch.device("cpu")).model)
        between, done.best_metrics = interpolate.choose(
            line, shares, lambda: ranks.metrics(*evaluate(model, validation))
        )
    test_scores, selection = None, None
    if spec.evaluation.test:
        progress("test")
        test_scores = _score_test(spec, inputs, loaded, run_dir, done.best_epoch)
        selection = _selection(done)
        behaviour.record(run_dir, spec, backbone, loaded.dataset, loaded.prepared)
    return {
        "metrics": Metrics(
            best_epoch=done.best_epoch,
            val=Scores.model_validate(done.best_metrics),
            test=test_scores,
            interpolation=between,
            selection=selection,
        ),
        "cost": Cost(
            **parameters,
            train_seconds=done.seconds if spec.method.trains else None,
            images_per_second=done.pairs / done.seconds if done.seconds else None,
            peak_bytes=done.peak_bytes,
            adapter_bytes=(run_dir / folder.ADAPTER).stat().st_size,
            flops_per_pair=_flops_per_pair(spec, model, inputs, loaded),
        ),
        "provenance": _origin(device)
        | {
            "dataset_sha256": loaded.dataset.sha256,
            "split": loaded.dataset.split,
            "weights": spec.backbone.weights,
            "weights_sha256": backbone.sha256,
            "shortcuts": asdict(inputs.shortcuts),
            "plugins": registry.sources(type(spec.method), type(spec.loss)),
        },
    }


def _test_of(spec: RunSpec, inputs: Inputs, run_dir: Path) -> Callable[[int], float] | None:
    """What scores the test set after an epoch, with a note in the ledger; None if the protocol has no such thing."""
    if spec.evaluation.protocol != "test-selected":
        return None
    test_set = inputs.eval_set("test")

    def mean_recall(epoch: int) -> float:
        openings.note(run_dir, protocol=spec.evaluation.protocol, epoch=epoch, why=openings.CHOOSE)
        return float(ranks.metrics(*evaluate(inputs.backbone.model, test_set))["mean_recall"])

    return mean_recall


def _score_test(spec: RunSpec, inputs: Inputs, loaded: Loaded, run_dir: Path, epoch: int | None) -> Scores:
    """Score the test set with the model as it is, after a note in the ledger, and write the ranks."""
    openings.note(run_dir, protocol=spec.evaluation.protocol, epoch=epoch, why=openings.SCORE)
    items = loaded.dataset.test
    model = inputs.backbone.model
    (i2t, t2i), alike, best = evaluate_alike(model, inputs.eval_set("test"), torch.tensor(numbered(items)))
    captions = np.array([len(item.captions) for item in items])
    write_bytes(run_dir / folder.RANKS, ranks.to_npz(ranks.Saved(i2t, t2i, captions, *alike)))
    write_bytes(run_dir / folder.TOP, found.to_npz(best))
    testset.write(
        run_dir.parent,
        loaded.dataset.name,
        loaded.dataset.sha256,
        [item.image for item in items],
        [item.label for item in items],
        [item.captions for item in items],
    )
    return Scores.model_validate(ranks.metrics(i2t, t2i))


def _selection(done: Fit) -> Selection | None:
    """What validation would have chosen, where the test set was scored after every epoch."""
    if not done.history or "test_mean_recall" not in done.history[0]:
        return None
    row = max(done.history, key=lambda row: row["val_mean_recall"])  # of equal ones the earliest
    return Selection(validation_epoch=row["epoch"], test_mean_recall=row["test_mean_recall"])


def _describe(error: Exception) -> Failure:
    message = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        first = message.splitlines()[0]
        message = (
            f"out of GPU memory ({first}); lower train.batch_size or train.eval_batch_size, or set "
            "train.micro_batch, train.grad_checkpointing: true or train.precision: bf16"
        )
    trace = traceback.format_exc()
    return Failure(type=type(error).__name__, message=message, traceback=trace, user=isinstance(error, UserError))
