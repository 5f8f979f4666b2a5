"""HarMA's RandAugment: its operations on uint8 pictures, one picture or a batch of them, on any device."""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from bench.data.draws import OPERATIONS, draw_operations

MOVES = OPERATIONS[5:]
ENHANCE, SHEAR, SHIFT, TURN = 1.36, 0.21, 7, 21.0  # strength 7 of 10: factors, pixels, degrees
GREY = 128

Pictures = UInt8[Tensor, "*batch 3 height width"]


class RandAugment:
    """HarMA's RandAugment at strength 7 of 10: two operations, drawn with replacement, each applied with p = 1/2.

    Operations, as many times each: Identity, AutoContrast, Equalize, Brightness and Sharpness (factor 1.36), ShearX and
    ShearY (0.21), TranslateX and TranslateY (7 pixels), Rotate (21 degrees). The last five have a random sign, bilinear
    interpolation, and grey (128, 128, 128) where the picture ends; a picture is turned about its pixel (width / 2,
    height / 2) and sheared about its first pixel, as OpenCV, which the released code uses, counts them.

    Differs from the released code in one point: there, sharpened values below 0 or above 255 wrap around in the cast
    to 8 bits, which turns white specks black; here they are cut off, as Pillow and torchvision do.
    """

    OPERATIONS = OPERATIONS
    draw = staticmethod(draw_operations)

    @staticmethod
    def apply(picture: UInt8[Tensor, "3 height width"], operation: str, sign: int) -> UInt8[Tensor, "3 height width"]:
        """The picture after one operation, on the CPU. `sign` is that of its strength, for those that have one."""
        match operation:
            case "Identity":
                return picture
            case "AutoContrast":
                return autocontrast(picture)
            case "Equalize":
                return equalize(picture, counted(picture))
            case "Brightness":
                return brightness(picture)
            case "Sharpness":
                return sharpness(picture)
            case "TranslateX":
                return shifted(picture, 0, SHIFT * sign)
            case "TranslateY":
                return shifted(picture, SHIFT * sign, 0)
        height, width = picture.shape[1:]
        return moved(picture[None], grid(operation, sign, height, width)[None])[0]

    def __call__(self, picture: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
        for operation, sign in self.draw():
            picture = self.apply(picture, operation, sign)
        return picture


# --- colours ----------------------------------------------------------------------------------------------------------


def autocontrast(pictures: Pictures) -> Pictures:
    """Each channel stretched to 0 to 255, by torchvision's arithmetic; a channel of one value stays."""
    values = pictures.to(torch.float32)
    low, high = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    scale = (high - low).mul_(1 / 255)
    flat = high == low
    values.sub_(low.masked_fill(flat, 0)).div_(scale.masked_fill_(flat, 1))
    return values.clamp_(0, 255).to(torch.uint8)


def brightness(pictures: Pictures) -> Pictures:
    """All values times 1.36, cut off at 255."""
    return pictures.mul(ENHANCE).clamp_(0, 255).to(torch.uint8)


def sharpness(pictures: Pictures) -> Pictures:
    """1.36 times the picture less 0.36 times a blurred one, within its outermost pixels, which stay.

    Blurred: the rounded mean of a pixel (5 times) and its 8 neighbours. Their sum over 13 is never half a number, so
    that this is what a convolution in floats rounds to.
    """
    values = pictures.to(torch.int16)
    rows = values[..., :-2] + values[..., 1:-1] + values[..., 2:]
    inner = values[..., 1:-1, 1:-1]
    around = (rows[..., :-2, :] + rows[..., 1:-1, :]).add_(rows[..., 2:, :]).add_(inner, alpha=4)
    change = around.to(torch.float32).div_(13).round_().sub_(inner)
    result = pictures.clone()
    result[..., 1:-1, 1:-1] = inner.to(torch.float32).add_(change, alpha=1 - ENHANCE).clamp_(0, 255).to(torch.uint8)
    return result


def counted(picture: UInt8[Tensor, "3 height width"]) -> Int64[Tensor, "3 256"]:
    """How many values of each channel are at most 0, 1, ... 255."""
    return torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in picture]).cumsum(-1)


