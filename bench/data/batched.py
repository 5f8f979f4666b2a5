"""Augmentation of whole batches on their device, from draws made on the CPU; the reference is `transforms.augmented`.

The host never waits: pictures are grouped by operation on the CPU, where the draws are, and every shape is known there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8
from torch import Tensor

from bench.data.draws import BOX, OPERATIONS, ROUNDS
from bench.data.randaugment import MOVES, autocontrast, brightness, equalize, grid, moved, sharpness

Send = Callable[[Shaped[Tensor, "*any"]], Shaped[Tensor, "*any"]]  # puts a tensor on the device
Pictures = UInt8[Tensor, "batch 3 size size"]

PART = 64  # pictures that are cropped at once: that takes 0.2 GB at 256 pixels
FIRST_MOVE = OPERATIONS.index(MOVES[0])


@dataclass(frozen=True)
class Round:
    """One round of operations: the pictures in order of what is done to them. Its numbers are on the device.

    order: pictures, those with the same operation together. back: where each picture is in `order`. grids: the grid of
    each moved picture, in that order. counts: how many have each operation, all moves as one.
    """

    order: Int64[Tensor, " batch"]
    back: Int64[Tensor, " batch"]
    grids: Int64[Tensor, " moved"]
    counts: list[int]


@dataclass(frozen=True)
class Plan:
    """What is done to a batch. boxes: top, left, height, width and flip of each picture, on the device."""

    boxes: Int64[Tensor, "batch 5"]
    rounds: list[Round]


class BatchAugment:
    """Crops, flips and augments batches of stored pictures of `edge` pixels to `size` pixels, where `send` puts them.

    On the CPU all pictures are the reference's to the bit. On a GPU crops and flips are as well, since their products
    of matrices are exact in float32 (not in TF32, which runs turn off). Values that an operation moves or sharpens can
    be one grey level off, since a GPU rounds a product and a sum once where the CPU may round twice; a second operation
    that stretches contrast stretches that as well.
    """

    def __init__(self, edge: int, size: int, send: Send) -> None:
        self.send = send
        first, weights = resize_weights(edge, size)
        self.first, self.weights = send(first), send(weights)
        self.grids = send(torch.stack([grid(name, sign, size, size) for name in MOVES for sign in (1, -1)]))
        self.places, self.levels = send(torch.arange(edge)), send(torch.arange(256, dtype=torch.uint8))

    def __call__(
        self, pictures: UInt8[Tensor, "batch edge edge 3"], draws: Int64[Tensor, "batch columns"]
    ) -> UInt8[Tensor, "batch 3 size size"]:
        """Augmented pictures. `pictures` are on the device, `draws` (`draws.table`) on the CPU."""
        return self.apply(pictures, self.plan(draws))

    def plan(self, draws: Int64[Tensor, "batch columns"]) -> Plan:
        """What is done to a batch, ordered on the CPU and sent to the device in one copy."""
        rounds = [ordered(draws[:, BOX + 2 * number :][:, :2].numpy()) for number in range(ROUNDS)]
        numbers = [draws[:, :BOX].flatten(), *(torch.from_numpy(each) for part, _ in rounds for each in part)]
        boxes, *rest = self.send(torch.cat(numbers)).split([len(each) for each in numbers])
        sent = zip(rest[::3], rest[1::3], rest[2::3], (counts for _, counts in rounds), strict=True)
        return Plan(boxes.view(-1, BOX), [Round(*each) for each in sent])

    def apply(self, pictures: UInt8[Tensor, "batch edge edge 3"], plan: Plan) -> UInt8[Tensor, "batch 3 size size"]:
        """Pictures as planned; all on the device."""
        parts = zip(pictures.split(PART), plan.boxes.split(PART), strict=True)
        result = torch.cat([self.crop(part, *boxes.unbind(1)) for part, boxes in parts])
        for each in plan.rounds:
            groups = result.index_select(0, each.order).split(each.counts)
            done = [self._operate(name, group, each.grids) for name, group in enumerate(groups) if len(group)]
            result = torch.cat(done).index_select(0, each.back)
        return result

    def crop(
        self,
        pictures: UInt8[Tensor, "batch edge edge 3"],
        top: Int64[Tensor, " batch"],
        left: Int64[Tensor, " batch"],
        height: Int64[Tensor, " batch"],
        width: Int64[Tensor, " batch"],
        flip: Int64[Tensor, " batch"],
    ) -> UInt8[Tensor, "batch 3 size size"]:
        """Boxes of pictures, resized: first along rows, then along columns, each rounded to whole grey levels."""
        batch, edge = pictures.shape[:2]
        across, down = self._matrix(left, width), self._matrix(top, height)
        across = torch.where(flip.bool()[:, None, None], across.flip(1), across)
        lines = pictures.transpose(2, 3).reshape(batch, 3 * edge, edge).to(torch.float32)
        with torch.autocast(pictures.device.type, enabled=False):  # which would multiply in bfloat16
            rows = _whole(lines @ across.mT)  # (batch, edge * 3, size)
            found = _whole(down @ rows.view(batch, edge, -1))  # (batch, size, 3 * size)
        size = found.shape[1]
        return found.to(torch.uint8).view(batch, size, 3, size).transpose(1, 2).contiguous()

    def _matrix(
        self, start: Int64[Tensor, " batch"], length: Int64[Tensor, " batch"]
    ) -> Float32[Tensor, "batch size edge"]:
        """The matrices that resize `length` pixels from `start` on."""
        weights = self.weights[length]
        tap = self.places - (self.first[length] + start[:, None])[..., None]
        inside: Bool[Tensor, "batch size edge"] = (tap >= 0) & (tap < weights.shape[-1])
        return weights.gather(-1, tap.clamp_(0, weights.shape[-1] - 1)) * inside

    def _operate(self, operation: int, pictures: Pictures, grids: Int64[Tensor, " moved"]) -> Pictures:
        """Pictures after one operation by its number; all moves are one, each picture with its own grid."""
        match OPERATIONS[operation]:
            case "Identity":
                return pictures
            case "AutoContrast":
                return autocontrast(pictures)
            case "Equalize":
                return equalize(pictures, self._at_most(pictures))
            case "Brightness":
                return brightness(pictures)
            case "Sharpness":
                return sharpness(pictures)
        return moved(pictures, self.grids[grids])

    def _at_most(self, pictures: Pictures) -> Int64[Tensor, "batch 3 256"]:
        """How many values of each channel are at most 0, 1, ... 255: by sorting, which no order of sums changes."""
        values = pictures.flatten(2).sort(-1).values
        levels = self.levels.expand(*values.shape[:2], -1).contiguous()
        return torch.searchsorted(values, levels, right=True)


def ordered(drawn: Int64[np.ndarray, "batch 2"]) -> tuple[tuple[Int64[np.ndarray, " any"], ...], list[int]]:
    """One round's `order`, `back`, `grids` and `counts` (see `Round`) from its operations' numbers and signs."""
    number, sign = drawn.T
    kind = np.minimum(number, FIRST_MOVE)
    order = np.argsort(kind, kind="stable")
    grids = (2 * (number - FIRST_MOVE) + (sign < 0))[order][kind[order] == FIRST_MOVE]
    return (order, np.argsort(order), grids), np.bincount(kind, minlength=FIRST_MOVE + 1).tolist()


# --- resizing as torch does it for uint8 on the CPU -------------------------------------------------------------------


def resize_weights(
    edge: int, size: int
) -> tuple[Int64[Tensor, "{edge}+1 {size}"], Float32[Tensor, "{edge}+1 {size} taps"]]:
    """For each length up to `edge` and each of `size` pixels: the first pixel that it is a sum of, and the weights.

    Bicubic, antialiased, with weights of 16 bits, as in Pillow and in torch's kernel for uint8: sums are of whole
    numbers below 2^24, divided by a power of two, so that float32 holds them exactly in whatever order they are added.
    """
    found = [_weights(length, size) for length in range(1, edge + 1)]
    taps = max(weights.shape[1] for _, weights in found)
    first, weights = torch.zeros(edge + 1, size, dtype=torch.int64), torch.zeros(edge + 1, size, taps)
    for length, (start, values) in enumerate(found, start=1):
        first[length] = torch.from_numpy(start)
        weights[length, :, : values.shape[1]] = torch.from_numpy(values)
    return first, weights


def _weights(length: int, size: int) -> tuple[Int64[np.ndarray, " size"], Float64[np.ndarray, "size taps"]]:
    scale = length / size
    stretch = max(scale, 1.0)
    centre = scale * (np.arange(size) + 0.5)
    start = np.maximum((centre - 2 * stretch + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + 2 * stretch + 0.5).astype(np.int64), length)
    taps = np.arange(2 * math.ceil(2 * stretch) + 1)
    weights = _bicubic((taps + (start - centre + 0.5)[:, None]) / stretch)
    weights[taps >= (end - start)[:, None]] = 0
    weights /= weights.sum(1, keepdims=True)
    # As many bits as keep the largest weight below 2^15.
    bits = next(each for each in range(22) if int(0.5 + weights.max() * 2 ** (each + 1)) >= 2**15)
    return start, np.trunc(weights * 2**bits + np.copysign(0.5, weights)) / 2**bits


def _bicubic(x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """The cubic convolution kernel with a = -0.5."""
    x, a = np.abs(x), -0.5
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _whole(values: Float32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Rounded to whole grey levels, halves upwards."""
    return values.add_(0.5).floor_().clamp_(0, 255)
