"""Augmentation beside torchvision's, to the bit: picture by picture on the CPU, and of whole batches on a device."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from bench.conformance.fake_cuda import DEVICE, FakeCuda
from bench.data import batched, randaugment
from bench.data.batched import BatchAugment, resize_weights
from bench.data.draws import OPERATIONS, ROUNDS, Draw, draw_operations, table
from bench.data.transforms import PRESETS, RawPairs, TrainPairs, augmented, empty, normalise

SIZE = 42  # an edge of 48


def pictures(count: int, edge: int) -> np.ndarray:
    """Smooth pictures, noise, and extreme ones: a channel of one value, one with two, one with a narrow range."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        noise = rng.integers(0, 256, (edge, edge, 3), np.uint8)
        coarse = Image.fromarray(noise[:6, :6]).resize((edge, edge), Image.Resampling.BICUBIC)
        extreme = np.stack([np.full_like(noise[..., 0], 7), noise[..., 1] // 128, noise[..., 2] // 9 + 100], -1)
        found.append((np.asarray(coarse), noise, extreme)[number % 3])
    return np.stack(found)


def own_sizes(count: int, edge: int) -> np.ndarray:
    """Heights and widths; of some pictures no crop of the usual shapes fits in."""
    rng = np.random.default_rng(1)
    return np.stack([rng.integers(edge // 2, edge + 1, count), rng.integers(4, edge + 1, count)], 1).astype(np.uint16)


def pairs(augment: str, kind: type[TrainPairs] = TrainPairs, own: bool = False, size: int = SIZE) -> TrainPairs:
    edge = PRESETS[augment].edge(size)
    return kind(pictures(24, edge), own_sizes(24, edge) if own else None, augment, size, seed=3)


def places(epoch: int) -> list[tuple[int, int, int, int]]:
    return [(epoch, position, (5 * position) % 24, position % 5) for position in range(24)]


# --- torchvision ------------------------------------------------------------------------------------------------------


def operation(picture: Tensor, name: str, sign: int) -> Tensor:
    """One operation of RandAugment by torchvision's functions."""
    width, height = picture.shape[2], picture.shape[1]
    move: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    shear = math.degrees(math.atan(0.21 * sign))
    match name:
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
            move |= {"shear": [shear, 0.0], "center": [0.5, 0.5]}
        case "ShearY":
            move |= {"shear": [0.0, shear], "center": [0.5, 0.5]}
        case "TranslateX":
            move |= {"translate": [7 * sign, 0]}
        case "TranslateY":
            move |= {"translate": [0, 7 * sign]}
        case "Rotate":
            move |= {"angle": 21.0 * sign, "center": [width / 2 + 0.5, height / 2 + 0.5]}
    around = F.affine(picture.float() - 128, **move, interpolation=v2.InterpolationMode.BILINEAR) + 128
    return around.round().clamp(0, 255).to(torch.uint8)


def by_torchvision(data: TrainPairs, place: tuple[int, int, int, int]) -> Tensor:
    """A training picture by torchvision's transforms, drawn from torch's own generator."""
    epoch, position, image, _ = place
    height, width = data.pixels.shape[1:3] if data.sizes is None else data.sizes[image].tolist()
    picture = torch.from_numpy(data.pixels[image, :height, :width].copy()).permute(2, 0, 1)
    preset = PRESETS[data.augment]
    bicubic = v2.InterpolationMode.BICUBIC
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([data.seed, epoch, position]).generate_state(1, np.uint64)[0]))
        picture = v2.RandomResizedCrop(data.size, scale=preset.scale, interpolation=bicubic)(picture)
        if preset.flip_and_randaugment:
            picture = v2.RandomHorizontalFlip()(picture)
            for name, sign in draw_operations():
                picture = operation(picture, name, sign)
    return picture


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("augment", ["clip", "harma"])
def test_pictures_are_those_of_torchvision(augment: str, own: bool):
    data = pairs(augment, own=own)
    for epoch in range(4):
        got, image, caption = data.__getitems__(places(epoch))
        expected = torch.stack([by_torchvision(data, place) for place in places(epoch)])
        assert torch.equal(got, expected)
        assert (image.tolist(), caption.tolist()) == tuple([place[i] for place in places(epoch)] for i in (2, 3))


@pytest.mark.parametrize("size", [16, 33, 224])
def test_each_operation_is_torchvisions_to_the_bit(size: int):
    for picture in torch.from_numpy(pictures(3, size)).permute(0, 3, 1, 2).contiguous():
        for name, sign in itertools.product(OPERATIONS, (1, -1)):
            got = randaugment.RandAugment.apply(picture, name, sign)
            assert torch.equal(got, operation(picture, name, sign)), (name, sign)


# --- batches ----------------------------------------------------------------------------------------------------------


def keep(tensor: Tensor) -> Tensor:
    return tensor


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("augment", ["clip", "harma"])
def test_a_batch_is_augmented_as_its_pictures(augment: str, own: bool, monkeypatch: pytest.MonkeyPatch):
    """On the CPU equal to the bit; crops are computed in parts of 10, 10 and 4 pictures."""
    monkeypatch.setattr(batched, "PART", 10)
    data, raw = pairs(augment, own=own), pairs(augment, RawPairs, own)
    augment_batch = BatchAugment(data.pixels.shape[1], SIZE, keep)
    for epoch in range(4):
        stored, image, caption, draws = raw.__getitems__(places(epoch))
        expected, *indices = data.__getitems__(places(epoch))
        assert torch.equal(augment_batch(stored, draws), expected)
        assert [image.tolist(), caption.tolist()] == [each.tolist() for each in indices]


def every_draw(edge: int) -> list[Draw]:
    """Each operation with each sign in each round, flipped and not, and boxes of many sizes."""
    rng = np.random.default_rng(2)
    found = []
    for name, sign, place in itertools.product(OPERATIONS, (1, -1), range(2 * ROUNDS)):
        height, width = rng.integers(edge // 2, edge + 1, 2).tolist()
        top, left = int(rng.integers(edge - height + 1)), int(rng.integers(edge - width + 1))
        done = [("Identity", 1)] * ROUNDS
        done[place // 2] = name, sign
        found.append(Draw(top, left, height, width, place % 2 == 0, tuple(done)))
    return found


def every_picture(size: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Pictures with every draw: of the batch, computed on the device, and one by one on the CPU."""
    edge = PRESETS["harma"].edge(size)
    draws = every_draw(edge)
    stored = pictures(len(draws), edge)
    put = keep if device is None else lambda tensor: tensor.to(device)
    got = BatchAugment(edge, size, put)(put(torch.from_numpy(stored)), table(draws))
    return got, torch.stack([augmented(*each, size) for each in zip(stored, draws, strict=True)])


def test_every_operation_sign_flip_and_box():
    got, expected = every_picture(SIZE)
    assert torch.equal(got, expected)


def test_a_batch_is_the_same_under_autocast():
    """The views of a frozen tower are computed within it: products of matrices must not be of bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = every_picture(SIZE)
    assert torch.equal(got, expected)


def test_a_batch_of_one():
    draw, stored = Draw(1, 2, 40, 30, True, (("Rotate", -1), ("Equalize", 1))), pictures(1, 48)
    got = BatchAugment(48, SIZE, keep)(torch.from_numpy(stored), table([draw]))
    assert torch.equal(got[0], augmented(stored[0], draw, SIZE))


@pytest.mark.parametrize("size", [14, 224])
def test_every_length_is_resized_as_torch_does(size: int):
    """Of pictures with the highest contrast; all sums of a row's weights and values stay exact in float32."""
    edge = PRESETS["harma"].edge(size)
    _, weights = resize_weights(edge, size)
    rng = np.random.default_rng(0)
    augment_batch = BatchAugment(edge, size, keep)
    for length in range(1, edge + 1):
        unit = weights[length][weights[length] != 0].abs()
        bits = next(each for each in range(24) if torch.equal(unit * 2**each, (unit * 2**each).round()))
        assert 255 * weights[length].abs().sum(1).max() * 2**bits + 2**bits / 2 < 2**24
        if length % 7 and length < edge - 2:
            continue
        stored = 255 * rng.integers(0, 2, (1, edge, edge, 3), np.uint8)
        draw = Draw(edge - length, 0, length, length)
        got = augment_batch(torch.from_numpy(stored), table([draw]))
        assert torch.equal(got[0], augmented(stored[0], draw, size))


# --- a GPU that is not there ------------------------------------------------------------------------------------------


def trace(send: Any, gpu: FakeCuda) -> Tensor:
    """A batch with every operation, augmented and normalised on a fake GPU, as deterministic as in runs."""
    draws = every_draw(48)
    stored = gpu.tensor(torch.from_numpy(pictures(len(draws), 48)))
    mean, std = gpu.tensor(torch.zeros(3)), gpu.tensor(torch.ones(3))
    augment_batch = BatchAugment(48, SIZE, send)
    plan = augment_batch.plan(table(draws))
    torch.use_deterministic_algorithms(True)
    try:
        with gpu.on():
            return normalise(augment_batch.apply(stored, plan), mean, std)
    finally:
        torch.use_deterministic_algorithms(False)


needs_fakes = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14"), reason="older releases of torch ask the driver even for fake tensors"
)


@needs_fakes
def test_nothing_is_left_on_the_cpu_and_the_host_waits_for_nothing():
    gpu = FakeCuda()
    found = trace(gpu.tensor, gpu)
    assert (found.device, found.dtype, found.shape) == (DEVICE, torch.float32, (len(every_draw(48)), 3, SIZE, SIZE))


@needs_fakes
def test_a_table_left_on_the_cpu_is_found():
    gpu, sent = FakeCuda(), itertools.count()
    with pytest.raises(Exception, match=r"two devices|convert all Tensors to FakeTensors"):
        trace(lambda tensor: gpu.tensor(tensor) if next(sent) != 2 else tensor, gpu)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_empty_memory_is_aligned_and_its_own(dtype: torch.dtype):
    found = [empty((3, 5, 7), dtype) for _ in range(8)]
    for number, each in enumerate(found):
        assert each.data_ptr() % 64 == 0
        assert (each.shape, each.dtype, each.is_contiguous()) == ((3, 5, 7), dtype, True)
        each.fill_(number)
    assert [float(each.float().mean()) for each in found] == list(range(8))
