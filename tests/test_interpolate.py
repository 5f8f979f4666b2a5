"""Interpolation with the backbone: the weights, the choice, the plan, and whole runs with their models loaded again."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml

import bench
import methods
from bench.compute.execute import execute
from bench.compute.interpolate import Line, check, choose
from bench.config import files
from bench.config.errors import UserError
from bench.conformance import suite
from bench.conformance.subject import CLOSE, Subject, cosines, distance
from bench.conformance.tiny import CLASSES, backbone
from bench.plan.grid import expand
from bench.plan.spec import RunSpec
from bench.store import folder, record
from methods import losses

ABLE = {"full_finetune", "lit", "last_block", "bitfit", "ln_tuning", "ssf", "lora", "peft"}
SUBJECTS = [each for name in methods.names() for each in suite.method_subjects(methods.get(name))]


def test_the_methods_that_can():
    assert {each.method.name for each in SUBJECTS if each.method.interpolates} >= ABLE
    for name in ("linear_probe", "harma", "coop", "zero_shot"):
        assert not methods.get(name)().interpolates
        with pytest.raises(UserError, match=f"{name} can't be interpolated"):
            check(methods.get(name)())


@pytest.mark.filterwarnings("ignore")  # the peft library's remarks on its own settings
@pytest.mark.parametrize(
    "subject",
    [
        each
        for each in SUBJECTS
        if each.method.interpolates and (each.kind == CLASSES[0] or each.method.trains_backbone)
    ],
    ids=lambda each: f"{each.label}-{each.kind}".replace(" ", "-"),
)
def test_from_the_backbone_to_the_trained_model(subject: Subject):
    subject = Subject(subject.label, subject.kind, subject.method, losses.get("siglip")())
    model, plain = subject.attached(), cosines(backbone(subject.kind))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained, extras = cosines(model), [parameter.clone() for parameter in model.extras.values()]
    line = Line(model, subject.method, subject.attached())
    assert line.ends
    found = {}
    for share in (0.5, 0.0, 1.0):  # in an order in which a step that builds on the one before would show
        line.move_to(share)
        found[share] = cosines(model)
    assert distance(found[0.0], plain) < CLOSE
    assert distance(found[1.0], trained) < CLOSE
    assert min(distance(found[0.5], plain), distance(found[0.5], trained)) > 10 * CLOSE
    assert all(torch.equal(a, b) for a, b in zip(extras, model.extras.values(), strict=True))


def test_the_weights_by_hand():
    model = backbone()
    method = methods.get("ln_tuning")()
    method.attach(model)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    untrained = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(1.0)
    Line(model, method, untrained).move_to(0.25)
    for name, weight in model.named_parameters():
        assert torch.allclose(weight, before[name] + 0.25 * weight.requires_grad, atol=1e-6)


@pytest.mark.parametrize(
    ("recalls", "best"), [([1, 3, 2], 0.5), ([3, 3, 1], 0.5), ([2, 1, 2], 1.0), ([3, 1, 2], 0.0), ([2, 2, 2], 1.0)]
)
def test_the_best_share_is_the_largest_of_equal_ones(recalls, best):
    class Recorded:
        at = None

        def move_to(self, share):
            self.at = share

    line, shares = Recorded(), (0.0, 0.5, 1.0)
    scores = dict(zip(shares, recalls, strict=True))
    curve, chosen = choose(line, shares, lambda: {"mean_recall": float(scores[line.at])})
    assert (curve.share, line.at, chosen["mean_recall"]) == (best, best, max(recalls))
    assert (curve.shares, curve.val_mean_recall) == (shares, tuple(map(float, recalls)))


# --- planning ---------------------------------------------------------------------------------------------------------


def plan(tmp_path: Path, grid: list, overrides: list[str] = (), **sections):
    content = {
        "name": "t",
        "dataset": {"name": "demo"},
        "backbone": {"model": "tiny-clip", "weights": "random"},
        "grid": {"seed": [0, 1], "method": grid},
    }
    path = tmp_path / "t.yaml"
    path.write_text(yaml.dump(content | sections, sort_keys=False))
    return expand(path, overrides)


MIXED = ["zero_shot", "linear_probe", "lora"]
SHARES = {"interpolate": [1, 0, 0.5]}


def test_a_sweep_interpolates_the_methods_that_can(tmp_path):
    plain, sweep = plan(tmp_path, MIXED), plan(tmp_path, MIXED, evaluation=SHARES)
    shares = {run.method.name: run.evaluation.interpolate for run in sweep.runs}
    assert shares == {"zero_shot": None, "linear_probe": None, "lora": (0.0, 0.5, 1.0)}
    assert sweep.notes == ("linear_probe is not interpolated: it does not change the backbone's own weights",)
    ids = [[run.run_id for run in each.runs if run.method.name != "lora"] for each in (plain, sweep)]
    assert ids[0] == ids[1], "what is not interpolated keeps its id"
    assert not {run.run_id for run in plain.runs if run.method.name == "lora"} & {run.run_id for run in sweep.runs}
    assert all("evaluation" not in run.to_dict() for run in plain.runs)
    assert all(RunSpec.from_dict(run.to_dict()) == run for run in sweep.runs)
    assert all("-interpolated-" in run.run_id for run in sweep.runs if run.method.name == "lora")


def test_a_method_interpolates_or_not_by_itself(tmp_path):
    entries = [{"lora": {"evaluation": SHARES}}, "bitfit", {"full_finetune": {"evaluation": {"interpolate": None}}}]
    shares = {run.method.name: run.evaluation.interpolate for run in plan(tmp_path, entries).runs}
    assert shares == {"lora": (0.0, 0.5, 1.0), "bitfit": None, "full_finetune": None}
    shares = {
        r.method.name: r.evaluation.interpolate for r in plan(tmp_path, entries, evaluation={"interpolate": [1]}).runs
    }
    assert shares == {"lora": (0.0, 0.5, 1.0), "bitfit": (1.0,), "full_finetune": None}
    sweep = plan(tmp_path, entries, ["evaluation.interpolate=[0.5]"])
    assert {run.evaluation.interpolate for run in sweep.runs} == {(0.5,)}


@pytest.mark.parametrize(
    ("grid", "sections", "message"),
    [
        (
            ["lora", {"coop": {"evaluation": SHARES}}],
            {},
            r"t.yaml:\d+: evaluation.interpolate: coop neither trains .* full_finetune, lit",
        ),
        (
            ["coop", "vpt"],
            {"evaluation": SHARES},
            r"t.yaml:\d+: evaluation.interpolate: no method of this sweep .* full_finetune",
        ),
        (["lora"], {"evaluation": {"interpolate": [0, 1.5]}}, r"less than or equal to 1|at most 1"),
        (["lora"], {"evaluation": {"interpolate": []}}, r"interpolate"),
        (["lora"], {"evaluation": {"interpolat": [1]}}, r"interpolate"),
    ],
)
def test_mistakes(tmp_path, grid, sections, message):
    with pytest.raises(UserError, match=message):
        plan(tmp_path, grid, **sections)


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "count"),
    [({"name": "full_finetune"}, 8_377_601), ({"name": "ssf"}, None), ({"name": "lora", "rank": 2}, 10_240)],
    ids=["full_finetune", "ssf", "lora"],
)
def test_a_run_is_scored_and_loaded_at_the_chosen_share(root, tmp_path, method, count):
    spec = RunSpec.from_dict(
        {
            "sweep": "test",
            "dataset": {"name": "ucm", "root": str(root), "split": "karpathy"},
            "backbone": {"model": "tiny-clip", "weights": "random"},
            "method": method,
            "loss": {"name": "info_nce"},
            "train": {"epochs": 2, "batch_size": 8, "lr": 2e-3, "workers": 0},
            "seed": 0,
            "evaluation": {"interpolate": [0.25, 0.75]},
        }
    )
    run_dir = tmp_path / spec.run_id
    run_dir.mkdir()
    files.write_bytes(run_dir / folder.RUN, spec.dump().encode())
    done = execute(run_dir)
    assert done.error is None
    again = record.load(run_dir)
    curve = again.metrics.interpolation
    assert curve.shares == (0.25, 0.75)
    assert curve.share in curve.shares
    assert again.metrics.val.mean_recall == max(curve.val_mean_recall)
    assert count in (None, again.cost.trainable_params)
    assert again.cost.trainable_params == spec.trainable_params()
    adapted = bench.load(run_dir)
    assert adapted.score("test")["mean_recall"] == again.metrics.test.mean_recall
    assert adapted.score("val")["mean_recall"] == again.metrics.val.mean_recall
    line_of = adapted.model.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.compute.adapted.Line", lambda *_: _Unmoved())
        trained = bench.load(run_dir).model.state_dict()
    assert line_of.keys() != trained.keys() or any(not torch.equal(line_of[key], trained[key]) for key in trained)


class _Unmoved:
    def move_to(self, share: float) -> None:
        pass


def test_results_from_before_interpolation_are_read():
    old = {"status": "finished", "spec": {"a": 1}, "metrics": {"test": dict.fromkeys(record.RECALLS, 1.0)}}
    assert record.Record.model_validate(old).metrics.interpolation is None
