"""Zero-shot: the backbone as it is, the baseline of every other method."""

from __future__ import annotations

from methods.base import Method, ModelShape
from methods.lazy import DualEncoder


class ZeroShot(Method):
    """Trains nothing and is scored once: seeds and training settings have no effect."""

    name = "zero_shot"
    title = "Zero-shot CLIP"
    paper = "Radford et al. 2021, arXiv 2103.00020"
    presets = {"paper": {}, "table": {}}
    trains = False

    def attach(self, model: DualEncoder) -> None:
        """Nothing to add."""

    def trainable_params(self, shape: ModelShape) -> int | None:
        return 0
