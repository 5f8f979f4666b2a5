"""Shapes in types: every function that takes or gives a tensor says which, and in these tests each call is held to it.

`python tests/test_shapes.py` prints how many functions that are.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from bench.conformance.tiny import backbone, batch
from bench.core.evaluate import EvalSet, score
from bench.core.model import Features
from bench.core.ranks import Ranks
from bench.core.train import Batch
from bench.data.transforms import normalise
from methods import losses
from methods.layers import prompts
from methods.layers.bottlenecks import Bottleneck
from methods.layers.prompts import insert_placeholders
from methods.losses.info_nce import info_nce
from tests.conftest import unchecked

ROOT = Path(__file__).parents[1]
ROOMS = ("bench/core", "bench/evidence", "methods/layers", "methods/losses")
FILES = sorted(
    [path for room in ROOMS for path in (ROOT / room).glob("*.py")]
    + [ROOT / "bench" / "data" / name for name in ("pixels.py", "transforms.py")]
)
ARRAYS = {"Tensor", "ndarray", "NDArray", "ArrayLike"}
WITHOUT = {"bench/core/weights.py": ["_fault(tensor): Tensor"]}  # finds out its kind; a nested tensor has no shape
FEWEST = 93  # functions with shapes; raise it when there are more


def annotations(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr | None]]:
    """Parameters and the result, with their annotations; None where there is none."""
    given = function.args
    for each in [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]:
        if each is not None and each.arg not in ("self", "cls"):
            yield each.arg, each.annotation
    yield "return", function.returns


def shaped(annotation: ast.expr) -> list[ast.expr]:
    """The arrays of an annotation that have a shape: the `Tensor` of each `Float[Tensor, "batch dim"]`."""
    return [
        node.slice.elts[0]
        for node in ast.walk(annotation)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)
        if isinstance(node.slice.elts[-1], ast.Constant) and isinstance(node.slice.elts[-1].value, str)
    ]


def bare(annotation: ast.expr) -> bool:
    """Whether an array without a shape is in the annotation."""
    known = {id(node) for array in shaped(annotation) for node in ast.walk(array)}
    return any(
        (node.id if isinstance(node, ast.Name) else node.attr) in ARRAYS
        for node in ast.walk(annotation)
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in known
    )


def faults(source: str) -> list[str]:
    """Annotations of functions and of classes' fields that are missing, or that name an array without its shape."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            given = [(f"{node.name}({name})", each) for name, each in annotations(node)]
        elif isinstance(node, ast.ClassDef):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
            given = [(f"{node.name}.{ast.unparse(each.target)}", each.annotation) for each in fields]
        else:
            continue
        found += [f"{name}: no annotation" for name, each in given if each is None]
        found += [f"{name}: {ast.unparse(each)}" for name, each in given if each is not None and bare(each)]
    return found


