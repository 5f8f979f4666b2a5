"""A dataset as the core wants it: batches of normalised pixels and token ids on the device."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bench.core.backbone import Backbone
from bench.core.train import Batch, EvalSet
from bench.data import Dataset, Item
from bench.data.captions import clean
from bench.data.pixels import prepare
from bench.data.transforms import PRESETS, TrainPairs, epoch_pairs, normalise
from bench.errors import UserError

if TYPE_CHECKING:
    from bench.spec import TrainSettings

SIGTERM_SECONDS = 30  # that a loader lives on when it is told to end


class Inputs:
    """Reads one dataset for one backbone. Pixels come from the memory-mapped cache, which is filled on first use."""

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        settings: TrainSettings,
        device: torch.device,
        on_pixels: Callable[[int, int], None] | None = None,
    ) -> None:
        self.dataset, self.backbone, self.settings, self.device = dataset, backbone, settings, device
        self.size = backbone.model.image_size
        self.preset = PRESETS[settings.augment]
        self.resize = "squash" if backbone.resize == "squash" else self.preset.resize
        self.on_pixels = on_pixels

    def pixels(self, items: Sequence[Item], edge: int) -> np.ndarray:
        """uint8 [images, edge, edge, 3], memory-mapped."""
        return prepare(self.dataset.root, [item.image for item in items], edge, self.resize, self.on_pixels)

    def prepare_all(self, train: bool) -> None:
        """Fill the pixel cache for every split that will be read; UserError names missing and corrupt images."""
        if train:
            self.pixels(self.dataset.train, self.preset.edge(self.size))
        self.pixels(self.dataset.val, self.size)
        self.pixels(self.dataset.test, self.size)

    def to_tensor(self, pictures: Tensor) -> Tensor:
        """uint8 pictures to normalised float32 (batch, 3, size, size) on the device."""
        return normalise(pictures.to(self.device, non_blocking=True), self.backbone.mean, self.backbone.std)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids (captions, context), after the preset's cleaning."""
        return self.backbone.tokenizer([clean(caption, self.settings.captions) for caption in captions])

    def eval_set(self, split: str) -> EvalSet:
        """The split `val` or `test`. Captions with the same tokens are encoded once, so that they tie exactly."""
        items: tuple[Item, ...] = getattr(self.dataset, split)
        pixels = self.pixels(items, self.size)
        texts, caption_text = torch.unique(
            self.tokens([caption for item in items for caption in item.captions]), dim=0, return_inverse=True
        )
        counts = torch.tensor([len(item.captions) for item in items])
        step = self.settings.eval_batch_size

        def images() -> Iterator[Tensor]:
            for start in range(0, len(pixels), step):
                yield self.to_tensor(torch.from_numpy(np.array(pixels[start : start + step])))

        def batches() -> Iterator[Tensor]:
            for chunk in texts.split(step):
                yield chunk.to(self.device)

        return EvalSet(images, batches, caption_text, torch.arange(len(items)).repeat_interleave(counts))

    def train_batches(self, seed: int) -> tuple[Callable[[int, int], Iterator[Batch]], int]:
        """A function from the epoch (from 1) and a number of batches to skip to the others, and how many there are.

        Order and augmentation follow from (seed, epoch) alone. The last batch is dropped if it is not full.
        """
        items, settings = self.dataset.train, self.settings
        pixels = self.pixels(items, self.preset.edge(self.size))
        tokens = self.tokens([caption for item in items for caption in item.captions])
        first = torch.tensor([0, *(len(item.captions) for item in items)]).cumsum(0)
        count = len(items) if settings.captions_per_epoch == "one" else len(tokens)
        if settings.batch_size > count:
            raise UserError(f"train.batch_size {settings.batch_size} exceeds the {count} training pairs of an epoch")

        def batches(epoch: int, skip: int = 0) -> Iterator[Batch]:
            pairs = epoch_pairs(items, settings.captions_per_epoch, seed, epoch)
            loader: DataLoader = DataLoader(
                TrainPairs(pixels, pairs, settings.augment, self.size, seed, epoch),
                sampler=range(skip * settings.batch_size, len(pairs)),
                batch_size=settings.batch_size,
                num_workers=settings.workers,
                drop_last=True,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_outlive_sigterm,
            )
            for pictures, image, caption in loader:
                ids = tokens[first[image] + caption]
                yield Batch(self.to_tensor(pictures), ids.to(self.device), image.to(self.device))

        return batches, count // settings.batch_size


def _outlive_sigterm(worker: int) -> None:
    """A scheduler ends whole process trees: the run still needs its loaders, for the step after which it saves."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SIGTERM_SECONDS))
