from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import get_args

import pytest

from bench.config.document import parse_yaml
from bench.config.errors import UserError
from bench.config.settings import BackboneSettings, DatasetSettings, TrainSettings
from bench.data import DATASETS
from bench.plan import spec
from bench.plan.grid import Sweep, expand
from bench.plan.spec import RunSpec
from methods.base import Method

SWEEPS = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))
BASE = """name: x
dataset: {name: demo}
backbone: {model: tiny-clip, weights: random}
train: {epochs: 6}
grid:
  seed: [0, 1]
  method:
    - lora: {rank: [2, 8]}
    - harma: {bottleneck: 32, train: {lr: 4e-4}}
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """plan(text or {old: new}, *overrides) -> Sweep, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def expand_text(changes: dict[str, str] | str | None = None, *overrides: str) -> Sweep:
        text = changes if isinstance(changes, str) else BASE
        for old, new in (changes if isinstance(changes, dict) else {}).items():
            assert old in text
            text = text.replace(old, new)
        Path("x.yaml").write_text(text)
        return expand(Path("x.yaml"), overrides)

    return expand_text


# --- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ("12:30", "12:30"),
        ("2026-11-21", "2026-11-21"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        (".nan", ".nan"),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("{<<: 1}", {"<<": 1}),
        ("[&a [1], *a]", [[1], [1]]),
    ],
)
def test_yaml_scalars(text, value):
    found, _ = parse_yaml(text, "x.yaml")
    assert found == value
    assert type(found) is type(value)


def test_yaml_lines():
    _, lines = parse_yaml("a: 1\nb:\n  - c\n  - d: {e: 2,\n      f: 3}\n", "x.yaml")
    assert lines[("a",)] == 1
    assert lines[("b", 0)] == 3
    assert lines[("b", 1, "d", "e")] == 4
    assert lines[("b", 1, "d", "f")] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "x.yaml:2: key 'a' is written twice"),
        ("a: [1\nb: 2", "x.yaml:2: not valid YAML"),
        ("a: {b: ${HOME}/x}", "x.yaml:1: not valid YAML: expected ',' or '}', but got '{' (quote texts with ${...}"),
        ("a: 1\n---\nb: 2", "x.yaml:2: not valid YAML"),
        ("a: !!python/object:os.system x", "x.yaml:1: cannot read"),
        ("\nx: 1e999", "x.yaml:2: 1e999 is too large"),
        ("&a [*a]", "x.yaml:1: an alias that contains itself"),
        ("[1]: 2", "x.yaml:1: a key must be one word"),
        ("a: \x00", "x.yaml: not valid YAML"),
        # Limits.
        (
            "a: &a [1, 1]\n"
            + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]" for i in range(22)),
            "x.yaml:1: over 20,000 values, counting aliases as often as they are used",
        ),
        ("[" * 40 + "]" * 40, "x.yaml:1: nested over 32 deep"),
        ("[" * 100_000, "x.yaml:1: nested over 32 deep"),
        ("- " * 50_000, "x.yaml:1: nested over 32 deep"),
        ("\nx: 1e999", "x.yaml:2: 1e999 is too large for a number"),
        ("\nx: -9223372036854775809", "x.yaml:2: -9223372036854775809 is too large for a number"),
        ("x: !!float nan", "x.yaml:1: nan is too large for a number"),
        ("\nx: " + "9" * 5000, "x.yaml:2: 99999999"),
        ("\nx: " + "9" * 500 + ".0", "x.yaml:2: 99999999"),
        ('\nx: "\\ud800"', "x.yaml:2: half a character (a lone surrogate) in '\\ud800'"),
        ('\n"\\udfff": 1', "x.yaml:2: half a character (a lone surrogate) in '\\udfff'"),
    ],
)
def test_bad_yaml(text, message):
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "x.yaml")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 300


def test_the_largest_numbers():
    assert parse_yaml("[9223372036854775807, -9223372036854775807, 1e308]", "x")[0] == [2**63 - 1, 1 - 2**63, 1e308]


