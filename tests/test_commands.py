"""The command `petl-bench`, and one run by its method's name, from its folder, and again."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import bench
import methods
from bench import __main__ as petl_bench
from bench import run, sweep
from bench.config.settings import (
    SCHEDULERS,
    BackboneSettings,
    CaptionSettings,
    CoreSettings,
    DatasetSettings,
    TrainSettings,
)
from bench.config.version import VERSION
from bench.plan import reference
from bench.plan.grid import expand
from bench.store import folder, planned, record
from bench.store.frame import collect
from methods import losses

ROOT = Path(bench.__file__).parents[1]
ZERO = ("--method", "zero_shot", "--set", "train.workers=0", "train.eval_batch_size=64")


@pytest.mark.parametrize("name", petl_bench.COMMANDS)
def test_every_command_has_both_forms(name, capsys):
    module = import_module(petl_bench.MODULES[name])
    said = []
    for main in (lambda: petl_bench.main([name, "--help"]), lambda: module.main(["--help"])):
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        said.append(capsys.readouterr().out)
    assert said[0].startswith(f"usage: petl-bench {name}")
    assert said[1].startswith(f"usage: python -m bench.{name}")

    def options(text: str) -> str:
        return text.partition("options:")[2]

    assert options(said[0]) == options(said[1])


def test_the_commands_are_listed_and_completed(capsys):
    assert petl_bench.main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n    {name} " in listed for name in petl_bench.COMMANDS)
    assert petl_bench.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for option in ("--executor", "--retry", "--again", "--backbone", "--split"):
        assert option in script
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(SystemExit) as end:
        petl_bench.main(["swep"])
    assert end.value.code == 2
    assert "invalid choice: 'swep'" in capsys.readouterr().err


def test_one_version_everywhere(capsys):
    with pytest.raises(SystemExit):
        petl_bench.main(["--version"])
    assert capsys.readouterr().out == f"petl-bench {VERSION}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "bench.config.version.VERSION"}
    assert project["project"]["scripts"]["petl-bench"] == "bench.__main__:main"
    assert bench.__version__ == VERSION
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


def test_help_is_quick_and_light():
    code = "import sys; from bench.__main__ import main; main([]); "
    code += "print([m for m in ('torch', 'numpy', 'pandas', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_another_methods_folder_is_named(tmp_path):
    """Python takes the current folder's packages first; PETL-Bench has one called `methods`."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bench.sweep", "x.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'methods'} hides the package 'methods'")
    assert len(done.stderr.splitlines()) == 1
    command = [sys.executable, "-P", "-m", "bench", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"petl-bench {VERSION}\n"


# --- settings in words -----------------------------------------------------------------------------------------------


def test_the_settings_reference_is_current():
    said = "run `petl-bench methods --reference > docs/settings.md` and read what it changes"
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == reference.page(), said


def test_every_setting_is_explained():
    blocks = [DatasetSettings, CaptionSettings, BackboneSettings, TrainSettings, CoreSettings, *SCHEDULERS.values()]
    blocks += [methods.get(name) for name in methods.names()]
    blocks += [losses.get(name) for name in losses.names()]
    found = [(cls.__name__, each) for cls in blocks for each in reference.settings_of(cls)]
    assert len(found) > 100
    assert [(name, each.key) for name, each in found if not each.meaning or each.values == "anything"] == []


def test_values_in_words():
    said = {each.key: (each.default, each.values) for each in reference.settings_of(methods.get("lora"))}
    assert said["rank"] == ("4", "whole number ≥ 1")
    assert said["dropout"] == ("0", "number ≥ 0 and < 1")
    assert said["towers"] == ("both", "`both`, `image`, `text`")
    assert said["targets"][0] == "[attn.q, attn.v]"
    said = {each.key: (each.default, each.values) for each in reference.settings_of(TrainSettings)}
    assert said["clip_grad_norm"] == ("1", "number > 0 or null")
    assert said["betas"] == ("[0.9, 0.98]", "list of 2: number ≥ 0 and < 1")


@pytest.mark.parametrize("name", [*methods.names(), *losses.names()])
def test_one_method_is_explained_in_80_columns(name, capsys):
    assert petl_bench.main(["methods", name]) == 0
    said = capsys.readouterr().out
    cls = methods.get(name) if name in methods.names() else losses.get(name)
    words = " ".join(said.split())
    assert cls.paper.split(",")[0] in words
    assert all(key in said for key in cls.model_fields)
    assert max(map(len, said.splitlines())) <= 80


def test_the_table_of_methods_fits_80_columns(capsys):
    assert petl_bench.main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.split()[0] in methods.names() for line in lines if line.strip()) == len(methods.names())


