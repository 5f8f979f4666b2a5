"""The self-paced loss of RRSITR: easy pairs count fully, harder ones less, and the hardest as triplets."""

from __future__ import annotations

import math

from pydantic import Field

from methods.lazy import DualEncoder, F, Features, Float, Int, Tensor, torch
from methods.losses.base import Loss


def paced(losses: Float[Tensor, " batch"], pace: float) -> Float[Tensor, " batch"]:
    """`w l - 2/pi * pace * (w arccos w - sqrt(1 - w^2))`, w = cos(pi l / (2 pace)) without gradient, for 0 <= l < pace.

    As `arccos w = pi l / (2 pace)`, the first two terms cancel: what is left is `2/pi * pace * sin(pi l / (2 pace))`,
    whose gradient is the weight w. It grows like l for small l and levels off at `pace`, where w is zero.
    """
    return 2 / math.pi * pace * torch.sin(math.pi / 2 / pace * losses)


def soft_triplet(scores: Float[Tensor, "batch batch"], margin: float) -> Float[Tensor, " batch"]:
    """The hardest negative's hinge of each pair, the sum of both directions, with a margin that grows with the error.

    `max(0, m - S_ii + h_i)`, h_i the highest cosine of a negative, `m = margin * (1 + max(0, h_i - S_ii))`. The
    gradient goes through the margin as well. Margin 0.6, S_ii 0.5, h 0.3: 0.4; h 0.7: 0.72 + 0.2 = 0.92.
    """
    own = scores.diagonal()
    others = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool, device=scores.device), -torch.inf)
    errors = [others.amax(dim=1) - own, others.amax(dim=0) - own]
    first, second = (F.relu(margin * (1 + F.relu(error)) + error) for error in errors)
    return first + second


class SelfPaced(Loss):
    """The mean over pairs of a term by the pair's own cross-entropy l, of both directions summed (RRSITR).

    l is at the fixed factor `e^log_scale` on cosines, 20.0. Easy pairs, l < `easy`: `paced(l, easy)`. Medium ones,
    l < `hard`: `medium_weight * paced(l, hard)`. Hard ones: `hard_weight * soft_triplet`. Neither the temperature of
    the backbone nor other captions of the same image play a part.

    Released: l is the sum of four cross-entropies, of these two and of two of token-level scores, which need a layer on
    patches and words; these two are left out here, while `easy` and `hard` keep the released values: with about half
    the l, pairs count as easy or medium for longer. The first two cases have the released value and gradient in another
    form, see `paced`.
    """

    name = "self_paced"
    paper = "RRSITR, CVPR 2026, code github.com/MSFLabX/RRSITR"
    log_scale: float = Field(2.996, ge=-10, le=10)
    """Logarithm of the factor on cosines; it is not trained."""
    easy: float = Field(5.0, gt=0)
    """The cross-entropy below which a pair is easy."""
    hard: float = Field(18.0, gt=0)
    """The cross-entropy from which on a pair is hard."""
    medium_weight: float = Field(0.8, ge=0)
    """Weight of the pairs between."""
    hard_weight: float = Field(0.9, ge=0)
    """Weight of the hard pairs."""
    margin: float = Field(0.6, ge=0)
    """By how much a hard pair must be more similar than its hardest negative, before the margin grows."""

    def __call__(self, features: Features, image_ids: Int[Tensor, " batch"], model: DualEncoder) -> Float[Tensor, ""]:
        scores = features.image @ features.text.T
        logits = math.exp(self.log_scale) * scores
        pairs = torch.arange(len(logits), device=logits.device)
        losses = F.cross_entropy(logits, pairs, reduction="none") + F.cross_entropy(logits.T, pairs, reduction="none")
        medium = self.medium_weight * paced(losses, self.hard)
        hard = self.hard_weight * soft_triplet(scores, self.margin)
        terms = torch.where(losses < self.easy, paced(losses, self.easy), torch.where(losses < self.hard, medium, hard))
        return terms.mean()