def test_what_is_no_text_file_is_refused(tmp_path):
    (tmp_path / "large.yaml").write_text("# x\n" * 2**17)
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, message in {
        tmp_path / "large.yaml": r"large\.yaml: over 256 KiB",
        tmp_path / "pipe.yaml": "pipe.yaml: not a regular file",
        tmp_path: "not a regular file",
        Path("/dev/zero"): "/dev/zero: not a regular file",
        Path("/proc/self/mem"): "/proc/self/mem: not a regular file",
        Path("x" * 300): "no file xxx",
        Path("a\0b"): "no file a",
    }.items():
        with pytest.raises(UserError, match=message):
            expand(path)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bottleneck: 32": "bottlneck: 32"},
            "x.yaml:9: harma: unknown key 'bottlneck'; did you mean 'bottleneck'? "
            "(allowed: bottleneck, heads, shared, recipe, loss, evaluation, dataset, backbone, train)",
        ),
        ({"- harma:": "- hamra:"}, "x.yaml:9: unknown method 'hamra'; did you mean 'harma'?"),
        ({"bottleneck: 32": "bottleneck: wide"}, "x.yaml:9: harma: bottleneck: expected integer, got 'wide'"),
        ({"bottleneck: 32": "bottleneck: 20"}, "x.yaml:9: harma: bottleneck 20 must be a multiple"),
        ({"{lr: 4e-4}": "{lrr: 4e-4}"}, "x.yaml:9: train: unknown key 'lrr'; did you mean 'lr'?"),
        (
            {"rank: [2, 8]": "rank: 1000000000000000000"},
            "x.yaml:8: lora: 5,120,000,000,000,000,000,000 trainable parameters, beyond any memory; lower its sizes",
        ),
        ({"{rank: [2, 8]}": "5"}, "x.yaml:8: lora: expected settings 'key: value', got 5"),
        ({"{rank: [2, 8]}": "{loss: hmcc}"}, "x.yaml:8: unknown loss 'hmcc'; did you mean 'hmmc'?"),
        ({"rank: [2, 8]": "rank: []"}, "x.yaml:8: grid.method.0.lora.rank: an empty list gives no run"),
        ({"rank: [2, 8]": "targets: [mlp.c_fc, c_prj]"}, "x.yaml:8: lora: targets.1: expected 'attn.q', "),
        ({"epochs: 6": "epochs: 6, lr: no"}, "x.yaml:4: train: lr: expected number, got 'no'"),
        ({"epochs: 6": "epochs: 0"}, "x.yaml:4: train: epochs: expected greater than or equal to 1, got 0"),
        ({"epochs: 6": "epochs: 6.5"}, "x.yaml:4: train: epochs: expected integer, got 6.5"),
        ({"epochs: 6": "grad_checkpointing: yes"}, "x.yaml:4: train: grad_checkpointing: expected boolean, got 'yes'"),
        (
            {"epochs: 6": "schedule: cosin"},
            "x.yaml:4: train: schedule: expected 'cosine', 'linear', 'step', 'constant', got 'cosin'; "
            "did you mean 'cosine'?",
        ),
        ({"weights:": "wights:"}, "x.yaml:3: backbone: 'weights' is missing"),
        ({"tiny-clip": "tiny-clop"}, "x.yaml:3: backbone.model: open_clip has no model 'tiny-clop'"),
        (
            {"tiny-clip": "RN50"},
            "x.yaml:8: lora needs transformer blocks as CLIP and SigLIP have them, but the image tower",
        ),
        ({"weights: random": "weights: gone/x.pt"}, "x.yaml:3: backbone.weights: no file /"),
        ({"name: demo": "name: rsitmd, root: gone"}, "x.yaml:2: dataset.root of rsitmd: no folder /"),
        ({"name: demo": "name: rsitmd"}, "x.yaml:2: dataset.root is not set"),
        ({"name: demo": "name: ucm, split: pir"}, "x.yaml:2: ucm has no split 'pir'"),
        (
            {"name: demo": "name: rsitmd, root: $PETL_NOWHERE/x"},
            "x.yaml:2: the environment variable PETL_NOWHERE is not set",
        ),
        ({"[0, 1]": "[0, one]"}, "x.yaml:6: grid: seed: expected whole numbers from 0, got 'one'"),
        ({"name: x": "name: ../x"}, "x.yaml:1: sweep: name: expected letters, digits"),
        ({"name: x": f"name: {'x' * 256}"}, "x.yaml:1: sweep: name: expected at most 255 characters, got 'xxx"),
        ({"name: demo": f"name: rsitmd, root: {'x' * 256}"}, "x.yaml:2: dataset.root of rsitmd: no folder /"),
        ({"name: demo": 'name: rsitmd, root: "a\\0b"'}, "x.yaml:2: dataset.root of rsitmd: no folder /"),
        ({"weights: random": f"weights: {'x' * 256}.pt"}, "x.yaml:3: backbone.weights: no file /"),
        ({"weights: random": 'weights: "a\\0.pt"'}, "x.yaml:3: backbone.weights: no file /"),
        (
            {"weights: random": "weights: /proc/self/mem"},
            "x.yaml:3: backbone.weights: /proc/self/mem is no regular file",
        ),
        ({"weights: random": "weights: /dev/zero"}, "x.yaml:3: backbone.weights: /dev/zero is no regular file"),
        ({"name: x": "named: x"}, "x.yaml:1: sweep: 'name' is missing"),
        ("", "x.yaml: expected a sweep file with 'name:'"),
        ("- a", "x.yaml: expected a sweep file with 'name:'"),
    ],
)
def test_mistakes(plan, changes, message):
    with pytest.raises(UserError) as caught:
        plan(changes)
    assert str(caught.value).startswith(message)


