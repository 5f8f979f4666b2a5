"""Recipes: what wins over what, which keys a run departs in, and that the released ones run to a report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import methods
from bench import data, run, sweep
from bench import methods as command
from bench.config.errors import UserError
from bench.data.annotations import read
from bench.launch.start import plan_of
from bench.plan import entries, recipes
from bench.plan.grid import Sweep, expand
from bench.plan.spec import RunSpec
from bench.reporting import latex
from bench.store import planned
from methods import losses
from methods.base import Method
from tests.standins import render_all

SHARED = Path(__file__).resolve().parents[2] / "shared" / "annotations"
RELEASED = {
    **{"harma-released": "harma", "mrs-released": "mrs_adapter", "mrs-released-unfrozen": "mrs_adapter"},
    **{"posapl-released": "posapl", "mps-released": "mps_adapter"},
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned_with(method: Any, *overrides: str, **sections: Any) -> Sweep:
    """The sweep of one entry of the grid's methods, with these sections."""
    content = {"name": "x", "dataset": {"name": "demo"}, **sections, "grid": {"method": method}}
    Path("x.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return expand(Path("x.yaml"), overrides)


def one(method: Any, *overrides: str, **sections: Any) -> RunSpec:
    [found] = planned_with(method, *overrides, **sections).runs
    return found


def departs(found: Sweep) -> list[str]:
    [(_, keys)] = found.recipes.values()
    return keys


# --- what wins --------------------------------------------------------------------------------------------------------


def test_the_later_layer_wins_key_by_key(folder):
    """Default, the sweep's recipe, its sections, the entry's recipe, the entry's own, an override."""
    tiny = {"backbone": {"model": "tiny-clip", "weights": "random"}}
    seen = [
        one({"harma": {}}, **tiny).train,
        one({"harma": {}}, recipe="mrs-released").train,
        one({"harma": {}}, recipe="mrs-released", train={"epochs": 7}).train,
        one({"harma": {"recipe": "harma-released"}}, recipe="mrs-released", train={"epochs": 7}).train,
        one({"harma": {"recipe": "harma-released", "train": {"epochs": 9}}}, train={"epochs": 7}).train,
        one({"harma": {"recipe": "harma-released", "train": {"epochs": 9}}}, "train.epochs=3").train,
    ]
    assert [train.epochs for train in seen] == [20, 30, 7, 50, 9, 3]
    assert [train.batch_size for train in seen] == [128, 16, 16, 428, 428, 428]


def test_layers_of_the_backbone(folder):
    own = {"recipe": "harma-released", "backbone": {"model": "tiny-clip", "weights": "random"}}
    common = {"backbone": {"model": "ViT-B-32-quickgelu", "weights": "openai"}}
    names = [
        one("harma", recipe="common").backbone.model,
        one("harma", recipe="harma-released", **common).backbone.model,
        one({"harma": {"recipe": "harma-released"}}, **common).backbone.model,
        one({"harma": own}, **common).backbone.model,
        one({"harma": own}, "backbone.model=ViT-B-16", **common).backbone.model,
    ]
    assert names == ["ViT-B-32-quickgelu", "ViT-B-32-quickgelu", "ViT-B-32", "tiny-clip", "ViT-B-16"]


def test_layers_of_the_split(folder):
    pir, precomp = make_up(folder / "data")
    assert (pir, precomp) == ("pir", "precomp")
    dataset = {"name": "rsitmd", "root": "data"}
    splits = [
        one("harma", recipe="common", dataset=dataset).dataset.split,
        one("harma", recipe="mrs-released", dataset=dataset).dataset.split,
        one("harma", recipe="mrs-released", dataset=dataset | {"split": "pir"}).dataset.split,
        one({"harma": {"recipe": "mrs-released"}}, recipe="common", dataset=dataset | {"split": "pir"}).dataset.split,
        one({"harma": {"recipe": "mrs-released", "dataset": {"split": "pir"}}}, dataset=dataset).dataset.split,
        one({"harma": {"recipe": "mrs-released"}}, "dataset.split=pir", dataset=dataset).dataset.split,
    ]
    assert splits == ["pir", "precomp", "pir", "precomp", "pir", "pir"]


@pytest.fixture
def written(folder, monkeypatch):
    """Recipes of the test's own: `written(name, content)` writes one."""
    monkeypatch.setattr(recipes, "_HERE", folder)

    def write(name: str, content: str) -> None:
        (folder / f"{name}.yaml").write_text(
            "source: a test\nbackbone: {model: tiny-clip, weights: random}\n" + content
        )

    return write


def test_layers_of_the_loss(written):
    """A loss of the same name is overridden key by key, another one replaces it."""
    written("low", "loss: {hmmc: {margin: 0.1, view_dropout: 0.3}}\n")
    written("high", "loss: {hmmc: {margin: 0.4}}\n")

    def loss(method: Any, *overrides: str, **sections: Any) -> dict[str, Any]:
        found = one(method, *overrides, **sections).loss
        return {"name": found.name, "margin": found.margin, "view": getattr(found, "view_dropout", None)}

    assert loss("lora", recipe="low") == {"name": "hmmc", "margin": 0.1, "view": 0.3}
    assert loss("lora", recipe="low", loss={"hmmc": {"margin": 0.2}}) == {"name": "hmmc", "margin": 0.2, "view": 0.3}
    assert loss("lora", recipe="low", loss={"harma": {"margin": 0.5}}) == {"name": "harma", "margin": 0.5, "view": None}
    high = {"lora": {"recipe": "high"}}
    assert loss(high, recipe="low", loss="harma") == {"name": "hmmc", "margin": 0.4, "view": 0.3}
    own = {"lora": {"recipe": "high", "loss": {"hmmc": {"view_dropout": 0.6}}}}
    assert loss(own, recipe="low") == {"name": "hmmc", "margin": 0.4, "view": 0.6}
    assert loss(own, "loss.harma.margin=0.7") == {"name": "harma", "margin": 0.7, "view": None}
    assert loss(own, "loss=hmmc") == {"name": "hmmc", "margin": 0.4, "view": 0.2}


def test_layers_of_a_methods_settings_and_its_own_training(written):
    """A preset lies beneath what recipes write; `method` beneath nothing of its own recipe."""
    written("low", "train: {lr: 1, epochs: 5}\nmethod: {coop: {n_ctx: 3, init_std: 0.5, train: {lr: 2}, loss: hmmc}}\n")
    written("high", "like: low\nmethod: {coop: {n_ctx: 4}}\non: {demo: {train: {epochs: 6}}}\n")
    found = one("coop", recipe="low")
    assert (found.method.n_ctx, found.method.prompt_depth, found.train.lr, found.loss.name) == (3, 1, 2, "hmmc")
    assert one("vpt", recipe="low").train.lr == 1
    found = one({"coop": {"recipe": "high", "preset": "table", "init_std": 0.7}}, recipe="low")
    assert (found.method.n_ctx, found.method.prompt_depth, found.method.init_std) == (4, "all", 0.7)
    assert (found.train.lr, found.train.epochs) == (2, 6)  # of the recipe that it is like; on this dataset
    written("deep", "method: {coop: {prompt_depth: 2}}\n")
    assert one({"coop": {"preset": "table"}}, recipe="deep").method.prompt_depth == 2


def test_a_recipe_sets_the_epochs_of_a_dataset(folder):
    make_up(folder / "data", "rsicd")
    assert one("harma", recipe="harma-released", dataset={"name": "rsicd", "root": "data"}).train.epochs == 10


def test_lists_stay_axes(folder):
    entry = {"harma": {"recipe": ["harma-released", "mrs-released"], "heads": [4, 8], "train": {"lr": [1e-3, 2e-3]}}}
    found = planned_with(entry).runs
    assert [(run.train.epochs, run.method.heads, run.train.lr) for run in found] == [
        (epochs, heads, lr) for epochs in (50, 30) for heads in (4, 8) for lr in (1e-3, 2e-3)
    ]
    backbones = [
        {"model": "tiny-clip", "weights": "random", "seed": [1, 2]},
        {"model": "ViT-B-32", "weights": "random"},
    ]
    found = planned_with({"lora": {"backbone": backbones}}, recipe=["common", "mrs-released"]).runs
    assert [(run.backbone.model, run.backbone.seed, run.train.epochs) for run in found] == [
        (model, seed, epochs)
        for epochs in (20, 30)
        for model, seed in (("tiny-clip", 1), ("tiny-clip", 2), ("ViT-B-32", 0))
    ]


def test_an_override_stays_in_the_resolved_sweep_file(folder):
    """The report shows it as the sweep file with all overrides: it must give the same runs."""
    entry = {"harma": {"recipe": "harma-released", "train": {"epochs": 9, "lr": 1e-3}}}
    overrides = ["train.epochs=3", "backbone.weights=random", "loss.hmmc.margin=0.4", "train.eps=[1e-7, 1e-6]"]
    first = planned_with([entry, "lora"], *overrides, recipe="common", train={"epochs": 7})
    Path("y.yaml").write_text(yaml.safe_dump(first.content))
    again = expand(Path("y.yaml"))
    assert [run.run_id for run in again.runs] == [run.run_id for run in first.runs]
    assert {(run.train.epochs, run.loss.name, run.backbone.weights) for run in first.runs} == {(3, "hmmc", "random")}
    assert len(first.runs) == 4


def test_an_override_of_the_recipe_replaces_every_recipe(folder):
    found = planned_with([{"harma": {"recipe": "harma-released"}}, "lora"], "recipe=mrs-released", recipe="common")
    assert [run.train.batch_size for run in found.runs] == [16, 16]


def test_a_setting_of_a_method_may_be_called_backbone():
    class Fake(Method):
        name = "fake"
        paper = "-"
        backbone: str = "frozen"

    assert not entries._is_beside(Fake, "backbone", {"backbone": "trained"})
    assert not entries._is_beside(Fake, "backbone", {"backbone": ["frozen", "trained"]})
    assert entries._is_beside(Fake, "backbone", {"backbone": {"model": "tiny-clip"}})
    assert entries._is_beside(Fake, "dataset", {"dataset": "x"})


def test_the_command_line_of_one_run_wins_over_its_recipe(folder):
    given = ["--method", "harma", "--set", "recipe=harma-released"]
    [found] = run.sweep_of(run.parser().parse_args(given)).runs
    assert (found.backbone.weights, found.train.epochs) == ("laion2b_s34b_b79k", 50)
    given = [*given, "train.epochs=2", "--backbone", "tiny-clip", "--weights", "random"]
    [found] = run.sweep_of(run.parser().parse_args(given)).runs
    assert (found.backbone.model, found.backbone.weights, found.train.epochs) == ("tiny-clip", "random", 2)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "sections", "message"),
    [
        (
            "lora",
            {"recipe": "comon"},
            r"x.yaml:4: unknown recipe 'comon'; did you mean 'common'\? \(allowed: common, h",
        ),
        ({"harma": {"recipe": "harma-relased"}}, {"recipe": "common"}, r"x.yaml:8: .*did you mean 'harma-released'\?"),
        ({"harma": {"recipe": []}}, {"recipe": "common"}, r"x.yaml:8: grid.method.harma.recipe: an empty list"),
        ({"harma": {"recipe": {"a": 1}}}, {}, r"x.yaml:7: unknown recipe \{'a': 1\}"),
        ({"harma": {"backbone": {"modl": "x"}}}, {"recipe": "common"}, r"x.yaml:9: backbone: unknown key 'modl'; did"),
        ({"harma": {"dataset": {"splt": "pir"}}}, {"recipe": "common"}, r"x.yaml:9: dataset: unknown key 'splt'; did"),
        ({"harma": {"backbone": "ViT-B-32"}}, {"recipe": "common"}, r"x.yaml:8: backbone: expected settings 'key: val"),
        ("lora", {}, r"x.yaml:1: backbone: 'model' is missing"),
    ],
)
def test_mistakes_name_the_place_and_the_nearest_name(folder, method, sections, message):
    with pytest.raises(UserError, match=message):
        planned_with(method, **sections)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trian: {lr: 1}\n", r"mine.yaml:3: recipe mine: unknown key 'trian'; did you mean 'train'"),
        ("train: {lrr: 1}\n", r"mine.yaml:3: recipe mine: unknown key 'train.lrr'; did you mean 'lr'"),
        ("train: {lr: [1, 2]}\n", r"mine.yaml:3: recipe mine: train.lr: expected number, got \[1, 2\]"),
        ("like: your\n", r"mine.yaml:3: unknown recipe 'your'"),
        ("loss: hmcc\n", r"x.yaml:4: recipe mine: unknown loss 'hmcc'; did you mean 'hmmc'"),
        ("method: {lora: {rnk: 1}}\n", r"x.yaml:4: recipe mine: lora: unknown key 'rnk'; did you mean 'rank'"),
        ("method: {lora: {train: {lr: x}}}\n", r"x.yaml:4: recipe mine: train: lr: expected number"),
    ],
)
def test_a_mistake_in_a_recipe_names_its_place(written, content, message):
    written("mine", content)
    with pytest.raises(UserError, match=message):
        planned_with("lora", recipe="mine")


