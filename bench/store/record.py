"""result.json: its one schema, reader and writer. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.config.files import write_json
from bench.store.folder import RESULT

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "mean_recall")  # percent

Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0, lt=2**62)]
Amount = Annotated[float, Field(ge=0)]


class Unreadable(Exception):
    """A result.json that breaks the schema; the message says where and why, in one line."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)


class Scores(_Part):
    """Recalls of one split in percent, their bounds under ties, and the sizes: see `bench.core.ranks.metrics`."""

    i2t_r1: Percent
    i2t_r5: Percent
    i2t_r10: Percent
    t2i_r1: Percent
    t2i_r5: Percent
    t2i_r10: Percent
    mean_recall: Percent
    mean_recall_pessimistic: Percent | None = None
    mean_recall_optimistic: Percent | None = None
    i2t_ties: Count | None = None  # queries whose rank is tied
    t2i_ties: Count | None = None
    images: Count | None = None
    captions: Count | None = None


class Interpolation(_Part):
    """Weights between the backbone's and the trained ones: the share of the trained ones that was chosen, and the mean
    recall on the validation split at every share that was tried, in ascending order.
    """

    share: Annotated[float, Field(ge=0, le=1)]
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    val_mean_recall: tuple[Percent, ...]


class Selection(_Part):
    """What validation would have chosen in a run whose epoch the test set chose: the epoch, and its recall there."""

    validation_epoch: int
    test_mean_recall: Percent


class Metrics(_Part):
    """The scores of the chosen epoch; `best_epoch` is null for methods that do not train.

    With `interpolation` they are those at the chosen share, of validation and test. `test` is null for runs that never
    open the test set (trials). `selection`: of test-selected runs.
    """

    best_epoch: int | None = None
    val: Scores | None = None
    test: Scores | None = None
    interpolation: Interpolation | None = None
    selection: Selection | None = None

    @model_validator(mode="after")
    def _has_scores(self) -> Metrics:
        if self.test is None and self.val is None:
            raise ValueError("metrics need scores of the test set, or of validation")
        return self


class Cost(_Part):
    """Parameters, time, memory and size of a run. None: unknown, or without meaning for the method."""

    trainable_params: Count | None = None
    total_params: Count | None = None
    train_seconds: Amount | None = None
    images_per_second: Amount | None = None
    peak_bytes: Count | None = None
    adapter_bytes: Count | None = None
    flops_per_pair: Count | None = None


class Failure(_Part):
    """Why a run has no scores. `user`: a mistake of the user's, which the message explains; ignore the traceback."""

    type: str = "Error"
    message: str = ""
    traceback: str = ""
    user: bool = False

    @property
    def line(self) -> str:
        """The last line of the message; after the error's type unless it is a user's mistake."""
        lines = [line for line in self.message.splitlines() if line.strip()] or ["no message"]
        return lines[-1] if self.user else f"{self.type}: {lines[-1]}"


class Record(_Part):
    """The content of a result.json. A finished record has metrics; a failed one has an error.

    `provenance` (code, packages, data, device) is plain data without a schema, because entries are added over time.
    """

    version: Literal[1] = Field(1, alias="schema")
    run_id: str = ""
    sweep: str = ""
    spec: dict[str, Any] = Field(default_factory=dict)
    status: Literal["finished", "failed"]
    error: Failure | None = None
    metrics: Metrics | None = None
    cost: Cost | None = None
    provenance: dict[str, Any] | None = None

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _is_whole(self) -> Record:
        if self.status == "finished" and (self.metrics is None or not self.spec):
            raise ValueError("a finished run needs metrics and settings (spec)")
        return self

    @property
    def finished(self) -> bool:
        """Whether the run has ended with scores."""
        return self.status == "finished"


def parse(text: bytes) -> Record:
    """A record from result.json's bytes; Unreadable for anything else."""
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Unreadable(f"{RESULT}: {place + ': ' if place else ''}{first['msg']}") from error


def load(run_dir: Path, *, named: bool = True) -> Record | None:
    """The run's record, finished or failed; None if there is none yet.

    Unreadable if it does not keep to the schema or, unless `named` is false, is of a run that the folder is not named
    after; OSError if it can't be read.
    """
    try:
        found = parse((run_dir / RESULT).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    if named and found.run_id != run_dir.name:
        raise Unreadable(f"{RESULT}: the result of run '{found.run_id}', not of '{run_dir.name}'")
    return found


def read(run_dir: Path, *, named: bool = True) -> Record | None:
    """The run's record; None if there is none yet, and also if `load` finds the file unreadable."""
    try:
        return load(run_dir, named=named)
    except Unreadable:
        return None


def is_finished(run_dir: Path) -> bool:
    """Whether the run has a finished record. This is the only test of it."""
    found = read(run_dir)
    return found is not None and found.finished


def write(run_dir: Path, record: Record) -> None:
    """Write result.json atomically; UserError if the disk is full."""
    write_json(run_dir / RESULT, record.model_dump(mode="json", by_alias=True))


def write_failure(run_dir: Path, spec: dict[str, Any], failure: Failure) -> None:
    """Write a failed record for a run that could not write its own; a finished record is kept."""
    if not is_finished(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)  # it may have been deleted while the run was computed
        record = Record(run_id=run_dir.name, sweep=run_dir.parent.name, spec=spec, status="failed", error=failure)
        write(run_dir, record)