def test_all_mistakes_of_a_section_are_told(plan):
    with pytest.raises(UserError) as caught:
        plan({"epochs: 6": "epochs: x\n  , lr: y"})
    assert [line.split(": ")[:3] for line in str(caught.value).splitlines()] == [
        ["x.yaml:4", "train", "epochs"],
        ["x.yaml:5", "train", "lr"],
    ]


def test_hundreds_of_mistakes_are_cut_short(plan):
    with pytest.raises(UserError) as caught:
        plan(BASE + f"slurm: {{setup: {list(range(200))}}}\n")
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[0] == "x.yaml:10: slurm: setup.0: expected string, got 0"
    assert lines[-1] == "and 180 more mistakes in slurm"


def test_missing_file():
    with pytest.raises(UserError, match=r"no file gone\.yaml"):
        expand(Path("gone.yaml"))


# --- axes ------------------------------------------------------------------------------------------------------------


def test_grid_order(plan):
    runs = plan({"epochs: 6": "epochs: [1, 2]"}).runs
    assert [(r.method.name, getattr(r.method, "rank", 0), r.train.epochs, r.seed) for r in runs[:5]] == [
        ("lora", 2, 1, 0),
        ("lora", 2, 1, 1),
        ("lora", 2, 2, 0),
        ("lora", 2, 2, 1),
        ("lora", 8, 1, 0),
    ]
    assert len(runs) == 12


def test_a_list_is_an_axis_only_where_the_setting_takes_one_value(plan):
    one = plan({"rank: [2, 8]": "targets: [mlp.c_fc, mlp.c_proj]", "epochs: 6": "betas: [0.9, 0.99]"}).runs
    assert len(one) == 4
    assert one[0].method.targets == ("mlp.c_fc", "mlp.c_proj")
    two = plan({"rank: [2, 8]": "targets: [[mlp.c_fc], [attn.q]]", "epochs: 6": "betas: [[0.9, 0.99], [0, 0]]"}).runs
    assert len(two) == 12
    assert two[2].train.betas == (0.0, 0.0)


def test_sections_may_be_lists(plan):
    text = {
        "{model: tiny-clip, weights: random}": "[{model: tiny-clip, weights: random, seed: [1, 2]}, "
        "{model: ViT-B-32, weights: random}]"
    }
    runs = plan(text, "grid.seed=0").runs
    assert [(r.backbone.model, r.backbone.seed) for r in runs[::3]] == [
        ("tiny-clip", 1),
        ("tiny-clip", 2),
        ("ViT-B-32", 0),
    ]


