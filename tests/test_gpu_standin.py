"""The checks of tests/gpu on the CPU, so that a stranger's card is not the first to run them; and their table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.device import VARIABLE, dropout_of_the_cpu, largest_difference
from tests.gpu.table import DOC, Table, write

ROOT = Path(__file__).parents[1]
FEW = "bitfit-CLIP or mrs_adapter-CLIP or peft-adalora-CLIP or harma or ranks or pictures or peak or matters"
FEW = f"({FEW}) and not Custom"


def run(value: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest on tests/gpu in a process of its own, without GPUs."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-rs", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=os.environ | {VARIABLE: value, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_few_checks_run_with_the_cpu_in_place_of_the_device():
    page = DOC.read_text()
    done = run("cpu", "-k", FEW)
    assert done.returncode == 0, done.stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    found = {row[0]: row for row in rows[2:]}
    assert found["features loss and gradients in float32"][2:5] == ["0.0e+00", "1.0e-04", "passed"]
    assert 0 < float(found["features in bf16"][2]) < float(found["features in bf16"][3])
    assert found["augmented pictures"][1:5] == ["2", "0.0e+00", "1.0e+00", "passed"]
    assert found["stopped and resumed equals uninterrupted"][4] == "passed"
    assert found["the random state of cuda matters"][4] == "skipped"
    assert "needs CUDA itself" in done.stdout
    assert DOC.read_text() == page


def test_without_a_device_it_says_so_and_writes_nothing():
    page = DOC.read_text()
    done = run("write")
    assert "no CUDA device" in done.stdout
    assert done.returncode == 5  # pytest's code for no tests; the Makefile knows it
    assert DOC.read_text() == page


def report(test: str, outcome: str, seconds: float = 1.0, **properties: object) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=f"tests/gpu/test_numbers.py::{test}",
        location=("", 0, ""),
        keywords={},
        outcome=outcome,
        longrepr=None,
        when="call",
        user_properties=list(properties.items()),
        duration=seconds,
    )


def test_the_page_gets_the_table_in_place_of_the_last_one(tmp_path):
    table = Table()
    table.add(report("test_same_seed[a]", "passed", difference=0.25, tolerance=0.5))
    table.add(report("test_same_seed[b]", "failed", difference=0.75, tolerance=0.5))
    table.add(report("test_out_of_memory", "skipped"))
    page = tmp_path / "gpu.md"
    page.write_text(DOC.read_text())
    for date in ("2026-01-01", "2026-01-02"):
        write(table, card="A card", torch="2.14", date=date, commit="abc", doc=page)
    head, _, tail = page.read_text().partition("## The last run")
    assert head == DOC.read_text().partition("## The last run")[0]
    assert "A card, torch 2.14, 2026-01-02, commit abc." in tail
    assert "2026-01-01" not in tail
    assert "Not run" not in tail
    [row] = [line for line in tail.splitlines() if "same seed" in line]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["same seed", "2", "7.5e-01", "5.0e-01", "1 failed, 1 passed", "2.0"]


def test_a_difference_is_relative_to_large_values_only():
    one = torch.tensor([0.5, -0.25])
    assert largest_difference(one, one + 0.125) == 0.125
    assert largest_difference(100 * one, 100 * one + 0.125) == 0.125 / 50
    assert not largest_difference(one, one * float("nan")) <= 1e9


def test_dropout_of_the_cpu_is_dropout():
    x = torch.ones(10000)
    torch.manual_seed(0)
    dropped = dropout_of_the_cpu(x, 0.2)
    assert set(dropped.tolist()) == {0.0, 1.25}
    assert abs(float(dropped.mean()) - 1) < 0.05
    assert dropout_of_the_cpu(x, 0.2, training=False) is x
