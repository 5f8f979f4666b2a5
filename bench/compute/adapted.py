"""The adapted model of a finished run: what `bench.load(run_dir)` gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench import data
from bench.compute.build import build, deterministic, pick_device, shortcuts_of
from bench.compute.interpolate import Line
from bench.config.errors import UserError
from bench.core import ranks
from bench.core.evaluate import evaluate
from bench.core.inputs import Inputs
from bench.core.model import DualEncoder
from bench.core.weights import Backbone
from bench.data.captions import clean
from bench.data.pixels import resized
from bench.data.transforms import PRESETS, normalise
from bench.plan.spec import RunSpec
from bench.store import openings, record
from bench.store.folder import ADAPTER


@dataclass(frozen=True)
class Adapted:
    """An adapted open_clip model in eval mode, with the preprocessing that it was scored with."""

    backbone: Backbone
    spec: RunSpec
    provenance: dict[str, Any]
    run_dir: Path
    epoch: int | None

    @property
    def model(self) -> DualEncoder:
        """`encode_image(images, normalize=True)` and `encode_text(tokens, normalize=True)`, as open_clip has them.

        open_clip's own model is `model.clip`; it lacks what a method puts on the embeddings, such as a probe's heads.
        Of an interpolated run, the weights are those at the chosen share.
        """
        return self.backbone.model

    def preprocess(self, image: Image.Image) -> Tensor:
        """A picture to normalised float32 (3, size, size)."""
        mode = "squash" if self.backbone.resize == "squash" else PRESETS[self.spec.train.augment].resize
        pixels = np.array(resized(image.convert("RGB"), self.model.image_size, mode))
        return normalise(torch.from_numpy(pixels)[None], self.backbone.mean, self.backbone.std)[0]

    def tokenizer(self, captions: str | Sequence[str]) -> Tensor:
        """One caption or several to token ids (captions, context), cleaned as the run's settings say."""
        listed = [captions] if isinstance(captions, str) else captions
        return self.backbone.tokenizer([clean(caption, self.spec.train.captions) for caption in listed])

    def score(self, split: str = "test") -> dict[str, Any]:
        """Recalls on a split of the run's dataset; on hardware like the run's, result.json's to the last digit.

        Scoring the test set is noted in the ledger of the run's results folder. UserError if that can't be written, or
        if the annotations are no longer those of the run.
        """
        dataset = data.load(self.spec.dataset)
        if dataset.sha256 != self.provenance["dataset_sha256"]:
            raise UserError(f"the annotations of {dataset.name} have changed since this run was scored")
        inputs = Inputs(
            dataset,
            self.backbone,
            self.spec.train,
            next(self.model.parameters()).device,
            shortcuts=shortcuts_of(self.spec, self.model),
            core=self.spec.core,
        )
        if split == "test":
            openings.note(self.run_dir, protocol=self.spec.evaluation.protocol, epoch=self.epoch, why=openings.LOADED)
        threads = torch.get_num_threads()
        torch.set_num_threads(self.provenance["threads"])
        try:
            with deterministic():
                return ranks.metrics(*evaluate(self.model, inputs.eval_set(split)))
        finally:
            torch.set_num_threads(threads)


def load(run_dir: Path, device: str | torch.device | None = None) -> Adapted:
    """The adapted model of a finished run, on `device` (default: as runs choose it); UserError if there is none."""
    result = record.read(run_dir)
    if result is None or not result.finished:
        raise UserError(f"{run_dir} holds no finished run")
    spec = RunSpec.from_dict(result.spec)
    backbone = build(spec, pick_device() if device is None else torch.device(device))
    origin = result.provenance or {}
    if origin.get("weights_sha256") != backbone.sha256:
        raise UserError(
            f"{run_dir} was trained on other weights than backbone.weights '{spec.backbone.weights}' gives now"
        )
    backbone.model.load_adapter(run_dir / ADAPTER)
    if result.metrics and result.metrics.interpolation:
        line = Line(backbone.model, spec.method, build(spec, torch.device("cpu")).model)
        line.move_to(result.metrics.interpolation.share)
    backbone.model.eval()
    epoch = result.metrics.best_epoch if result.metrics else None
    return Adapted(backbone, spec, origin, run_dir, epoch)
