"""What would end a sweep's runs at once: missing images, too little data for a batch, weights that can't be had.

torch is imported only for weights from a file or a tag.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from bench import data
from bench.config.backbones import BUILT_IN
from bench.config.errors import UserError
from bench.config.settings import BackboneSettings
from bench.data.images import locate_all
from bench.plan.spec import RunSpec


def faults(runs: Sequence[RunSpec]) -> list[str]:
    """Each fault in one sentence. Images are looked for, not decoded; weights from a tag are not downloaded."""
    found: list[str] = []
    for dataset in dict.fromkeys(run.dataset for run in runs):
        own = [run for run in runs if run.dataset == dataset]
        try:
            found += _of_data(dataset.name, data.load(dataset), own)
        except UserError as error:
            found.append(str(error))
    for backbone in dict.fromkeys(run.backbone for run in runs):
        try:
            _check_weights(backbone)
        except UserError as error:
            found.append(str(error))
    return found


def _of_data(name: str, dataset: data.Dataset, runs: Sequence[RunSpec]) -> Iterator[str]:
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    if not any(run.method.trains for run in runs):
        del splits["train"]
    wanted = [(item.image, split) for split, items in splits.items() for item in items]
    _, missing = locate_all(dataset.root, wanted)
    if missing:
        yield (
            f"{dataset.name}: {len(missing)} of {len(wanted)} images are missing in {dataset.root}, such as "
            f"{next(iter(missing))}; `petl-bench data check {name} --root {shlex.quote(str(dataset.root))}` lists them"
        )
    pairs = {"one": len(dataset.train), "all": sum(len(item.captions) for item in dataset.train)}
    for run in runs:
        count = pairs[run.train.captions_per_epoch]
        if run.method.trains and run.train.batch_size > count:
            yield f"{run.run_id}: train.batch_size {run.train.batch_size} exceeds the {count} pairs of an epoch"


def _check_weights(settings: BackboneSettings) -> None:
    """Raise UserError for weights that can't be loaded."""
    built_in = BUILT_IN.get(settings.model)
    if settings.weights == "random" or (built_in is not None and settings.weights in built_in.weights):
        return
    from bench.core.weights import check_weights  # torch

    check_weights(settings)