def test_a_split_that_is_not_there_names_the_recipe(folder):
    make_up(folder / "data")
    (folder / "data" / "train_caps.txt").unlink()
    with pytest.raises(UserError, match=r"x.yaml:9: recipe mrs-released: x.yaml:4: rsitmd, .*train_caps"):
        planned_with({"harma": {"recipe": "mrs-released"}}, dataset={"name": "rsitmd", "root": "data", "split": "pir"})


# --- departures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_whole(folder, name):
    """It is sourced, fits 80 columns, names what exists, and alone gives runs that depart from it in nothing."""
    recipe = recipes.get(name, name)
    if name == "posapl-released":
        pytest.importorskip("textblob", reason="its part-of-speech stream needs the extra `tags`")
    assert "arXiv" in recipes.text(name) or recipe.released is None
    assert max(map(len, recipes.text(name).splitlines())) <= 78
    make_up(folder / "data")
    for sections in (recipe.sections, *recipe.on.values()):
        for method, own in sections.get("method", {}).items():
            own_loss = own.get("loss", recipe.sections.get("loss")) or methods.get(method).default_loss
            assert own_loss in losses.names() or next(iter(own_loss)) in losses.names()
    assert set(recipe.on) <= set(data.DATASETS)
    method = recipe.released or "lora"
    dataset = {"name": "rsitmd", "root": "data"}
    assert departs(planned_with(method, recipe=name, dataset=dataset)) == []
    # Under another recipe for the whole sweep: a recipe for one method leaves nothing to it.
    assert departs(planned_with({method: {"recipe": name}}, recipe="common", dataset=dataset)) == []


