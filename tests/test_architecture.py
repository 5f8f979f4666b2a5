"""The rooms of the code: who may import whom, over all imports; and that docs/architecture.md shows them as they are.

`python tests/test_architecture.py` writes the tree in docs/architecture.md anew.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOC = ROOT / "docs" / "architecture.md"
LONGEST = 450  # lines of a file
DATA = {"bench/demo/world.py", "bench/demo/places.py"}  # code that is data: it may be longer

# What a room may import beside itself. `commands` are the modules of bench/ without a folder, `api` is bench itself.
ALLOWED: dict[str, set[str]] = {
    "config": set(),
    "data": {"config"},
    "core": {"config", "data"},
    "methods": {"config", "core"},
    "plan": {"config", "data", "methods"},
    "store": {"config", "core"},
    "compute": {"config", "data", "core", "methods", "plan", "store"},
    "conformance": {"config", "core", "methods"},
    "launch": {"config", "data", "core", "methods", "plan", "store", "compute"},
    "evidence": {"config", "core", "store"},
    "reporting": {"config", "core", "data", "evidence", "methods", "store"},
    "demo": {"config", "data", "core", "methods"},
    "commands": {"config", "methods", "plan", "store", "compute", "conformance", "launch", "reporting"},
    "api": {"compute", "config", "demo", "store"},
}
TORCH_FREE = ("config", "plan", "store", "evidence", "reporting", "launch", "commands", "api")
HEAVY = {"torch", "open_clip", "timm", "peft", "submitit"}


def files(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the code by its name."""
    found = {}
    for path in sorted([*(root / "bench").rglob("*.py"), *(root / "methods").rglob("*.py")]):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Every name that a file imports, wherever in it: inside functions and for annotations alone, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports are not followed; write the whole name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """The modules that each module imports; a name from a module counts as that module."""
    edges: dict[str, set[str]] = {}
    for module, path in modules.items():
        targets = set()
        for name in imports(path):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            targets |= {name} - {"", module}
        edges[module] = targets
    return edges


def room(module: str) -> str:
    top, *rest = module.split(".")
    if top == "methods":
        return "methods"
    if not rest:
        return "api"
    return "commands" if (ROOT / "bench" / f"{rest[0]}.py").exists() else rest[0]