def test_losses(plan):
    runs = plan({"train: {lr: 4e-4}": "loss: [info_nce, {harma: {margin: [0.1, 0.2]}}]"}, "grid.seed=0").runs
    assert [(r.loss.name, getattr(r.loss, "margin", None)) for r in runs] == [
        ("info_nce", None),
        ("info_nce", None),
        ("info_nce", None),
        ("harma", 0.1),
        ("harma", 0.2),
    ]
    everywhere = plan({"grid:": "loss: hmmc\ngrid:"}).runs
    assert {r.loss.name for r in everywhere} == {"hmmc"}


def test_per_method_train(plan):
    runs = plan().runs
    assert {(r.method.name, r.train.lr, r.train.epochs) for r in runs} == {("lora", 1e-4, 6), ("harma", 4e-4, 6)}


def test_untrained_methods_run_once(plan):
    assert plan({"- lora: {rank: [2, 8]}": "- zero_shot"}).notes == ()
    text = {"- lora: {rank: [2, 8]}": "- zero_shot: {train: {captions: harma, lr: 1}}\n    - zero_shot"}
    sweep = plan(text, "train.epochs=[1,2]")
    zero = [r for r in sweep.runs if r.method.name == "zero_shot"]
    assert [(r.seed, r.train) for r in zero] == [(0, TrainSettings(captions="harma")), (0, TrainSettings())]
    assert sweep.notes == ("2 of 8 combinations are the same run as another",)


def test_runs_are_counted_before_they_are_built(plan):
    """A billion runs, in each of the ways to write them, are refused in less time than a thousand take."""
    thousand = str(list(range(1, 1001)))
    lora = "    - lora: {rank: [2, 8]}\n"
    for changes in (
        {"[2, 8]": f"{thousand}, alpha: {thousand}, dropout: {thousand}"},
        {"[0, 1]": thousand, "[2, 8]": thousand},
        {"{epochs: 6}": f"{{epochs: {thousand}, batch_size: {thousand}, lr: {thousand}}}"},
        {"{epochs: 6}": f"{{epochs: {thousand}}}", "{lr: 4e-4}": f"{{lr: {thousand}}}"},
        {"random}": f"random, seed: {thousand}}}", "name: demo": f"name: demo, split_seed: {thousand}"},
        {"grid:": f"loss: {{harma: {{temperature: {thousand}}}}}\ngrid:", "[0, 1]": thousand},
        {"[0, 1]": thousand, lora: "    - zero_shot\n" + lora * 10},
        {"{epochs: 6}": "[" + f"{{epochs: {thousand}}}, " * 11 + "]"},
    ):
        start = time.perf_counter()
        with pytest.raises(UserError, match=r"runs, more than 10,000; shorten its lists, or make several sweeps of it"):
            plan(changes)
        assert time.perf_counter() - start < 2


def test_the_limit_counts_what_is_built(plan, monkeypatch):
    """At the number of combinations a sweep is planned, below it is refused."""
    cases: list[tuple[int, dict[str, str], tuple[str, ...]]] = [
        (6, {}, ()),
        (24, {"epochs: 6": "epochs: [1, 2], betas: [[0.9, 0.99], [0, 0]]"}, ()),
        (54, {"grid:": "loss: [info_nce, {harma: {margin: [0.1, 0.2]}}]\ngrid:"}, ("backbone.seed=[1,2,3]",)),
        (9, methods_of("    - coop: {preset: [paper, table], n_ctx: [4, 8]}\n    - zero_shot\n"), ("grid.seed=[0,1]",)),
        (4, methods_of("    - harma: {recipe: [harma-released, mrs-released], loss: [hmmc, info_nce]}\n"), ()),
        (4, methods_of("    - lora\n    - bitfit\n") | {"  method:": "  budget: [20480, 40960]\n  method:"}, ()),
    ]
    for count, changes, overrides in cases:
        monkeypatch.setattr("bench.plan.grid.MOST_RUNS", count)
        plan(changes, *overrides)
        monkeypatch.setattr("bench.plan.grid.MOST_RUNS", count - 1)
        with pytest.raises(UserError, match=f"x.yaml:.*{count} runs, more than {count - 1};"):
            plan(changes, *overrides)


