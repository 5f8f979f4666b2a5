"""UniPT's side network (CVPR 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.core.taps import Tap
from methods.layers.bottlenecks import zeroed


class SideNetwork(nn.Module):
    """A head that mixes the hidden states of its frozen tower into the embedding a: `a + Up(ReLU(sum_k p_k c_k))`.

    For the states h_k in front of the first block and behind each one, `t_k = W_k ReLU(h_k)`, `q = W ReLU(a)`;
    `c_k = sum_j n_kj t_kj + t_k[e]`, where n_k are the scores `relu(q . t_kj)` over the tokens j, divided by their sum,
    and e is the class token of an image or the end token of a text; p is the softmax over k of `w . (q * mean_j t_kj)`.
    Padding behind the end token counts nowhere. All it reads beside a goes through `states` and, for a text, `ids`.
    The gate's bias, the same for all k, would change nothing behind the softmax: it is there for the count alone.
    """

    def __init__(self, width: int, layers: int, embed_dim: int, dim: int, *, text: bool, zero_start: bool) -> None:
        super().__init__()
        self.states = nn.ModuleList(Tap() for _ in range(layers + 1))
        self.ids = Tap() if text else None
        self.down = nn.ModuleList(nn.Linear(width, dim) for _ in range(layers + 1))
        self.query = nn.Linear(embed_dim, dim)
        self.gate = nn.Linear(dim, 1)
        self.up = nn.Linear(dim, embed_dim)
        if zero_start:
            zeroed(self.up)

    def forward(self, embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        states = [tap.take() for tap in self.states]  # type: ignore[operator]
        batch, tokens = states[0].shape[:2]
        if self.ids is None:
            end = torch.zeros(batch, dtype=torch.long, device=embedding.device)
            seen = torch.ones(batch, tokens, 1, device=embedding.device)
        else:
            end = self.ids.take().argmax(dim=1)  # the end token has the highest id
            seen = (torch.arange(tokens, device=end.device) <= end[:, None]).float()[..., None]
        query, rows = self.query(F.relu(embedding)), torch.arange(batch, device=embedding.device)
        merged, scores = [], []
        for down, state in zip(self.down, states, strict=True):
            t = down(F.relu(state)) * seen
            near = F.normalize(F.relu(t @ query[..., None]), p=1, dim=1, eps=1e-6)
            merged.append((near * t).sum(dim=1) + t[rows, end])
            scores.append((query * t.sum(dim=1) / seen.sum(dim=1)) @ self.gate.weight.T)
        weights = torch.stack(scores).softmax(dim=0)
        mixed = (weights * torch.stack(merged)).sum(dim=0)
        out: Tensor = embedding + self.up(F.relu(mixed))
        return out
