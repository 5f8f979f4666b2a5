"""Training pictures: augmentation presets, their reference on the CPU, an epoch's pairs, normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped, UInt8, UInt16
from torch import Tensor
from torch.nn.functional import interpolate

from bench.data.annotations import Item
from bench.data.draws import Draw, Draws, table
from bench.data.randaugment import RandAugment

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Preset:
    """How pictures are resized for evaluation, how they are stored for training, and what training does to them.

    resize: "crop" or "squash" of `pixels.prepare`, for evaluation and for the stored training pixels.
    margin: longest edge of the stored training pictures over the model's image size. scale: RandomResizedCrop's range
    of areas. Crops are taken from the stored picture (`edge`): from the file's own pixels, if none of its sides is
    longer than that.

    none: the picture as it is. clip: RandomResizedCrop(0.9-1, bicubic), as open_clip trains. harma, as released:
    RandomResizedCrop(0.5-1, bicubic), horizontal flip, `RandAugment`.
    """

    resize: str
    margin: Fraction = Fraction(1)
    scale: tuple[float, float] | None = None
    flip_and_randaugment: bool = False

    def edge(self, size: int) -> int:
        """Edge in pixels of the stored training pictures for a model whose images have `size`: 256 for 224."""
        return round(size * self.margin)


PRESETS = {
    "none": Preset("crop"),
    "clip": Preset("crop", Fraction(8, 7), scale=(0.9, 1.0)),
    "harma": Preset("squash", Fraction(8, 7), scale=(0.5, 1.0), flip_and_randaugment=True),
}


def augmented(pixels: UInt8[np.ndarray, "height width 3"], draw: Draw, size: int) -> UInt8[Tensor, "3 {size} {size}"]:
    """The stored picture as a draw says: cropped and resized, flipped, and with RandAugment's operations. On the CPU.

    Bit by bit what torchvision's transforms give. `bench.data.batched` does the same to a batch on any device.
    """
    cropped = pixels[draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
    # A copy: the map is read-only. Pixels one behind the other are resized twice as fast as others, but only if the
    # stride of the batch is theirs as well.
    picture = torch.from_numpy(np.array(cropped)[None]).permute(0, 3, 1, 2)
    if cropped.shape[:2] != (size, size):
        picture = interpolate(picture, (size, size), mode="bicubic", antialias=True)
    picture = picture[0]
    if draw.flip:
        picture = picture.flip(-1)
    for operation, sign in draw.operations:
        # Operations are much faster on contiguous channels.
        picture = RandAugment.apply(picture.contiguous(), operation, sign)
    return picture


def normalise(
    pictures: UInt8[Tensor, "batch height width 3"] | UInt8[Tensor, "batch 3 height width"],
    mean: Sequence[float] | Float32[Tensor, " 3"],
    std: Sequence[float] | Float32[Tensor, " 3"],
) -> Float32[Tensor, "batch 3 height width"]:
    """`(pictures / 255 - mean) / std` by channel, contiguous, on the same device.

    Give mean and std as tensors for a GPU's pictures: numbers would be copied there each time, with a wait. On the CPU
    bit by bit what torchvision's ToTensor and Normalize give.
    """
    if pictures.shape[1] != 3:
        pictures = pictures.permute(0, 3, 1, 2)
    scaled = empty(pictures.shape, torch.float32, pictures.device)
    shift, scale = (torch.as_tensor(each, dtype=scaled.dtype, device=scaled.device) for each in (mean, std))
    # One thread takes picture by picture: 224 x 224 floats stay in a core's cache through all passes. Several threads
    # wait for each other after each pass, some 10 ms where other processes have their cores: four passes in all.
    alone = pictures.device.type == "cpu" and torch.get_num_threads() == 1
    part = 1 if alone else max(1, len(pictures))
    for target, source in zip(scaled.split(part), pictures.split(part), strict=True):
        target.copy_(source).div_(255).sub_(shift.view(3, 1, 1)).div_(scale.view(3, 1, 1))
    return scaled


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device = CPU) -> Shaped[Tensor, "*any"]:
    """A tensor without values, contiguous. On the CPU in memory from numpy, which asks for large pages.

    From 32 MB on, torch's own memory is new to the process each time, and Linux hands it out in pages of 4 KB: for a
    picture that took 0.23 ms, three times as long as to normalise it; with large pages 0.04 ms.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size, aligned = math.prod(shape) * dtype.itemsize, 64  # as torch's own memory is: kernels may depend on it
    memory = np.empty(size + aligned, np.uint8)
    first = -memory.ctypes.data % aligned
    return torch.from_numpy(memory[first : first + size]).view(dtype).view(tuple(shape))


def epoch_pairs(items: Sequence[Item], captions_per_epoch: str, seed: int, epoch: int) -> Int64[np.ndarray, "pairs 2"]:
    """An epoch's pairs (image, caption within the image) by index, in an order that follows from seed and epoch.

    captions_per_epoch: "all" gives every pair once; "one" gives every image once, with a caption drawn at random.
    2 images with 2 captions each: "all" gives (0, 0), (0, 1), (1, 0), (1, 1) in some order.
    """
    rng = np.random.default_rng([seed, epoch])
    counts = np.array([len(item.captions) for item in items])
    if captions_per_epoch == "one":
        pairs = np.stack([np.arange(len(items)), rng.integers(counts)], axis=1)
    else:
        first = np.repeat(np.cumsum(counts) - counts, counts)
        pairs = np.stack([np.repeat(np.arange(len(items)), counts), np.arange(counts.sum()) - first], axis=1)
    return rng.permutation(pairs)


