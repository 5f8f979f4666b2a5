"""Picture files: many formats, depths and orientations, whole and damaged, through the pixel cache."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bench.data import pixels
from benchmarks.fuzzing import Try, Wrong, damaged, target

FORMATS = {
    "RGB": ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM", "TGA", "GIF", "ICO", "PCX", "SGI", "MPO", "DDS"),
    "L": ("PNG", "JPEG", "TIFF", "BMP", "PPM", "GIF", "JPEG2000", "TGA", "PCX", "SGI"),
    "P": ("PNG", "GIF", "TIFF", "BMP", "TGA"),
    "1": ("PNG", "TIFF", "BMP", "PPM", "GIF"),
    "LA": ("PNG", "TIFF", "TGA", "JPEG2000"),
    "RGBA": ("PNG", "TIFF", "WEBP", "TGA", "BMP", "JPEG2000", "DDS"),
    "CMYK": ("JPEG", "TIFF"),
    "YCbCr": ("JPEG", "TIFF"),
    "LAB": ("TIFF",),
    "I;16": ("PNG", "TIFF", "PPM", "JPEG2000"),
    "I": ("TIFF", "PNG"),
    "F": ("TIFF",),
}
EXACT = {"PNG", "TIFF", "BMP", "PPM", "TGA", "PCX", "SGI"}
ORIENTABLE = ("JPEG", "TIFF", "PNG", "WEBP", "MPO")
SIZES = [(1, 1), (1, 300), (300, 1), (2, 3), (7, 5), (31, 33), (64, 64), (20000, 4), (3, 20000), (257, 16), (3000, 40)]
ALPHA = {"LA": 1, "La": 1, "PA": 1, "RGBA": 3, "RGBa": 3, "RGBX": 3}


@target("pictures")
def pictures(folder: Path) -> Try:
    """Sets up a root for one picture at a time, and a cache."""
    root = folder / "root"
    root.mkdir()
    os.environ["PETL_BENCH_CACHE"] = str(folder / "cache")

    def one(rng: random.Random) -> None:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        file = root / f"x.{rng.choice(('png', 'jpg', 'tif'))}"
        for old in root.iterdir():
            old.unlink()
        raw, exact = _whole(rng)
        hurt = rng.random() < 0.6
        file.write_bytes(damaged(raw, rng) if hurt else raw)
        _check(root, file, None if hurt else exact, rng)

    return one


def _whole(rng: random.Random) -> tuple[bytes, np.ndarray | None]:
    """A file's bytes, and the RGB that it must give if that is known to the last bit."""
    if rng.random() < 0.1:
        return _deep_png(rng), None
    mode = rng.choice(list(FORMATS))
    kind = rng.choice(FORMATS[mode])
    image = _picture(mode, rng)
    extra: dict = {}
    orientation = 1
    if kind in ORIENTABLE and rng.random() < 0.4:
        orientation = rng.randrange(0, 10)
        exif = Image.Exif()
        exif[0x0112] = orientation
        extra["exif"] = rng.choice((exif.tobytes(), exif.tobytes(), b"Exif\0\0" + rng.randbytes(40)))
        orientation = orientation if extra["exif"] == exif.tobytes() else -1
    if kind == "TIFF":
        extra["compression"] = rng.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))
    if kind == "GIF" and rng.random() < 0.3:
        extra |= {"save_all": True, "append_images": [_picture(mode, rng)]}
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **extra)
    except Exception:  # what Pillow does not write, nobody reads
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        return buffer.getvalue(), None
    plain = kind in EXACT and mode in ("RGB", "L", "P", "1", "RGBA", "LA") and orientation >= 0
    return buffer.getvalue(), np.asarray(_turned(image.convert("RGB"), orientation)) if plain else None


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(image)


def _picture(mode: str, rng: random.Random) -> Image.Image:
    width, height = rng.choice(SIZES) if rng.random() < 0.3 else (rng.randrange(1, 80), rng.randrange(1, 80))
    numbers = np.random.default_rng(rng.getrandbits(64))
    low = rng.choice((0, 0, 100))
    if mode in ("I;16", "I", "F"):
        top = {"I;16": rng.choice((200, 4096, 65536)), "I": rng.choice((256, 2**30)), "F": 2}[mode]
        values = numbers.integers(min(low, top - 1), top, (height, width))
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        if mode == "I;16" and rng.random() < 0.3:
            values = values % rng.choice((2, 60, 3000)) + 20_000  # little contrast
        return Image.fromarray(values.astype(kind) if rng.random() < 0.9 else np.zeros_like(values, kind))
    if rng.random() < 0.1:
        return Image.new("RGB", (width, height), (low, 7, 9)).convert(mode)
    colours = Image.fromarray(numbers.integers(low, 256, (height, width, 3), np.uint8))
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), colours.tobytes())
    if mode in ("LA", "RGBA"):
        colours = colours.convert(mode)
        colours.putalpha(Image.fromarray(numbers.integers(0, 256, (height, width), np.uint8)))
        return colours
    return colours.convert(mode)


def _deep_png(rng: random.Random) -> bytes:
    """A PNG of 1 to 16 bits a value, which Pillow does not write in colour; sizes and depths need not fit."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour = rng.choice((0, 2, 3, 4, 6))
    depth = rng.choice((1, 2, 4, 8, 16, 16, 16))
    width, height = rng.randrange(1, 20), rng.randrange(1, 20)
    line = -(-width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] // 8)
    rows = b"".join(b"\0" + rng.randbytes(line) for _ in range(height))
    if rng.random() < 0.2:
        width, height = rng.choice(((2**31 - 1, 1), (0, 5), (60_000, 60_000), (9_000, 9_000)))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, rng.choice((0, 0, 1)))
    palette = chunk(b"PLTE", rng.randbytes(3 * 2 ** min(depth, 8))) if colour == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + palette
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _check(root: Path, file: Path, exact: np.ndarray | None, rng: random.Random) -> None:
    size, resize = rng.choice((8, 32, 224)), rng.choice(pixels.RESIZES)
    got = pixels.prepare(root, [file.name], size, resize)
    with pixels.strict():
        decoded = np.asarray(pixels.decode(file))
        try:
            native = _native(file)
        except Exception as error:
            raise Wrong(f"accepted, but Pillow says {type(error).__name__}") from error
    if got.shape != (1, size, size, 3) or got.dtype != np.uint8:
        raise Wrong(f"pixels of shape {got.shape}")
    if exact is not None and not np.array_equal(decoded, exact):
        raise Wrong("a plain picture has other pixels")
    if native is not None and _varies(native) and not _varies(decoded):
        raise Wrong(f"a constant, though the file's values vary from {native.min()} to {native.max()}")


def _native(file: Path) -> np.ndarray | None:
    """The file's own values without alpha; None where different ones may mean the same colour."""
    with Image.open(file) as image:
        image.load()
        if image.mode in ("P", "PA", "CMYK", "LAB", "YCbCr", "HSV", "RGBa", "La"):
            return None
        values = np.asarray(image.convert("L") if image.mode == "1" else image)  # numpy's booleans of 255 differ
        return values[..., : ALPHA[image.mode]] if image.mode in ALPHA else values


def _varies(values: np.ndarray) -> bool:
    """Whether two pixels differ."""
    flat = values.reshape(values.shape[0] * values.shape[1], -1)
    return bool((flat != flat[0]).any())
