"""Images decoded and resized once, into a memory-mapped cache keyed by their content.

One rule for all formats: a picture is its first frame as 8-bit RGB, turned as its EXIF orientation says, without its
alpha. Deeper grey and colour are scaled by the file's depth (the high byte of 16 bits). Refused by name is what has no
known range (signed, 32-bit and fractional grey), nothing in the upper 15/16 of its 16 bits, or one shade in 8 bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from jaxtyping import UInt8, UInt16
from PIL import Image

from bench.config.errors import UserError
from bench.config.files import cache_dir, cache_errors
from bench.data.images import SHOWN, images, locate_all

VERSION = 2  # raise it when the same file would give other pixels
RESIZES = ("crop", "squash")
OWN = "own"  # behind the name of a resize: small images keep their own pixels
DRAWN = ("EPS", "WMF")  # Pillow hands them to other programs, whatever the file's name says
_CHUNK = 256  # images in memory at once
_LONGEST = (
    100  # times the shorter side: the shorter side is brought to the model's size, so longer ones fill the memory
)
_FAINTEST = 16  # the smallest highest value, of 255, that deep grey or colour must reach
_ORIENTATION, _PHOTOMETRIC = 0x0112, 262  # tags of EXIF and of TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def prepare(
    root: Path,
    names: Sequence[str],
    size: int,
    resize: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    split: str | None = None,
) -> UInt8[np.ndarray, "{len(names)} {size} {size} 3"]:
    """Pixels of the named images (images, height, width, RGB) as a read-only memory map, in the order of `names`.

    resize: "crop" is open_clip's evaluation geometry, "squash" ignores the aspect ratio (see `resized`). split: whose
    images they are; it says in which folders they are looked for (see `locate`).
    progress(done, total) counts images while they are decoded.
    The cache file is in cache_dir()/pixels. Its key covers the bytes of every image file, their order, size, resize and
    Pillow's version. The hash of a file is remembered by path, size and mtime: unchanged files are not read again.
    Several processes may prepare at once: a cache file appears only when it is complete.

    Raises UserError if images are missing or unreadable (the first few by name), or if the cache can't be written.
    """
    return _mapped(_cached(root, names, size, resize, progress, split), (len(names), size, size, 3))


def prepare_to_crop(
    root: Path,
    names: Sequence[str],
    size: int,
    resize: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    split: str | None = None,
) -> tuple[UInt8[np.ndarray, "{len(names)} {size} {size} 3"], UInt16[np.ndarray, "{len(names)} 2"]]:
    """As `prepare`, but images without a side above `size` keep their own pixels; and height and width of each.

    Such an image is in the upper left corner, with zeros beside it, and its random crops are crops of the file. 224 x
    200 pixels with size 256 stay 224 x 200 in a map of 256 x 256.
    """
    path = _cached(root, names, size, f"{resize}-{OWN}", progress, split)
    pixels = _mapped(path, (len(names), size, size, 3))
    return pixels, np.fromfile(path, np.uint16, offset=pixels.nbytes).reshape(-1, 2)


def keep(
    key: Sequence[Any], ending: str, shape: tuple[int, ...], parts: Callable[[], Iterable[bytes]]
) -> UInt8[np.ndarray, "*shape"]:
    """Other uint8 values made from pixels, as a read-only memory map from the same cache, made by `parts` if not there.

    key: all that they depend on. ending: of the file's name, for people.

    Raises UserError if the cache can't be written.
    """
    digest = hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()
    target = cache_dir() / "pixels" / f"{digest[:32]}-{ending}.u8"
    if _size(target) != math.prod(shape):
        _replace(target, parts())
    return _mapped(target, shape)


def _cached(
    root: Path,
    names: Sequence[str],
    size: int,
    resize: str,
    progress: Callable[[int, int], None] | None,
    split: str | None,
) -> Path:
    """The cache file, made if there is none: pixels, and behind them all sizes where small images keep theirs."""
    paths = _located(root, names, split)
    folder = cache_dir() / "pixels"
    hashes = _hashes(folder, root, paths)
    key = hashlib.sha256(f"{VERSION} {PIL.__version__} {size} {resize} ".encode())
    key.update("".join(hashes).encode())
    target = folder / f"{key.hexdigest()[:32]}-{size}-{resize}.u8"
    if _size(target) != len(names) * (size * size * 3 + (4 if resize.endswith(OWN) else 0)):
        _build(target, root, paths, names, size, resize, progress)
    return target


def _mapped(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "*shape"]:
    try:
        return np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
    except OSError as error:
        raise UserError(f"can't read the pixel cache {path}: {error.strerror}; set PETL_BENCH_CACHE") from error


def decode(path: Path) -> Image.Image:
    """The whole image, decoded, by the rule above.

    UserError, without the path, for what the rule refuses; else what Pillow raises, under `strict` for a decompression
    bomb too. `fault` makes words of either.
    """
    with Image.open(path) as image:
        if image.format in DRAWN:
            raise UserError(f"{image.format} is a program that draws a picture; save the picture as png or jpg")
        width, height = image.size
        if max(width, height) > _LONGEST * min(width, height):
            raise UserError(f"{width} x {height} pixels: one side is over {_LONGEST} times the other; cut it to pieces")
        coding = str(image.tile)  # such as "I;16B"; decoding empties it
        image.filename = ""  # else Pillow maps an uncompressed TIFF with the sides it has after turning: rows mixed up
        image.load()
        grey = image.mode in ("I", "F") or image.mode.startswith("I;")
        colours = _scaled(image, coding) if grey else image.convert("RGB")
        if (grey or ";16" in coding) and np.asarray(colours).max() < _FAINTEST:
            raise UserError(
                f"over 8 bits a value, but none is above 1/{256 // _FAINTEST} of their range: the picture would be "
                "almost black in 8 bits; scale its values to the whole range"
            )
        orientation = _orientation(image)
        return colours.transpose(_TURNS[orientation]) if orientation in _TURNS else colours


def _scaled(image: Image.Image, coding: str) -> Image.Image:
    """Grey of 12 or 16 bits as RGB; UserError for grey whose range the file does not say."""
    if image.mode == "F":
        raise UserError("grey values with fractions have no known range; save it with 8 or 16 bits")
    if image.mode == "I" and image.format != "PPM":  # which means 16 bits by it
        raise UserError("signed or 32-bit grey has no known range; save it with 8 or 16 unsigned bits")
    exact = np.asarray(image)
    values = exact >> (4 if "I;12" in coding else 8)
    if values.min() == values.max() and exact.min() != exact.max():
        raise UserError(
            f"its values, {exact.min()} to {exact.max()}, are one shade in 8 bits; scale them to the whole range"
        )
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # white is zero; Pillow minds that up to 8 bits only
        values = 255 - values
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The orientation of a decoded image that is still to be applied: Pillow has turned TIFF, and TIFF alone."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF that can't be read says nothing
        return 1


def fault(error: Exception) -> str:
    """Why an image can't be decoded."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def resized(image: Image.Image, size: int, resize: str) -> Image.Image:
    """The RGB image as size x size pixels, bicubic.

    "crop": the shorter side to `size`, then the centre: bit by bit torchvision's Resize and CenterCrop, which are
    open_clip's evaluation transform. "squash": both sides to `size`, as in HarMA's released test transform.

    Raises ValueError for any other `resize`.
    """
    if resize == "squash":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if resize != "crop":
        raise ValueError(f"resize must be one of {RESIZES}, got {resize!r}")
    width, height = image.size
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


