"""The adapted model of a finished run: what `bench.load(run_dir)` gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
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
from bench.data.pixels import decode, fault, resized, strict
from bench.data.transforms import PRESETS, normalise
from bench.plan.spec import RunSpec
from bench.store import openings, record
from bench.store.folder import ADAPTER


@dataclass(frozen=True)
class Adapted:
    """An adapted open_clip model in eval mode, with the preprocessing that it was scored with.

    `encode_images(paths)` and `encode_texts(captions)` give embeddings, `similarity` compares them; `model`,
    `preprocess` and `tokenizer` are for other uses.
    """

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

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def encode_images(
        self, images: Iterable[str | Path | Image.Image], batch_size: int = 64
    ) -> Float32[Tensor, "images dim"]:
        """L2-normalised embeddings, on the CPU, of pictures or of the files at these paths, in batches.

        UserError, with the path, for a file that can't be decoded.
        """
        parts, mode = [], self.resize
        for batch in _batches(images, batch_size):
            pixels = [resized(_picture(each), self.model.image_size, mode) for each in batch]
            parts.append(self.encode_pixels(np.stack([np.array(each) for each in pixels])))
        if not parts:
            raise UserError("no pictures were given to encode")
        return torch.cat(parts)

    @torch.inference_mode()
    def encode_pixels(self, pixels: np.ndarray) -> Float32[Tensor, "images dim"]:
        """L2-normalised embeddings, on the CPU, of uint8 pixels (images, size, size, RGB) as `resized` gives them."""
        inputs = normalise(torch.from_numpy(pixels), self.backbone.mean, self.backbone.std)
        return self.model.encode_image(inputs.to(self.device), normalize=True).cpu()

    @torch.inference_mode()
    def encode_texts(self, captions: str | Sequence[str], batch_size: int = 256) -> Float32[Tensor, "captions dim"]:
        """L2-normalised embeddings, on the CPU, of one caption or several, in batches."""
        if not captions:
            raise UserError("no captions were given to encode")
        tokens = self.tokenizer(captions)
        parts = [
            self.model.encode_text(part.to(self.device), normalize=True).cpu() for part in tokens.split(batch_size)
        ]
        return torch.cat(parts)

    @staticmethod
    def similarity(
        images: Float32[Tensor, "images dim"], texts: Float32[Tensor, "captions dim"]
    ) -> Float32[Tensor, "images captions"]:
        """Cosine similarities of embeddings of pictures and of captions, from -1 to 1."""
        return images @ texts.T

    @property
    def resize(self) -> str:
        """How pictures are brought to the size of the model: see `bench.data.pixels.resized`."""
        return "squash" if self.backbone.resize == "squash" else PRESETS[self.spec.train.augment].resize

    def preprocess(self, image: Image.Image) -> Tensor:
        """A picture to normalised float32 (3, size, size)."""
        pixels = np.array(resized(image.convert("RGB"), self.model.image_size, self.resize))
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
            self.device,
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


def _batches(images: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for each in images:
        batch.append(each)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _picture(image: str | Path | Image.Image) -> Image.Image:
    """The picture as RGB; of a path, the file's. UserError if that can't be decoded."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with strict():
            return decode(Path(image))
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise UserError(f"{image} can't be read as a picture: {fault(error)}") from error


def load(run_dir: Path, device: str | torch.device | None = None, weights: str | None = None) -> Adapted:
    """The adapted model of a finished run, whatever its folder is called now, on `device` (default: as runs choose it).

    weights: where the backbone's are on this machine, if not where the run had them. UserError if there is no finished
    run, or if the weights are others.
    """
    result = record.read(run_dir, named=False)
    if result is None or not result.finished:
        raise UserError(f"{run_dir} holds no finished run")
    spec = RunSpec.from_dict(result.spec)
    if weights is not None:
        spec = replace(spec, backbone=spec.backbone.model_copy(update={"weights": weights}))
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
