"""Training pictures: augmentation presets, an epoch's pairs, normalisation. The one torch module of bench.data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8, UInt16
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from bench.data.annotations import Item


@dataclass(frozen=True)
class Preset:
    """How pictures are resized for evaluation, how they are stored for training, and what training does to them.

    resize: "crop" or "squash" of `pixels.prepare`, for evaluation and for the stored training pixels.
    margin: longest edge of the stored training pictures over the model's image size. scale: RandomResizedCrop's range
    of areas.
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


def train_transform(
    augment: str, size: int
) -> Callable[[UInt8[Tensor, "3 height width"]], UInt8[Tensor, "3 {size} {size}"]]:
    """The preset's random transform of one picture; it draws from torch's CPU generator. Raises KeyError for no preset.

    none: the picture as it is. clip: RandomResizedCrop(0.9-1, bicubic), as open_clip trains. harma, as released:
    RandomResizedCrop(0.5-1, bicubic), horizontal flip, `RandAugment`. Crops are taken from the stored picture
    (`Preset.edge`): from the file's own pixels, if none of its sides is longer than that.
    """
    preset = PRESETS[augment]
    if preset.scale is None:
        return v2.Identity()
    bicubic = v2.InterpolationMode.BICUBIC
    crop = v2.RandomResizedCrop(size, scale=preset.scale, interpolation=bicubic, antialias=True)
    if not preset.flip_and_randaugment:
        return crop
    return v2.Compose([crop, v2.RandomHorizontalFlip(), RandAugment()])


class RandAugment:
    """HarMA's RandAugment at strength 7 of 10: two operations, drawn with replacement, each applied with p = 1/2.

    Operations, as many times each: Identity, AutoContrast, Equalize, Brightness and Sharpness (factor 1.36), ShearX and
    ShearY (0.21), TranslateX and TranslateY (7 pixels), Rotate (21 degrees). The last five have a random sign, bilinear
    interpolation, and grey (128, 128, 128) where the picture ends; a picture is turned about its pixel (width / 2,
    height / 2) and sheared about its first pixel, as OpenCV, which the released code uses, counts them.

    Differs from the released code in one point: there, sharpened values below 0 or above 255 wrap around in the cast
    to 8 bits, which turns white specks black; here they are cut off, as Pillow and torchvision do.
    """

    OPERATIONS = (
        *("Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness"),
        *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    )
    SIGNED = OPERATIONS[5:]

    @staticmethod
    def draw() -> list[tuple[str, int]]:
        """The operations of one picture in order, each with the sign of its strength; none, one or two."""
        found = []
        for index in torch.randint(len(RandAugment.OPERATIONS), (2,)).tolist():
            applied, positive = (torch.rand(2) < 0.5).tolist()
            if applied:
                found.append((RandAugment.OPERATIONS[index], 1 if positive else -1))
        return found

    @staticmethod
    def apply(picture: UInt8[Tensor, "3 height width"], operation: str, sign: int) -> UInt8[Tensor, "3 height width"]:
        """The picture after one operation. `sign` is that of its strength, for operations that have one."""
        height, width = picture.shape[1:]
        move: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
        match operation:
            case "Identity":
                return picture
            case "AutoContrast":
                return F.autocontrast(picture)
            case "Equalize":
                return F.equalize(picture)
            case "Brightness":
                return F.adjust_brightness(picture, 1.36)
            case "Sharpness":
                return F.adjust_sharpness(picture, 1.36)
            case "ShearX":
                move |= {"shear": [math.degrees(math.atan(0.21 * sign)), 0.0], "center": [0.5, 0.5]}
            case "ShearY":
                move |= {"shear": [0.0, math.degrees(math.atan(0.21 * sign))], "center": [0.5, 0.5]}
            case "TranslateX":
                move |= {"translate": [7 * sign, 0]}
            case "TranslateY":
                move |= {"translate": [0, 7 * sign]}
            case "Rotate":
                move |= {"angle": 21.0 * sign, "center": [width / 2 + 0.5, height / 2 + 0.5]}
        # Around grey, so that what comes from outside is grey: torchvision's `fill` blends the edge twice.
        around = F.affine(picture.float() - 128, **move, interpolation=v2.InterpolationMode.BILINEAR) + 128
        return around.round().clamp(0, 255).to(torch.uint8)

    def __call__(self, picture: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
        for operation, sign in self.draw():
            picture = self.apply(picture, operation, sign)
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
    scaled = pictures.contiguous().to(torch.float32).div_(255)
    shift, scale = (torch.as_tensor(each, dtype=scaled.dtype, device=scaled.device) for each in (mean, std))
    return scaled.sub_(shift.view(1, 3, 1, 1)).div_(scale.view(1, 3, 1, 1))


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


class TrainPairs(torch.utils.data.Dataset):
    """Training pairs by epoch and position: augmented picture, image index, caption index.

    pixels and sizes: from `pixels.prepare_to_crop`, or without sizes from `pixels.prepare`. The augmentation depends on
    (seed, epoch, position) alone: it is the same for any number of workers. torch's own random state does not change. A
    pickled copy, as loaders send it to workers that are not forked, holds the path of memory-mapped pixels, not the
    pixels.
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
        self.transform = train_transform(augment, size)

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self.pixels, np.memmap):
            return self._settings() | {"pixels": self.pixels}
        path = Path(str(self.pixels.filename))
        held = self.pixels.nbytes + (0 if self.sizes is None else self.sizes.nbytes)
        assert held == path.stat().st_size, f"the pixels are a part of {path} only"
        return self._settings() | {"path": str(path), "shape": self.pixels.shape}

    def _settings(self) -> dict[str, Any]:
        return {"sizes": self.sizes, "augment": self.augment, "size": self.size, "seed": self.seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "path" in state:
            state["pixels"] = np.memmap(state.pop("path"), dtype=np.uint8, mode="r", shape=state.pop("shape"))
        self.__init__(**state)  # type: ignore[misc]

    def __getitem__(self, place: Place) -> tuple[UInt8[Tensor, "3 size size"], int, int]:
        epoch, position, image, caption = place
        pixels = self.pixels[image]
        if self.sizes is not None:
            height, width = self.sizes[image].tolist()
            pixels = pixels[:height, :width]
        picture = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)  # a copy: the map is read-only
        state = np.random.SeedSequence([self.seed, epoch, position]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would seed CUDA too, and fork_rng restores the CPU alone.
            torch.default_generator.manual_seed(int(state[0]))
            return self.transform(picture), image, caption