def equalize(pictures: Pictures, at_most: Int64[Tensor, "*batch 3 256"]) -> Pictures:
    """Each channel with its histogram made flat, by Pillow's arithmetic, from how many values are at most 0, 1, ..."""
    total = at_most[..., -1:]
    # All values less those that are the channel's highest one.
    below = torch.where(at_most < total, at_most, 0).amax(-1, keepdim=True)
    step = below.div(255, rounding_mode="floor")
    table = at_most.add(step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    table = torch.cat([torch.zeros_like(total), table[..., :-1]], -1)
    same = torch.arange(256, device=pictures.device)
    table = torch.where(step > 0, table, same).to(torch.uint8)
    return table.gather(-1, pictures.flatten(-2).to(torch.int64)).view(pictures.shape)


# --- moves ------------------------------------------------------------------------------------------------------------


def shifted(picture: UInt8[Tensor, "3 height width"], down: int, right: int) -> UInt8[Tensor, "3 height width"]:
    """The picture moved by whole pixels, with grey where it ends."""
    height, width = picture.shape[1:]
    result = torch.full_like(picture, GREY, memory_format=torch.contiguous_format)
    to_y, from_y, to_x, from_x = max(down, 0), max(-down, 0), max(right, 0), max(-right, 0)
    seen = picture[:, from_y : height - to_y, from_x : width - to_x]
    result[:, to_y : height - from_y, to_x : width - from_x] = seen
    return result


def moved(
    pictures: UInt8[Tensor, "batch 3 height width"], grids: Float32[Tensor, "batch height width 2"]
) -> UInt8[Tensor, "batch 3 height width"]:
    """Pictures looked up bilinearly where their grids say, with grey where they end."""
    # Around grey, so that what comes from outside is grey: torchvision's `fill` blends the edge twice.
    values = torch.nn.functional.grid_sample(pictures.to(torch.float32).sub_(GREY), grids, align_corners=False)
    return values.add_(GREY).round_().clamp_(0, 255).to(torch.uint8)


@functools.cache
def grid(operation: str, sign: int, height: int, width: int) -> Float32[Tensor, "height width 2"]:
    """Where each pixel of a moved picture comes from, on the CPU, with -1 and 1 at the picture's edges.

    Bit by bit that of torchvision's `affine`: coordinates count from the picture's middle.
    """
    (a, b, c), (d, e, f) = _matrix(operation, sign, height, width)
    points = torch.ones(1, height, width, 3)
    points[..., 0] = torch.linspace((1 - width) * 0.5, (width - 1) * 0.5, width)
    points[..., 1] = torch.linspace((1 - height) * 0.5, (height - 1) * 0.5, height)[:, None]
    rows = torch.tensor([[[a, b, c], [d, e, f]]]).transpose(1, 2).div_(torch.tensor([0.5 * width, 0.5 * height]))
    return points.view(1, height * width, 3).bmm(rows).view(height, width, 2)


def _matrix(operation: str, sign: int, height: int, width: int) -> tuple[tuple[float, float, float], ...]:
    """The affine map from a moved picture's points to those of the picture before."""
    turn, shear_x, shear_y, right, down, x, y = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    match operation:
        case "ShearX":
            shear_x, x, y = math.atan(SHEAR * sign), 0.5 - width * 0.5, 0.5 - height * 0.5
        case "ShearY":
            shear_y, x, y = math.atan(SHEAR * sign), 0.5 - width * 0.5, 0.5 - height * 0.5
        case "TranslateX":
            right = float(SHIFT * sign)
        case "TranslateY":
            down = float(SHIFT * sign)
        case "Rotate":
            turn, x, y = math.radians(TURN * sign), 0.5, 0.5
    # Through degrees and back, as torchvision's arguments go.
    shear_x, shear_y = math.radians(math.degrees(shear_x)), math.radians(math.degrees(shear_y))
    a = math.cos(turn - shear_y) / math.cos(shear_y)
    b = -(a * math.tan(shear_x) + math.sin(turn))
    c = math.sin(turn - shear_y) / math.cos(shear_y)
    d = math.cos(turn) - c * math.tan(shear_x)
    return (
        (d, -b, x - d * (x + right) + b * (y + down)),
        (-c, a, y + c * (x + right) - a * (y + down)),
    )
