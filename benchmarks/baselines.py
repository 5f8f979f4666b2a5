"""What the step is measured against: the same trainings as stock code and the released code do them.

Each baseline is open_clip's own model, all captions at the full context, with a training step of its own. None of it
uses the core.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.core.model import DualEncoder, Features
from methods.losses.harma import adaptive_triplet
from methods.losses.hmmc import HMMC
from methods.losses.info_nce import info_nce

Towers = tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]
LORA_RANK = 4


class Stock:
    """open_clip's model, and what a step of its training does: forward, loss, backward, AdamW."""

    def __init__(self, clip: nn.Module, lr: float) -> None:
        self.clip = clip.train()
        self.prepare()
        self.optimizer = torch.optim.AdamW([p for p in clip.parameters() if p.requires_grad], lr=lr)

    def prepare(self) -> None:
        """Attach what is trained; here: everything."""
        self.clip.requires_grad_(True)

    def encode(self, images: Float[Tensor, "batch 3 size size"], tokens: Int[Tensor, "batch context"]) -> Towers:
        image, text = self.clip.encode_image(images), self.clip.encode_text(tokens)  # type: ignore[operator]
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1)

    def loss(
        self,
        images: Float[Tensor, "batch 3 size size"],
        tokens: Int[Tensor, "batch context"],
        ids: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        return info_nce(*self.encode(images, tokens), self.clip.logit_scale.exp())  # type: ignore[operator]

    def step(
        self,
        images: Float[Tensor, "batch 3 size size"],
        tokens: Int[Tensor, "batch context"],
        ids: Int[Tensor, " batch"],
    ) -> float:
        """The loss of one optimizer step."""
        value = self.loss(images, tokens, ids)
        value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(value.detach())


class FusedLora(Stock):
    """peft on open_clip's packed attention: it merges and unmerges its weights in every forward pass."""

    def prepare(self) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.clip.requires_grad_(False)
        config = LoraConfig(r=LORA_RANK, lora_alpha=8, target_modules=r".*resblocks\.\d+\.attn")
        inject_adapter_in_model(config, self.clip)


class FourPasses(Stock):
    """MRS-Adapter as released: two plain passes and two under dropout, one after another."""

    def __init__(self, clip: nn.Module, lr: float, ours: DualEncoder, loss: HMMC) -> None:
        self.hmmc, self.ours, self.adapter = loss, ours, _adapter_of(ours)
        super().__init__(clip, lr)

    def prepare(self) -> None:
        self.clip.requires_grad_(False)
        self.clip.adapter = self.adapter
        for side, tower in (("image", self.clip.visual), ("text", self.clip)):
            for block in tower.transformer.resblocks:  # type: ignore[union-attr]
                residual: list[Tensor] = []
                block.ln_2.register_forward_pre_hook(lambda module, given, held=residual: held.append(given[0]))
                block.mlp.register_forward_hook(
                    lambda module, given, output, held=residual, side=side: output + self.adapter(held.pop(), side)
                )

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            return (F.dropout(given[0], self.hmmc.view_dropout), *given[1:])

        towers: tuple[nn.Module, ...] = (self.clip.visual.transformer, self.clip.transformer)  # type: ignore
        handles = [tower.register_forward_pre_hook(hook) for tower in towers]
        yield
        for handle in handles:
            handle.remove()

    def loss(
        self,
        images: Float[Tensor, "batch 3 size size"],
        tokens: Int[Tensor, "batch context"],
        ids: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        image, text = self.encode(images, tokens)
        with self._dropout():
            views = self.encode(images, tokens)
        return self.hmmc(Features(image, text, *views), ids, self.ours)  # of which it reads nothing


def _adapter_of(ours: DualEncoder) -> nn.Module:
    """A copy of MRS-Adapter's one module with the core's weights; the modules of its two doors are the same."""
    return copy.deepcopy(ours.image_blocks.slotted()[0].beside_mlp.module)  # type: ignore[union-attr,return-value]


class ReleasedHarma(nn.Module):
    """HarMA's adapter in the released form: its attention also gives back weights, which nothing uses."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        for name in ("down", "up", "gate", "inner_gate"):
            setattr(self, name, getattr(ours, name))
        self.attention = _attention(ours.attention)  # type: ignore[arg-type]
        self.shared = None if ours.shared is None else ReleasedShared(ours.shared)  # type: ignore[arg-type]

    def forward(self, m: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        h = F.gelu(self.down(m))
        u, _ = self.attention(h, h, h)
        u = u if self.shared is None else self.shared(u)
        u, _ = self.attention(u, u, u)
        inner, outer = torch.sigmoid(self.inner_gate), torch.sigmoid(self.gate)
        adapted = m + self.up(inner * h + (1 - inner) * u)
        return outer * adapted + (1 - outer) * m


class ReleasedShared(nn.Module):
    """HarMA's shared module, likewise."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.gate = ours.down, ours.up, ours.gate
        self.attention = _attention(ours.attention)  # type: ignore[arg-type]

    def forward(self, u: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        low = self.down(u)
        attended, _ = self.attention(low, low, low)
        mixed = torch.sigmoid(self.gate)
        return u + self.up(mixed * attended + (1 - mixed) * low)


def _attention(ours: nn.MultiheadAttention) -> nn.MultiheadAttention:
    found = nn.MultiheadAttention(ours.embed_dim, ours.num_heads, batch_first=True)
    found.load_state_dict(ours.state_dict())
    return found


class Harma(Stock):
    """HarMA in the released form, with the weights of the core's adapters."""

    def __init__(self, clip: nn.Module, lr: float, ours: DualEncoder, margin: float) -> None:
        self.margin = margin
        blocks = [*ours.image_blocks.slotted(), *ours.text_blocks.slotted()]
        self.adapters = nn.ModuleList(ReleasedHarma(copy.deepcopy(block.after_mlp)) for block in blocks)
        self.temperature = nn.Parameter(ours.extras["temperature"].detach().clone())
        super().__init__(clip, lr)

    def prepare(self) -> None:
        self.clip.requires_grad_(False)
        self.clip.adapters, self.clip.temperature = self.adapters, self.temperature
        blocks = [*self.clip.visual.transformer.resblocks, *self.clip.transformer.resblocks]  # type: ignore
        for block, adapter in zip(blocks, self.adapters, strict=True):
            block.mlp.register_forward_hook(lambda module, given, output, adapter=adapter: adapter(output))

    def loss(
        self,
        images: Float[Tensor, "batch 3 size size"],
        tokens: Int[Tensor, "batch context"],
        ids: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        image, text = self.encode(images, tokens)
        return info_nce(image, text, 1 / self.temperature, ids) + adaptive_triplet(image, text, self.margin)


def stock_step(name: str, clip: nn.Module, ours: DualEncoder, *, lr: float, loss: Any) -> Callable[..., float]:
    """The training step of the baseline of a method, with the weights of `ours`, a model with the method attached."""
    made: dict[str, Callable[[], Stock]] = {
        "full_finetune": lambda: Stock(clip, lr),
        "lora": lambda: FusedLora(clip, lr),
        "mrs_adapter": lambda: FourPasses(clip, lr, ours, loss),
        "harma": lambda: Harma(clip, lr, ours, loss.margin),
    }
    return made[name]().step
