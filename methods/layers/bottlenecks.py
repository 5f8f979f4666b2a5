"""Bottlenecks of every kind. Tensors are (batch, tokens, width) throughout; up-projections start at zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with weight and bias zero: what it adds is nothing at the start."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def kaiming(layer: nn.Linear) -> nn.Linear:
    """The layer with a uniform Kaiming start and no bias."""
    nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
    nn.init.zeros_(layer.bias)
    return layer


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


Activation = Callable[[Tensor], Tensor]


class Bottleneck(nn.Module):
    """`s Up(dropout(act(Down x)))`, with `x +` in front if it stands in series."""

    def __init__(
        self,
        width: int,
        bottleneck: int,
        activation: Activation,
        *,
        serial: bool,
        dropout: float = 0.0,
        scale: float = 1.0,
        learned_scale: bool = False,
    ) -> None:
        super().__init__()
        self.down = kaiming(nn.Linear(width, bottleneck))
        self.up = zeroed(nn.Linear(bottleneck, width))
        self.activation, self.serial = activation, serial
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.tensor(scale)) if learned_scale else scale

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.scale * self.up(self.dropout(self.activation(self.down(x))))
        return x + branch if self.serial else branch


class EmbeddingAdapter(nn.Module):
    """CLIP-Adapter on an embedding (batch, dim): `r W2 relu(W1 f) + (1 - r) f`, no bias."""

    def __init__(self, dim: int, bottleneck: int, ratio: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck, bias=False)
        self.up = zeroed(nn.Linear(bottleneck, dim, bias=False))
        self.ratio = ratio

    def forward(self, f: Tensor) -> Tensor:
        adapted: Tensor = self.up(F.relu(self.down(f)))
        return self.ratio * adapted + (1 - self.ratio) * f


class TwoTowerBottleneck(nn.Module):
    """Down and up projections per tower, and one more up projection that both share.

    `concat[Up_tower(z), Up_shared(z)]`, `z = dropout(act(Down_tower x))`: the shared slice is the last `shared_dim`
    output dimensions of either tower.
    """

    def __init__(
        self, widths: Mapping[str, int], bottleneck: int, shared_dim: int, activation: Activation, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.down = nn.ModuleDict({side: kaiming(nn.Linear(width, bottleneck)) for side, width in widths.items()})
        self.up = nn.ModuleDict(
            {side: zeroed(nn.Linear(bottleneck, width - shared_dim)) for side, width in widths.items()}
        )
        self.up_shared = zeroed(nn.Linear(bottleneck, shared_dim))
        self.activation = activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, side: str) -> Tensor:
        z = self.dropout(self.activation(self.down[side](x)))
        return torch.cat([self.up[side](z), self.up_shared(z)], dim=-1)


class SharedDownBottleneck(nn.Module):
    """UniAdapter's sharing: one down projection for both towers, an up projection for each.

    Towers differ in width: both share the columns of the narrower one, and the wider has some of its own beside them.
    """

    def __init__(self, widths: Mapping[str, int], bottleneck: int, scale: float) -> None:
        super().__init__()
        self.common, self.scale = min(widths.values()), scale
        self.down = kaiming(nn.Linear(self.common, bottleneck))
        self.wider = nn.ModuleDict(
            {
                side: nn.Linear(width - self.common, bottleneck, bias=False)
                for side, width in widths.items()
                if width > self.common
            }
        )
        self.up = nn.ModuleDict({side: zeroed(nn.Linear(bottleneck, width)) for side, width in widths.items()})

    def forward(self, x: Tensor, side: str) -> Tensor:
        z = self.down(x[..., : self.common])
        if side in self.wider:
            z = z + self.wider[side](x[..., self.common :])
        branch: Tensor = self.scale * self.up[side](F.relu(z))
        return branch


class Door(nn.Module):
    """One block's way into a module that serves both towers."""

    def __init__(self, module: nn.Module, side: str, *, serial: bool) -> None:
        super().__init__()
        self.module, self.side, self.serial = module, side, serial

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.module(x, self.side)
        return x + branch if self.serial else branch


class ConvBottleneck(nn.Module):
    """Convpass's `s Up(act(conv(act(Down x))))`: a bottleneck whose middle is a 3x3 convolution over the patches' grid.

    The class token in front is an image of one pixel to the convolution, as in the paper; further tokens behind the
    patches are not expected. The convolution starts as the identity.
    """

    def __init__(self, width: int, bottleneck: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        self.conv = nn.Conv2d(bottleneck, bottleneck, kernel_size=3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.conv.weight[:, :, 1, 1] = torch.eye(bottleneck)
        self.up = zeroed(nn.Linear(bottleneck, width))
        self.scale, self.dropout = scale, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        low = quick_gelu(self.down(x)).transpose(1, 2)  # (batch, bottleneck, tokens)
        edge = round((low.shape[2] - 1) ** 0.5)
        token = self.conv(low[:, :, :1, None]).flatten(2)
        patches = self.conv(low[:, :, 1:].unflatten(2, (edge, edge))).flatten(2)
        mixed = torch.cat([token, patches], dim=2).transpose(1, 2)
        branch: Tensor = self.scale * self.up(self.dropout(quick_gelu(mixed)))
        return branch


class Normed(nn.Module):
    """A branch behind a block's own frozen LayerNorm, which stays the block's: it is not registered here again."""

    def __init__(self, norm: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self._norm = (norm,)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.branch(self._norm[0](x))
        return normed
