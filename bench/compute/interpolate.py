"""Interpolation between the backbone's weights and the trained ones (WiSE-FT, arXiv 2109.01903)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.config.errors import UserError
from bench.core.model import DualEncoder
from bench.store.record import Interpolation
from methods.base import Method


def check(method: Method) -> None:
    """Raise UserError if the method can't be interpolated with the backbone."""
    if not method.interpolates:
        raise UserError(f"{method.name} can't be interpolated with the backbone; remove evaluation.interpolate")


class Line:
    """The models `(1 - share) * backbone + share * trained`, weight by weight; all of them in the model that is given.

    `untrained` is the same model before training, from which the backbone's weights are taken; its device does not
    matter. A method that is merged is merged for good. A loss's own parameters stay as trained.
    """

    def __init__(self, model: DualEncoder, method: Method, untrained: DualEncoder) -> None:
        if not method.trains_backbone:
            with torch.no_grad():
                method.merge(model)
                if method.starts_elsewhere is None:  # PiSSA's frozen weights are the backbone's only when merged,
                    method.merge(untrained)  # those of a method that starts at random only as long as they are not
        starts = dict(untrained.clip.named_parameters())
        self.ends = [
            (weight, before, weight.detach().clone())
            for name, weight in model.clip.named_parameters()
            if weight.requires_grad == method.trains_backbone  # a merged adapter's own weights play no part any more
            and not torch.equal(weight, before := starts[name].detach().to(weight.device))
        ]

    @torch.no_grad()
    def move_to(self, share: float) -> None:
        """Give the model the weights at this share: the backbone's at 0 and the trained ones at 1, to the last bit."""
        for weight, before, trained in self.ends:
            weight.copy_(torch.lerp(before, trained, share))


def choose(
    line: Line, shares: Sequence[float], score: Callable[[], dict[str, Any]]
) -> tuple[Interpolation, dict[str, Any]]:
    """Score the model at each share and leave it at the best one, with all scores and those of the best.

    The best has the highest mean recall; of equal ones it is the largest share, the nearest to the trained model.
    """
    found = {}
    for share in sorted(shares):
        line.move_to(share)
        found[share] = score()
    recalls = {share: scores["mean_recall"] for share, scores in found.items()}
    best = max(recalls, key=lambda share: (recalls[share], share))
    line.move_to(best)
    curve = Interpolation(share=best, shares=tuple(recalls), val_mean_recall=tuple(recalls.values()))
    return curve, found[best]
