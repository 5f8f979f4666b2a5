"""A contact sheet as a picture: a title, and tiles with a name and a score below each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

from bench.compute.retrieval import Retrieval
from bench.data.pixels import decode, strict

TILE, MARGIN, COLUMNS = 224, 20, 4
TITLE, TEXT = 24, 15  # pixels of a line's letters
_TITLE_LINES = 3
_INK, _FAINT, _PAPER = "#1a1a1a", "#5c5c5c", "#ffffff"
# Tried in this order for letters that the fonts before have not; matplotlib brings the first, systems the others.
_FONTS = (
    *("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "WenQuanYi Zen Hei", "Arial Unicode MS"),
    *("Hiragino Sans GB", "Microsoft YaHei", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Emoji", "Symbola"),
)


def sheet(result: Retrieval) -> Image.Image:
    """The best images of a retrieval, best first, row by row: the caption on top, names and scores below the tiles."""
    columns = max(2, min(COLUMNS, len(result.best)))
    width = columns * (TILE + MARGIN) + MARGIN
    title = wrapped(f"“{result.caption}”", TITLE, width - 2 * MARGIN, _TITLE_LINES)
    about = (
        f"best {len(result)} of {result.searched:,} pictures in {result.folder.resolve().name}, by cosine similarity"
    )
    top = MARGIN + len(title) * round(1.4 * TITLE) + round(2.2 * TEXT)
    cell = TILE + round(2.8 * TEXT) + MARGIN
    page = Image.new("RGB", (width, top + -(-len(result) // columns) * cell), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(title):
        _write(draw, (MARGIN, MARGIN + number * round(1.4 * TITLE)), line, TITLE, _INK)
    _write(draw, (MARGIN, top - round(1.9 * TEXT)), shortened(about, TEXT, width - 2 * MARGIN), TEXT, _FAINT)
    for rank, (path, score) in enumerate(result):
        x, y = MARGIN + rank % columns * (TILE + MARGIN), top + rank // columns * cell
        picture = _tile(path)
        page.paste(picture, (x + (TILE - picture.width) // 2, y + (TILE - picture.height) // 2))
        name = path.relative_to(result.folder).as_posix()
        _write(draw, (x, y + TILE + 4), shortened(name, TEXT, TILE), TEXT, _INK)
        _write(draw, (x, y + TILE + 4 + round(1.3 * TEXT)), f"{rank + 1}.  {score:.3f}", TEXT, _FAINT)
    return page


def png(result: Retrieval) -> bytes:
    """The sheet as a PNG file."""
    held = io.BytesIO()
    sheet(result).save(held, "PNG")
    return held.getvalue()


def _tile(path: Path) -> Image.Image:
    """The whole picture inside a tile; an empty tile if the file has gone since it was compared."""
    try:
        with strict():
            return ImageOps.contain(decode(path), (TILE, TILE), Image.Resampling.LANCZOS)
    except Exception:  # Pillow's decoders raise nearly anything
        return Image.new("RGB", (TILE, TILE), "#dddddd")


# --- text -------------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """The text in one line, with a mark in place of what can't be shown: half characters, controls, line breaks."""
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))


def wrapped(text: str, size: int, width: int, lines: int) -> list[str]:
    """The text in at most so many lines of this width in pixels; what does not fit ends with an ellipsis."""
    found: list[str] = []
    rest = printable(text)
    while rest and len(found) < lines:
        if len(found) == lines - 1:
            return [*found, shortened(rest, size, width, middle=False)]
        fits = _fitting(rest, size, width)
        space = rest.rfind(" ", 0, fits + 1)
        cut = len(rest) if fits == len(rest) else space if space > 0 else fits
        found.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return found


def shortened(text: str, size: int, width: int, *, middle: bool = True) -> str:
    """The text if it is no wider than this, in pixels; else with an ellipsis in its middle, or at its end."""
    text = printable(text)
    if _length(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low + 1 < high:  # the most letters that fit, by halves
        kept = (low + high) // 2
        low, high = (kept, high) if _length(_cut(text, kept, middle), size) <= width else (low, kept)
    return _cut(text, low, middle)


def _cut(text: str, kept: int, middle: bool) -> str:
    head = (kept + 1) // 2 if middle else kept
    return f"{text[:head]}…{text[len(text) - (kept - head) :]}"


def _fitting(text: str, size: int, width: int) -> int:
    """How many letters of the text fit into the width; at least one."""
    low, high = 1, len(text) + 1
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if _length(text[:middle], size) <= width else (low, middle)
    return low


def _length(text: str, size: int) -> float:
    return sum(_font(index, size).getlength(part) for index, part in _parts(text))


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str) -> None:
    x, baseline = float(at[0]), at[1] + size
    for index, part in _parts(text):
        font = _font(index, size)
        draw.text((x, baseline), part, font=font, fill=colour, anchor="ls")
        x += font.getlength(part)


def _parts(text: str) -> Sequence[tuple[int, str]]:
    """The text in parts of one font each: (number of the font, letters)."""
    parts: list[tuple[int, str]] = []
    for letter in text:
        index = _font_of(letter)
        if parts and (parts[-1][0] == index or letter == " "):
            parts[-1] = parts[-1][0], parts[-1][1] + letter
        else:
            parts.append((index, letter))
    return parts


@cache
def _font_files() -> tuple[tuple[str, int], ...]:
    """Path and number inside the file of the fonts that are there; the first is matplotlib's own."""
    from matplotlib import font_manager

    own = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    by_name = {entry.name: entry for entry in font_manager.fontManager.ttflist if entry.style == "normal"}
    found = [by_name[name] for name in _FONTS if name in by_name]
    return ((str(own), 0), *((entry.fname, getattr(entry, "index", 0)) for entry in found))


@cache
def _font(index: int, size: int) -> ImageFont.FreeTypeFont:
    path, number = _font_files()[index]
    return ImageFont.truetype(path, size, index=number)


@cache
def _letters(index: int) -> frozenset[int]:
    """The code points that a font has."""
    from fontTools.ttLib import TTFont

    path, number = _font_files()[index]
    with TTFont(path, fontNumber=number, lazy=True) as font:
        return frozenset(font.getBestCmap() or ())


@cache
def _font_of(letter: str) -> int:
    """The first font that has the letter; the first of all where none has, which draws a box."""
    return next((index for index in range(len(_font_files())) if ord(letter) in _letters(index)), 0)
