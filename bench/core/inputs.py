"""A dataset as batches of normalised pixels and token ids on the device."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int, Shaped, UInt8, UInt16
from torch import Tensor
from torch.utils.data import DataLoader

from bench.config.errors import UserError
from bench.config.machine import cpu_cores
from bench.config.settings import TrainSettings
from bench.core.evaluate import EvalSet
from bench.core.train import Batch, TrainBatches
from bench.core.weights import Backbone
from bench.data import Dataset, Item
from bench.data.captions import clean
from bench.data.pixels import prepare, prepare_to_crop
from bench.data.transforms import PRESETS, Place, TrainPairs, epoch_pairs, normalise

SIGTERM_SECONDS = 30  # for which a loader lives on after SIGTERM


class Inputs:
    """Reads one dataset for one backbone. Pixels come from the memory-mapped cache, which is filled on first use.

    on_pixels(done, total) is called while the cache is filled. prepared: pixels and tokens that other runs on the same
    dataset and backbone have read already; what is read here is added.
    """

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        settings: TrainSettings,
        device: torch.device,
        *,
        on_pixels: Callable[[int, int], None] | None = None,
        prepared: dict[Hashable, Any] | None = None,
    ) -> None:
        self.dataset, self.backbone, self.settings, self.device = dataset, backbone, settings, device
        self.size = backbone.model.image_size
        self.preset = PRESETS[settings.augment]
        self.resize = "squash" if backbone.resize == "squash" else self.preset.resize
        self.on_pixels = on_pixels
        self.prepared = {} if prepared is None else prepared
        self.mean, self.std = (torch.tensor(each, device=device) for each in (backbone.mean, backbone.std))

    def items(self, split: str) -> tuple[Item, ...]:
        """The items of `train`, `val` or `test`."""
        found: tuple[Item, ...] = getattr(self.dataset, split)
        return found

    def pixels(self, split: str, edge: int) -> UInt8[np.ndarray, "images {edge} {edge} 3"]:
        """The pictures of a split, memory-mapped. Raises UserError as `bench.data.pixels.prepare` does."""
        key = ("pixels", split, edge, self.resize)
        if key not in self.prepared:
            names = [item.image for item in self.items(split)]
            self.prepared[key] = prepare(self.dataset.root, names, edge, self.resize, self.on_pixels, split=split)
        found: np.ndarray = self.prepared[key]
        return found

    def training_pixels(self) -> tuple[UInt8[np.ndarray, "images edge edge 3"], UInt16[np.ndarray, "images 2"] | None]:
        """The training pictures, memory-mapped, and their heights and widths if they are to be cropped from.

        Raises UserError as `bench.data.pixels.prepare_to_crop` does.
        """
        edge = self.preset.edge(self.size)
        if self.preset.scale is None:
            return self.pixels("train", edge), None
        key = ("pixels to crop", "train", edge, self.resize)
        if key not in self.prepared:
            names = [item.image for item in self.items("train")]
            self.prepared[key] = prepare_to_crop(
                self.dataset.root, names, edge, self.resize, self.on_pixels, split="train"
            )
        found: tuple[np.ndarray, np.ndarray] = self.prepared[key]
        return found

    def prepare_all(self, train: bool) -> None:
        """Fill the pixel cache for every split that will be read. Raises UserError that names unreadable images."""
        if train:
            self.training_pixels()
        self.pixels("val", self.size)
        self.pixels("test", self.size)

    def to_tensor(
        self, pictures: UInt8[Tensor, "batch size size 3"] | UInt8[Tensor, "batch 3 size size"]
    ) -> Float32[Tensor, "batch 3 size size"]:
        """Pictures normalised by the backbone's mean and std, on the device."""
        return normalise(self.send(pictures), self.mean, self.std)

    def send(self, tensor: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
        """The tensor on the device. The host does not wait for the copy to a GPU: that takes pinned memory."""
        if self.device.type == "cuda" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def tokens(self, split: str) -> Int[Tensor, "captions context"]:
        """Token ids of all captions in order, cleaned as `settings.captions` says."""
        key = ("tokens", split, self.settings.captions)
        if key not in self.prepared:
            captions = [caption for item in self.items(split) for caption in item.captions]
            self.prepared[key] = self.backbone.tokenizer([clean(each, self.settings.captions) for each in captions])
        found: Tensor = self.prepared[key]
        return found

    def eval_set(self, split: str) -> EvalSet:
        """The split `val` or `test`. Captions with the same tokens are encoded once, so that they tie exactly."""
        items, pixels = self.items(split), self.pixels(split, self.size)
        texts, caption_text = torch.unique(self.tokens(split), dim=0, return_inverse=True)
        counts = torch.tensor([len(item.captions) for item in items])
        step = self.settings.eval_batch_size

        def images() -> Iterator[Float32[Tensor, "batch 3 size size"]]:
            for start in range(0, len(pixels), step):
                yield self.to_tensor(torch.from_numpy(np.array(pixels[start : start + step])))

        def batches() -> Iterator[Int[Tensor, "batch context"]]:
            for chunk in texts.split(step):
                yield self.send(chunk)

        return EvalSet(images, batches, caption_text, torch.arange(len(items)).repeat_interleave(counts))

    def train_batches(self, seed: int) -> TrainBatches:
        """The training batches of every epoch; the last one is dropped if it is not full.

        Order and augmentation follow from (seed, epoch) alone. Close them when training ends.

        Raises UserError if not even one batch would be full.
        """
        items, settings = self.items("train"), self.settings
        (pixels, sizes), tokens = self.training_pixels(), self.tokens("train")
        first = torch.tensor([0, *(len(item.captions) for item in items)]).cumsum(0)
        count = len(items) if settings.captions_per_epoch == "one" else len(tokens)
        if settings.batch_size > count:
            raise UserError(f"train.batch_size {settings.batch_size} exceeds the {count} training pairs of an epoch")

        dataset = TrainPairs(pixels, sizes, settings.augment, self.size, seed)
        loaders = Loaders(dataset, settings, pin_memory=self.device.type == "cuda")

        def batches(epoch: int, skip: int) -> Generator[Batch, None, None]:
            pairs = epoch_pairs(items, settings.captions_per_epoch, seed, epoch)
            places = [(epoch, position, image, caption) for position, (image, caption) in enumerate(pairs.tolist())]
            for pictures, image, caption in loaders.batches(places[skip * settings.batch_size :]):
                ids = tokens[first[image] + caption]
                yield Batch(self.to_tensor(pictures), self.send(ids), self.send(image))

        return TrainBatches(batches, count // settings.batch_size, loaders.close)


class Loaders:
    """Loads batches of training pictures, in `train.workers` processes, at most one a core, that live until `close`."""

    def __init__(self, dataset: TrainPairs, settings: TrainSettings, *, pin_memory: bool) -> None:
        self.places: list[Place] = []
        workers = min(settings.workers, cpu_cores())  # no number depends on how many there are
        self.loader: DataLoader | None = DataLoader(
            dataset,
            sampler=self.places,
            batch_size=settings.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=True,
            pin_memory=pin_memory,
            worker_init_fn=_outlive_sigterm,
            generator=torch.Generator(),
        )

    def batches(self, places: Sequence[Place]) -> Iterator[list[Shaped[Tensor, "*any"]]]:
        """Pictures, image indices and caption indices of these places, in batches that are full."""
        assert self.loader is not None, "closed"
        # The number that a loader of torch draws when it starts. Drawn here, in each epoch, training's own random
        # numbers do not depend on how long the workers live.
        torch.empty((), dtype=torch.int64).random_()
        self.places[:] = places
        return iter(self.loader)

    def close(self) -> None:
        """End the processes, once no epoch is open."""
        self.loader = None  # its iterator ends them when nothing refers to it


def _outlive_sigterm(worker: int) -> None:
    """A scheduler ends whole process trees: the run still needs its loaders, for the step after which it saves."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SIGTERM_SECONDS))
