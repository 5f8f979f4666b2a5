"""Bottlenecks of every kind.

Up-projections start at zero here, so that a branch adds nothing before training. Methods that were released with
another start draw it themselves when they attach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with weight and bias set to zero, in place: its output is zero before training."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def kaiming(layer: nn.Linear) -> nn.Linear:
    """The layer with a uniform Kaiming weight (a = sqrt 5, as torch's own default) and a bias of zero, in place."""
    nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
    nn.init.zeros_(layer.bias)
    return layer


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x sigmoid(1.702 x)`, OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


Activation = Callable[[Float[Tensor, "*shape"]], Float[Tensor, "*shape"]]


class Bottleneck(nn.Module):
    """`s Up(dropout(act(Down x)))`, and `x +` that if `serial`. The scale s is a constant or, on demand, learned."""

    token_wise = True

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

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        branch: Tensor = self.scale * self.up(self.dropout(self.activation(self.down(x))))
        return x + branch if self.serial else branch


class EmbeddingAdapter(nn.Module):
    """CLIP-Adapter on an embedding f: `r act(W2 ReLU(W1 f)) + (1 - r) f`, without biases (arXiv 2110.04544).

    `outer_relu` is the released form: act is a ReLU, and both matrices have torch's random start. Without it act is the
    identity, as in the paper's equation, and W2 starts at zero. (Behind a ReLU, a W2 of zero would get no gradient.)
    """

    def __init__(self, dim: int, bottleneck: int, ratio: float, outer_relu: bool) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, dim, bias=False)
        self.ratio, self.outer_relu = ratio, outer_relu
        if not outer_relu:
            zeroed(self.up)

    def forward(self, f: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        adapted: Tensor = self.up(F.relu(self.down(f)))
        if self.outer_relu:
            adapted = F.relu(adapted)
        return self.ratio * adapted + (1 - self.ratio) * f


class TwoTowerBottleneck(nn.Module):
    """A bottleneck for both towers, with projections for each and one up-projection that they share.

    `concat[Up_tower(z), Up_shared(z)]` with `z = dropout(act(Down_tower x))`: the shared slice is the last `shared_dim`
    of a tower's `width` outputs (Cross-Modal Adapter, arXiv 2211.09623; MRS-Adapter, arXiv 2308.12509). Widths 768 and
    512 with `shared_dim` 64: Up_image has 704 outputs, Up_text 448, Up_shared 64.
    """

    token_wise = True

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

    def forward(self, x: Float[Tensor, "batch tokens width"], side: str) -> Float[Tensor, "batch tokens width"]:
        z = self.dropout(self.activation(self.down[side](x)))
        return torch.cat([self.up[side](z), self.up_shared(z)], dim=-1)


class SharedDownBottleneck(nn.Module):
    """UniAdapter's bottleneck of one depth (arXiv 2302.06605): one down-projection for both towers, an up for each.

    `s Up_tower(ReLU(Down LN x))`. Where the towers have one width, they share the LayerNorm and all of Down, as
    released. Where they differ, each has a LayerNorm, both share a matrix for as many inputs as the narrower one has,
    and the wider tower has a matrix of its own for its other inputs.
    """

    token_wise = True

    def __init__(self, widths: Mapping[str, int], bottleneck: int, scale: float) -> None:
        super().__init__()
        self.common, self.scale = min(widths.values()), scale
        self.norm = nn.ModuleDict({str(width): nn.LayerNorm(width) for width in sorted(set(widths.values()))})
        self.down = kaiming(nn.Linear(self.common, bottleneck))
        self.wider = nn.ModuleDict(
            {
                side: nn.Linear(width - self.common, bottleneck, bias=False)
                for side, width in widths.items()
                if width > self.common
            }
        )
        self.up = nn.ModuleDict({side: zeroed(nn.Linear(bottleneck, width)) for side, width in widths.items()})

    def forward(self, x: Float[Tensor, "batch tokens width"], side: str) -> Float[Tensor, "batch tokens width"]:
        normed = self.norm[str(x.shape[-1])](x)
        z = self.down(normed[..., : self.common])
        if side in self.wider:
            z = z + self.wider[side](normed[..., self.common :])
        branch: Tensor = self.scale * self.up[side](F.relu(z))
        return branch


class Door(nn.Module):
    """Calls a module that serves both towers for the tower `side`; adds its input to the output if `serial`."""

    def __init__(self, module: nn.Module, side: str, *, serial: bool) -> None:
        super().__init__()
        self.module, self.side, self.serial = module, side, serial
        self.token_wise = getattr(module, "token_wise", False)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        branch: Tensor = self.module(x, self.side)
        return x + branch if self.serial else branch


class ConvBottleneck(nn.Module):
    """Convpass's `s Up(act(conv(act(Down x))))`: a bottleneck around a 3x3 convolution (arXiv 2207.07039).

    The convolution runs over the square grid of patches, and over the class token, where there is one, as an image of
    one pixel; it starts as the identity. `tokens` is a square number, and one more with a class token: other tokens
    behind the patches would be taken for patches.
    """

    def __init__(self, width: int, bottleneck: int, scale: float, dropout: float, *, class_token: bool = True) -> None:
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
        self.scale, self.dropout, self.class_token = scale, nn.Dropout(dropout), class_token

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        low = quick_gelu(self.down(x)).transpose(1, 2)  # (batch, bottleneck, tokens)
        patches = low[:, :, 1:] if self.class_token else low
        edge = round(patches.shape[2] ** 0.5)
        mixed = self.conv(patches.unflatten(2, (edge, edge))).flatten(2)
        if self.class_token:
            mixed = torch.cat([self.conv(low[:, :, :1, None]).flatten(2), mixed], dim=2)
        mixed = mixed.transpose(1, 2)
        branch: Tensor = self.scale * self.up(self.dropout(quick_gelu(mixed)))
        return branch


class DropPath(nn.Dropout):
    """Stochastic depth: in training the whole of an item is zero with probability p, else divided by 1 - p."""

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return x * F.dropout(x.new_ones(len(x), 1, 1), self.p, self.training)


class Normed(nn.Module):
    """`drop_path(branch(norm(x)))` with a block's own frozen LayerNorm, which is not registered here a second time."""

    def __init__(self, norm: nn.Module, branch: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.branch, self.drop_path = branch, DropPath(drop_path)
        self.token_wise = getattr(branch, "token_wise", False)
        self._norm = (norm,)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        normed: Tensor = self.drop_path(self.branch(self._norm[0](x)))
        return normed
