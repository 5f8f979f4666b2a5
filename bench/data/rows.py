"""Caption files of one's own to rows: csv and tsv, JSON, JSON lines, COCO's and Karpathy's JSON. No numpy, no torch."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.errors import UserError
from bench.data.annotations import json_content, shortened, text_content

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
_SEPARATORS = ("\t", ",", ";")
_SHOWN = 20  # columns that an error lists


@dataclass(frozen=True)
class Table:
    """The rows of a file, each with its place for errors; `columns` are all names that any row has, in order."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, Mapping[str, Any]], ...]

    def column(self, key: str, given: str | None, usual: Sequence[str], needed: bool = True) -> str | None:
        """The column for a setting: the given one, else the first usual one that there is; None if there is none.

        UserError, with the columns there are and the nearest, if a given or a needed one is not there.
        """
        if given is not None and given in self.columns:
            return given
        found = next((name for name in usual if name in self.columns), None)
        if given is None and (found is not None or not needed):
            return found
        close = difflib.get_close_matches((given or key)[:60], self.columns, n=1, cutoff=0.5)
        near = f"; did you mean {shortened(close[0])}?" if close else ""
        what = (
            f"no column {shortened(given)}" if given is not None else f"no column of a usual name ({', '.join(usual)})"
        )
        more = f" and {len(self.columns) - _SHOWN} more" if len(self.columns) > _SHOWN else ""
        there = ", ".join(shortened(name) for name in self.columns[:_SHOWN]) or "none"
        raise UserError(f"{self.path}: {what}{near}; its columns are {there}{more}; set dataset.{key} to one of them")


def read_table(path: Path, wanted: Sequence[str]) -> Table:
    """The rows of a caption file; `wanted` are columns by which a csv file's separator is known.

    A row of a table or of JSON lines is a line; of COCO's {images, annotations} an annotation with its image's values,
    and an image without any; of Karpathy's {images} an image, its sentences under `caption`. UserError, with file and
    line or entry, for what can't be read.
    """
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        return _csv(path, wanted)
    if ending in (".jsonl", ".ndjson"):
        return _table(path, _json_lines(path))
    if ending == ".json":
        return _table(path, _json(path))
    raise UserError(f"{path}: a caption file ends with {', '.join(ENDINGS)}; write it as one of these")


def _table(path: Path, rows: Iterator[tuple[str, Mapping[str, Any]]]) -> Table:
    listed = tuple(rows)
    return Table(path, tuple(dict.fromkeys(key for _, row in listed for key in row)), listed)


def _csv(path: Path, wanted: Sequence[str]) -> Table:
    text = text_content(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # else a long caption is an error
    lines = list(_csv_lines(path, text, _separator(text, wanted)))
    if not lines:
        raise UserError(f"{path}: empty; its first line names the columns")
    header, rows = lines[0][1], lines[1:]
    if double := next((name for name in header if header.count(name) > 1 and name), None):
        raise UserError(f"{path}, line 1: two columns are named {shortened(double)}")
    for where, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{where}: {len(row)} values, but line 1 names {len(header)} columns; "
                'a text with the separator in it stands in "quotes"'
            )
    return Table(path, tuple(header), tuple((where, dict(zip(header, row, strict=True))) for where, row in rows))


def _csv_lines(path: Path, text: str, separator: str) -> Iterator[tuple[str, list[str]]]:
    """Each record that is no blank line, with the line where it begins: quoted texts may hold line breaks."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    begin = 1
    try:
        for row in reader:
            if row:
                yield f"{path}, line {begin}", row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f'{path}, line {begin}: not valid csv ({error}); a text in quotes has "" for each quote inside it'
        ) from None


def _separator(text: str, wanted: Sequence[str]) -> str:
    """Tab, comma or semicolon: the one that parts the first line into most of the wanted columns, else into most."""

    def parted(separator: str) -> tuple[int, int]:
        try:
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
        except csv.Error:
            return 0, 0
        return len({*header} & {*wanted}), len(header)

    return max(_SEPARATORS, key=parted)


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text_content(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number too long, or nested too deeply"
            raise UserError(f"{where}: not valid JSON ({reason}); each line is one {{column: value}}") from None
        yield where, _mapping(where, row)


def _json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    data = json_content(path)
    match data:
        case [*entries]:
            for number, entry in enumerate(entries, 1):
                yield f"{path}, entry {number}", _mapping(f"{path}, entry {number}", entry)
        case {"images": [*images], "annotations": [*annotations]}:
            yield from _coco(path, images, annotations)
        case {"images": [*images]}:
            for number, entry in enumerate(images, 1):
                where = f"{path}, image {number}"
                image = _mapping(where, entry)
                if isinstance(image.get("filename"), str) and isinstance(image.get("filepath"), str):
                    image = {**image, "filepath": f"{image['filepath']}/{image['filename']}"}  # a folder, as in COCO
                match image.get("sentences"):
                    case [*sentences] if all(isinstance(sentence, dict) for sentence in sentences):
                        yield where, {**image, "caption": [sentence.get("raw") for sentence in sentences]}
                    case _:
                        yield where, image
        case _:
            raise UserError(
                f"{path}: expected a list of {{column: value}} entries, or COCO's {{images, annotations}}, "
                f"got {shortened(data)}"
            )


def _coco(path: Path, images: list[Any], annotations: list[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    known: dict[Any, tuple[str, Mapping[str, Any]]] = {}
    for number, entry in enumerate(images, 1):
        where = f"{path}, image {number}"
        image = _mapping(where, entry)
        key = _id(where, image, "id")
        if key in known:
            raise UserError(f"{where}: a second image with id {shortened(key)}")
        known[key] = where, image
    used = set()
    for number, entry in enumerate(annotations, 1):
        where = f"{path}, annotation {number}"
        annotation = _mapping(where, entry)
        key = _id(where, annotation, "image_id")
        if key not in known:
            raise UserError(f"{where}: no image has its image_id {shortened(key)}")
        used.add(key)
        yield where, {**annotation, **known[key][1]}
    yield from ((where, {"caption": [], **image}) for key, (where, image) in known.items() if key not in used)


def _id(where: str, entry: Mapping[str, Any], key: str) -> Any:
    value = entry.get(key)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise UserError(f"{where}: expected {key}: a number or a text, got {shortened(value)}")
    return value


def _mapping(where: str, entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected {{column: value}}, got {shortened(entry)}")
    return entry
