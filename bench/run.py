"""One run: `python -m bench.run results/<sweep>/<run>` (or its run.yaml) trains, chooses by validation, tests once."""

from __future__ import annotations

import argparse
import copy
import gc
import io
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import store, weights
from bench.core import cost, retrieval
from bench.core.backbone import Backbone, load_backbone
from bench.core.inputs import Inputs
from bench.core.train import Fit, evaluate, fit, saved_position, seed_for
from bench.data import Dataset, identity
from bench.data import load as load_dataset
from bench.errors import UserError
from bench.spec import RunSpec
from methods import registry

PROGRESS_SECONDS = 0.5


def execute(run_dir: Path, should_stop: Callable[[], bool] = lambda: False, keep: bool = False) -> dict[str, Any]:
    """Compute a run and return its result, which is also written to result.json.

    A finished run is returned as it is. A failure is caught and recorded with its traceback; an interrupt passes
    through and leaves the checkpoint, from which the next call goes on. RunLocked if another process is at it; Stopped
    once the run has saved its state because `should_stop()`. `keep`: what runs share, for the next.
    """
    with store.claim(run_dir):
        done = store.read_result(run_dir)
        if done is not None and done["status"] == "finished":
            _tidy(run_dir)
            return done
        started = datetime.now(UTC)
        gc.collect()  # what earlier runs of this process left counts towards this one's memory
        torch.cuda.empty_cache()
        threads = torch.get_num_threads()
        spec = RunSpec.load(run_dir / store.RUN)
        base = {"schema": 1, "run_id": run_dir.name, "sweep": spec.sweep, "spec": spec.to_dict()}
        store.start_attempt(run_dir, _gpus(), saved_position(run_dir))
        try:
            parts = _compute(spec, run_dir, should_stop, keep)
            result = {**base, "status": "finished", "error": None, **parts}
        except Exception as error:
            # What breaks while a scheduler ends everything around the run proves nothing: the saved state stands.
            if isinstance(error, store.Stopped) or should_stop():
                _note_stop(run_dir)
                raise store.Stopped(run_dir.name) from error
            result = {**base, "status": "failed", "error": _describe(error), "metrics": None, "cost": None}
            result["provenance"] = cost.provenance(pick_device())
        finally:
            torch.set_num_threads(threads)  # a resumed run has those that it started with
        result["provenance"] |= {
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        store.write_json(run_dir / store.RESULT, result)
        reached = (spec.train.epochs, 0) if result["status"] == "finished" else saved_position(run_dir)
        store.end_attempt(run_dir, str(result["status"]), reached)
        (run_dir / store.PROGRESS).unlink(missing_ok=True)
        if result["status"] == "finished":
            _tidy(run_dir)
        return result


def _note_stop(run_dir: Path) -> None:
    progress = store.read_progress(run_dir) or {}
    store.write_json(run_dir / store.PROGRESS, progress | {"phase": "stopped", "updated": time.time()})
    store.end_attempt(run_dir, "stopped", saved_position(run_dir))


def _gpus() -> float:
    """How many GPUs this run keeps from others: all that its job was given, divided among runs side by side."""
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    held = visible if "SLURM_JOB_ID" in os.environ else min(visible, 1)
    return held / int(os.environ.get(store.SHARED_BY, 1))


def _tidy(run_dir: Path) -> None:
    """Drop what only an unfinished run needs, and what a kill left half-written."""
    for leftover in (run_dir / store.STATE, *run_dir.glob("best-*.safetensors"), *run_dir.glob(".*.part")):
        leftover.unlink(missing_ok=True)


def pick_device() -> torch.device:
    """The first visible GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_kept: dict[str, tuple[Dataset, Backbone, dict[Hashable, Any]]] = {}  # the last ones, for a process with several runs


def _load(spec: RunSpec, keep: bool) -> tuple[Dataset, Backbone, dict[Hashable, Any]]:
    """The run's dataset, its backbone as loaded, and what is prepared of the one for the other.

    With `keep` they stay in this process for its next run, which gets a copy of the backbone. Images and weights must
    not change in the meantime.
    """
    if not keep:
        return load_dataset(spec.dataset), load_backbone(spec.backbone), {}
    settings = spec.dataset.model_dump_json(), spec.backbone.model_dump_json()
    key = json.dumps([*settings, identity(spec.dataset), weights.identity(spec.backbone)])
    if key not in _kept:
        _kept.clear()
        _kept[key] = load_dataset(spec.dataset), load_backbone(spec.backbone), {}
    dataset, backbone, prepared = _kept[key]
    return dataset, replace(backbone, model=copy.deepcopy(backbone.model)), prepared


def build(spec: RunSpec, device: torch.device, loaded: Backbone | None = None) -> Backbone:
    """The backbone with the run's method and loss attached, on the device, its start fixed by the run's seed.

    `loaded`: the run's backbone, where it has been loaded already; it is changed. Raises AssertionError if what is
    trainable is not what the method's closed form says.
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
                inputs = Inputs(load_dataset(spec.dataset), backbone, spec.train, torch.device("cpu"), on_pixels)
                inputs.prepare_all(train=spec.method.trains)


def _compute(spec: RunSpec, folder: Path, should_stop: Callable[[], bool], keep: bool) -> dict[str, Any]:
    """Everything between the spec and the parts of result.json."""
    device = pick_device()
    make_deterministic()
    progress = Progress(folder, spec.train.epochs if spec.method.trains else 0)
    progress("data")
    dataset, loaded, prepared = _load(spec, keep)
    backbone = build(spec, device, loaded)
    model = backbone.model
    if spec.train.grad_checkpointing:
        model.clip.set_grad_checkpointing(True)  # type: ignore[operator]
    inputs = Inputs(dataset, backbone, spec.train, device, prepared=prepared)
    validation = inputs.eval_set("val")
    if spec.method.trains:
        batches, per_epoch = inputs.train_batches(spec.seed)
        done = fit(
            model,
            spec.loss,
            spec.loss.second_view,
            batches,
            per_epoch,
            validation,
            spec.train,
            spec.seed,
            folder,
            progress,
            should_stop,
        )
        model.load_adapter(done.best_file(folder))
    else:
        cost.reset_peak_memory(device)
        done = Fit(best_metrics=retrieval.metrics(*evaluate(model, validation)), peak_bytes=cost.peak_memory(device))
    model.save_adapter(folder / store.ADAPTER)
    progress("test")
    test = inputs.eval_set("test")
    i2t, t2i = evaluate(model, test)
    ranks = io.BytesIO()
    np.savez_compressed(ranks, **retrieval.rank_arrays(i2t, t2i))
    store.write_bytes(folder / store.RANKS, ranks.getvalue())
    sample = next(iter(test.images())), next(iter(test.texts()))
    return {
        "metrics": {"best_epoch": done.best_epoch, "val": done.best_metrics, "test": retrieval.metrics(i2t, t2i)},
        "cost": {
            "trainable_params": model.trainable_params(),
            "total_params": model.total_params(),
            "train_seconds": done.seconds if spec.method.trains else None,
            "images_per_second": done.pairs / done.seconds if done.seconds else None,
            "peak_bytes": done.peak_bytes,
            "adapter_bytes": (folder / store.ADAPTER).stat().st_size,
            "flops_per_pair": cost.flops_per_pair(model, *sample),
        },
        "provenance": cost.provenance(device)
        | {
            "dataset_sha256": dataset.sha256,
            "split": dataset.split,
            "weights": spec.backbone.weights,
            "weights_sha256": backbone.sha256,
            "plugins": registry.sources(type(spec.method), type(spec.loss)),
        },
    }


def make_deterministic() -> None:
    """Same seed, same numbers on the same hardware: on CUDA too, where cuBLAS must be told before its first use."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is to mean it
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _describe(error: Exception) -> dict[str, Any]:
    message = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        first = message.splitlines()[0]
        message = (
            f"out of GPU memory ({first}); lower train.batch_size or train.eval_batch_size, or set "
            "train.grad_checkpointing: true or train.precision: bf16"
        )
    return {
        "type": type(error).__name__,
        "message": message,
        "traceback": traceback.format_exc(),
        "user": isinstance(error, UserError),
    }


class Progress:
    """Writes progress.json, at most twice a second, for whoever follows the run."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.path = folder / store.PROGRESS
        self.state: dict[str, Any] = {
            "phase": "data",
            "epoch": 0,
            "epochs": epochs,
            "step": 0,
            "steps": 0,
            "loss": None,
            "val_mean_recall": None,
            "eta_seconds": None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self.written = 0.0
        self.start: tuple[float, float] | None = None

    def __call__(self, phase: str, loss_sum: torch.Tensor | None = None, **changes: Any) -> None:
        """Take note of where the run is; the epoch's summed loss is fetched only when the file is written."""
        now = time.monotonic()
        due = now - self.written >= PROGRESS_SECONDS or phase != self.state["phase"]
        self.state |= {"phase": phase, **changes}
        if not due:
            return
        if loss_sum is not None:
            value = float(loss_sum) / self.state["step"]
            self.state["loss"] = value if np.isfinite(value) else None
        if self.state["steps"]:
            done = self.state["epoch"] - 1 + self.state["step"] / self.state["steps"]
            self.start = self.start or (now, done)
            if done > self.start[1]:
                pace = (now - self.start[0]) / (done - self.start[1])
                self.state["eta_seconds"] = round(pace * (self.state["epochs"] - done), 1)
        store.write_json(self.path, self.state | {"updated": time.time()})
        self.written = now


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or a run.yaml in it")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE", help="more methods, losses")
    arguments = parser.parse_args(argv)
    run_dir: Path = arguments.run.parent if arguments.run.name == store.RUN else arguments.run
    try:
        for path in arguments.plugin:
            registry.add_plugin(path)
        if not (run_dir / store.RUN).is_file():
            raise UserError(f"no {store.RUN} in {run_dir}")
        result = execute(run_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except store.RunLocked:
        print(f"error: another process is computing {run_dir}", file=sys.stderr)
        return 2
    if result["error"]:
        print(result["error"]["traceback"], file=sys.stderr)
        print(f"error: {result['error']['message']}", file=sys.stderr)
        return 2 if result["error"]["user"] else 1
    print(json.dumps(result["metrics"]["test"], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
