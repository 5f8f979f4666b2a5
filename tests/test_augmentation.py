"""Augmentation as released: RandAugment beside a second implementation in numpy and Pillow; crops of small files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from bench.data import pixels, transforms
from bench.data.transforms import RandAugment

GREY = 128.0
COLOUR = ("Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness")
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def picture(size: int = 40) -> np.ndarray:
    """A smooth picture with noise that uses neither black nor white."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(30, 200, (5, 5, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return (np.asarray(coarse) * 0.9 + rng.integers(0, 25, (size, size, 3))).astype(np.uint8)


# --- the second implementation, by the released code's own numbers: strength 7 of 10 -------------------------------


def enhanced(image: np.ndarray, name: str) -> np.ndarray:
    factor = 7 / 10 * 1.8 + 0.1
    if name == "Identity":
        return image
    if name == "AutoContrast":
        return np.asarray(ImageOps.autocontrast(Image.fromarray(image)))
    if name == "Equalize":
        return np.asarray(ImageOps.equalize(Image.fromarray(image)))
    values = image.astype(np.float64)
    if name == "Brightness":
        return np.clip(values * factor, 0, 255).astype(np.uint8)
    height, width, _ = image.shape
    out = image.copy()  # the outermost pixels stay
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            around = values[y - 1 : y + 2, x - 1 : x + 2].sum((0, 1))
            blurred = np.round((around + 4 * values[y, x]) / 13)
            out[y, x] = np.clip(blurred + factor * (values[y, x] - blurred), 0, 255)
    return out


def moved(image: np.ndarray, name: str, sign: int) -> np.ndarray:
    """Each pixel is looked up where it comes from, bilinearly; beyond the picture's pixels everything is grey."""
    height, width, _ = image.shape
    shear, shift, turn = 0.3 * 7 / 10 * sign, 10.0 * 7 / 10 * sign, math.radians(30 * 7 / 10) * sign
    to = {
        "ShearX": [[1, shear, 0], [0, 1, 0]],
        "ShearY": [[1, 0, 0], [shear, 1, 0]],
        "TranslateX": [[1, 0, shift], [0, 1, 0]],
        "TranslateY": [[1, 0, 0], [0, 1, shift]],
        "Rotate": [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0]],
    }[name]
    matrix = np.array([*to, [0, 0, 1]], float)
    if name == "Rotate":
        centre = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
        matrix = centre @ matrix @ np.linalg.inv(centre)
    back = np.linalg.inv(matrix)
    framed = np.full((height + 2, width + 2, 3), GREY)
    framed[1:-1, 1:-1] = image
    out = np.full(image.shape, GREY)
    for y in range(height):
        for x in range(width):
            u, v = (back @ [x, y, 1])[:2] + 1  # in the frame
            if 0 <= u < width + 1 and 0 <= v < height + 1:
                left, top = int(u), int(v)
                a, b = u - left, v - top
                upper = (1 - a) * framed[top, left] + a * framed[top, left + 1]
                lower = (1 - a) * framed[top + 1, left] + a * framed[top + 1, left + 1]
                out[y, x] = (1 - b) * upper + b * lower
    return np.round(out).astype(np.uint8)


def by_hand(image: np.ndarray, name: str, sign: int) -> np.ndarray:
    return moved(image, name, sign) if name in MOVES else enhanced(image, name)


# --- one operation --------------------------------------------------------------------------------------------------


def ours(image: np.ndarray, name: str, sign: int) -> np.ndarray:
    got = RandAugment.apply(torch.tensor(image).permute(2, 0, 1), name, sign)
    return got.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", COLOUR + MOVES)
def test_each_operation_is_the_second_implementations(name):
    image = picture()
    for sign in (1, -1) if name in MOVES else (1,):
        expected = by_hand(image, name, sign).astype(float)
        # The direction of a move is no part of the distribution: both signs are as likely.
        got = min(
            (ours(image, name, each).astype(float) for each in ((1, -1) if name in MOVES else (1,))),
            key=lambda each: np.abs(each - expected).sum(),
        )
        # Off by one where a value is on the edge of rounding.
        assert np.abs(got - expected).max() <= 1
        assert np.abs(got - expected).mean() < 0.02
        change, wanted = got - image, expected - image
        assert change.mean() == pytest.approx(wanted.mean(), abs=0.02)
        assert change.var() == pytest.approx(wanted.var(), rel=1e-3)