@contextmanager
def strict() -> Iterator[None]:
    """A context in which Pillow's warning about decompression bombs is an error and its other warnings are off."""
    # Entered once around a thread pool, not in its threads: the filters belong to the process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def pool() -> ThreadPoolExecutor:
    """Threads to decode with: Pillow releases the interpreter's lock while it decodes and resizes."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1))


def _size(path: Path) -> int:
    """Bytes of a file; -1 if it can't be seen: then making it says why."""
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:
        return -1


def _located(root: Path, names: Sequence[str], split: str | None) -> list[Path]:
    found, missing = locate_all(root, ((name, split) for name in names))
    if missing:
        listed = [f"{name}{known}" for name, known in missing.items()]
        raise UserError(f"{_complaint(root, 'missing', listed, len(names))}; {images(root).searched()}")
    return [found[name] for name in names]


def _hashes(folder: Path, root: Path, paths: list[Path]) -> list[str]:
    """sha256 of each file, remembered in a manifest for the root by relative path, size and mtime."""
    manifest = folder / f"manifest-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.json"
    known = _known(manifest)

    def entry(path: Path) -> tuple[str, list]:
        name, stat = path.relative_to(root).as_posix(), path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        if name in known and known[name][:2] == stamp:
            return name, known[name]
        with path.open("rb") as file:
            return name, [*stamp, hashlib.file_digest(file, "sha256").hexdigest()]

    with pool() as threads:
        try:
            entries = list(threads.map(entry, paths))
        except OSError as error:
            raise UserError(f"can't read image {error.filename}: {error.strerror}") from error
    if any(known.get(name) != each for name, each in entries):
        _replace(manifest, [json.dumps(known | dict(entries)).encode()])
    return [digest for _, (_, _, digest) in entries]


