"""The tiny CLIP: ViT-B-32's anatomy at width 128, pre-trained on the general world by `bench.demo.pretrain`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

VOCABULARY = 49408
EMBEDDING = "token_embedding.weight"


def state_dict(path: Path) -> dict[str, Tensor]:
    """All weights in float32. The file holds the embeddings of the worlds' own words; all other tokens get zeros."""
    packed = load_file(path)
    state = {name: tensor.float() for name, tensor in packed.items() if name not in ("token_ids", "token_rows")}
    state[EMBEDDING] = torch.zeros(VOCABULARY, packed["token_rows"].shape[1])
    state[EMBEDDING][packed["token_ids"].long()] = packed["token_rows"].float()
    return state


def pack(state: Mapping[str, Tensor], token_ids: Tensor, path: Path) -> None:
    """Write weights as float16, with `EMBEDDING` given for `token_ids` (tokens,) alone: what `state_dict` reads."""
    packed = {name: tensor.half().contiguous() for name, tensor in state.items() if name != EMBEDDING}
    packed |= {"token_ids": token_ids.int(), "token_rows": state[EMBEDDING].half().contiguous()}
    save_file(packed, path)
