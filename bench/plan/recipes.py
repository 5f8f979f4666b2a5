"""Named recipes: training settings that belong together, with their source. A sweep file uses them by name. No torch.

- harma: {recipe: harma-training, train: {lr: 2e-4}}     # a method's own settings win over the recipe's
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Training settings (keys of `TrainSettings`), and where they come from."""

    source: str
    train: Mapping[str, Any]


RECIPES: dict[str, Recipe] = {
    "harma-training": Recipe(
        source="optimizer, schedule, augmentation and captions of HarMA's released code (arXiv 2404.18253); "
        "not its backbone weights, batch size and epochs",
        train={
            "lr": 4e-4,
            "weight_decay": 0.04,
            "schedule": "linear",
            "clip_grad_norm": None,
            "augment": "harma",
            "captions": "harma",
        },
    ),
    "mrs-training": Recipe(
        source="optimizer and schedule of MRS-Adapter (arXiv 2308.12509), without augmentation; not its learning rate, "
        "batch size and epochs",
        train={
            "optimizer": "adam",
            "betas": [0.9, 0.999],
            "weight_decay": 0,
            "schedule": "step",
            "warmup": 0,
            "clip_grad_norm": None,
            "augment": "none",
        },
    ),
}