# --- overrides -------------------------------------------------------------------------------------------------------


def test_overrides_win_everywhere(plan):
    runs = plan({"{lr: 4e-4}": "{lr: 4e-4, eps: 1e-6}"}, "train.lr=3e-4", "grid.seed=[7]", "loss=hmmc").runs
    assert {(r.train.lr, r.seed, r.loss.name) for r in runs} == {(3e-4, 7, "hmmc")}
    assert {r.train.eps for r in runs if r.method.name == "harma"} == {1e-6}
    assert {r.train for r in plan(None, "train={epochs: 2}").runs} == {TrainSettings(epochs=2)}
    assert [r.method.name for r in plan(None, "grid.method=vpt").runs] == ["vpt", "vpt"]


def test_override_creates_a_section(plan):
    assert plan(None, "slurm.partition=gpu").schedulers["slurm"].partition == "gpu"
    assert plan({"train: {epochs: 6}\n": ""}, "train.epochs=2").runs[0].train.epochs == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epocs=2", "--set train.epocs=2: train: unknown key 'epocs'; did you mean 'epochs'?"),
        (
            "grid.sed=2",
            "--set grid.sed=2: sweep: unknown key 'grid.sed'; did you mean 'seed'? (allowed: seed, budget, method)",
        ),
        ("trian.epochs=2", "--set trian.epochs=2: sweep: unknown key 'trian'; did you mean 'train'?"),
        ("train.epochs=x", "--set train.epochs=x: train: epochs: expected integer, got 'x'"),
        ("train.epochs", "--set train.epochs: expected key=value"),
        ("name.x=1", "--set name.x=1: 'name' holds 'x', not settings"),
        ("slurm.partitio=a", "--set slurm.partitio=a: slurm: unknown key 'partitio'; did you mean 'partition'?"),
        ("train.lr=[1", "--set train.lr=[1:1: not valid YAML"),
        ("train.lr=1e999", "--set train.lr=1e999:1: 1e999 is too large for a number"),
        (
            ".".join(["train"] * 5000) + "=1",
            "--set train.train.train",
        ),
        ("train.lr=\udcff", "--set train.lr=\udcff: not valid YAML"),
        ("\udcff.lr=1", "--set \udcff.lr=1: half a character"),
    ],
)
def test_bad_overrides(plan, override, message):
    with pytest.raises(UserError) as caught:
        plan(None, override)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400


# --- paths and environment -------------------------------------------------------------------------------------------


def karpathy(folder: Path, caption: str = "a pond") -> None:
    folder.mkdir(parents=True)
    entry = {"filename": "a.png", "split": "train", "sentences": [{"raw": caption}]}
    (folder / "dataset.json").write_text(json.dumps({"images": [entry]}))


