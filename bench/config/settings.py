"""Every typed block of settings, with its defaults and bounds. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field

Beta = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Base of all settings: unknown keys and wrong types are errors, instances never change.

    Validate mappings read from YAML with `bench.config.parse.parse`: it uses pydantic's strict JSON mode, where a list
    fills a tuple and 1 fills a float, but "12" never fills an int.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def extra_depth(cls, key: str) -> int | None:
        """How many lists deep a setting is that is not a field, in a class that allows such; None in all others."""
        return None


class DatasetSettings(Settings):
    """A dataset that the harness knows. `split`: its annotation layout; `annotations`: their folder, if not `root`."""

    name: Literal["demo", "rsitmd", "rsicd", "ucm", "sydney", "nwpu"]
    root: str | None = None
    split: Literal["pir", "karpathy", "precomp", "demo"] | None = None
    annotations: str | None = None
    val_fraction: float = Field(0.2, gt=0, lt=1)
    split_seed: int = 0


class SplitFiles(Settings):
    """A file of captions for each split; a split without one is held out of the training images."""

    train: str
    val: str | None = None
    test: str | None = None


class CaptionSettings(Settings):
    """Images and captions of one's own: which files hold the captions, and which of their columns mean what.

    `file` is relative to `root`. What is not given is found: `captions` or `metadata` files, and columns by their usual
    names (`bench.data.own.USUAL`). A sweep's runs have all of it written out. `split` is the column with train, val or
    test. What the files name neither as val nor as test is held out by `split_seed`: these fractions of the images.
    `title` names the dataset in reports, by default the root's folder.
    """

    name: Literal["captions"]
    root: str | None = None
    file: str | SplitFiles | None = None
    image: str | None = None
    caption: str | tuple[str, ...] | None = None
    split: str | None = None
    label: str | None = None
    val_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.1, gt=0, lt=1)
    split_seed: int = 0
    title: str | None = Field(None, min_length=1, max_length=60)


class _AnyDataset(Settings):
    """What checks settings whose name is no dataset's: the error lists every name."""

    model_config = ConfigDict(extra="ignore")

    name: Literal["demo", "rsitmd", "rsicd", "ucm", "sydney", "nwpu", "captions"]


AnyDataset = DatasetSettings | CaptionSettings


def dataset_class(data: Any) -> type[DatasetSettings] | type[CaptionSettings]:
    """The class of a dataset's settings, by the name in them."""
    name = data.get("name") if isinstance(data, Mapping) else None
    if name == "captions":
        return CaptionSettings
    known = name in get_args(DatasetSettings.model_fields["name"].annotation) or not isinstance(name, str)
    return DatasetSettings if known else cast(Any, _AnyDataset)


class BackboneSettings(Settings):
    """An open_clip model; weights are open_clip's tag, a file, `random` (drawn from `seed`) or `demo`.

    `hf-hub:org/name` is a model on the Hugging Face Hub (its weights: `hub`), `local-dir:FOLDER` one in a folder of the
    same format (its weights: `folder`).
    """

    model: str
    weights: str
    seed: int = 0


class TrainSettings(Settings):
    """How the trainable part is trained. No run id depends on `workers` (processes that load data)."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(1e-4, gt=0)
    optimizer: Literal["adamw", "adam"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    warmup: float = Field(0.1, ge=0, le=1)  # fraction of all steps
    step_epochs: int = Field(20, ge=1)
    step_gamma: float = Field(0.7, gt=0)
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    accumulate: int = Field(1, ge=1)  # batches an optimizer step
    precision: Literal["fp32", "bf16"] = "fp32"
    augment: Literal["none", "clip", "harma"] = "none"
    captions: Literal["none", "clip", "harma"] = "none"
    captions_per_epoch: Literal["all", "one"] = "all"
    grad_checkpointing: bool = False
    eval_batch_size: int = Field(256, ge=1)
    workers: int = Field(4, ge=0)


class SlurmSettings(Settings):
    """What a job array asks the cluster for; `extra` goes to sbatch as it is, `setup` runs before each task."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    gpus_per_node: int | str | None = None
    cpus_per_task: int | None = Field(None, ge=1)
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    timeout_min: int = Field(120, ge=1)
    array_parallelism: int = Field(64, ge=1)  # jobs at once, over all of a sweep's arrays
    runs_per_job: int = Field(1, ge=1)
    parallel_runs: int = Field(1, ge=1)  # of a job's runs, side by side on its GPU
    signal_seconds: int = Field(120, ge=1)  # before its time limit: when Slurm warns a job, which then saves
    max_timeouts: int = Field(10, ge=0)  # how often a job that made progress may continue after its time limit
    setup: tuple[str, ...] = ()
    extra: dict[str, str | int | float | bool] = Field(default_factory=dict)


# The section of a sweep file that each cluster scheduler reads; `bench.launch` has a folder of the same name for it.
SCHEDULERS: dict[str, type[Settings]] = {"slurm": SlurmSettings}
