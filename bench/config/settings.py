"""Every typed block of settings, with its defaults and bounds. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Beta = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Base of all settings: unknown keys and wrong types are errors, instances never change.

    Validate mappings read from YAML with `bench.config.parse.parse`: it uses pydantic's strict JSON mode, where a list
    fills a tuple and 1 fills a float, but "12" never fills an int.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    # Settings that came later, whose default is what runs did before: at it, they are no part of a run's id.
    added: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def extra_depth(cls, key: str) -> int | None:
        """How many lists deep a setting is that is not a field, in a class that allows such; None in all others."""
        return None


class DatasetSettings(Settings):
    """A dataset that the harness knows. `split`: its annotation layout; `annotations`: their folder, if not `root`."""

    name: Literal["demo", "demo-haze", "demo-general", "rsitmd", "rsicd", "ucm", "sydney", "nwpu"]
    """The dataset; `petl-bench data list` shows them."""
    root: str | None = None
    """The folder that holds the images."""
    split: Literal["pir", "karpathy", "precomp", "demo"] | None = None
    """The annotations' layout and with it the split; default: the dataset's first."""
    annotations: str | None = None
    """The folder of the annotation files, if it is not root."""
    val_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the training images held out for validation where the files name none."""
    split_seed: int = 0
    """Which images are held out."""
    shuffle_captions: float = Field(0.0, ge=0, le=1)
    """Share of the training captions that are paired with wrong images on purpose; 0: none."""
    shuffle_seed: int = 0
    """Which captions these are, and with which images."""
    exclude: str | None = None
    """A file with names of training images to leave out, one a line; `petl-bench data audit` writes one."""

    @property
    def called(self) -> str:
        """What reports call the dataset."""
        return self.name


class SplitFiles(Settings):
    """A file of captions for each split; a split without one is held out of the training images."""

    train: str
    """Of the training images."""
    val: str | None = None
    """Of the validation images."""
    test: str | None = None
    """Of the test images."""


class CaptionSettings(Settings):
    """Images and captions of one's own: which files hold the captions, and which of their columns mean what.

    `file` is relative to `root`. What is not given is found: `captions` or `metadata` files, and columns by their usual
    names (`bench.data.own.USUAL`). A sweep's runs have all of it written out. `split` is the column with train, val or
    test. What the files name neither as val nor as test is held out by `split_seed`: these fractions of the images.
    `title` names the dataset in reports, by default the root's folder.
    """

    name: Literal["captions"]
    """`captions`: any images with captions."""
    root: str | None = None
    """The folder that holds the images."""
    file: str | SplitFiles | None = None
    """The file of captions, relative to root, or one for each split: `{train: ..., val: ..., test: ...}`."""
    image: str | None = None
    """The column of the image's name."""
    caption: str | tuple[str, ...] | None = None
    """The column of the caption, or several."""
    split: str | None = None
    """The column with train, val or test."""
    label: str | None = None
    """The column of the class name."""
    val_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the images held out for validation, where no file and no column says."""
    test_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the images held out for the test, where no file and no column says."""
    split_seed: int = 0
    """Which images are held out."""
    shuffle_captions: float = Field(0.0, ge=0, le=1)
    """Share of the training captions that are paired with wrong images on purpose; 0: none."""
    shuffle_seed: int = 0
    """Which captions these are, and with which images."""
    exclude: str | None = None
    """A file with names of training images to leave out, one a line; `petl-bench data audit` writes one."""
    title: str | None = Field(None, min_length=1, max_length=60)
    """The dataset's name in reports; default: the root's folder."""

    @field_validator("title")
    @classmethod
    def _is_printable(cls, title: str | None) -> str | None:
        if title is not None and not title.isprintable():
            raise ValueError(f"title: {title!r} has characters that can't be printed, such as a line break")
        return title

    @property
    def called(self) -> str:
        """What reports call the dataset."""
        return self.title or self.name


class _AnyDataset(Settings):
    """What checks settings whose name is no dataset's: the error lists every name."""

    model_config = ConfigDict(extra="ignore")

    name: Literal["demo", "demo-haze", "demo-general", "rsitmd", "rsicd", "ucm", "sydney", "nwpu", "captions"]


AnyDataset = DatasetSettings | CaptionSettings


def describe_dataset(settings: AnyDataset) -> dict[str, Any]:
    """The settings as plain data; without those of shuffling where nothing is shuffled, so that run ids stay."""
    none = {"shuffle_captions", "shuffle_seed"} if not settings.shuffle_captions else set()
    return settings.model_dump(mode="json", exclude=none)


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
    """The name of the model in open_clip, such as ViT-B-32-quickgelu."""
    weights: str
    """A tag of open_clip, a checkpoint file, `random`, or `demo` for tiny-clip."""
    seed: int = 0
    """For random weights."""