def view_numbers(count: int, views: int, seed: int, epoch: int) -> Int64[np.ndarray, " {count}"]:
    """Which of its fixed views each of an epoch's `count` pictures is; that follows from seed and epoch."""
    return np.random.default_rng([seed, epoch, 1]).integers(views, size=count)


# Epoch, position within it, image, caption of the image. With fixed views: view, image, image, caption.
Place = tuple[int, int, int, int]


class StoredPairs(torch.utils.data.Dataset):
    """Training pairs with their stored pictures, in batches. What is loaded is said by `__getitems__` of each kind.

    A pickled copy, as loaders send it to workers that are not forked, holds the path of memory-mapped pixels, not the
    pixels.
    """

    pixels: UInt8[np.ndarray, "rows ..."]

    def settings(self) -> dict[str, Any]:
        """What it was made with beside the pixels."""
        raise NotImplementedError

    def held(self) -> int:
        """Bytes of the file of pixels."""
        return self.pixels.nbytes

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self.pixels, np.memmap):
            return self.settings() | {"pixels": self.pixels}
        path = Path(str(self.pixels.filename))
        assert self.held() == path.stat().st_size, f"the pixels are a part of {path} only"
        return self.settings() | {"path": str(path), "shape": self.pixels.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "path" in state:
            state["pixels"] = np.memmap(state.pop("path"), dtype=np.uint8, mode="r", shape=state.pop("shape"))
        self.__init__(**state)  # type: ignore[misc]

    def __getitem__(self, place: Place) -> tuple[UInt8[Tensor, "*shape"], int, int]:
        pictures, *_ = self.__getitems__([place])
        return pictures[0], place[2], place[3]

    def __getitems__(self, places: Sequence[Place]) -> tuple[Shaped[Tensor, "batch ..."], ...]:
        """A batch as loaders ask for it: uint8 pictures, image indices, caption indices."""
        raise NotImplementedError


class TrainPairs(StoredPairs):
    """Training pairs by epoch and position: augmented pictures (batch, 3, size, size), image and caption indices.

    pixels and sizes: from `pixels.prepare_to_crop`, or without sizes from `pixels.prepare`. The augmentation depends on
    (seed, epoch, position) alone: it is the same for any number of workers. torch's own random state does not change.
    """

    def __init__(
        self,
        pixels: UInt8[np.ndarray, "images edge edge 3"],
        sizes: UInt16[np.ndarray, "images 2"] | None,
        augment: str,
        size: int,
        seed: int,
    ) -> None:
        self.pixels, self.sizes, self.augment, self.size, self.seed = pixels, sizes, augment, size, seed
        preset = PRESETS[augment]
        self.draws = preset.scale and Draws(seed, preset.scale, flip_and_randaugment=preset.flip_and_randaugment)

    def settings(self) -> dict[str, Any]:
        """See `StoredPairs`."""
        return {"sizes": self.sizes, "augment": self.augment, "size": self.size, "seed": self.seed}

    def held(self) -> int:
        """See `StoredPairs`: behind the pixels are the sizes."""
        return self.pixels.nbytes + (0 if self.sizes is None else self.sizes.nbytes)

    def draw(self, place: Place) -> Draw:
        """What is drawn for a picture."""
        epoch, position, image, _ = place
        height, width = self.pixels.shape[1:3] if self.sizes is None else self.sizes[image].tolist()
        assert self.draws, f"nothing is drawn for augment {self.augment}"
        return self.draws(epoch, position, height, width)

    def __getitems__(self, places: Sequence[Place]) -> tuple[Shaped[Tensor, "batch ..."], ...]:
        """See `StoredPairs`. Without `augment` the pictures' memory is as stored, with channels last."""
        _, _, image, caption = torch.tensor(places).T
        if not self.draws:
            return torch.from_numpy(self.pixels[image.numpy()]).permute(0, 3, 1, 2), image, caption
        pictures = empty((len(places), 3, self.size, self.size), torch.uint8)
        for target, place in zip(pictures, places, strict=True):
            target.copy_(augmented(self.pixels[place[2]], self.draw(place), self.size))
        return pictures, image, caption


class RawPairs(TrainPairs):
    """As `TrainPairs`, but with stored pictures and what is drawn for them: `batched.BatchAugment` does the rest."""

    def __getitems__(self, places: Sequence[Place]) -> tuple[Shaped[Tensor, "batch ..."], ...]:
        """Stored uint8 pictures (batch, edge, edge, 3), image indices, caption indices, `draws.table` of the batch."""
        _, _, image, caption = torch.tensor(places).T
        return torch.from_numpy(self.pixels[image.numpy()]), image, caption, table([self.draw(each) for each in places])


class ViewPairs(StoredPairs):
    """Training pairs by view: pictures (batch, 3, size, size) that were augmented before, image and caption indices.

    The `views` of a picture lie one behind the other in `pixels`.
    """

    def __init__(self, pixels: UInt8[np.ndarray, "rows 3 size size"], views: int) -> None:
        self.pixels, self.views = pixels, views

    def settings(self) -> dict[str, Any]:
        """See `StoredPairs`."""
        return {"views": self.views}

    def __getitems__(self, places: Sequence[Place]) -> tuple[Shaped[Tensor, "batch ..."], ...]:
        """See `StoredPairs`."""
        view, _, image, caption = torch.tensor(places).T
        return torch.from_numpy(self.pixels[(image * self.views + view).numpy()]), image, caption