@pytest.mark.parametrize(
    ("given", "meant"),
    [("r=8", "rank"), ("train.bs=8", "batch_size"), ("train.learning_rate=1", "lr"), ("train.wd=0", "weight_decay")],
)
def test_short_and_long_forms_of_keys_get_a_hint(given, meant, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["--method", "lora", "--set", given]) == 2
    assert f"did you mean '{meant}'?" in capsys.readouterr().err


def test_an_empty_key_gets_no_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(
        'name: x\ndataset: {name: demo}\nbackbone: {model: tiny-clip, weights: demo}\ntrain: {"": 3}\n'
        "grid: {method: lora}\n"
    )
    assert sweep.main(["x.yaml", "--dry-run"]) == 2
    assert "did you mean" not in capsys.readouterr().err


# --- one run ---------------------------------------------------------------------------------------------------------


def test_a_run_by_name_is_a_sweep_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(
        "name: runs\ndataset: {name: demo}\nbackbone: {model: tiny-clip, weights: demo}\ntrain: {epochs: 2, lr: 1e-3}\n"
        "grid: {seed: [3], method: [lora: {rank: 8, loss: hmmc}]}\n"
    )
    given = ["--method", "lora", "--seed", "3", "--set", "rank=8", "loss=hmmc", "train.epochs=2", "train.lr=1e-3"]
    [one] = run.sweep_of(run.parser().parse_args(given)).runs
    [other] = expand(Path("x.yaml")).runs
    assert one == other
    assert one.run_id == other.run_id


def test_a_run_by_name_makes_a_folder_and_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert petl_bench.main(["run", *ZERO, "--name", "mine"]) == 0
    [run_dir] = [path.parent for path in Path("results/mine").glob("*/result.json")]
    assert record.read(run_dir).finished
    assert (Path("reports/mine") / "index.html").is_file()
    plan = planned.read(Path("results/mine"))
    assert plan.start.command == f"petl-bench run {' '.join(ZERO)} --name mine"
    assert collect(Path("results/mine")).command == plan.start.command
    assert plan.content["dataset"] == {"name": "demo"}
    capsys.readouterr()

    before = (run_dir / folder.RESULT).stat().st_mtime_ns
    assert run.main([str(run_dir)]) == 0
    said = capsys.readouterr()
    assert "nothing was computed" in said.err
    assert json.loads(said.out)["mean_recall"] == record.read(run_dir).metrics.test.mean_recall
    assert (run_dir / folder.RESULT).stat().st_mtime_ns == before

    assert run.main(["--again", str(run_dir)]) == 0
    assert "the same scores to the last digit, and the same adapter" in capsys.readouterr().out
    again = Path("results/mine-again") / run_dir.name
    assert record.read(again).finished
    text = (run_dir / folder.RESULT).read_text()
    number = f'"t2i_r10": {record.read(run_dir).metrics.test.t2i_r10}'
    assert text.count(number) > 0
    (run_dir / folder.RESULT).write_text(text.replace(number, '"t2i_r10": 99.0'))
    assert run.main(["--again", str(run_dir)]) == 1
    assert "test t2i_r10: 99.0 then, " in capsys.readouterr().out


def test_mistakes_of_one_run_are_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for given, said in {
        (): "which run?",
        ("--method", "lora", "x"): "which run?",
        ("--method", "lorra"): "lora",
        ("--method", "lora", "--set", "rank=[2, 4]"): "a grid of 2 runs",
        ("--method", "lora", "--set", "rank"): "expected key=value",
        ("--method", "lora", "--dataset", "rsitmd"): "dataset.root",
        ("--again", "."): "no run.yaml",
    }.items():
        assert run.main(list(given)) == 2
        assert said in capsys.readouterr().err


def test_files_are_as_readable_as_the_umask_allows(tmp_path, monkeypatch):
    """Others on a cluster read results; safetensors' own writer makes files for their owner alone."""
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o027)
    try:
        assert run.main([*ZERO]) == 0
    finally:
        os.umask(before)
    [run_dir] = [path.parent for path in Path("results/runs").glob("*/result.json")]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in run_dir.iterdir()}
    assert modes == dict.fromkeys(modes, 0o640)
    assert folder.ADAPTER in modes