# --- their distribution ---------------------------------------------------------------------------------------------


def within(count: int, draws: int, probability: float) -> bool:
    """Whether a count is within four standard deviations of what it should be."""
    return abs(count - draws * probability) < 4 * math.sqrt(draws * probability * (1 - probability))


def test_operations_and_signs_are_drawn_as_often_as_released():
    torch.manual_seed(0)
    draws = 20_000
    found = [RandAugment.draw() for _ in range(draws)]
    assert RandAugment.OPERATIONS == COLOUR + MOVES
    for applied, probability in ((0, 1 / 4), (1, 1 / 2), (2, 1 / 4)):
        assert within(sum(len(each) == applied for each in found), draws, probability)
    for name in RandAugment.OPERATIONS:
        signs = [sign for each in found for operation, sign in each if operation == name]
        assert within(len(signs), 2 * draws, 1 / 20), name
        assert within(signs.count(1), len(signs), 1 / 2), name
    both = [each for each in found if len(each) == 2]
    assert within(sum(one[0] == other[0] for one, other in both), len(both), 1 / 10)  # with replacement


def moments(images: list[np.ndarray], image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each augmented picture the mean and the mean square of its change."""
    changes = [each.astype(float) - image for each in images]
    return np.array([each.mean() for each in changes]), np.array([(each**2).mean() for each in changes])


def test_pictures_change_as_much_as_by_the_second_implementation():
    image, count = picture(24), 1_500
    known = {(name, sign): by_hand(image, name, sign) for name in COLOUR + MOVES for sign in (1, -1)}
    rng = np.random.default_rng(1)

    def second() -> np.ndarray:
        """One augmented picture; of two operations the second acts on the first one's picture, by our own code."""
        result = image
        for name in rng.choice(COLOUR + MOVES, 2):
            if rng.random() > 0.5:
                continue
            sign = 1 if rng.random() > 0.5 else -1
            result = known[name, sign] if result is image else ours(result, name, sign)
        return result

    torch.manual_seed(1)
    augment, tensor = RandAugment(), torch.tensor(image).permute(2, 0, 1)
    got = moments([augment(tensor).permute(1, 2, 0).numpy() for _ in range(count)], image)
    expected = moments([second() for _ in range(count)], image)
    for one, other in zip(got, expected, strict=True):
        error = math.sqrt((one.var() + other.var()) / count)
        assert abs(one.mean() - other.mean()) < 4 * error
        assert one.std() == pytest.approx(other.std(), rel=0.1)


# --- crops of small files -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "cache"))
    for name, shape in (("small.png", (14, 10)), ("whole.png", (16, 16)), ("large.png", (40, 20))):
        array = np.random.default_rng(len(name)).integers(0, 256, (*shape, 3), np.uint8)
        Image.fromarray(array).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_small_files_keep_their_own_pixels(folder: Path, resize: str):
    names = ["small.png", "large.png", "whole.png"]
    stored, sizes = pixels.prepare_to_crop(folder, names, 16, resize)
    assert sizes.tolist() == [[14, 10], [16, 16], [16, 16]]
    assert np.array_equal(stored[0, :14, :10], np.asarray(Image.open(folder / "small.png")))
    assert not stored[0, 14:].any()
    assert not stored[0, :, 10:].any()
    assert np.array_equal(stored[1:], pixels.prepare(folder, names[1:], 16, resize))
    again, kept = pixels.prepare_to_crop(folder, names, 16, resize)  # from the cache
    assert np.array_equal(again, stored)
    assert kept.tolist() == sizes.tolist()


def test_a_crop_sees_the_files_own_pixels_and_nothing_beside_them(folder: Path):
    """A picture of 14 x 10 pixels with one value: a crop that saw the zeros beside it would have others."""
    Image.new("RGB", (10, 14), (200, 200, 200)).save(folder / "flat.png")
    stored, sizes = pixels.prepare_to_crop(folder, ["flat.png"], 16, "squash")
    data = transforms.TrainPairs(stored, sizes, "clip", 14, seed=0)
    for position in range(20):
        assert (data[(1, position, 0, 0)][0] == 200).all()