def test_environment_and_paths(plan, tmp_path, monkeypatch):
    karpathy(tmp_path / "data" / "r$1")
    monkeypatch.setenv("DATA", "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in ("$DATA/r$$1", "'${DATA}/r$$1'", "~/data/r$$1"):
        run = plan({"name: demo": f"name: rsitmd, split: karpathy, root: {root}"}).runs[0]
        assert run.dataset.root == str(tmp_path / "data" / "r$1")


def test_the_id_follows_content_not_paths(plan, tmp_path):
    for name, caption in (("a", "a pond"), ("b", "a pond"), ("c", "two ponds")):
        karpathy(tmp_path / name, caption)
        (tmp_path / f"{name}.pt").write_text(caption)
    ids = [
        plan({"name: demo": f"name: rsitmd, split: karpathy, root: {name}", "random": f"{name}.pt"}).runs[0].run_id
        for name in "abc"
    ]
    assert ids[0] == ids[1] != ids[2]
    mixed = plan({"name: demo": "name: rsitmd, split: karpathy, root: a", "random": "c.pt"}).runs[0].run_id
    assert mixed not in ids


# --- runs ------------------------------------------------------------------------------------------------------------


def test_id(plan):
    runs = plan().runs
    assert [r.run_id.rpartition("-")[0] for r in runs[::2]] == [
        "lora-rank2-s0",
        "lora-rank8-s0",
        "harma-bottleneck32-lr0.0004-s0",
    ]
    assert [r.run_id for r in runs] == [r.run_id for r in plan().runs]
    assert plan({"name: x": "name: y"}, "train.workers=0").runs[0].run_id == runs[0].run_id
    assert plan(None, "core={shortcuts: off, cache_gb: 1}").runs[0].run_id == runs[0].run_id


def test_the_id_is_a_folders_name_whatever_the_method_is_called(plan):
    [run, *_] = plan().runs
    long = type("Long", (type(run.method),), {"name": "long" * 100})
    run_id = dataclasses.replace(run, method=long(rank=2)).run_id
    assert len(run_id) < 200
    assert run_id.startswith("long" * 25 + "-rank2-s0-")


def test_the_id_changes_with_every_setting(plan):
    other = {
        "optimizer": "adam", "schedule": "step", "precision": "bf16", "augment": "clip", "captions": "clip",
        "captions_per_epoch": "one", "grad_checkpointing": "true", "betas": "[0.5, 0.5]", "warmup": 0.5,
        "decay": "all",
    }  # fmt: skip
    keys = [key for key in TrainSettings.model_fields if key != "workers"]
    overrides = [f"train.{key}={other.get(key, 3)}" for key in keys]
    overrides += ["backbone.seed=3", "backbone.model=ViT-B-32", "dataset.split_seed=3", "dataset.val_fraction=0.5"]
    overrides += ["loss=hmmc", "loss={info_nce: {targets: image}}", "grid.seed=3", "grid.method=vpt"]
    overrides += ["grid.method={lora: {rank: 3}}", "grid.method={lora: {rank: 2, alpha: 1}}"]
    ids = [plan(None, override).runs[0].run_id for override in [*overrides, "train.workers=0"]]
    assert len(set(ids)) == len(ids)


def test_a_setting_that_came_later_leaves_ids_at_its_default(plan):
    run = plan().runs[0]

    class Before(Method):
        name = "grown"
        paper = "none, for tests"

    class After(Before):
        added = ("extra",)
        extra: int = 3

    def run_id(method: Method) -> str:
        return dataclasses.replace(run, method=method).run_id

    assert run_id(After()) == run_id(Before())
    assert run_id(After(extra=4)) != run_id(Before())


def test_the_id_follows_what_the_augmentation_means(plan, monkeypatch):
    def ids() -> list[str]:
        return [plan(None, f"train.augment={name}").runs[0].run_id for name in ("none", "clip", "harma")]

    before = ids()
    monkeypatch.setattr(spec, "AUGMENTATION", spec.AUGMENTATION + 1)
    assert [one == other for one, other in zip(before, ids(), strict=True)] == [True, False, False]


def test_round_trip(plan, tmp_path):
    for run in plan(None, "loss={hmmc: {margin: 0.1}}", "train.betas=[0.8, 0.9]").runs:
        assert RunSpec.from_dict(run.to_dict()) == run
        (tmp_path / "run.yaml").write_text(run.dump())
        again = RunSpec.load(tmp_path / "run.yaml")
        assert again == run
        assert again.run_id == run.run_id


def test_texts_that_look_like_numbers_survive(plan, tmp_path):
    run = plan().runs[0]
    for tag in ("1e5", "no", "010", "true", "12:30", "~"):
        spec = RunSpec(
            run.sweep, run.dataset, BackboneSettings(model="m", weights=tag), run.method, run.loss, run.train, 0
        )
        (tmp_path / "run.yaml").write_text(spec.dump())
        assert RunSpec.load(tmp_path / "run.yaml").backbone.weights == tag


def test_a_broken_run_file_says_where(plan, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(plan().runs[0].dump().replace("rank:", "rnak:"))
    with pytest.raises(UserError, match=r"run\.yaml:\d+: method: unknown key 'rnak'; did you mean 'rank'"):
        RunSpec.load(file)


def test_trainable_params_count_the_loss_too(plan):
    runs = plan(None, "backbone.model=ViT-B-32", "grid.method=[harma, zero_shot]", "grid.seed=0").runs
    assert [run.trainable_params() for run in runs] == [5_934_397, 0]


def test_dataset_names_agree():
    assert set(get_args(DatasetSettings.model_fields["name"].annotation)) == set(DATASETS)


# --- the files that ship ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps(file, tmp_path, monkeypatch):
    head = file.read_text().split("name:")[0]
    assert f"python -m bench.sweep sweeps/{file.name}" in head
    assert "Expected time" in head
    karpathy(tmp_path / "data")
    for name in ("RSITMD", "RSICD", "UCM", "CAPTIONS"):
        monkeypatch.setenv(f"{name}_ROOT", str(tmp_path / "data"))
    own = ["dataset.file=dataset.json"] if file.stem == "captions" else ["dataset.split=karpathy"]
    overrides = ["backbone.weights=random", *([] if file.stem.startswith("demo") else own)]
    sweep = expand(file, overrides)
    assert sweep.name == file.stem
    some = {"zero_shot", "lora"} if file.stem != "rsitmd-released" else set()
    some |= {"mrs_adapter", "harma"} if file.stem not in ("captions", "demo-robustness", "demo-behaviour") else set()
    runs = [*sweep.runs, *(run for tuned in sweep.tuned for run in tuned.runs)]
    assert {run.method.name for run in runs} >= some
    assert all(run.trainable_params() is not None for run in runs)


# --- presets, budgets, the peft library -------------------------------------------------------------------------------


def methods_of(text: str) -> dict[str, str]:
    """BASE with these entries in place of its methods."""
    old = "    - lora: {rank: [2, 8]}\n    - harma: {bottleneck: 32, train: {lr: 4e-4}}\n"
    return {old: text, "seed: [0, 1]": "seed: 0"}


def test_a_preset_is_settings_by_name(plan):
    runs = plan(methods_of("    - coop: {preset: [paper, table], n_ctx: 4}\n")).runs
    assert [(run.method.prompt_depth, run.method.n_ctx) for run in runs] == [(1, 4), ("all", 4)]
    assert "preset" not in runs[1].to_dict()["method"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("coop: {preset: tabel}", "x.yaml:8: coop: unknown preset 'tabel' (allowed: paper, table)"),
        ("maple: {preset: table}", "x.yaml:8: maple: unknown preset 'table' (allowed: none)"),
        ("coop: {presett: table}", "unknown key 'presett'; did you mean 'preset'?"),
        ("peft: {r: 4}", "peft: 'type' is missing"),
        ("peft: {type: LORA, rank: 4}", "x.yaml:8: peft LORA: unknown key 'rank'"),
        ("peft: {type: LORA, targets: [attn.x]}", "did you mean 'attn."),
    ],
)
def test_mistakes_in_method_entries(plan, entry, message):
    with pytest.raises(UserError) as caught:
        plan(methods_of(f"    - {entry}\n"))
    assert message in str(caught.value)


def test_the_librarys_settings_are_axes_too(plan):
    runs = plan(
        methods_of(
            "    - peft: {type: [LORA, LOHA], r: [2, 4]}\n"
            "    - peft: {type: IA3, targets: [mlp.c_fc], feedforward_modules: [mlp.c_fc]}\n"
        )
    ).runs
    assert [(run.method.type, run.method.model_extra) for run in runs] == [
        ("LORA", {"r": 2}),
        ("LORA", {"r": 4}),
        ("LOHA", {"r": 2}),
        ("LOHA", {"r": 4}),
        ("IA3", {"feedforward_modules": ["mlp.c_fc"]}),
    ]
    assert len({run.run_id for run in runs}) == 5
    assert runs[1].run_id.startswith("peft-typeLORA-r4-s0-")
    assert RunSpec.from_dict(runs[-1].to_dict()) == runs[-1]
    assert runs[0].trainable_params() == 2 * runs[0].trainable_params() // 2 > 0


def test_a_budget_is_solved_from_below(plan):
    """tiny-clip has 6 + 4 blocks of width 128: LoRA on q and v trains 5,120 a rank."""
    sweep = plan(
        methods_of("    - lora\n    - zero_shot\n") | {"  method:": "  budget: [5k, 20480, 0.0209M]\n  method:"}
    )
    assert [(run.method.name, getattr(run.method, "rank", None)) for run in sweep.runs] == [
        ("lora", 4),
        ("zero_shot", None),
    ]
    assert sweep.runs[0].trainable_params() == 20_480
    assert sweep.notes == (
        "budget 5,000: lora rank=1 trains 5,120 (102.4%): left out, it can't be smaller",
        "budget 20,480: lora rank=4 trains 20,480 (100.0%)",
        "budget 20,900: lora rank=4 trains 20,480 (98.0%)",
        "1 of 3 combinations are the same run as another",
    )


def test_a_budget_counts_the_losss_own_parameters(plan):
    """1,024 a column of the probe, and one temperature: four columns no longer fit 1,024 exactly."""
    entry = "    - linear_probe: {loss: [info_nce, harma]}\n"
    runs = plan(methods_of(entry) | {"  method:": "  budget: 1024\n  method:"}).runs
    assert [run.trainable_params() for run in runs] == [1024]
    runs = plan(methods_of(entry) | {"  method:": "  budget: 10241\n  method:"}).runs
    assert [(run.method.out_dim, run.trainable_params()) for run in runs] == [(40, 10_240), (40, 10_241)]


def test_a_budget_keeps_what_the_sweep_fixes(plan):
    """A knob with a value of its own is not turned; a preset's value is."""
    sweep = plan(
        methods_of("    - lora: {rank: 2}\n    - convpass: {preset: table}\n    - bitfit\n")
        | {"  method:": "  budget: [10.5k, 42k]\n  method:"}
    )
    assert [(run.method.name, run.trainable_params()) for run in sweep.runs] == [
        ("lora", 10_240),
        ("convpass", 10_160),
        ("convpass", 41_543),
    ]
    assert "budget 42,000: lora rank=2 trains 10,240 (24.4%): left out, it comes no closer from below" in sweep.notes
    assert "budget 42,000: bitfit trains 14,464 (34.4%): left out, it comes no closer from below" in sweep.notes


def test_a_knob_that_ceases_to_matter_ends_the_search(plan):
    sweep = plan(methods_of("    - peft: {type: LOKR}\n") | {"  method:": "  budget: 1M\n  method:"})
    assert sweep.runs == ()
    assert "left out, it comes no closer from below" in sweep.notes[0]
    assert int(sweep.notes[0].split("r=")[1].split()[0]) <= 256


@pytest.mark.parametrize(
    "value", ["[]", "many", "0", "-5", "true", "1.5G", f"'{'9' * 400}'", "1000001M", "'\u0663'", "9000000000000000000"]
)
def test_a_budget_must_be_a_number_of_parameters(plan, value):
    with pytest.raises(UserError, match=r"x.yaml:\d+: .*budget"):
        plan({"  method:": f"  budget: {value}\n  method:"})


def test_a_budget_says_why_a_method_is_left_out(plan):
    with pytest.raises(UserError, match="shared_dim 200 must be below the towers' width 128"):
        plan(methods_of("    - mrs_adapter: {shared_dim: 200}\n") | {"  method:": "  budget: 10k\n  method:"})
    sweep = plan(
        methods_of("    - peft: {type: OFT}\n    - peft: {type: IA3, targets: [attn.k], feedforward_modules: []}\n")
        | {"  method:": "  budget: 10k\n  method:"}
    )
    assert len(set(sweep.notes)) == 2
    assert all("type=" in note and "left out" in note for note in sweep.notes)


def test_adaloras_knob_is_its_first_rank(plan):
    sweep = plan(methods_of("    - peft: {type: ADALORA, target_r: 1}\n") | {"  method:": "  budget: 42k\n  method:"})
    [run] = sweep.runs
    assert run.method.model_extra["init_r"] > 1
    assert 37_800 <= run.trainable_params() <= 42_000
