"""What the tests share: shapes are checked, no cache of the user's is touched, and one thread is enough."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import numpy as np
import pytest
import torch  # before anything of the project: methods.lazy then has the real types, not stand-ins
from PIL import Image

# In every test, each call of a function in these modules is held to its annotations, the shapes included.
CHECKED = ("bench.core", "bench.data.pixels", "bench.data.transforms", "bench.evidence", "methods")
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")


@contextmanager
def unchecked() -> Iterator[None]:
    """Calls inside are not checked, and dataclasses have their own `__init__` again, which torch.compile can trace."""
    with pytest.MonkeyPatch.context() as patch:
        for module in [module for name, module in sys.modules.items() if name.startswith(CHECKED)]:
            for each in vars(module).values():
                if is_dataclass(each) and hasattr(each.__init__, "__wrapped__"):
                    patch.setattr(each, "__init__", each.__init__.__wrapped__)
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield


def _compile(compile_: Callable[..., Any] = torch.compile) -> Callable[..., Any]:
    def compiled(model: Any, **options: Any) -> Callable[..., Any]:
        graph = compile_(model, **options)

        def call(*args: Any) -> Any:
            with unchecked():
                return graph(*args)

        return call

    return compiled


def _substitute(substitute: Callable[..., Any] = torch.compiler.substitute_in_graph) -> Callable[..., Any]:
    def decorator(original: Any, **options: Any) -> Callable[..., Any]:
        return lambda traced: substitute(original, **options)(inspect.unwrap(traced))

    return decorator


# torch.compile(fullgraph=True) can't trace the code that checks: what it compiles runs without.
torch.compile, torch.compiler.substitute_in_graph = _compile(), _substitute()


COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (30, 60, 200), "grey": (120, 120, 120)}


SHARE_NOTHING = ("test_conformance.py", "test_fake_cuda.py")
CLUSTER = ("test_slurm_cluster.py", "test_slurm_faults.py", "test_status_cluster.py")  # one real cluster at a time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay on one worker, since they share fixtures, unless they share nothing."""
    for item in items:
        if item.path.name not in SHARE_NOTHING:
            item.add_marker(pytest.mark.xdist_group("cluster" if item.path.name in CLUSTER else item.path.name))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """One cache for the whole session: the demo world is drawn once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETL_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """40 pictures of coloured halves in the Karpathy layout: 24 to train on, 8 and 8."""
    folder = tmp_path_factory.mktemp("dataset")
    rng, images = np.random.default_rng(0), []
    for index in range(40):
        left, right = rng.choice(list(COLOURS), size=2)
        pixels = np.zeros((48, 48, 3), np.uint8)
        pixels[:, :24], pixels[:, 24:] = COLOURS[left], COLOURS[right]
        pixels += rng.integers(0, 30, pixels.shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        sentences = [{"raw": f"{left} land beside {right} land"}, {"raw": f"the left is {left}, number {index}"}]
        split = "train" if index < 24 else "val" if index < 32 else "test"
        images.append({"filename": f"{index}.png", "split": split, "sentences": sentences})
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    return folder