def _known(manifest: Path) -> dict[str, list]:
    """The manifest's entries, name: [size, mtime, sha256]; one that is damaged counts as none and is written anew."""
    try:
        found = json.loads(manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {
        name: [size, time, digest]
        for name, entry in (found.items() if isinstance(found, dict) else ())
        for size, time, digest in ([entry] if isinstance(entry, list) and len(entry) == 3 else ())
        if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)
    }


def _build(
    target: Path,
    root: Path,
    paths: list[Path],
    names: Sequence[str],
    size: int,
    resize: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    sizes: list[tuple[int, int]] = []

    def pixels(path: Path) -> tuple[bytes, tuple[int, int]] | str:
        try:
            image = decode(path)
            if resize.endswith(OWN) and max(image.size) <= size:
                return image.crop((0, 0, size, size)).tobytes(), (image.height, image.width)
            return resized(image, size, resize.removesuffix(f"-{OWN}")).tobytes(), (size, size)
        except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
            return fault(error)

    def rows(threads: ThreadPoolExecutor) -> Iterator[bytes]:
        done, broken = 0, []
        for start in range(0, len(paths), _CHUNK):
            for row in threads.map(pixels, paths[start : start + _CHUNK]):
                if isinstance(row, str):
                    broken.append(f"{names[done]} ({row})")
                else:
                    yield row[0]
                    sizes.append(row[1])
                done += 1
                if progress:
                    progress(done, len(paths))
        if broken:
            raise UserError(_complaint(root, "unreadable", broken, len(paths)))
        if resize.endswith(OWN):
            yield np.array(sizes, np.uint16).tobytes()

    with strict(), pool() as threads:
        _replace(target, rows(threads))


def _replace(target: Path, parts: Iterable[bytes]) -> None:
    # Plain writes, not through a memory map: on a full disk a map kills the process with SIGBUS.
    draft = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with cache_errors("pixel cache", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.writelines(parts)
            draft.replace(target)
    finally:
        with suppress(OSError):  # gone already, or its folder could not be made
            draft.unlink()


def _complaint(root: Path, what: str, names: list[str], total: int) -> str:
    shown = "\n".join(f"  {name}" for name in names[:SHOWN])
    rest = f"\n  and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return (
        f"{len(names)} of {total} images {what} under {root}:\n{shown}{rest}\n"
        f"`python -m bench.data check NAME --root {root}` lists them all"
    )
