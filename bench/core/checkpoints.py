"""Reading checkpoint files of others: untrusted, so only tensors are ever built from them."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.errors import UserError

OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
STORAGE_DTYPES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], bool]:
    """A CLIP checkpoint's tensors in float32 under open_clip's names, and whether it is OpenAI's (and so QuickGELU).

    Reads safetensors; `torch.save`d state dicts, bare (RemoteCLIP, GeoRSCLIP) or under `state_dict` (open_clip's
    training checkpoints, with or without `module.`); and OpenAI's TorchScript archives, without running their code.
    Raises UserError if the file is none of these.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        elif _is_torchscript(path):
            content = _torchscript_tensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can make these readers raise nearly anything
        raise UserError(
            f"backbone.weights: {path} can't be read as a checkpoint ({type(error).__name__}); expected safetensors, "
            "or tensors alone saved by torch.save; if it was cut off or is a download page, download it again"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"backbone.weights: {path} holds no state dict of tensors")
    openai = all(key in content for key in OPENAI_EXTRAS)
    return {
        name.removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in content.items()
        if isinstance(value, Tensor) and name not in OPENAI_EXTRAS
    }, openai


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Object:
    """Stands in for a TorchScript module: keeps its attributes, runs nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _TensorsOnly(pickle.Unpickler):
    """Unpickles a TorchScript archive's data with tensors and plain containers as the only things it can build."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}/data.pkl"))
        self.archive, self.prefix = archive, prefix
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return type(name, (_Object,), {})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda flat, offset, size, stride, *_: flat.as_strided(size, stride, offset).clone()
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch.jit._pickle":
            return lambda data, *_: data
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a checkpoint")

    def persistent_load(self, key: Any) -> Any:
        _, dtype, name, _, _ = key
        if name not in self.storages:  # several tensors may be views of one storage
            data = bytearray(self.archive.read(f"{self.prefix}/data/{name}"))
            self.storages[name] = torch.frombuffer(data, dtype=dtype)
        return self.storages[name]


def _torchscript_tensors(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        prefix = archive.namelist()[0].split("/")[0]
        root = _TensorsOnly(archive, prefix).load()
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, Tensor):
            tensors[name] = node
        elif isinstance(node, _Object):
            for key, child in vars(node).items():
                walk(child, f"{name}.{key}" if name else key)

    walk(root, "")
    for key in OPENAI_EXTRAS:  # plain attributes in some exports, tensors in others: either way they mark the file
        if hasattr(root, key):
            tensors.setdefault(key, torch.tensor(0))
    return tensors
