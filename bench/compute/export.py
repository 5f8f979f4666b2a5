"""A finished run's model as a folder for others: a plain open_clip checkpoint, peft's own folder, or the adapter alone.

Every folder has a model card. What is exported is loaded again, as a plain library would, and must give the same
embeddings: nothing that fails this is left behind.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float32
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.compute import card, plain
from bench.compute.adapted import Adapted, load
from bench.config import backbones, hub
from bench.config.errors import UserError
from bench.config.files import disk_errors, exists, is_folder, write_bytes, write_json
from bench.core.weights import load_backbone
from bench.store import folder, record
from bench.store.record import Record

Format = Literal["open_clip", "peft", "adapter"]
CLOSE = 1e-5  # how far embeddings of length 1 may differ, in any number
WEIGHTS = "open_clip_model.safetensors"  # beside hub.CONFIG: open_clip's own folder format
CAPTIONS = ("two planes beside a terminal", "a river", "many green trees are near a pond", "a square building")


@dataclass(frozen=True)
class Exported:
    """The folder, what it holds, and by how much its embeddings differ from the run's own, in any number."""

    folder: Path
    format: Format
    difference: float


def export(
    run_dir: Path, out_dir: Path, wanted: Format | Literal["auto"] = "auto", licence: str | None = None
) -> Exported:
    """Write the model of a finished run into a new folder; `auto`: in the first of `formats` that works.

    licence: for the model card. UserError for a run that is not finished, for a format that its method can't be written
    in, and for a folder that holds something.
    """
    if exists(out_dir) and (not is_folder(out_dir) or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} is not empty; give a folder that does not exist yet")
    adapted = load(run_dir, "cpu")
    result = record.read(run_dir, named=False)
    assert result is not None
    possible = formats(adapted, result)
    if wanted != "auto" and wanted not in possible:
        raise UserError(f"{_why_not(adapted, result, wanted)}; it can be exported as {' or '.join(possible)}")
    refused = []
    for each in possible if wanted == "auto" else (wanted,):
        try:
            return _write(adapted, run_dir, out_dir, each, result, licence)
        except UserError as error:
            refused.append(f"{adapted.spec.method.name} can't be exported as {each}: {error}")
    others = [each for each in possible if each != wanted]
    instead = f"; it can be exported as {' or '.join(others)}" if wanted != "auto" and others else ""
    raise UserError("; ".join(refused) + instead)


def formats(adapted: Adapted, result: Record) -> tuple[Format, ...]:
    """What a run's model may be exported as, the best first. A run that trains nothing is the backbone itself."""
    method = adapted.spec.method
    if not method.trains:
        return ("open_clip",)
    if not method.interpolates:
        return ("adapter",)
    whole = _is_interpolated(result) or not hasattr(adapted.model.clip, "peft_config")
    return ("open_clip", "adapter") if whole else ("peft", "open_clip", "adapter")


def _is_interpolated(result: Record) -> bool:
    return result.metrics is not None and result.metrics.interpolation is not None


def _why_not(adapted: Adapted, result: Record, wanted: Format) -> str:
    name = adapted.spec.method.name
    if wanted == "open_clip":
        return f"{name} adds modules that can't be merged into the backbone's weights"
    if wanted == "peft":
        if _is_interpolated(result):
            return f"this run of {name} was interpolated with the backbone, for which its updates were merged"
        return f"{name} is no tuner of the peft library"
    return f"{name} trains nothing, so there is no adapter"


def _write(
    adapted: Adapted, run_dir: Path, out_dir: Path, chosen: Format, result: Record, licence: str | None
) -> Exported:
    """Write the folder under another name, check it, and give it its name."""
    out_dir = out_dir.absolute()
    part = out_dir.with_name(f".{out_dir.name}.{secrets.token_hex(4)}.part")
    try:
        with disk_errors(part):
            part.mkdir(parents=True)
        before = _embeddings(adapted, adapted.model)
        if chosen == "adapter":
            after = _write_adapter(adapted, run_dir, part, result)
        else:
            like = load_backbone(adapted.spec.backbone).model.clip
            write = _write_peft if chosen == "peft" else _write_open_clip
            after = write(adapted, like, part, result)
        difference = float((after - before).abs().max())
        if not difference < CLOSE:
            raise UserError(
                f"the embeddings of what was written differ from the run's by {difference:.1e}, more than {CLOSE:.0e}"
            )
        text = card.text(adapted, result, chosen, out_dir.name, licence, difference)
        write_bytes(part / "README.md", text.encode())
        if out_dir.exists():
            out_dir.rmdir()
        part.rename(out_dir)
    except OSError as error:
        raise UserError(f"can't write to {out_dir}: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Exported(out_dir, chosen, difference)


def _write_open_clip(adapted: Adapted, like: nn.Module, part: Path, result: Record) -> Float32[Tensor, "items dim"]:
    """Write open_clip's folder: weights, into which the adapter is merged for good, and config; what it gives."""
    method = adapted.spec.method
    if method.trains and not method.trains_backbone and not _is_interpolated(result):
        with torch.no_grad():
            method.merge(adapted.model)
    state = plain.packed_state(adapted.model.clip, like)
    write_bytes(part / WEIGHTS, save(state, metadata={"format": "pt"}))
    write_json(part / hub.CONFIG, _config(adapted))
    like.load_state_dict(load_file(part / WEIGHTS))
    return _embeddings(adapted, like.eval())


def _write_peft(adapted: Adapted, like: nn.Module, part: Path, result: Record) -> Float32[Tensor, "items dim"]:
    """Write peft's folder; what the plain backbone with it gives."""
    plain.write_peft(adapted.model.clip, like, part, adapted.spec.backbone.model)
    return _embeddings(adapted, plain.with_peft(like, part).eval())


def _write_adapter(adapted: Adapted, run_dir: Path, part: Path, result: Record) -> Float32[Tensor, "items dim"]:
    """Write what `bench.load` needs: the trained part, and the result with its settings; what it gives."""
    write_bytes(part / folder.ADAPTER, (run_dir / folder.ADAPTER).read_bytes())
    kept = {key: value for key, value in (result.provenance or {}).items() if key not in ("hostname", "platform")}
    record.write(part, result.model_copy(update={"provenance": kept}))
    again = load(part, "cpu")
    return _embeddings(again, again.model)


def _config(adapted: Adapted) -> dict[str, Any]:
    """The content of open_clip_config.json: how the model is built, and how its pictures are prepared."""
    preprocess = {
        "size": [adapted.model.image_size] * 2,
        "mode": "RGB",
        "mean": list(adapted.backbone.mean),
        "std": list(adapted.backbone.std),
        "interpolation": "bicubic",
        "resize_mode": "squash" if adapted.resize == "squash" else "shortest",
        "fill_color": 0,
    }
    return {"model_cfg": backbones.model_config(adapted.spec.backbone.model), "preprocess_cfg": preprocess}


@torch.inference_mode()
def _embeddings(adapted: Adapted, model: nn.Module) -> Float32[Tensor, "items dim"]:
    """Normalised embeddings of a few random pictures and of CAPTIONS, by this model."""
    size = adapted.model.image_size
    pictures = torch.rand(len(CAPTIONS), 3, size, size, generator=torch.Generator().manual_seed(0)) * 4 - 2
    tokens = adapted.backbone.tokenizer(list(CAPTIONS))
    parts = [model.encode_image(pictures), model.encode_text(tokens)]  # type: ignore[operator]
    return nn.functional.normalize(torch.cat(parts).float(), dim=-1)
