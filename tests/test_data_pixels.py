"""The pixel cache and what training does to its pixels."""

from __future__ import annotations

import errno
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1

from bench.config.errors import UserError
from bench.data import Item, pixels, transforms
from tests.standins import render, render_all

NAMES = ["train/a.tif", "b.jpg", "images/c.png"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "cache"))
    render_all(tmp_path / "data", NAMES)
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files decoded so far."""
    seen: list[str] = []
    decode = pixels.decode
    monkeypatch.setattr(pixels, "decode", lambda path: seen.append(path.name) or decode(path))
    return seen


@pytest.mark.parametrize(
    "shape", [(64, 64), (97, 31), (31, 97), (224, 224), (225, 224), (33, 500), (10, 7), (601, 333)]
)
@pytest.mark.parametrize("size", [32, 33, 224])
def test_geometry_equals_torchvision(shape, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    bicubic = v1.InterpolationMode.BICUBIC
    crop = v1.Compose([v1.Resize(size, bicubic), v1.CenterCrop(size)])
    assert np.array_equal(pixels.resized(image, size, "crop"), crop(image))
    assert np.array_equal(pixels.resized(image, size, "squash"), v1.Resize((size, size), bicubic)(image))


def test_rows_follow_names(root):
    got = pixels.prepare(root, [*NAMES, NAMES[0]], 64, "crop")
    assert (got.shape, got.dtype, got.flags.writeable) == ((4, 64, 64, 3), np.uint8, False)
    assert np.array_equal(got[0], render(NAMES[0]))  # TIFF and PNG lose nothing
    assert np.array_equal(got[2], render(NAMES[2]))
    assert np.array_equal(got[0], got[3])
    assert np.array_equal(pixels.prepare(root, NAMES[::-1], 64, "crop"), got[2::-1])


def test_odd_modes_become_rgb(root):
    Image.new("L", (5, 9), 7).save(root / "grey.png")
    Image.new("RGBA", (5, 9), (1, 2, 3, 4)).save(root / "alpha.png")
    Image.new("P", (5, 9)).save(root / "palette.gif")
    got = pixels.prepare(root, ["grey.png", "alpha.png", "palette.gif"], 8, "squash")
    assert got[:, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3], [0, 0, 0]]


GREY = np.arange(12, dtype=np.uint16).reshape(3, 4)


@pytest.mark.parametrize("suffix", ["png", "tif", "jp2"])
def test_16_bit_grey_is_scaled_by_its_depth(root, suffix):
    Image.fromarray(GREY * 5000).save(root / f"deep.{suffix}")
    got = np.asarray(pixels.decode(root / f"deep.{suffix}"))
    assert got[..., 0].tolist() == (GREY * 5000 // 256).tolist()
    assert (got == got[..., :1]).all()


def tiff(data: bytes, bits: int, photometric: int) -> bytes:
    """A grey TIFF of 2 x 1 values, of kinds that Pillow reads but does not write."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 12 * 8 + 4, 277: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize(
    ("file", "values"),
    [
        (tiff(bytes([0x80, 0x0F, 0xFF]), 12, 1), [0x80, 0xFF]),  # two values in three bytes
        (tiff(struct.pack("<HH", 0, 0xC000), 16, 0), [0xFF, 0x3F]),  # white is zero
        (b"P5 2 1 65535\n" + struct.pack(">HH", 0x8000, 0xFFFF), [0x80, 0xFF]),
    ],
)
def test_rare_depths_of_grey(root, file, values):
    (root / "rare").write_bytes(file)
    assert np.asarray(pixels.decode(root / "rare"))[0, :, 0].tolist() == values


