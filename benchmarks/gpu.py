"""`gpu`: epochs of RSITMD's size on one CUDA device, by the harness itself, in under 8 minutes.

17,175 pairs of drawn pictures (3,435 images with five captions each), ViT-B-32 with random weights, bf16, batch 256.
The published figure to beat is 28 s an epoch, 610 pairs a second (POSAPL's log).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.compute.build import build
from bench.config import files
from bench.config.errors import UserError
from bench.plan.spec import RunSpec
from bench.store.folder import RUN
from benchmarks.measure import Row, Timing, matmul_rate
from benchmarks.runs import ROOT, last_epoch, run_record
from benchmarks.work import captions_like_rsitmd, draw_dataset, inputs_of, load, run_spec

IMAGES, EACH = 3435, 5  # RSITMD's training set
ADAPTER_SECONDS, FINETUNE_SECONDS, WHOLE_SECONDS = 3.0, 28.0, 90.0
COUNTED = 4  # pairs whose FLOPs are counted


@dataclass(frozen=True)
class Case:
    """A run that is measured, and the most seconds for its epoch."""

    what: str
    method: dict[str, Any]
    batch: int = 256
    precision: str = "bf16"
    target: float = ADAPTER_SECONDS
    augment: str = "none"


LORA = {"name": "lora", "rank": 4, "targets": ["attn.q", "attn.k", "attn.v", "attn.out"]}
CASES = (
    Case("LoRA", LORA),
    Case("LoRA, augmented", LORA, augment="harma"),
    Case("MRS-Adapter", {"name": "mrs_adapter"}),
    Case("HarMA", {"name": "harma"}),
    Case("full fine-tuning", {"name": "full_finetune"}, target=FINETUNE_SECONDS),
    Case("full fine-tuning", {"name": "full_finetune"}, batch=512, target=FINETUNE_SECONDS),
    Case("LoRA", LORA, precision="fp32", target=FINETUNE_SECONDS),
)


def rows(
    *,
    device: torch.device | None = None,
    model: str = "ViT-B-32",
    images: int = IMAGES,
    cases: Sequence[Case] = CASES,
    workers: int = 8,
    whole_epochs: int = 20,
) -> list[Row]:
    """One row a case, and one for a whole run in a process of its own. UserError where torch sees no CUDA device."""
    if device is None and not torch.cuda.is_available():
        raise UserError("gpu: torch sees no CUDA device here; run this command on a machine with one")
    device = device or torch.device("cuda")
    with tempfile.TemporaryDirectory(prefix="petl-benchmark-") as name:
        folder = Path(name)
        dataset = draw_dataset(folder / "data", images, captions_like_rsitmd(images * EACH), evaluated=min(images, 256))

        def spec_of(case: Case, epochs: int) -> RunSpec:
            shape = {"epochs": epochs, "batch_size": case.batch, "workers": workers}
            train = shape | {"precision": case.precision, "augment": case.augment}
            return run_spec(dataset, case.method, train, model=model)

        rates = {p: matmul_rate(4096 if device.type == "cuda" else 256, kind, device) for p, kind in _TYPES.items()}
        found = []
        for number, case in enumerate(cases):
            spec = spec_of(case, epochs=2)
            found.append(epoch_row(case, spec, folder / str(number), device, rates[case.precision]))
        return [*found, whole_row(spec_of(cases[0], whole_epochs), folder / "whole")]


_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def epoch_row(case: Case, spec: RunSpec, run_dir: Path, device: torch.device, rate: float) -> Row:
    """The second epoch of a run; MFU by the FLOPs of the plain model, counted, against the measured rate."""
    result = run_record(spec, run_dir)
    seconds = last_epoch(run_dir)["seconds"]
    loading, pairs = loading_seconds(spec, device)
    flops = train_flops_per_pair(spec)
    timing = Timing([seconds], result.cost.peak_bytes if result.cost else None)
    facts = {
        "pairs a second": pairs / seconds,
        "MFU": flops * pairs / seconds / rate,
        "loading alone s": loading,
        "GFLOP a pair": flops / 1e9,
    }
    what = f"{case.what}, epoch of {pairs} pairs, {case.precision}, batch {case.batch}"
    return Row(what, timing, target=case.target, limit_seconds=flops * pairs / rate, facts=facts)


def loading_seconds(spec: RunSpec, device: torch.device) -> tuple[float, int]:
    """The seconds that an epoch's batches take to reach the device when nothing is computed, and its pairs."""
    loaded = load(spec)
    loaded.backbone.model.to(device)
    batches = inputs_of(spec, loaded, loaded.backbone).train_batches(spec.seed)
    try:
        for _ in batches.open(1, 0):  # workers start
            pass
        started, pairs = time.perf_counter(), 0
        for batch in batches.open(2, 0):
            pairs += len(batch.image_ids)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started, pairs
    finally:
        batches.close()


def train_flops_per_pair(spec: RunSpec) -> float:
    """Floating-point operations of forward and backward a pair, of the plain model with the method, at full length."""
    backbone = build(spec, torch.device("cpu"), load(spec).backbone)
    model, size = backbone.model, backbone.model.image_size
    images, tokens = torch.zeros(COUNTED, 3, size, size), backbone.tokenizer(captions_like_rsitmd(COUNTED))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        features = model(images, tokens, spec.loss.second_view)
        spec.loss(features, torch.arange(COUNTED), model).backward()
    return counter.get_total_flops() / COUNTED


def whole_row(spec: RunSpec, run_dir: Path) -> Row:
    """A run from its command to its result, in a process of its own: start, training, validation and test."""
    run_dir.mkdir()
    files.write_bytes(run_dir / RUN, spec.dump().encode())
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "bench.run", str(run_dir)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    timing = Timing([time.perf_counter() - started])
    return Row(f"whole run of {spec.method.name}, {spec.train.epochs} epochs", timing, target=WHOLE_SECONDS)
