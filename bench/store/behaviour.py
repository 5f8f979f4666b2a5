"""behaviour.json of a run: what was measured of its model, and of the backbone before it, beside the test. No torch.

The ranks behind it are in files of their own, one for each test set and model: see `ranks_file`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from bench.config.files import write_json
from bench.store.record import Count, Percent, Scores, _Part

FILE = "behaviour.json"
DATASETS = ("evaluate", "forgetting")  # the settings that list datasets
Role = Literal["own", "evaluate", "forgetting"]
Side = Literal["before", "after"]  # of adaptation: the frozen backbone, and the run's model
SIDES: tuple[Side, ...] = ("before", "after")


class Modality(_Part):
    """As `bench.core.geometry.Modality`."""

    uniformity: float
    similarity: float
    class_similarity: float | None = None
    effective_rank: float


class Geometry(_Part):
    """How a model's embeddings of a test set lie: `bench.core.geometry`. `text` is over all captions."""

    modality_gap: float
    alignment: float
    image: Modality | None = None
    text: Modality | None = None


class Classification(_Part):
    """Accuracy in percent on the test images by the names of their classes, of which there are so many."""

    accuracy: Percent
    mean_per_class: Percent
    classes: Count
    images: Count


class Measured(_Part):
    """What was measured of one model on one test set."""

    scores: Scores
    geometry: Geometry | None = None
    classification: Classification | None = None


class TestSet(_Part):
    """One test set: the frozen backbone on it (before), the run's model (after), and the drift between both.

    role: the run's own, one of other data (evaluate), or one of what the backbone could do (forgetting). sha256: of the
    names and captions. drift: mean of 1 - cosine between both models' embeddings of an item; None if not measured.
    note: why there are no numbers; empty where there are.
    """

    __test__ = False  # for pytest: no class of tests

    role: Role
    dataset: str
    sha256: str = ""
    note: str = ""
    before: Measured | None = None
    after: Measured | None = None
    drift_image: float | None = None
    drift_text: float | None = None


class Behaviour(_Part):
    """The content of a behaviour.json. `asked`: the settings of the section `behaviour` that it answers."""

    version: Literal[1] = Field(1, alias="schema")
    asked: dict[str, Any] = Field(default_factory=dict)
    sets: tuple[TestSet, ...] = ()

    model_config = ConfigDict(populate_by_name=True)

    def answers(self, asked: dict[str, Any]) -> bool:
        """Whether all that these settings ask for was measured without a failure."""
        measured = [key for key, value in asked.items() if key not in DATASETS and value]
        if asked.get("classify"):
            measured.append("templates")
        return (
            not any(each.note for each in self.sets)
            and all(self.asked.get(key) == asked.get(key) for key in measured)
            and all(each in self.asked.get(key, ()) for key in DATASETS for each in asked.get(key, ()))
        )


def ranks_file(run_dir: Path, sha256: str, side: Side) -> Path:
    """The file with the ranks of one model on the test set of this hash, in the format of ranks.npz.

    Runs that earlier versions measured have none.
    """
    return run_dir / f"behaviour-{sha256[:16]}-{side}.npz"


def is_measured(run_dir: Path, asked: dict[str, Any]) -> bool:
    """Whether the run has all that these settings ask for, and the ranks behind it."""
    found = read(run_dir)
    if found is None or not found.answers(asked):
        return False
    names = {role: [each.get("title") or each["name"] for each in asked.get(role, ())] for role in DATASETS}
    own = asked.get("geometry") or asked.get("classify")
    wanted = [each for each in found.sets if (own if each.role == "own" else each.dataset in names[each.role])]
    return all(ranks_file(run_dir, each.sha256, side).is_file() for each in wanted for side in SIDES)


def read(run_dir: Path) -> Behaviour | None:
    """The run's measures; None if there are none, or the file does not keep to the schema."""
    try:
        return Behaviour.model_validate_json((run_dir / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def write(run_dir: Path, sets: Sequence[TestSet], asked: dict[str, Any]) -> None:
    """Write behaviour.json atomically. What it held of other test sets stays."""
    old = read(run_dir) or Behaviour()
    new = {(each.role, each.dataset) for each in sets}
    kept = [each for each in old.sets if (each.role, each.dataset) not in new and not each.note]
    both = old.asked | asked
    for key in DATASETS:
        if lists := [each.get(key, []) for each in (old.asked, asked)]:
            both[key] = [*(each for each in lists[0] if each not in lists[1]), *lists[1]]
    found = Behaviour(asked=both, sets=(*sets, *kept))
    write_json(run_dir / FILE, found.model_dump(mode="json", by_alias=True))
