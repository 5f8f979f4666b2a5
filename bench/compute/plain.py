"""Adapted models in the forms of plain libraries: open_clip's state dict, and a folder of the peft library."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from safetensors.torch import save
from torch import Tensor, nn

from bench.config.errors import UserError
from bench.config.files import write_bytes
from methods.layers.attention import SplitAttention
from methods.layers.tuners import ADAPTER

State = dict[str, Shaped[Tensor, " ..."]]
PREFIX = "base_model.model."  # in front of every name in a file of the peft library
PEFT_WEIGHTS = "adapter_model.safetensors"  # beside adapter_config.json


def packed_state(clip: nn.Module, like: nn.Module) -> State:
    """The tensors of an adapted open_clip model, with merged adapters, by the names of the plain model `like`.

    q, k and v are packed again where they were split for the peft library.
    """
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in clip.state_dict().items()}
    for name, module in clip.named_modules():
        if isinstance(module, SplitAttention):
            own = _names(like.get_submodule(name))
            for kind in ("weight", "bias"):
                parts = [state[f"{name}.{part}.{kind}"] for part in ("q", "k", "v")]
                state[f"{name}.{own[f'qkv.{kind}']}"] = torch.cat(parts)
                state[f"{name}.{own['out']}.{kind}"] = state[f"{name}.out.{kind}"]
    return {name: state[name].detach().cpu().contiguous() for name in like.state_dict()}


def _names(attention: nn.Module) -> dict[str, str]:
    """What a packed attention, open_clip's or timm's, calls its projections."""
    if isinstance(attention, nn.MultiheadAttention):
        return {"qkv.weight": "in_proj_weight", "qkv.bias": "in_proj_bias", "out": "out_proj"}
    return {"qkv.weight": "qkv.weight", "qkv.bias": "qkv.bias", "out": "proj"}


# --- peft -------------------------------------------------------------------------------------------------------------


def write_peft(clip: nn.Module, like: nn.Module, out_dir: Path, model: str) -> None:
    """Write the tuner in an adapted open_clip model as a folder that `peft.PeftModel.from_pretrained` takes.

    `like`: the plain model, with attention in one piece. LoRA of q, k and v, which are split here, becomes the
    library's LoRA of packed attention: their A's stand below one another, their B's on the diagonal. `model`: the
    backbone's name, for the config. Raises UserError for tuners that the library has not for packed attention.
    """
    config: Any = getattr(clip, "peft_config", {}).get(ADAPTER)
    if config is None:
        raise UserError("it has no tuner of the peft library")
    if any(isinstance(module, SplitAttention) for module in clip.modules()):
        config, state = _packed_lora(clip, like, config)
    else:
        from peft import get_peft_model_state_dict

        try:
            state = get_peft_model_state_dict(clip, adapter_name=ADAPTER)
        except ValueError as error:  # VeRA's shared matrices have other names outside of the library's own model
            raise UserError(f"the peft library can't write it from here ({error})") from error
    config.base_model_name_or_path = model
    tensors = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    config.save_pretrained(out_dir)
    write_bytes(out_dir / PEFT_WEIGHTS, save(tensors, metadata={"format": "pt"}))


def _packed_lora(clip: nn.Module, like: nn.Module, config: Any) -> tuple[Any, State]:
    """The library's config and tensors of an equal LoRA on packed attention.

    Every layer gets the same rank, with rows of zeros where its own is lower, and alpha is that rank: the scale is in
    B. The library's LoRA of open_clip's attention always has an update of the output projection, which must be zero:
    it is added twice (up to 0.21; huggingface/peft, pull request 3774). timm's attention has layers of its own.
    """
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    if config.peft_type.value != "LORA" or config.use_dora or config.lora_bias:
        kind = "DoRA" if config.peft_type.value == "LORA" and config.use_dora else config.peft_type.value
        raise UserError(f"the peft library has no {kind} for attention whose q, k and v are in one matrix")
    updates: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in clip.named_modules():
        if isinstance(module, Linear):
            a, b = (getattr(module, part)[ADAPTER].weight.detach() for part in ("lora_A", "lora_B"))
            updates[name] = a, b * module.scaling[ADAPTER]
    packed = {name: _packed(clip, like, name, updates) for name in _split(clip)}
    updates = {name: each for name, each in updates.items() if name.rpartition(".")[0] not in packed}
    targets = list(updates)
    for name, own in packed.items():
        multihead = isinstance(like.get_submodule(name), nn.MultiheadAttention)
        targets += [name] if multihead else [f"{name}.{layer}" for layer in own]
        for layer, update in own.items():
            place = {"qkv": name, "proj": f"{name}.base_layer.out_proj"} if multihead else {}
            updates[place.get(layer, f"{name}.{layer}")] = update
    rank = max(len(a) for a, _ in updates.values())
    state: State = {}
    for name, (a, b) in updates.items():
        state[f"{name}.lora_A.weight"] = torch.cat([a, a.new_zeros(rank - len(a), a.shape[1])])
        state[f"{name}.lora_B.weight"] = torch.cat([b, b.new_zeros(len(b), rank - b.shape[1])], dim=1)
    pattern = "|".join(map(re.escape, targets))
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern, inference_mode=True), state


def _split(clip: nn.Module) -> list[str]:
    return [name for name, module in clip.named_modules() if isinstance(module, SplitAttention)]


def _packed(
    clip: nn.Module, like: nn.Module, name: str, updates: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]]:
    """The updates A and B of an attention's packed projection (`qkv`) and of its output (`proj`), where there are any.

    Of open_clip's attention both are given, since the library has no one without the other.
    """
    multihead = isinstance(like.get_submodule(name), nn.MultiheadAttention)
    if multihead and f"{name}.out" in updates:
        raise UserError(
            "it adapts attn.out of open_clip's attention, an update that the peft library adds twice (up to 0.21)"
        )
    width = int(clip.get_submodule(f"{name}.out").out_features)  # type: ignore[arg-type]
    empty = torch.zeros(0, width), torch.zeros(width, 0)
    parts = [updates.get(f"{name}.{part}", empty) for part in ("q", "k", "v")]
    found = {
        "qkv": (torch.cat([a for a, _ in parts]), torch.block_diag(*(b for _, b in parts))),
        "proj": updates.get(f"{name}.out", empty),
    }
    return {layer: update for layer, update in found.items() if multihead or len(update[0])}


def with_peft(clip: nn.Module, folder: Path) -> nn.Module:
    """The plain open_clip model with the tuner in this folder. UserError, with the library's words, if it refuses."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as for names in the file that the model has not
            return PeftModel.from_pretrained(clip, str(folder))  # type: ignore[arg-type]
    except Exception as error:  # the library raises and warns in all kinds
        raise UserError(f"the peft library can't load it again ({type(error).__name__}: {error})") from error