def reachable(edges: dict[str, set[str]], start: str) -> set[str]:
    """All modules that a module imports, directly or through others."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        for target in edges[todo.pop()] - seen:
            seen.add(target)
            todo.append(target)
    return seen


def upward(edges: dict[str, set[str]]) -> list[str]:
    """The imports, direct or through others, that lead where the room must not look."""
    below = {name: _below(name) for name in ALLOWED}
    return [
        f"{module} reaches {target}"
        for module in edges
        for target in sorted(reachable(edges, module))
        if room(target) not in below[room(module)] | {room(module)}
    ]


def _below(name: str) -> set[str]:
    found = set(ALLOWED[name])
    for each in ALLOWED[name]:
        found |= _below(each)
    return found


def direct(edges: dict[str, set[str]]) -> list[str]:
    """The direct imports that are not in `ALLOWED`."""
    return [
        f"{module} imports {target}"
        for module, targets in edges.items()
        for target in sorted(targets)
        if room(target) not in ALLOWED[room(module)] | {room(module)}
    ]


def circles(edges: dict[str, set[str]]) -> list[str]:
    return [module for module in edges if module in reachable(edges, module)]


EDGES = graph(files())


def test_imports_go_down_only():
    assert direct(EDGES) == []
    assert upward(EDGES) == []


def test_no_circle_between_files():
    assert circles(EDGES) == []


@pytest.mark.parametrize(
    ("room_", "line", "seen"),
    [
        ("core", "from methods import lora", "bench.core.planted imports methods.lora"),
        ("config", "def f():\n    import bench.core.train", "bench.config.planted reaches bench.core.train"),
        ("store", "if TYPE_CHECKING:\n    from bench.launch.task import run_one", "bench.store.planted reaches"),
    ],
)
def test_a_planted_upward_import_is_seen(tmp_path, room_, line, seen):
    planted = tmp_path / "planted.py"
    planted.write_text(line + "\n")
    edges = graph(files() | {f"bench.{room_}.planted": planted})
    assert any(found.startswith(seen) for found in [*direct(edges), *upward(edges)])


def test_a_planted_circle_is_seen(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("def f():\n    from bench.config.parse import parse\n")
    edges = graph(files() | {"bench.config.planted": planted})
    edges["bench.config.errors"] = {"bench.config.planted"}
    assert "bench.config.errors" in circles(edges)


def test_the_core_names_no_method_no_loss_no_cluster_and_no_demo():
    import methods
    from bench.config.settings import SCHEDULERS
    from methods import losses

    names = {*methods.names(), *losses.names(), *SCHEDULERS, "submitit", "demo", "tiny-clip"}
    for path in sorted((ROOT / "bench" / "core").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        words = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert words.isdisjoint(names), path.name


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda path: path.stem)
def test_a_method_stands_alone(path):
    shared = {"methods.base", "methods.lazy", "methods.losses", "methods.registry"}
    others = {f"methods.{other.stem}" for other in (ROOT / "methods").glob("*.py")} - shared
    assert EDGES[f"methods.{path.stem}".removesuffix(".__init__")].isdisjoint(others)


# --- what importing costs ---------------------------------------------------------------------------------------------


def loaded_by(modules: Iterable[str]) -> set[str]:
    code = "import sys\nfor name in sys.argv[1:]: __import__(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_rooms_without_torch():
    """Planning, results, reports and commands: importing them must not take the seconds that torch takes."""
    light = [name for name in files() if room(name) in TORCH_FREE and not name.endswith("__main__")]
    assert len(light) > 40
    assert loaded_by(light).isdisjoint(HEAVY)


def test_planning_imports_no_heavy_library():
    import methods
    from methods import losses

    everything = [methods.get(name).__module__ for name in methods.names()]
    everything += [losses.get(name).__module__ for name in losses.names()]
    modules = ["bench.plan.grid", "bench.sweep", "bench.status", "bench.methods", "bench.data", *everything]
    assert loaded_by(modules).isdisjoint(HEAVY | {"numpy", "pandas", "matplotlib"})


# --- names and sizes --------------------------------------------------------------------------------------------------


def test_bench_holds_commands_and_folders():
    commands = {name for name in files() if room(name) == "commands"}
    names = ("__main__", "check", "export", "measure", "methods", "report", "retrieve", "run", "status", "sweep")
    assert commands == {f"bench.{name}" for name in names}
    for name in commands:
        assert "def main(" in files()[name].read_text(encoding="utf-8")


def test_no_file_is_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files().values()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST and name not in DATA} == {}


def test_no_two_modules_differ_by_an_s():
    names = {part for module in files() for part in module.split(".")}
    assert {name for name in names if f"{name}s" in names} == set()


# --- the page ---------------------------------------------------------------------------------------------------------


def tree() -> str:
    """The folders with one line a file: the first sentence of what the file says of itself."""
    lines: list[str] = []
    by_folder = defaultdict(list)
    for path in files().values():
        by_folder[path.parent.relative_to(ROOT)].append(path)
    for folder in sorted(by_folder):
        depth = len(folder.parts) - 1
        lines.append(f"{'  ' * depth}{folder.name}/")
        for path in by_folder[folder]:
            said = ast.get_docstring(ast.parse(path.read_text("utf-8")))
            if path.name == "__init__.py" and not said:
                continue
            first = re.split(r"(?<=\.)\s", " ".join((said or "").split("\n\n")[0].split()))[0].rstrip(".")
            name = f"{'  ' * (depth + 1)}{path.name}"
            lines.append(f"{name:30} {first}")
    return "\n".join(lines)


def test_the_page_shows_the_rooms():
    page = DOC.read_text(encoding="utf-8")
    assert f"```text\n{tree()}\n```" in page, "run `python tests/test_architecture.py` and read what it changes"
    for name, may in ALLOWED.items():
        assert f"| `{name}` | {', '.join(f'`{each}`' for each in sorted(may)) or 'nothing'} |" in page


if __name__ == "__main__":
    page = DOC.read_text(encoding="utf-8")
    page = re.sub(r"```text\n.*?```", lambda _: f"```text\n{tree()}\n```", page, count=1, flags=re.DOTALL)
    rows = [f"| `{name}` | {', '.join(f'`{x}`' for x in sorted(may)) or 'nothing'} |" for name, may in ALLOWED.items()]
    page = re.sub(r"(\| room \|.*?\n\|---\|---\|\n)(\|.*?\n)*", lambda m: m[1] + "\n".join(rows) + "\n", page, count=1)
    DOC.write_text(page, encoding="utf-8")