def count(path: Path) -> int:
    """How many functions of a file have shapes in their annotations; a dataclass with shapes is one, its `__init__`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases = [each for each in tree.body if isinstance(each, ast.Assign) and shaped(each.value)]
    known = {ast.unparse(each.targets[0]) for each in aliases}
    found = 0
    for node in ast.walk(tree):
        given: list[ast.expr | None] = []
        if isinstance(node, ast.FunctionDef):
            given = [each for _, each in annotations(node)]
        elif isinstance(node, ast.ClassDef):
            given = [each.annotation for each in node.body if isinstance(each, ast.AnnAssign)]
        names = {part.id for each in given if each is not None for part in ast.walk(each) if isinstance(part, ast.Name)}
        found += bool(names & known) or any(each is not None and shaped(each) for each in given)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrays_have_shapes(path):
    assert faults(path.read_text(encoding="utf-8")) == WITHOUT.get(str(path.relative_to(ROOT)), [])


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def f(x: Tensor) -> int: ...", "f(x): Tensor"),
        ("def f(x: int) -> tuple[torch.Tensor, int]: ...", "f(return): tuple[torch.Tensor, int]"),
        ("def f(*, x: np.ndarray | None) -> None: ...", "f(x): np.ndarray | None"),
        ("class A:\n    x: dict[str, Tensor]", "A.x: dict[str, Tensor]"),
        ("class A:\n    def f(self, x) -> None: ...", "f(x): no annotation"),
    ],
)
def test_a_planted_bare_array_is_seen(source, fault):
    assert faults(source) == [fault]
    assert faults('def f(x: list[Float[Tensor, " batch"]]) -> Shaped[np.ndarray, "..."] | None: ...') == []


def test_there_are_as_many_as_before():
    assert sum(map(count, FILES)) >= FEWEST


# --- the hook of conftest.py ------------------------------------------------------------------------------------------


def written_in(module: Any, owner: Any) -> Iterator[Any]:
    """The functions and classes that the file of a module has in this module or class, as they are called."""
    for each in vars(owner).values():
        each = each.fget if isinstance(each, property) else getattr(each, "__func__", each)
        if inspect.isclass(each) and each.__module__ == module.__name__:
            yield each
            yield from written_in(module, each)
        elif inspect.isfunction(each) and inspect.unwrap(each).__code__.co_filename == module.__file__:
            yield each


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_function_is_checked(path):
    """All annotations can be resolved: the hook ignores, without a warning, those that can't."""
    module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for each in written_in(module, module):
        assert inspect.isclass(each) or hasattr(each, "__wrapped__"), f"{each.__qualname__} is not checked"
        get_type_hints(inspect.unwrap(each))


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def ids(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long)


WRONG = {
    "a batch in a function": lambda: info_nce(zeros(2, 3), zeros(4, 3), zeros()),
    "a type": lambda: info_nce(zeros(2, 3), zeros(2, 3), zeros(), zeros(2)),
    "a number of dimensions": lambda: Bottleneck(4, 2, torch.relu, serial=True)(zeros(3, 4)),
    "a dimension that is fixed": lambda: backbone().encode_image(zeros(2, 1, 24, 24)),
    "a method of a module": lambda: backbone()(batch().images, batch().tokens[:1]),
    "a loss": lambda: losses.get("triplet")()(Features(zeros(2, 3), zeros(2, 3)), ids(3, 1), backbone()),
    "a dataclass": lambda: Features(zeros(2, 3), zeros(2, 4)),
    "a dataclass of numpy arrays": lambda: Ranks(*(np.zeros(each, np.int64) for each in (2, 2, 3))),
    "a dataclass in the core": lambda: Batch(batch().images, batch().tokens, ids(3)),
    "a split": lambda: EvalSet(list, list, ids(3), ids(4)),
    "captions": lambda: score(zeros(2, 3), zeros(4, 3), ids(4), ids(5)),
    "pictures": lambda: normalise(zeros(2, 3, 8, 8), (0.5,) * 3, (0.5,) * 3),
    "a function made by a function": lambda: insert_placeholders(2)(ids(7)),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_a_wrong_shape_raises(call):
    with pytest.raises(TypeCheckError):
        call()


def test_a_wrong_result_raises(monkeypatch):
    append = prompts.AppendTokens(torch.nn.Parameter(torch.zeros(2, 4)))
    assert append(zeros(1, 5, 4)).shape == (1, 7, 4)
    monkeypatch.setattr(prompts, "_expand", lambda tokens, like: like[:, :3])
    with pytest.raises(TypeCheckError, match=r"return value of methods\.layers\.prompts\.AppendTokens\.forward"):
        append(zeros(1, 5, 4))


def test_unchecked_code_is_checked_again_afterwards():
    with unchecked():
        Features(zeros(2, 3), zeros(2, 4))
    with pytest.raises(TypeCheckError):
        Features(zeros(2, 3), zeros(2, 4))


if __name__ == "__main__":
    for path in FILES:
        print(f"{count(path):4} {path.relative_to(ROOT)}")
    print(f"{sum(map(count, FILES)):4} functions with shapes")
