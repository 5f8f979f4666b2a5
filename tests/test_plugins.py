"""A method from outside: docs/new-method.md executed word for word, a plug-in file, an installed package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench
import methods
from bench import check, sweep
from bench import methods as listing
from bench.config.errors import UserError
from bench.plan.grid import expand
from bench.store import record
from methods import registry
from tests import records

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "new-method.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def no_plugins_left(monkeypatch):
    monkeypatch.setenv(registry.PLUGINS, "")  # restored afterwards, whatever a test adds


def block(language: str, number: int = 0) -> str:
    """The page's code block of that language and number."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[number]


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "side_adapter.py"
    path.write_text(block("python"))
    return path


def test_the_page_is_short_and_its_commands_exist():
    assert len(block("python").splitlines()) + len(block("yaml").splitlines()) < 60
    for module in set(re.findall(r"python -m (bench\.\w+)", PAGE)):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_the_page_leads_to_a_row(plugin, capsys):
    assert check.main(["side_adapter.py"]) == 0
    assert " 0 failed" in capsys.readouterr().out
    Path("side.yaml").write_text(block("yaml"))
    arguments = ["side.yaml", "--plugin", "side_adapter.py", "--executor", "local"]
    smaller = ["--set", "train.epochs=1", "grid.seed=[0]"]
    assert sweep.main([*arguments, *smaller, "--dry-run"]) == 0
    assert sweep.main([*arguments, *smaller]) == 0
    shown = capsys.readouterr().out
    assert "side_adapter" in shown
    table = Path("reports/side/table.csv").read_text()
    assert [line.split(",")[2] for line in table.splitlines()[1:]].count("side_adapter") == 2
    run = next(Path("results/side").glob("side_adapter-bottleneck4-*"))
    found = record.read(run)
    assert list(found.provenance["plugins"]) == [str(plugin)]
    assert bench.load(run).model.trainable_params() == found.cost.trainable_params


def test_the_pages_method_around_layers_passes_every_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("gains.py").write_text(block("python", 1))
    assert check.main(["gains.py"]) == 0
    shown = capsys.readouterr().out
    assert " 0 excused, 0 failed" in shown
    assert re.search(r"merged equals unmerged +passed", shown)
    assert len(block("python", 1).splitlines()) < 60


def test_a_plugin_is_listed(plugin, capsys):
    assert listing.main(["--plugin", "side_adapter.py", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["side_adapter"]["trainable_params"] == 12 * (2 * (768 + 512) * 16 + 32 + 768 + 512 + 2)


def test_without_its_plugin_a_method_is_unknown():
    with pytest.raises(UserError, match=r"unknown method 'side_adapter'.*need --plugin FILE"):
        methods.get("side_adapter")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("x = (", "cannot be imported: SyntaxError"),
        ("import nosuch", "cannot be imported: ModuleNotFoundError"),
        ("x = 1", "defines no method and no loss"),
        ("from methods.lora import LoRA\nclass Mine(LoRA):\n    name = 'lora'", "'lora' exists already"),
    ],
)
def test_a_bad_plugin_is_one_error(text, message, tmp_path, capsys):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    assert sweep.main([str(ROOT / "sweeps" / "demo.yaml"), "--dry-run", "--plugin", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_an_edited_plugin_is_told(plugin, capsys):
    """Finished runs stay as they are; the plan says which were made by another version."""
    Path("side.yaml").write_text(block("yaml"))
    arguments = ["side.yaml", "--plugin", "side_adapter.py", "--dry-run"]
    registry.add_plugin(plugin)
    run = next(run for run in expand(Path("side.yaml")).runs if run.method.name == "side_adapter")
    folder = Path("results/side") / run.run_id
    folder.mkdir(parents=True)
    sha256 = registry.sources(type(run.method))[str(plugin)]
    for made_by, noted in (({str(plugin): sha256}, False), ({str(plugin): "older"}, True)):
        records.finish(folder, provenance={"plugins": made_by})
        assert sweep.main(arguments) == 0
        assert ("1 finished runs were made by another version of the plug-in" in capsys.readouterr().out) == noted


def test_two_plugins_with_one_name(plugin, tmp_path, capsys):
    other = tmp_path / "other.py"
    other.write_text(plugin.read_text())
    assert listing.main(["--plugin", str(plugin), "--plugin", str(other)]) == 2
    assert "the method 'side_adapter' exists already" in capsys.readouterr().err


def test_a_broken_package_leaves_the_others_alone(monkeypatch, capsys):
    points = {
        name: SimpleNamespace(name=name, value=value, dist=None)
        for name, value in {"gone": "nosuch.module:X", "odd": "json:loads", "named": "methods.lora:LoRA"}.items()
    }
    monkeypatch.setattr(registry.Registry, "_installed", lambda self: points if self.kind == "method" else {})
    assert listing.main(["--json"]) == 0
    shown = capsys.readouterr()
    assert {"lora", "harma"} <= {row["name"] for row in json.loads(shown.out)}
    for words in ("No module named 'nosuch'", "which is no Method", "whose name is 'lora'"):
        assert words in shown.err


def test_a_plugin_that_needs_the_current_folder_is_refused_before_any_run(tmp_path):
    """`python -m` puts that folder on the path, workers and jobs do not: each run would fail."""
    (tmp_path / "helpers.py").write_text("X = 1\n")
    (tmp_path / "plug.py").write_text(
        "import helpers\nfrom methods.bitfit import BitFit\n\n\nclass Plug(BitFit):\n    name = 'plug'\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(listing.__file__).parents[1])}
    command = [sys.executable, "-m", "bench.methods", "plug", "--plugin", "plug.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No module named 'helpers' (a plug-in is one file" in done.stderr


def test_the_readmes_peft_entries_can_be_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    entries = re.findall(r"^    - peft: .*$", readme, re.MULTILINE)
    assert len(entries) >= 4
    head = "name: x\ndataset: {name: demo}\nbackbone: {model: tiny-clip, weights: random}\ngrid:\n  method:\n"
    Path("x.yaml").write_text(head + "\n".join(entries) + "\n")
    assert len(expand(Path("x.yaml")).runs) == 9


def test_an_installed_package_is_found_by_its_entry_point(plugin, tmp_path):
    """As pip leaves it: the module and its metadata on the path."""
    site = tmp_path / "site"
    info = site / "outside-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "outside.py").write_text(plugin.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[petl_bench.methods]\nside_adapter = outside:SideAdapter\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    Path("side.yaml").write_text(block("yaml"))
    command = [sys.executable, "-m", "bench.sweep", "side.yaml", "--dry-run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "side_adapter-bottleneck4-lr0.006-s0" in done.stdout