def test_departures_are_the_keys_that_differ(folder):
    def keys(method: Any, *overrides: str, recipe: str = "harma-released") -> list[str]:
        return departs(planned_with(method, *overrides, recipe=recipe))

    split = ["dataset.split"]  # the demo has no such split
    assert keys("harma") == split
    assert keys("harma", "train.workers=1", "train.eval_batch_size=8", "train.grad_checkpointing=true") == split
    assert keys("harma", "train.epochs=2", "backbone.weights=random") == ["backbone.weights", *split, "train.epochs"]
    assert keys("harma", "loss.harma.margin=0.3", "train.clip_grad_norm=1") == [
        *split,
        "loss.margin",
        "train.clip_grad_norm",
    ]
    assert keys({"harma": {"heads": 4}}, "loss=hmmc") == ["method.heads", *split, "loss.name"]
    assert keys("lora") == ["method.name", *split]
    assert keys("zero_shot") == ["method.name", *split]
    assert keys({"lora": {"rank": 4}}, recipe="common") == []
    assert keys("zero_shot", "train.epochs=3", recipe="common") == []
    assert keys("zero_shot", "train.augment=none", recipe="common") == ["train.augment"]
    assert keys({"linear_probe": {"train": {"lr": 0.5}}}, recipe="common") == ["train.lr"]