def test_16_bit_colour_takes_the_high_byte_and_is_refused_where_that_is_black(root):
    def png(*values: int) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        head = struct.pack(">IIBBBBB", len(values) // 3, 1, 16, 2, 0, 0, 0)
        rows = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

    (root / "x.png").write_bytes(png(0x1234, 0x5678, 0x9ABC))
    assert np.asarray(pixels.decode(root / "x.png"))[0, 0].tolist() == [0x12, 0x56, 0x9A]
    (root / "x.png").write_bytes(png(0xFFF, 0, 0, 1, 2, 3))  # 12 bits of data
    with pytest.raises(UserError, match="almost black in 8 bits"):
        pixels.decode(root / "x.png")


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (GREY.astype(np.int32) * 9_000_000, "32-bit grey"),
        (GREY.astype(np.float32) / 12, "grey values with fractions"),
        (GREY * 300, "almost black in 8 bits"),  # 12 bits of data in 16
        (GREY + 20_000, "one shade in 8 bits"),
    ],
)
def test_grey_without_a_known_range_is_refused_by_name(root, array, why):
    Image.fromarray(array).save(root / "odd.tif")
    with pytest.raises(UserError, match=rf"odd\.tif \(.*{why}"):
        pixels.prepare(root, [*NAMES, "odd.tif"], 16, "crop")


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_file_says(root, suffix, orientation):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16], stored[8:, 16:] = 200, 100  # two corners that no two of the eight ways put alike
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(root / f"x.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    turned = np.swapaxes(stored, 0, 1) if orientation > 4 else stored
    flips = {2: [1], 3: [0, 1], 4: [0], 6: [1], 7: [0, 1], 8: [0]}.get(orientation, [])
    got = np.asarray(pixels.decode(root / f"x.{suffix}"))
    assert got.shape == turned.shape
    assert np.abs(got.astype(int) - np.flip(turned, flips)).max() < 8  # JPEG is not exact


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16"])
def test_an_uncompressed_tiff_is_turned_too(root, mode):
    """Pillow maps such a file with the sides of the turned picture, and so mixes up its rows."""
    image = Image.fromarray(np.arange(8 * 30, dtype=np.uint16).reshape(8, 30) * 250) if mode == "I;16" else None
    image = image or render("x", 30).crop((0, 0, 30, 8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(root / "x.tif", exif=exif)
    image.save(root / "plain.tif")
    plain = pixels.decode(root / "plain.tif")
    assert np.array_equal(pixels.decode(root / "x.tif"), plain.transpose(Image.Transpose.ROTATE_270))


def test_exif_that_cannot_be_read_turns_nothing(root):
    render("x").save(root / "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert np.array_equal(pixels.decode(root / "x.png"), render("x"))


def test_a_strip_is_refused_before_it_fills_the_memory(root):
    Image.new("RGB", (20_000, 4)).save(root / "strip.png")
    with pytest.raises(UserError, match=r"strip\.png \(.*20000 x 4"):
        pixels.prepare(root, [*NAMES, "strip.png"], 224, "crop")
    assert pixels.decode(root / "b.jpg").size == (64, 64)


def test_cache_is_keyed_by_content(root, decoded, monkeypatch):
    calls = []
    first = np.array(pixels.prepare(root, NAMES, 16, "crop", lambda done, total: calls.append((done, total))))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    with monkeypatch.context() as patch:  # nothing is decoded or read again
        patch.setattr(pixels.hashlib, "file_digest", None)
        assert np.array_equal(pixels.prepare(root, NAMES, 16, "crop"), first)
    assert len(decoded) == 3
    (root / "b.jpg").rename(root / "images" / "b.jpg")  # another place, the same bytes
    pixels.prepare(root, NAMES, 16, "crop")
    assert len(decoded) == 3
    render("other").save(root / "train" / "a.tif")
    changed = pixels.prepare(root, NAMES, 16, "crop")
    assert len(decoded) == 6
    assert np.abs(changed[0].astype(int) - first[0]).mean() > 10  # another picture, not another rounding
    assert np.array_equal(changed[1:], first[1:])
    pixels.prepare(root, NAMES, 16, "squash")
    pixels.prepare(root, NAMES, 17, "crop")
    assert len(decoded) == 12
    assert not list(root.parent.rglob("*.tmp"))


def test_truncated_cache_is_rebuilt(root, decoded):
    first = np.array(pixels.prepare(root, NAMES, 16, "crop"))
    (file,) = root.parent.glob("cache/pixels/*.u8")
    file.write_bytes(file.read_bytes()[:-1])
    assert np.array_equal(pixels.prepare(root, NAMES, 16, "crop"), first)
    assert len(decoded) == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: "\udcff",
        lambda text: "[]",
        lambda text: json.dumps(dict.fromkeys(json.loads(text), 3)),
        lambda text: json.dumps({name: [size, time, 5] for name, (size, time, _) in json.loads(text).items()}),
        lambda text: json.dumps({name: [size, time, "\u20ac"] for name, (size, time, _) in json.loads(text).items()}),
    ],
)
def test_a_damaged_manifest_is_made_again(root, damage):
    first = np.array(pixels.prepare(root, NAMES, 16, "crop"))
    (manifest,) = root.parent.glob("cache/pixels/manifest-*.json")
    whole = manifest.read_text()
    manifest.write_text(damage(whole), errors="surrogateescape")
    assert np.array_equal(pixels.prepare(root, NAMES, 16, "crop"), first)
    assert json.loads(manifest.read_text()) == json.loads(whole)


def test_a_manifest_that_is_a_folder_is_a_clear_error(root):
    pixels.prepare(root, NAMES, 16, "crop")
    (manifest,) = root.parent.glob("cache/pixels/manifest-*.json")
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(UserError, match=r"can't write the pixel cache .* set PETL_BENCH_CACHE"):
        pixels.prepare(root, NAMES, 16, "crop")


def test_a_cache_that_cannot_be_read_is_a_clear_error(root, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(UserError, match=r"can't read the pixel cache .*Permission denied.* set PETL_BENCH_CACHE"):
        pixels.prepare(root, NAMES, 16, "crop")


def test_two_processes_at_once(root):
    code = "import sys; from pathlib import Path; from bench.data.pixels import prepare; "
    code += f"print(int(prepare(Path(sys.argv[1]), {NAMES}, 40, 'crop').sum()))"
    both = [subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = {process.communicate()[0].strip() for process in both}
    assert sums == {str(int(pixels.prepare(root, NAMES, 40, "crop").sum()))}
    assert not list(root.parent.rglob("*.tmp"))


def test_missing_images_are_one_error(root):
    with pytest.raises(UserError) as caught:
        pixels.prepare(root, [*NAMES, *(f"no_{i}.tif" for i in range(12))], 16, "crop")
    message = str(caught.value)
    assert message.startswith("12 of 15 images missing under")
    assert "no_9.tif\n  and 2 more" in message
    assert "bench.data check" in message


def test_unreadable_images_are_one_error(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    whole = (root / "b.jpg").read_bytes()
    (root / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "text.png").write_text("no picture")
    (root / "empty.tif").touch()
    render("bomb", 65).save(root / "bomb.png")
    render("bomb", 128).save(root / "big_bomb.png")
    with pytest.raises(UserError) as caught:
        pixels.prepare(root, [*NAMES, "half.jpg", "text.png", "empty.tif", "bomb.png", "big_bomb.png"], 16, "crop")
    message = str(caught.value)
    assert message.startswith("5 of 8 images unreadable under")
    for name in ("half.jpg (OSError", "text.png (Unid", "empty.tif (Unid", "bomb.png (Decom", "big_bomb.png (Decom"):
        assert f"  {name}" in message
    assert not list(root.parent.glob("cache/pixels/*.u8*"))


def test_a_full_disk_is_a_clear_error(root, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left on device; make room or set PETL_BENCH_CACHE"):
        pixels.prepare(root, NAMES, 16, "crop")
    assert not list(root.parent.rglob("*.tmp"))
    monkeypatch.setenv("PETL_BENCH_CACHE", str(root / "b.jpg"))
    with pytest.raises(UserError, match="can't write the pixel cache"):
        pixels.prepare(root, NAMES, 16, "crop")


@pytest.fixture(params=[1, 2])
def threads(request):
    """Torch's threads on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_normalise_equals_totensor_and_normalize(threads):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 9, 7, 3), np.uint8)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    reference = v1.Compose([v1.ToTensor(), v1.Normalize(mean, std)])
    expected = torch.stack([reference(picture) for picture in pictures])
    channels_last = torch.from_numpy(pictures)
    for given in (channels_last, channels_last.permute(0, 3, 1, 2)):
        got = transforms.normalise(given, mean, std)
        assert torch.equal(got, expected)
        assert got.is_contiguous()
    assert np.array_equal(pictures, channels_last)  # the input is left alone


@pytest.mark.parametrize(("augment", "edge"), [("none", 224), ("clip", 256), ("harma", 256)])
def test_presets(augment, edge):
    assert transforms.PRESETS[augment].edge(224) == edge
    pictures = np.random.default_rng(0).integers(0, 256, (1, edge, edge, 3), np.uint8)
    got = transforms.TrainPairs(pictures, None, augment, 224, seed=0)[0, 0, 0, 0][0]
    assert got.shape == (3, 224, 224)
    assert got.dtype == torch.uint8
    assert (augment == "none") == np.array_equal(got.permute(1, 2, 0), pictures[0])


ITEMS = [Item("a", ("1", "2", "3")), Item("b", ("4",)), Item("c", ("5", "6"))]


def test_epoch_pairs():
    every = transforms.epoch_pairs(ITEMS, "all", seed=0, epoch=1)
    assert sorted(map(tuple, every.tolist())) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
    assert np.array_equal(every, transforms.epoch_pairs(ITEMS, "all", 0, 1))
    one = [transforms.epoch_pairs(ITEMS, "one", 0, epoch) for epoch in range(40)]
    assert all(sorted(pairs[:, 0]) == [0, 1, 2] for pairs in one)
    assert {tuple(pair) for pairs in one for pair in pairs.tolist()} == set(map(tuple, every.tolist()))
    assert len({transforms.epoch_pairs(ITEMS * 9, "all", *key).tobytes() for key in ((0, 0), (0, 1), (1, 0))}) == 3


def train_pairs(seed: int = 0) -> transforms.TrainPairs:
    images = np.random.default_rng(0).integers(0, 256, (3, 18, 18, 3), np.uint8)
    images.setflags(write=False)
    return transforms.TrainPairs(images, None, "harma", 16, seed)


def places(epoch: int = 0) -> list[transforms.Place]:
    pairs = transforms.epoch_pairs(ITEMS, "all", 0, 0).tolist()
    return [(epoch, position, *pair) for position, pair in enumerate(pairs)]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_training_pictures_do_not_depend_on_workers():
    state = torch.get_rng_state()
    data = train_pairs()
    assert torch.equal(torch.get_rng_state(), state)
    direct = [data[place] for place in places()]
    assert torch.equal(torch.get_rng_state(), state)  # dropout's numbers don't hang on augmentation
    batches = list(torch.utils.data.DataLoader(data, sampler=places(), batch_size=4, num_workers=1, collate_fn=list))
    assert torch.equal(torch.cat([batch[0] for batch in batches]), torch.stack([each[0] for each in direct]))
    assert torch.equal(torch.cat([batch[2] for batch in batches]), torch.tensor([each[2] for each in direct]))
    assert batches[0][0].shape == (4, 3, 16, 16)
    again = train_pairs()
    assert torch.equal(again[places()[5]][0], direct[5][0])  # whatever was drawn before
    for other in (data[places(epoch=1)[5]][0], train_pairs(seed=1)[places()[5]][0]):
        assert (other.float() - direct[5][0].float()).abs().mean() > 10  # another crop, not another rounding
