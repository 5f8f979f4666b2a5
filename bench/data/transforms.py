"""Training pictures: augmentation presets, an epoch's pairs, normalisation. The one torch module of bench.data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from bench.data.annotations import Item


@dataclass(frozen=True)
class Preset:
    """How pictures are resized for evaluation and stored for training, and what training does to them.

    resize: "crop" or "squash" of `pixels.prepare`, for evaluation and for the stored training pixels alike.
    margin: the stored training edge over the model's image size. scale: RandomResizedCrop's area range.
    """

    resize: str
    margin: Fraction = Fraction(1)
    scale: tuple[float, float] | None = None
    flip_and_randaugment: bool = False

    def edge(self, size: int) -> int:
        """Edge in pixels at which to store training pictures for a model that sees `size`: 256 for 224."""
        return round(size * self.margin)


PRESETS = {
    "none": Preset("crop"),
    "clip": Preset("crop", Fraction(8, 7), scale=(0.9, 1.0)),
    "harma": Preset("squash", Fraction(8, 7), scale=(0.5, 1.0), flip_and_randaugment=True),
}


def train_transform(augment: str, size: int) -> Callable[[Tensor], Tensor]:
    """The preset's random transform, uint8 [3, H, W] -> uint8 [3, size, size]; it draws from torch's CPU generator.

    none: the picture as it is. clip: RandomResizedCrop(0.9-1, bicubic), as open_clip trains. harma:
    RandomResizedCrop(0.5-1, bicubic), horizontal flip, RandAugment(2, 7). All crops are taken from the stored picture
    (`Preset.edge`), not from the original file.

    harma differs from the released code in RandAugment, which is torchvision's here: magnitude 7 of 30 against 7 of
    10 there; both operations always applied, there each with probability 1/2; also Color, Contrast, Posterize and
    Solarize beside the released Identity, AutoContrast, Equalize, Brightness, Sharpness, Shear, Translate, Rotate.
    """
    preset = PRESETS[augment]
    if preset.scale is None:
        return v2.Identity()
    bicubic = v2.InterpolationMode.BICUBIC
    crop = v2.RandomResizedCrop(size, scale=preset.scale, interpolation=bicubic, antialias=True)
    if not preset.flip_and_randaugment:
        return crop
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.RandAugment(2, 7)])


def normalise(pictures: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """uint8 [b, h, w, 3] or [b, 3, h, w] -> float32 [b, 3, h, w], contiguous, on the same device.

    Give mean and std as float32 tensors on a GPU's pictures: numbers would be copied there each time, with a wait.

    On the CPU equal to the last bit to torchvision's ToTensor and Normalize.
    """
    if pictures.shape[1] != 3:
        pictures = pictures.permute(0, 3, 1, 2)
    scaled = pictures.contiguous().to(torch.float32).div_(255)
    shift, scale = (torch.as_tensor(each, dtype=scaled.dtype, device=scaled.device) for each in (mean, std))
    return scaled.sub_(shift.view(1, 3, 1, 1)).div_(scale.view(1, 3, 1, 1))


def epoch_pairs(items: Sequence[Item], captions_per_epoch: str, seed: int, epoch: int) -> np.ndarray:
    """An epoch's (image index, caption index within the image), int64 [pairs, 2], in an order from seed and epoch.

    captions_per_epoch: "all" gives every pair once; "one" gives every image once, with a caption drawn at random.
    """
    rng = np.random.default_rng([seed, epoch])
    counts = np.array([len(item.captions) for item in items])
    if captions_per_epoch == "one":
        pairs = np.stack([np.arange(len(items)), rng.integers(counts)], axis=1)
    else:
        first = np.repeat(np.cumsum(counts) - counts, counts)
        pairs = np.stack([np.repeat(np.arange(len(items)), counts), np.arange(counts.sum()) - first], axis=1)
    return rng.permutation(pairs)


class TrainPairs(torch.utils.data.Dataset):
    """An epoch's pairs as (augmented picture uint8 [3, size, size], image index, caption index), by position.

    pixels: uint8 [images, edge, edge, 3] from `pixels.prepare`; pairs: from `epoch_pairs`. The augmentation of a
    position depends on (seed, epoch, position) alone, so it is the same for any number of workers, and torch's own
    random state is left as it was.
    """

    def __init__(self, pixels: np.ndarray, pairs: np.ndarray, augment: str, size: int, seed: int, epoch: int) -> None:
        self.pixels, self.pairs = pixels, pairs
        self.seed, self.epoch = seed, epoch
        self.transform = train_transform(augment, size)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        image, caption = (int(index) for index in self.pairs[position])
        picture = torch.from_numpy(np.array(self.pixels[image])).permute(2, 0, 1)  # a copy: the map is read-only
        state = np.random.SeedSequence([self.seed, self.epoch, position]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would seed CUDA too, and fork_rng restores the CPU alone.
            torch.default_generator.manual_seed(int(state[0]))
            return self.transform(picture), image, caption
