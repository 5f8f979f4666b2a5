"""Settings that a run on a GPU has, and the table of what was checked."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts

import torch

from bench.compute.build import deterministic
from bench.store import provenance
from tests.gpu.device import DEVICE, VARIABLE
from tests.gpu.table import Table, write

TABLE = Table()


@pytest.fixture(autouse=True)
def _as_in_a_run() -> Iterator[None]:
    """Deterministic, float32 without TF32, and quiet about the peft library's remarks on its own settings."""
    with deterministic(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.nodeid.startswith("tests/gpu/"):
        TABLE.add(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TABLE.checks:
        return
    terminalreporter.section(f"checks on {DEVICE}")
    terminalreporter.write_line(TABLE.markdown())
    if DEVICE.type == "cuda" and os.environ.get(VARIABLE) == "write":
        card, now = torch.cuda.get_device_name(), f"{datetime.now(UTC):%Y-%m-%d}"
        write(TABLE, card=card, torch=torch.__version__, date=now, commit=provenance.commit() or "unknown")
        terminalreporter.write_line("written to docs/gpu.md")