class TrainSettings(Settings):
    """How the trainable part is trained. No run id depends on `workers` (processes that load data)."""

    added = ("decay", "micro_batch", "views")

    epochs: int = Field(20, ge=1)
    """Passes over the training pairs."""
    batch_size: int = Field(128, ge=1)
    """Pairs of an image and a caption a batch."""
    lr: float = Field(1e-4, gt=0)
    """The highest learning rate."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """AdamW or Adam."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """Decay rates of the optimizer's averages."""
    eps: float = Field(1e-8, gt=0)
    """Added to its denominator."""
    weight_decay: float = Field(0.01, ge=0)
    """Applied to what `decay` says."""
    decay: Literal["matrices", "not_biases", "all"] = "matrices"
    """What decays: matrices and kernels; all but biases, as released with HarMA; or everything, as torch's own."""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """How the learning rate falls after the warmup."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of all steps in which the learning rate rises from 0."""
    step_epochs: int = Field(20, ge=1)
    """Schedule step: epochs between two falls."""
    step_gamma: float = Field(0.7, gt=0)
    """Schedule step: factor at each fall."""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """The largest norm of the gradient; null: not clipped."""
    accumulate: int = Field(1, ge=1)
    """Batches an optimizer step."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Pairs computed at a time, with the gradients of the whole batch; halves if they don't fit. null: all at once."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward and backward pass; scores are float32."""
    augment: Literal["none", "clip", "harma"] = "none"
    """How training pictures are cropped, flipped and coloured."""
    views: Annotated[int, Field(ge=1)] | None = None
    """Fixed augmented views a picture, kept on disk, from which all epochs and seeds draw; null: new in every epoch."""
    captions: Literal["none", "clip", "harma"] = "none"
    """How captions are cleaned before they are tokenised."""
    captions_per_epoch: Literal["all", "one"] = "all"
    """Every caption of an image in each epoch, or one drawn."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    eval_batch_size: int = Field(256, ge=1)
    """Images or captions a batch at evaluation."""
    workers: int = Field(4, ge=0)
    """Processes that load data; no number depends on it, and no run id."""


Share = Annotated[float, Field(ge=0, le=1)]
Protocol = Literal["strict", "test-selected", "last-epoch"]


class EvaluationSettings(Settings):
    """How the epoch is chosen, and what is done with a trained model before its test."""

    protocol: Protocol = "strict"
    """What chooses the epoch: validation; the test set, as some released code does (marked); or nothing."""
    test: bool = True
    """Whether the test set is scored; false is for the trials of `tune` alone, which never open it."""
    interpolate: Annotated[tuple[Share, ...], Field(min_length=1)] | None = None
    """WiSE-FT: shares of the trained weights, the rest the backbone's, of which validation chooses; null: no mixing."""

    @field_validator("interpolate")
    @classmethod
    def _in_order(cls, shares: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if shares is None else tuple(sorted(set(shares)))

    @model_validator(mode="after")
    def _fits(self) -> EvaluationSettings:
        if self.protocol == "test-selected" and not self.test:
            raise ValueError("protocol: test-selected needs the test set; remove `test: false`")
        if self.protocol == "test-selected" and self.interpolate:
            raise ValueError("protocol: test-selected knows no interpolation, whose share validation chooses")
        return self


class TuneSettings(Settings):
    """Equal tuning: so many trials for each method, chosen on validation, before its runs with the seeds of the grid.
    Beside these keys it has the settings to tune, each with a list of values or `{log: [low, high]}`: `lr`, `rank`, or
    with their part (`train.lr`, `method.rank`, `loss.margin`).
    """

    model_config = ConfigDict(extra="allow")

    trials: int = Field(ge=1)
    """Trials a method; of a grid of lists, as many are drawn."""
    seed: int = Field(0, ge=0)
    """Of the draws, and of the training of all trials."""
    halving: Annotated[int, Field(ge=2)] | None = None
    """Train all trials for one such part of the epochs, and as large a part of them at full length; null: all."""


# The prompts of CLIP's authors for scenes from above (RESISC45, in the notebook with the prompts of the CLIP paper).
TEMPLATES = tuple(
    f"{kind} {what} of {article}{{}}."
    for article in ("", "a ", "the ")
    for what in ("imagery", "photo", "view")
    for kind in ("satellite", "aerial")
)
Template = Annotated[str, Field(pattern=r"\{\}", max_length=200)]


class BehaviourSettings(Settings):
    """What is measured of a tested model beside its recall, and of the backbone before it was adapted.

    No run id depends on it; `petl-bench measure` measures finished runs. A measure that fails is missing, with the
    reason, and no run fails for it.
    """

    geometry: bool = False
    """How the test set's embeddings lie, and how far they moved: gap, alignment, uniformity, effective rank, drift."""
    classify: bool = False
    """Zero-shot land-use classification of the test images by their class names, where the dataset has them."""
    templates: Annotated[tuple[Template, ...], Field(min_length=1)] = TEMPLATES
    """The prompts of a class, `{}` standing for its name; default: those of CLIP's authors for scenes from above."""
    evaluate: tuple[DatasetSettings | CaptionSettings, ...] = ()
    """Other datasets whose test sets are scored: names (`rsicd` lies in $RSICD_ROOT) or settings as under `dataset`."""
    forgetting: tuple[DatasetSettings | CaptionSettings, ...] = ()
    """Datasets of what the backbone could do before, such as COCO's captions; written in the same way."""


class CoreSettings(Settings):
    """How runs are computed. No run id depends on it: the results are the same but for rounding."""

    shortcuts: Literal["on", "off"] = "on"
    """Whether work is left out that changes nothing: padding, what frozen layers gave before, unused last tokens."""
    cache_gb: float = Field(4.0, ge=0)
    """Of what frozen layers gave, so much is kept in a GPU's memory; the rest is read from files as it is needed."""
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where each epoch's values go beside history.csv: docs/sharing.md; no package comes with the harness."""


class SlurmSettings(Settings):
    """What a job array asks the cluster for; `extra` goes to sbatch as it is, `setup` runs before each task."""

    partition: str | None = None
    """As sbatch --partition."""
    account: str | None = None
    """As sbatch --account."""
    qos: str | None = None
    """As sbatch --qos."""
    constraint: str | None = None
    """As sbatch --constraint."""
    gres: str | None = None
    """As sbatch --gres."""
    gpus_per_node: int | str | None = None
    """As sbatch --gpus-per-node."""
    cpus_per_task: int | None = Field(None, ge=1)
    """CPU cores a job."""
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory a job."""
    timeout_min: int = Field(120, ge=1)
    """Time limit of a job, after which it goes on in a new one."""
    array_parallelism: int = Field(64, ge=1)
    """Jobs at once, over all of a sweep's arrays."""
    runs_per_job: int = Field(1, ge=1)
    """Runs that one job computes one after another."""
    parallel_runs: int = Field(1, ge=1)
    """Of a job's runs, side by side on its GPU."""
    signal_seconds: int = Field(120, ge=1)
    """Before its time limit: when Slurm warns a job, which then saves."""
    max_timeouts: int = Field(10, ge=0)
    """How often a job that made progress may continue after its time limit."""
    setup: tuple[str, ...] = ()
    """Shell lines before each task."""
    extra: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Other options of sbatch, as they are."""


ReportColumn = Literal[
    "params",
    "seeds",
    "i2t_r1",
    "i2t_r5",
    "i2t_r10",
    "t2i_r1",
    "t2i_r5",
    "t2i_r10",
    "mean_recall",
    "train_seconds",
    "peak_bytes",
    "flops_per_pair",
]


class ReportSettings(Settings):
    """What the report of a sweep holds. No run id depends on it."""

    significance: Literal["on", "off"] = "on"
    """Intervals, and marks of what can't be told apart from the best."""
    columns: Annotated[tuple[ReportColumn, ...], Field(min_length=1)] | None = None
    """Columns of table.md and table.tex, in this order; null: what each has by default. table.csv has all."""
    order: Literal["file", "mean_recall", "params"] = "file"
    """Order of rows: the sweep file's, best first, or fewest parameters first."""
    rows: Literal["auto", "all", "chosen"] = "auto"
    """Rows of table.tex: all, or of each method the one that validation chose; auto: all of up to 40."""
    group: Literal["dataset", "backbone", "separate"] = "dataset"
    """Several datasets or backbones in table.tex: in one table by dataset, or by backbone, or a table for each."""
    precision: int = Field(2, ge=0, le=4)
    """Decimals of recalls."""
    caption: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    """The caption of table.tex, as plain text; null: what was measured."""


# The section of a sweep file that each cluster scheduler reads; `bench.launch` has a folder of the same name for it.
SCHEDULERS: dict[str, type[Settings]] = {"slurm": SlurmSettings}
