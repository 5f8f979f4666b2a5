"""Who may import whom: planning and reporting stay free of torch, the core knows no method and no cluster."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIGHT = [
    "bench",
    "bench.data",
    "bench.demo",
    "bench.launch.slurm.queue",
    "bench.methods",
    "bench.spec",
    "bench.status",
    "bench.store.folder",
    "bench.sweep",
    "bench.weights",
    "methods",
    "methods.losses",
]


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in it, but not for annotations alone."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if "TYPE_CHECKING" not in ast.unparse(node).splitlines()[0]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def loaded_by(*modules: str) -> set[str]:
    code = "import sys\nfor name in sys.argv[1:]: __import__(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_planning_imports_no_heavy_library():
    import methods
    from methods import losses

    everything = [methods.get(name).__module__ for name in methods.names()]
    everything += [losses.get(name).__module__ for name in losses.names()]
    assert loaded_by(*LIGHT, *everything).isdisjoint(
        {"torch", "numpy", "pandas", "matplotlib", "submitit", "open_clip"}
    )


def test_reporting_imports_no_torch():
    modules = [
        f"bench.reporting.{path.stem}" for path in (ROOT / "bench" / "reporting").glob("*.py") if path.stem[0] != "_"
    ]
    assert modules
    assert "torch" not in loaded_by("bench.report", *modules)


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda path: path.stem)
def test_a_method_stands_alone(path):
    others = {f"methods.{other.stem}" for other in (ROOT / "methods").glob("*.py")}
    others -= {"methods.base", "methods.layers", "methods.losses", "methods.registry", f"methods.{path.stem}"}
    assert imports(path).isdisjoint(others | {"bench.sweep", "bench.launch", "bench.run"})


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "core").glob("*.py")), ids=lambda path: path.stem)
def test_the_core_knows_no_method_and_no_cluster(path):
    allowed = {"methods.base"}  # shapes, for annotations
    named = {name for name in imports(path) if name.split(".")[0] == "methods"}
    assert {name for name in named if not name.startswith("methods.base")} <= allowed
    assert imports(path).isdisjoint({"bench.sweep", "bench.launch", "bench.run", "bench.spec", "submitit"})
