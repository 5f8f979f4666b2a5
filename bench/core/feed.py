"""A split's texts and pictures by index, as the model takes them: raw, cut, or as what a frozen tower gave for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from bench.core.model import DualEncoder
from bench.core.passes import Depth, Pictures, Prefix, Texts, ends
from bench.core.prefix_cache import PrefixCache

Parts = Callable[[], Iterator[Float[Tensor, "*part"]]]  # makes values part by part

CHUNK = 64  # items a batch when a prefix is computed: fixed, since sums round by the size of a batch


@dataclass(frozen=True)
class Source:
    """What a frozen tower computes with: the model and where its numbers are kept.

    `key`: what they depend on beside the items. `bf16`: whether they are those of training under autocast. `send` puts
    a tensor on the device.
    """

    model: DualEncoder
    cache: PrefixCache
    key: tuple[Any, ...]
    send: Callable[[Shaped[Tensor, "*any"]], Shaped[Tensor, "*any"]]
    bf16: bool = False

    def compute(self, side: str, parts: Parts) -> Iterator[Float[Tensor, "*part"]]:
        """The parts of a tower's output, computed without gradients and under the precision."""
        with torch.no_grad(), torch.autocast(self.cache.device.type, torch.bfloat16, enabled=self.bf16):
            yield from parts()

    def values(self, side: str, depth: Depth, items: list[Any], parts: Parts) -> Float[Tensor, "*table"]:
        """A tower's output for all items, or that of its first blocks, from the cache if they are there."""
        tower, threads = describe(self.model.tower(side)), torch.get_num_threads()
        key = [*self.key, side, depth, self.bf16, hardware(self.cache.device), threads, tower, *items]
        return self.cache.get(key, lambda: self.compute(side, parts))

    def rows(self, values: Float[Tensor, "*table"], index: Int[Tensor, "*index"]) -> Float[Tensor, "*any"]:
        """These rows of cached values, on the device."""
        return values[self.send(index)] if values.device == self.cache.device else self.send(values[index])


def hardware(device: torch.device) -> str:
    """The device's name: sums round by the hardware, and a run repeats its own numbers."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()


def describe(tower: nn.Module) -> str:
    """A hash of a tower's structure: what its weights do not say, such as heads and activations."""
    parts = (
        f"{name}:{type(module).__name__}({module.extra_repr()}){getattr(module, 'num_heads', '')}"
        for name, module in tower.named_modules()
    )
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


class TextFeed:
    """The texts of a split by index.

    tokens: of each text, on the CPU. cut: whether a batch ends with its longest text. depth: how much of the tower is
    computed once; equal texts are computed once then. pooled: whether the last block is computed at the end tokens
    alone.
    """

    def __init__(
        self, source: Source, tokens: Int[Tensor, "texts context"], *, cut: bool, depth: Depth, pooled: bool = False
    ) -> None:
        self.source, self.tokens, self.cut, self.depth, self.pooled = source, tokens, cut, depth, pooled
        self.ids = source.model.rewritten(tokens) if cut or depth or pooled else tokens
        context = torch.full((len(tokens),), tokens.shape[1])
        self.lengths = ends(source.model.tower("text"), self.ids) + 1 if cut else context

    def __call__(self, index: Int[Tensor, " batch"]) -> Int[Tensor, "batch context"] | Texts | Prefix:
        """These texts on the device."""
        if not self.cut and not self.depth and not self.pooled:
            return self.source.send(self.tokens[index])
        if self.depth == "whole":
            return Prefix(self.source.rows(self._values, self._place[index]), self.depth)
        lengths = self.lengths[index]
        longest = int(lengths.max())
        texts = self._cut(self.ids, index, longest)
        if not self.depth:
            return texts
        # The tokens of all texts lie one behind the other. What is read behind a text's end has no influence.
        places = self._first[self._place[index]][:, None] + torch.arange(longest)
        rows = self.source.rows(self._values, places.clamp_(max=len(self._values) - 1))
        return Prefix(rows, self.depth, texts.ids, self.cut, self.pooled)

    def _cut(self, ids: Int[Tensor, "texts context"], index: Int[Tensor, " batch"], longest: int) -> Texts:
        return Texts(self.source.send(ids[index, :longest]), self.cut, self.pooled)

    @cached_property
    def _different(self) -> tuple[Int[Tensor, "different context"], Int[Tensor, " texts"], Int[Tensor, " different"]]:
        """The different texts by length, which of them each text is, and their lengths."""
        texts, place = torch.unique(self.ids, dim=0, return_inverse=True)
        lengths = torch.empty(len(texts), dtype=torch.long)
        lengths[place] = self.lengths
        order = torch.argsort(lengths, stable=True)
        return texts[order], torch.argsort(order)[place], lengths[order]

    @property
    def _place(self) -> Int[Tensor, " texts"]:
        return self._different[1]

    @cached_property
    def _first(self) -> Int[Tensor, " different"]:
        """Where the tokens of each different text begin."""
        lengths = self._different[2]
        return lengths.cumsum(0) - lengths

    @cached_property
    def _values(self) -> Float[Tensor, "rows width"]:
        texts, _, lengths = self._different

        def parts() -> Iterator[Float[Tensor, "*part"]]:
            for index in torch.arange(len(texts)).split(CHUNK):
                longest = int(lengths[index].max())
                values = self.source.model.text_prefix(self._cut(texts, index, longest), self.depth)
                real = torch.arange(longest) < lengths[index][:, None]
                yield values if self.depth == "whole" else values[real.to(values.device)]

        digest = hashlib.sha256(texts.numpy().tobytes() + lengths.numpy().tobytes()).hexdigest()
        return self.source.values("text", self.depth, [digest], parts)


class ImageFeed:
    """The pictures of a split by index, where their pixels are fixed.

    name: what the pixels are known by. load: gives a batch of them, parts: all in order; normalised and on the device.
    depth: how much of the tower is computed once; without it `load` is needed, with it `parts`. pooled: whether the
    last block is computed at the class token alone.
    """

    def __init__(
        self,
        source: Source,
        name: list[Any],
        load: Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch 3 size size"]] | None,
        parts: Callable[[], Iterator[Float[Tensor, "batch 3 size size"]]],
        *,
        depth: Depth,
        pooled: bool = False,
    ) -> None:
        self.source, self.name, self.load, self.parts, self.depth = source, name, load, parts, depth
        self.pooled = pooled

    def __call__(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch 3 size size"] | Pictures | Prefix:
        """These pictures on the device."""
        if self.depth:
            return Prefix(self.source.rows(self._values, index), self.depth, pooled=self.pooled)
        assert self.load is not None
        return Pictures(self.load(index)) if self.pooled else self.load(index)

    @cached_property
    def _values(self) -> Float[Tensor, "*table"]:
        model = self.source.model
        return self.source.values(
            "image", self.depth, self.name, lambda: (model.image_prefix(part, self.depth) for part in self.parts())
        )
