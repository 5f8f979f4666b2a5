"""A finished run brought back to life: `bench.load(run_dir)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench import store
from bench.core import retrieval
from bench.core.backbone import Backbone, DualEncoder
from bench.core.inputs import Inputs
from bench.core.train import evaluate
from bench.data import load as load_dataset
from bench.data.captions import clean
from bench.data.pixels import resized
from bench.data.transforms import PRESETS, normalise
from bench.errors import UserError
from bench.run import build
from bench.spec import RunSpec


@dataclass(frozen=True)
class Adapted:
    """An adapted open_clip model on the CPU, in eval mode, with what its inputs went through when it was scored."""

    backbone: Backbone
    spec: RunSpec

    @property
    def model(self) -> DualEncoder:
        """`encode_image(images, normalize=True)` and `encode_text(tokens, normalize=True)`, as open_clip has them.

        open_clip's own model is `model.clip`; it lacks what a method puts on the embeddings, such as a probe's heads.
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
        """Recalls on a split of the run's dataset, as result.json has them for `test`."""
        device = next(self.model.parameters()).device
        inputs = Inputs(load_dataset(self.spec.dataset), self.backbone, self.spec.train, device)
        return retrieval.metrics(*evaluate(self.model, inputs.eval_set(split)))


def load(run_dir: Path) -> Adapted:
    """The adapted model of a finished run; UserError if the folder holds none."""
    result = store.read_result(run_dir)
    if result is None or result["status"] != "finished":
        raise UserError(f"{run_dir} holds no finished run")
    spec = RunSpec.from_dict(result["spec"])
    backbone = build(spec, torch.device("cpu"))
    if result["provenance"]["weights_sha256"] != backbone.sha256:
        raise UserError(
            f"{run_dir} was trained on other weights than backbone.weights '{spec.backbone.weights}' gives now"
        )
    backbone.model.load_adapter(run_dir / store.ADAPTER)
    backbone.model.eval()
    return Adapted(backbone, spec)
