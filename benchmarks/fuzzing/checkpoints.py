"""Checkpoint files of a tiny CLIP: odd tensors, keys and containers, in each format, whole and damaged."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from bench.config import backbones
from bench.config.settings import BackboneSettings
from bench.core.weights import _load_file, state_sha256
from benchmarks.fuzzing import Try, Wrong, damaged, target

MODEL = "fuzz-clip"
CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 8, "heads": 1, "layers": 1},
}
SPECIAL = (
    "/proc/self/mem",
    "/dev/zero",
    "/dev/null",
    "/proc/self/environ",
    "/sys/kernel/notes",
    "x" * 300 + ".pt",
    "a\0.pt",
)


@target("checkpoints")
def checkpoints(folder: Path) -> Try:
    """Makes a tiny CLIP known, whose weights the files are."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    backbones.register(MODEL, backbones.BuiltIn(folder / "config.json", {}, lambda path: {}))
    torch.manual_seed(0)
    clip = open_clip.CLIP(**CONFIG)  # type: ignore[arg-type]
    whole = {name: tensor.clone() for name, tensor in clip.state_dict().items()}

    def one(rng: random.Random) -> None:
        clip.load_state_dict(whole)
        path, expected = _file(folder, whole, rng)
        if path.name == "pipe.pt":
            os.mkfifo(path)
        try:
            backbones.identity(BackboneSettings(model=MODEL, weights=str(path)))
            _load_file(clip, MODEL, path)
            _check(clip, expected)
        finally:
            if path.parent == folder:
                path.unlink(missing_ok=True)

    return one


def _file(
    folder: Path, whole: dict[str, torch.Tensor], rng: random.Random
) -> tuple[Path, dict[str, torch.Tensor] | None]:
    """A checkpoint file, and the weights that it must give if those are known."""
    if rng.random() < 0.03:
        return rng.choice([Path(each) for each in SPECIAL] + [folder / "pipe.pt", folder]), None
    state: dict[Any, Any] = dict(whole)
    changes = rng.choice((0, 0, 1, 1, 2))
    for _ in range(changes):
        _mutate(state, rng)
    expected = whole if not changes else None
    kind = rng.choice(("bare", "bare", "training", "legacy", "safetensors", "script", "zip"))
    path = folder / f"w{rng.choice(('.pt', '.pth', '.bin', '.ckpt'))}"
    if kind == "safetensors":
        path = path.with_suffix(".safetensors")
        tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor) and v.numel() < 10**6}
        try:
            save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, path)
        except Exception:  # what the library does not write
            save_file(whole, path)
    elif kind == "script":
        expected = None  # a script of OpenAI's belongs to a QuickGELU model
        _save_script(path, state if rng.random() < 0.5 else whole)
    else:
        content = {"training": {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}}.get(
            kind, state
        )
        if rng.random() < 0.05:
            content = rng.choice(
                ([], {}, 3, None, {"state_dict": 3}, {"state_dict": {}}, [torch.ones(1)], torch.ones(2))
            )
            expected = None
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=kind != "legacy")
        path.write_bytes(_repacked(buffer.getvalue(), rng) if kind == "zip" else buffer.getvalue())
        expected = None if kind == "zip" else expected
    if rng.random() < 0.4:
        path.write_bytes(damaged(path.read_bytes(), rng))
        expected = None
    return path, expected


def _mutate(state: dict[Any, Any], rng: random.Random) -> None:
    name = rng.choice(list(state))
    value = state[name]
    plain = (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and 0 < value.numel() < 10**6
    )
    if not plain or not value.is_floating_point() or not isinstance(name, str):
        return
    spot = torch.zeros(value.numel(), dtype=value.dtype)
    spot[rng.randrange(spot.numel())] = rng.choice((torch.nan, torch.inf, -torch.inf))
    state[name] = rng.choice(
        (
            lambda: value + spot.view(value.shape),
            lambda: value.half(),
            lambda: value.bfloat16(),
            lambda: value.double() * 1e300,
            lambda: value.to(torch.float8_e4m3fn),
            lambda: value.to(torch.complex64),
            lambda: value.int(),
            lambda: value.bool(),
            lambda: value.to_sparse() if value.dim() else value,
            lambda: torch.empty_like(value, device="meta"),
            lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
            lambda: value.new_ones(1).expand(rng.choice((value.numel() or 1, 10**9, 10**12))),
            lambda: value.new_ones(()).expand(value.shape),
            lambda: value.t() if value.dim() == 2 else value[None],
            lambda: value.reshape(-1),
            lambda: value.flatten()[:0],
            lambda: torch.nn.Parameter(value),
            lambda: rng.choice((3, "x", None, [value], {"x": value}, b"x")),
        )
    )()
    match rng.randrange(8):
        case 0:
            state[rng.choice((3, None, (1, 2), True, 0.5, b"x", "", "x", "module." + name, "a.b" * 100))] = state.pop(
                name
            )
        case 1:
            state[rng.choice((3, "x", "module." + name))] = value
        case 2:
            del state[name]
        case 3:
            state.update(dict.fromkeys(("input_resolution", "context_length", "vocab_size"), rng.choice((3, value))))


def _save_script(path: Path, state: dict[Any, Any]) -> None:
    """A TorchScript archive of the state: modules by the parts of the names."""
    root = torch.nn.Module()
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or "" in (parts := name.split(".")):
            continue
        if value.numel() > 10**6:  # repeated by strides of 0; a script holds it as a constant at full length
            continue
        node = root
        for part in parts[:-1]:
            if not hasattr(node, part):
                node.add_module(part, torch.nn.Module())
            node = getattr(node, part)
        if isinstance(node, torch.nn.Module) and not hasattr(node, parts[-1]):
            node.register_buffer(parts[-1], value.detach())
    try:
        torch.jit.script(root).save(str(path))
    except Exception:  # what torch does not write
        torch.save(state, path)


def _repacked(raw: bytes, rng: random.Random) -> bytes:
    """The archive with its parts compressed, renamed, doubled, left out or foreign."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            data, name = old.read(info), info.filename
            match rng.randrange(30):
                case 0:
                    continue
                case 1:
                    data = damaged(data, rng)
                case 2:
                    name = rng.choice(("../" + name, name + "/", "archive/constants.pkl", "x"))
                case 3:
                    data = bytes(rng.choice((0, 10**6)))
            new.writestr(name, data, rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,)))
    return buffer.getvalue()


def _check(clip: torch.nn.Module, expected: dict[str, torch.Tensor] | None) -> None:
    for name, tensor in clip.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise Wrong(f"{name} holds NaN or infinity")
        if expected is not None and not torch.equal(tensor, expected[name]):
            raise Wrong(f"{name} is not what the file holds")
    state_sha256(clip)