def test_a_recipes_name_is_no_part_of_a_run(folder):
    """The same settings with and without a name are one run; the name is kept, wherever it stands in the file."""
    spelled = recipes.get("mrs-released", "").layer("demo", "mrs_adapter")
    plain = {"mrs_adapter": {"train": dict(spelled.train), "backbone": dict(spelled.backbone), "loss": "hmmc"}}
    found = planned_with([plain, {"mrs_adapter": {"recipe": "mrs-released"}}])
    assert list(found.recipes.values()) == [("mrs-released", ["dataset.split"])]
    assert [run.run_id for run in found.runs] == list(found.recipes)
    assert found.notes == (
        "not as in recipe mrs-released: mrs_adapter: dataset.split",
        "1 of 2 combinations are the same run as another",
    )
    assert plan_of(found).id == plan_of(planned_with(plain)).id


def test_the_plan_keeps_each_runs_recipe(folder):
    planned.write(folder / "r", plan_of(planned_with(["harma", "lora"], recipe="harma-released")))
    plan = planned.read(folder / "r")
    assert plan is not None
    assert list(plan.recipes.values()) == ["harma-released"] * 2
    assert list(plan.departs.values()) == [["dataset.split"], ["method.name", "dataset.split"]]
    assert [each.recipes for each in planned.every(folder / "r")] == [plan.recipes]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_lists_recipes_in_80_columns(capsys):
    assert command.main(["--recipes"]) == 0
    out = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines())
    assert [line for line in out.splitlines() if line and not line.startswith(" ")] == recipes.names()
    for text in ("source: Huang 2024, arXiv 2404.18253", "batch_size: 428", "rsicd: {train: {epochs: 10}}"):
        assert text in out
    assert command.main(["--recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mrs-released"]["train"]["step_gamma"] == 0.7
    assert command.main(["harma"]) == 0
    assert "Recipe harma-released: Huang 2024" in capsys.readouterr().out


# --- the released recipes, run to a report ----------------------------------------------------------------------------


def make_up(root: Path, name: str = "rsitmd") -> tuple[str, str]:
    """A dataset of 32 training, 8 validation and 8 test pictures in the layouts pir and precomp."""
    root.mkdir(parents=True)
    pictures = {
        split: [f"{split}/{split}_{i}.png" for i in range(n)] for split, n in (("train", 32), ("val", 8), ("test", 8))
    }

    def captions(name: str) -> list[str]:
        return [f"{word} planes beside hall {name}" for word in ("two", "three", "white", "small", "parked")]

    train = [{"image": name, "caption": caption} for name in pictures["train"] for caption in captions(name)]
    others = {
        split: [{"image": name, "caption": captions(name)} for name in pictures[split]] for split in ("val", "test")
    }
    for split, content in ({"train": train} | others).items():
        (root / f"{split}.json").write_text(json.dumps(content))
    for split, names in {"train": pictures["train"] + pictures["val"], "test": pictures["test"]}.items():
        bare = [Path(name).name for name in names for _ in range(5 if split == "test" else 1)]
        (root / f"{split}_filename.txt").write_text("\n".join(bare) + "\n")
        (root / f"{split}_caps.txt").write_text("\n".join(text for name in names for text in captions(name)) + "\n")
    render_all(root, [name for names in pictures.values() for name in names], 32)
    return "pir", "precomp"


def cut_down(root: Path) -> None:
    """The first images of the real annotations of RSITMD in both layouts, with pictures made up here."""
    root.mkdir()
    for split, rows in (("train", 160), ("val", 8), ("test", 8)):
        content = json.loads((SHARED / "rsitmd_pir" / f"{split}.json").read_text())[:rows]
        (root / f"{split}.json").write_text(json.dumps(content))
    for name, rows in {"train_caps": 200, "train_filename": 40, "test_caps": 40, "test_filename": 40}.items():
        lines = (SHARED / "rsitmd_precomp" / f"{name}.txt").read_text().splitlines(keepends=True)[:rows]
        (root / f"{name}.txt").write_text("".join(lines))
    for split in ("pir", "precomp"):
        for items in read(split, "rsitmd", root).values():
            render_all(root, [item.image for item in items], 32)


@pytest.mark.parametrize("captions", ["made up", "real"])
def test_the_released_recipes_run_to_a_report_that_marks_departures(folder, monkeypatch, captions):
    if captions == "real" and not (SHARED / "rsitmd_pir").is_dir():
        pytest.skip(f"the real annotations are not in {SHARED}")
    make_up(folder / "data") if captions == "made up" else cut_down(folder / "data")
    monkeypatch.setenv("RSITMD_ROOT", str(folder / "data"))
    file = Path(__file__).parents[1] / "sweeps" / "rsitmd-released.yaml"
    smaller = ["backbone.model=tiny-clip", "backbone.weights=demo", "train.epochs=1", "train.batch_size=16"]
    other = ["grid.seed=0", "train.workers=0", "train.captions_per_epoch=one"]
    assert sweep.main([str(file), "--executor", "inline", "--set", *smaller, *other]) == 0
    report = folder / "reports" / "rsitmd-released"
    with (report / "table.csv").open() as lines:
        rows = {row["recipe"]: row for row in csv.DictReader(lines)}
    keys = "backbone.model backbone.weights train.epochs train.batch_size train.captions_per_epoch"
    assert rows["harma-released"]["recipe_departs"].split() == keys.split()
    assert rows["mrs-released"]["recipe_departs"].split() == [key for key in keys.split() if "batch" not in key]
    assert {name: row["method"] for name, row in rows.items()} == RELEASED
    assert rows["mrs-released"]["dataset"] == "rsitmd (split=precomp)"
    texts = {name: (report / name).read_text() for name in ("table.md", "index.html", "table.tex")}
    for name in RELEASED:
        assert f"{name}§" in texts["table.md"]
        assert f"{name}§" in texts["index.html"]
        assert latex.escape(f"{name}§") in texts["table.tex"]
    assert "harma-released, harma: backbone.model, backbone.weights, train.epochs" in texts["index.html"]
    assert "published mean recall" in texts["table.md"].lower()
