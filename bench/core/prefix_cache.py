"""Cached tensors on the disk, known by what they were computed from: written whole, checked when they are read."""

from __future__ import annotations

import hashlib
import json
import uuid
import zlib
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from bench.config.files import cache_errors

VERSION = 1  # raise it when the same key would give other numbers
END = b"petl-bench prefix"  # of a file's last line: a JSON object with shape, dtype and checksum, then this


class PrefixCache:
    """Tensors by key: in this process, else in a file of `folder`, else computed and written there.

    `held`: what runs of this process share. `device_bytes`: so much of it is copied to the device; the rest stays
    memory-mapped, so that all processes of a machine share the pages. Without a folder everything stays in memory.
    """

    def __init__(
        self, folder: Path | None, held: dict[Hashable, Any], device: torch.device, device_bytes: float
    ) -> None:
        self.folder, self.held, self.device, self.device_bytes = folder, held, device, device_bytes

    def get(self, key: list[Any], compute: Callable[[], Iterable[Shaped[Tensor, "*part"]]]) -> Shaped[Tensor, "*table"]:
        """The tensor of this key; `compute` gives it in parts, by rows.

        Raises UserError if the file can't be written.
        """
        name = hashlib.sha256(json.dumps([VERSION, torch.__version__, *key]).encode()).hexdigest()[:32]
        if ("prefix", name) not in self.held:
            with torch.inference_mode(False):  # what an evaluation computes first may take part in training
                self.held["prefix", name] = self._placed(self._read_or_computed(name, compute))
        found: Tensor = self.held["prefix", name]
        return found

    def _read_or_computed(
        self, name: str, compute: Callable[[], Iterable[Shaped[Tensor, "*part"]]]
    ) -> Shaped[Tensor, "*table"]:
        if self.folder is None:
            return torch.cat(list(compute()))
        path = self.folder / f"{name}.prefix"
        found = read(path)
        if found is None:
            write(path, compute())
            found = read(path)
        assert found is not None, f"{path} was damaged as soon as it was written"
        return found

    def _placed(self, tensor: Shaped[Tensor, "*table"]) -> Shaped[Tensor, "*table"]:
        on_device = sum(each.nbytes for each in self.held.values() if isinstance(each, Tensor) and each.is_cuda)
        fits = self.device.type == "cuda" and on_device + tensor.nbytes <= self.device_bytes
        return tensor.to(self.device) if fits else tensor


def write(path: Path, parts: Iterable[Shaped[Tensor, "*part"]]) -> None:
    """Write parts of one tensor, by rows, to a file that appears when it is whole. UserError if the disk is full."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    rows, checksum, kind, shape = 0, 0, torch.float32, list[int]()
    try:
        with cache_errors("cache of activations", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                for part in parts:
                    data = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
                    rows, kind, shape = rows + len(part), part.dtype, list(part.shape[1:])
                    checksum = zlib.crc32(data, checksum)
                    file.write(data)
                facts = {"shape": [rows, *shape], "dtype": str(kind).removeprefix("torch."), "crc32": checksum}
                file.write(b"\n" + json.dumps(facts).encode() + END)
            draft.replace(path)
    finally:
        with suppress(OSError):  # it has its name already, or could not be made
            draft.unlink()


def read(path: Path) -> Shaped[Tensor, "*table"] | None:
    """A file's tensor, memory-mapped; None if there is no file or it is not what was written."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 4096))
            tail = file.read().rpartition(b"\n")[2]
            facts = json.loads(tail.removesuffix(END))
            kind, shape = getattr(torch, facts["dtype"]), torch.Size(facts["shape"])
            if not tail.endswith(END) or size != shape.numel() * kind.itemsize + 1 + len(tail):
                return None
        tensor = torch.from_file(str(path), shared=False, size=shape.numel(), dtype=kind)
        whole = zlib.crc32(tensor.view(torch.uint8).numpy().data) == facts["crc32"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
    return tensor.view(shape) if whole else None
