"""Loggers of training: what they get, and that nothing they do fails a run or changes a number."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bench.compute.execute import execute
from bench.config.errors import Stopped, UserError
from bench.plan.grid import expand
from bench.plan.spec import RunSpec
from bench.store import folder, record
from tests.test_run import make_run

LORA = {"name": "lora", "rank": 2}
WANDB = """
calls = []

class Run:
    def log(self, values, step):
        calls.append(("log", step, values))

    def finish(self):
        calls.append(("finish",))

def init(**settings):
    calls.append(("init", settings))
    return Run()
"""


def logged(root: Path, run_dir: Path, *names: str, epochs: int = 2) -> Path:
    run_dir = make_run(root, run_dir, LORA, epochs=epochs)
    settings = yaml.safe_load((run_dir / folder.RUN).read_text())
    settings["core"]["loggers"] = list(names)
    (run_dir / folder.RUN).write_text(yaml.safe_dump(settings))
    return run_dir


def history(run_dir: Path) -> list[dict[str, float]]:
    with (run_dir / folder.HISTORY).open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A package `wandb` that notes its calls: the real one is not needed, and nothing could be uploaded."""
    place = tmp_path / "fake"
    place.mkdir()
    (place / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    import wandb

    yield wandb
    sys.modules.pop("wandb", None)


def test_wandb_gets_each_epoch_once_and_is_offline(root, tmp_path, wandb, monkeypatch):
    run_dir = logged(root, tmp_path / "run", "wandb")
    assert execute(run_dir).error is None
    (kind, settings), *logs, last = wandb.calls
    assert (kind, last) == ("init", ("finish",))
    assert (settings["mode"], settings["id"], settings["project"]) == ("offline", "run", "test")
    assert str(root) not in str(settings)
    rows = history(run_dir)
    assert [step for _, step, _ in logs] == [1, 2]
    for (_, _, values), row in zip(logs, rows, strict=True):
        assert values == pytest.approx({key: value for key, value in row.items() if key != "epoch"})
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.calls.clear()
    execute(logged(root, tmp_path / "online", "wandb", epochs=1))
    assert wandb.calls[0][1]["mode"] == "online"


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_logger_that_fails_is_a_warning(root, tmp_path, wandb, monkeypatch, capsys, where):
    def fail(*_, **__):
        raise SystemExit("no network") if where == "init" else RuntimeError("no network")

    monkeypatch.setattr(wandb if where == "init" else wandb.Run, where, fail)
    run_dir = logged(root, tmp_path / "run", "wandb", epochs=1)
    assert execute(run_dir).error is None
    assert capsys.readouterr().err.count("warning: the logger wandb stopped") == 1
    assert len(history(run_dir)) == 1


def test_tensorboard_holds_every_epoch_of_a_run_that_was_stopped(root, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = logged(root, tmp_path / "run", "tensorboard", epochs=3)
    with pytest.raises(Stopped):
        execute(run_dir, should_stop=lambda: (run_dir / folder.HISTORY).exists() and len(history(run_dir)) >= 1)
    assert execute(run_dir).error is None
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    rows = history(run_dir)
    assert len(rows) == 3
    for name in set(rows[0]) - {"epoch", "seconds"}:
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx({int(row["epoch"]): row[name] for row in rows}, rel=1e-6)
        assert len(events.Scalars(name)) == 3


def test_no_number_and_no_id_depends_on_loggers(root, tmp_path, wandb):
    with_, without = logged(root, tmp_path / "with", "wandb"), logged(root, tmp_path / "without")
    assert RunSpec.load(with_ / folder.RUN).run_id == RunSpec.load(without / folder.RUN).run_id
    for run_dir in (with_, without):
        assert execute(run_dir).error is None
    assert record.read(with_).metrics == record.read(without).metrics
    assert (with_ / folder.ADAPTER).read_bytes() == (without / folder.ADAPTER).read_bytes()


@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)])
def test_a_missing_package_is_named_while_planning(tmp_path, monkeypatch, found):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: s\ndataset: {name: demo}\nbackbone: {model: tiny-clip, weights: random}\n"
        "core: {loggers: [wandb]}\ngrid: {seed: 0, method: [zero_shot]}\n"
    )
    monkeypatch.setattr("bench.plan.grid.find_spec", lambda name: found)
    with pytest.raises(UserError, match=r"sweep\.yaml:4.*wandb is not installed; .*pip install wandb"):
        expand(file)
    file.write_text(file.read_text().replace("wandb", "mlflow"))
    with pytest.raises(UserError, match="loggers"):
        expand(file)
