"""A dataset as batches of normalised pixels and token ids on the device."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64, Shaped, UInt8, UInt16
from torch import Tensor
from torch.utils.data import DataLoader

from bench.config.errors import UserError
from bench.config.files import cache_dir
from bench.config.machine import cpu_cores
from bench.config.settings import CoreSettings, TrainSettings
from bench.core.evaluate import EvalSet
from bench.core.feed import CHUNK, ImageFeed, Source, TextFeed
from bench.core.passes import Pictures, Prefix, Texts
from bench.core.prefix_cache import PrefixCache
from bench.core.shortcuts import Shortcuts
from bench.core.train import Batch, TrainBatches
from bench.core.weights import Backbone
from bench.data import Dataset, Item
from bench.data.batched import BatchAugment
from bench.data.captions import clean
from bench.data.pixels import keep, prepare, prepare_to_crop
from bench.data.transforms import (
    PRESETS,
    Place,
    RawPairs,
    StoredPairs,
    TrainPairs,
    ViewPairs,
    epoch_pairs,
    normalise,
    view_numbers,
)

SIGTERM_SECONDS = 30  # for which a loader lives on after SIGTERM
VIEWS_SEED = 0  # of fixed views, which all runs share


class Inputs:
    """Reads one dataset for one backbone. Pixels come from the memory-mapped cache, which is filled on first use.

    on_pixels(done, total) is called while the cache is filled. prepared: pixels and tokens that other runs on the same
    dataset and backbone have read already; what is read here is added. shortcuts: what of the model's work is left out,
    by default nothing; then `core` says how much memory that may take.
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
        shortcuts: Shortcuts | None = None,
        core: CoreSettings | None = None,
    ) -> None:
        self.dataset, self.backbone, self.settings, self.device = dataset, backbone, settings, device
        self.size = backbone.model.image_size
        self.preset = PRESETS[settings.augment]
        self.resize = "squash" if backbone.resize == "squash" else self.preset.resize
        self.on_pixels = on_pixels
        self.prepared = {} if prepared is None else prepared
        self.shortcuts = shortcuts or Shortcuts()
        self.cache = PrefixCache(
            cache_dir() / "prefixes", self.prepared, device, (core or CoreSettings()).cache_gb * 1e9
        )
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

    def texts(self, tokens: Int[Tensor, "texts context"], *, training: bool = False) -> TextFeed:
        """Texts with these token ids by index, as the model takes them in training or evaluation."""
        depth = self.shortcuts.depth("text", training=training)
        cut, pooled = self.shortcuts.cuts_text, "text" in self.shortcuts.pooled
        return TextFeed(self._source(training), tokens, cut=cut, depth=depth, pooled=pooled)

    def images(self, split: str, *, training: bool = False) -> ImageFeed:
        """The pictures of a split by index, as the model takes them where nothing random is done to their pixels."""
        pixels = self.pixels(split, self.size)

        def load(index: Int[Tensor, " batch"]) -> Float32[Tensor, "batch 3 size size"]:
            return self.to_tensor(torch.from_numpy(np.array(pixels[index.numpy()])))

        def parts() -> Iterator[Float32[Tensor, "batch 3 size size"]]:
            yield from map(load, torch.arange(len(pixels)).split(CHUNK))

        depth = self.shortcuts.depth("image", training=training)
        pooled = "image" in self.shortcuts.pooled
        return ImageFeed(self._source(training), [self._file(pixels)], load, parts, depth=depth, pooled=pooled)

    @staticmethod
    def _file(pixels: UInt8[np.ndarray, "images edge edge 3"]) -> str:
        """The name of the file of pixels, which says what is in it."""
        return Path(str(pixels.filename)).name  # type: ignore[attr-defined]

    def _source(self, training: bool) -> Source:
        backbone, bf16 = self.backbone, training and self.settings.precision == "bf16"
        key = (backbone.sha256, list(backbone.mean), list(backbone.std))
        return Source(backbone.model, self.cache, key, self.send, bf16)

    def one_pair(self, split: str) -> tuple[Float32[Tensor, "1 3 size size"], Int[Tensor, "1 context"]]:
        """The first picture and the first caption of a split, raw."""
        first = torch.from_numpy(np.array(self.pixels(split, self.size)[:1]))
        return self.to_tensor(first), self.send(self.tokens(split)[:1])

    def eval_set(self, split: str) -> EvalSet:
        """The split `val` or `test`. Captions with the same tokens are encoded once, so that they tie exactly."""
        items, step = self.items(split), self.settings.eval_batch_size
        tokens, caption_text = torch.unique(self.tokens(split), dim=0, return_inverse=True)
        counts = torch.tensor([len(item.captions) for item in items])
        images, texts = self.images(split), self.texts(tokens)
        by_length = torch.argsort(texts.lengths, stable=True)

        def image_batches() -> Iterator[Float32[Tensor, "batch 3 size size"] | Pictures | Prefix]:
            yield from map(images, torch.arange(len(items)).split(step))

        def text_batches() -> Iterator[Int[Tensor, "batch context"] | Texts | Prefix]:
            yield from map(texts, by_length.split(step))

        text_of_caption = torch.argsort(by_length)[caption_text]
        return EvalSet(image_batches, text_batches, text_of_caption, torch.arange(len(items)).repeat_interleave(counts))

    def train_batches(self, seed: int) -> TrainBatches:
        """The training batches of every epoch; the last one is dropped if it is not full.

        Order and augmentation follow from (seed, epoch) alone. Close them when training ends.

        Raises UserError if not even one batch would be full.
        """
        items, settings = self.items("train"), self.settings
        tokens = self.tokens("train")
        first = torch.tensor([0, *(len(item.captions) for item in items)]).cumsum(0)
        count = len(items) if settings.captions_per_epoch == "one" else len(tokens)
        if settings.batch_size > count:
            raise UserError(f"train.batch_size {settings.batch_size} exceeds the {count} training pairs of an epoch")
        texts = self.texts(tokens, training=True)
        places = partial(self._places, seed)
        fixed = settings.views is not None or self.preset.scale is None
        if fixed and self.shortcuts.depth("image", training=True):
            pictures: _Loaded | _Kept = _Kept(self._train_images(), settings)
        else:
            pictures = self._loaded(seed)

        def batches(epoch: int, skip: int) -> Generator[Batch, None, None]:
            pairs = epoch_pairs(items, settings.captions_per_epoch, seed, epoch)
            for images, image, caption in pictures.batches(places(epoch, pairs)[skip * settings.batch_size :]):
                yield Batch(images, texts(first[image] + caption), self.send(image))

        return TrainBatches(batches, count // settings.batch_size, pictures.close)

    def _loaded(self, seed: int) -> _Loaded:
        """The training pictures from loaders: augmented there, or on a GPU, or once if their views are fixed."""
        cuda, to_tensor = self.device.type == "cuda", self.to_tensor
        if self.preset.scale is None:
            dataset: StoredPairs = self._train_pairs(TrainPairs, seed)
        elif self.settings.views is not None:
            dataset = ViewPairs(self._views(self.settings.views), self.settings.views)
        elif cuda:
            dataset = self._train_pairs(RawPairs, seed)
            to_tensor = partial(self._augment, BatchAugment(self.preset.edge(self.size), self.size, self.send))
        else:
            dataset = self._train_pairs(TrainPairs, seed)
        loaders = Loaders(dataset, self.settings, pin_memory=cuda)
        return _Loaded(loaders, to_tensor, pooled="image" in self.shortcuts.pooled)

    def _augment(
        self,
        augment: BatchAugment,
        pictures: UInt8[Tensor, "batch edge edge 3"],
        draws: Int64[Tensor, "batch columns"],
    ) -> Float32[Tensor, "batch 3 size size"]:
        """Stored pictures augmented and normalised on the device."""
        return normalise(augment(self.send(pictures), draws), self.mean, self.std)

    def _train_pairs(self, kind: type[TrainPairs], seed: int) -> TrainPairs:
        """The training pictures, augmented by this seed."""
        pixels, sizes = self.training_pixels()
        return kind(pixels, sizes, self.settings.augment, self.size, seed)

    def _views(self, views: int) -> UInt8[np.ndarray, "rows 3 size size"]:
        """The fixed views of all training pictures, memory-mapped; augmented once, for all seeds and devices."""
        dataset = self._train_pairs(TrainPairs, VIEWS_SEED)
        count = len(dataset.pixels) * views

        def parts() -> Iterator[bytes]:
            done = 0
            with closing(self._view_batches(dataset, views)) as batches:
                for pictures in batches:
                    done += len(pictures)
                    if self.on_pixels:
                        self.on_pixels(done, count)
                    yield pictures.numpy().tobytes()

        key = ("views", views, self.settings.augment, self.size, self.resize)
        if key not in self.prepared:
            ending = f"{self.size}-{self.settings.augment}-{views}"
            shape = (count, 3, self.size, self.size)
            self.prepared[key] = keep(self._views_name(dataset, views), ending, shape, parts)
        found: np.ndarray = self.prepared[key]
        return found

    def _views_name(self, dataset: TrainPairs, views: int) -> list[Any]:
        """What fixed views are known by. The first picture's views stand for what the augmentation does."""
        drawn = b"".join(dataset[view, 0, 0, 0][0].numpy().tobytes() for view in range(views))
        return [self._file(dataset.pixels), self.settings.augment, views, hashlib.sha256(drawn).hexdigest()]

    def _view_batches(
        self, dataset: TrainPairs, views: int
    ) -> Generator[UInt8[Tensor, "batch 3 size size"], None, None]:
        """The fixed views of all training pictures in order, from loaders."""
        places = [(view, image, image, 0) for image in range(len(dataset.pixels)) for view in range(views)]
        chunks, pin = self.settings.model_copy(update={"batch_size": CHUNK}), self.device.type == "cuda"
        loaders = Loaders(dataset, chunks, pin_memory=pin, drop_last=False)
        # A run that makes what others read has the same random numbers as they.
        with torch.random.fork_rng(devices=[]), closing(loaders):
            for pictures, _, _ in loaders.batches(places):
                yield pictures

    def _places(self, seed: int, epoch: int, pairs: Int64[np.ndarray, "pairs 2"]) -> list[Place]:
        """What is loaded for an epoch's pairs. With fixed views a picture's place is that of its view in all epochs."""
        if self.settings.views is None:
            return [(epoch, position, image, caption) for position, (image, caption) in enumerate(pairs.tolist())]
        drawn = view_numbers(len(pairs), self.settings.views, seed, epoch).tolist()
        return [(view, image, image, caption) for view, (image, caption) in zip(drawn, pairs.tolist(), strict=True)]

    def _train_images(self) -> ImageFeed:
        """The training pictures with fixed pixels by index; the views of a picture lie one behind the other."""
        views = self.settings.views
        if views is None:
            return self.images("train", training=True)
        dataset = self._train_pairs(TrainPairs, VIEWS_SEED)

        def parts() -> Iterator[Float32[Tensor, "batch 3 size size"]]:
            with closing(self._view_batches(dataset, views)) as batches:
                yield from map(self.to_tensor, batches)

        name = self._views_name(dataset, views)
        depth, pooled = self.shortcuts.depth("image", training=True), "image" in self.shortcuts.pooled
        return ImageFeed(self._source(True), name, None, parts, depth=depth, pooled=pooled)


Loaded = tuple[
    Float32[Tensor, "batch 3 size size"] | Pictures | Prefix, Int[Tensor, " batch"], Int[Tensor, " batch"]
]  # pictures, image indices, caption indices


class _Loaded:
    """Pictures of an epoch's places from loaders."""

    def __init__(
        self,
        loaders: Loaders,
        to_tensor: Callable[..., Float32[Tensor, "batch 3 size size"]],
        *,
        pooled: bool,
    ) -> None:
        self.loaders, self.to_tensor, self.close, self.pooled = loaders, to_tensor, loaders.close, pooled

    def batches(self, places: Sequence[Place]) -> Iterator[Loaded]:
        """Full batches: pictures on the device, image indices and caption indices."""
        for pictures, image, caption, *draws in self.loaders.batches(places):
            pixels = self.to_tensor(pictures, *draws)
            yield Pictures(pixels) if self.pooled else pixels, image, caption


class _Kept:
    """Pictures of an epoch's places by index, as what the frozen image tower gave for them."""

    def __init__(self, images: ImageFeed, settings: TrainSettings) -> None:
        self.images, self.settings = images, settings

    def batches(self, places: Sequence[Place]) -> Iterator[Loaded]:
        """As `_Loaded.batches`."""
        _draw_as_loaders_do()
        size = self.settings.batch_size
        for start in range(0, len(places) // size * size, size):
            view, _, image, caption = torch.tensor(places[start : start + size]).T
            index = image if self.settings.views is None else image * self.settings.views + view
            yield self.images(index), image, caption

    def close(self) -> None:
        """Nothing is open."""


class Loaders:
    """Loads batches of training pictures, in `train.workers` processes, at most one a core, that live until `close`."""

    def __init__(
        self, dataset: StoredPairs, settings: TrainSettings, *, pin_memory: bool, drop_last: bool = True
    ) -> None:
        self.places: list[Place] = []
        workers = min(settings.workers, cpu_cores())  # no number depends on how many there are
        self.loader: DataLoader | None = DataLoader(
            dataset,
            sampler=self.places,
            batch_size=settings.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=drop_last,
            collate_fn=_as_loaded,
            pin_memory=pin_memory,
            worker_init_fn=_outlive_sigterm,
            generator=torch.Generator(),
        )

    def batches(self, places: Sequence[Place]) -> Iterator[list[Shaped[Tensor, "*any"]]]:
        """What the dataset gives for these places, in batches that are full."""
        assert self.loader is not None, "closed"
        _draw_as_loaders_do()
        self.places[:] = places
        return iter(self.loader)

    def close(self) -> None:
        """End the processes, once no epoch is open."""
        self.loader = None  # its iterator ends them when nothing refers to it


def _as_loaded(batch: Any) -> Any:
    """A batch, which the dataset has put together."""
    return batch


def _draw_as_loaders_do() -> None:
    """Draw the number that a loader of torch draws when it starts.

    Drawn in each epoch, training's own random numbers depend neither on how long the workers live nor on whether
    anything is loaded.
    """
    torch.empty((), dtype=torch.int64).random_()


def _outlive_sigterm(worker: int) -> None:
    """A scheduler ends whole process trees: the run still needs its loaders, for the step after which it saves."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SIGTERM_SECONDS))
