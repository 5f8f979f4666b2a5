"""A bounded fuzz of what users write or bring; `python -m benchmarks.fuzz` is the long one."""

from __future__ import annotations

import mmap
import re
import time
from pathlib import Path

import pytest

from bench.config import backbones
from bench.config.errors import UserError
from benchmarks import fuzzing

INPUTS = {"settings": 100, "pictures": 200, "annotations": 300, "checkpoints": 100, "results": 120}


def test_every_target_is_here():
    assert set(INPUTS) == set(fuzzing.load_targets())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", INPUTS)
def test_odd_inputs_are_read_or_refused(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backbones, "BUILT_IN", dict(backbones.BUILT_IN))
    for variable in ("PETL_BENCH_CACHE", "FUZZ_ROOT"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))  # a target sets it to its own
    outcome = fuzzing.run(name, tmp_path, seed=20, inputs=range(INPUTS[name]))
    assert [f"{finding.key}: {finding.what}\n{finding.trace}" for finding in outcome.findings] == []
    few = 0 if name == "results" else INPUTS[name] // 20  # only a folder without a plan or a run is refused
    assert outcome.accepted > INPUTS[name] // 20  # it tries both sides
    assert outcome.refused > few


def test_what_counts_as_a_finding(tmp_path, monkeypatch):
    bytearray(2**29)[::4096] = bytes(2**17)  # a higher peak, before: it must not hide the inputs' own
    monkeypatch.setattr(fuzzing, "LONGEST_SECONDS", 0.05)
    monkeypatch.setattr(fuzzing, "MOST_BYTES", 2**26)
    monkeypatch.setitem(fuzzing.TARGETS, "planted", lambda folder: lambda rng: faults.pop()())

    def fail(error: Exception) -> None:
        raise error

    def fill() -> None:  # not from the heap, where a long process may hold as much that is free
        with mmap.mmap(-1, 2**28) as area:
            area[::4096] = bytes(2**16)

    def compute() -> None:
        start = time.process_time()
        while time.process_time() < start + 0.1:
            pass

    faults = [
        lambda: None,
        lambda: fail(UserError("no")),
        lambda: fail(UserError("no" * 5000)),
        lambda: fail(fuzzing.Wrong("five")),
        lambda: fail(KeyError("x")),
        compute,
        fill,
    ]
    outcome = fuzzing.run("planted", tmp_path, seed=0, inputs=range(len(faults)))
    assert (outcome.accepted, outcome.refused) == (3, 1)
    whats = " | ".join(finding.what for finding in outcome.findings)
    for what in (
        "MB",
        f"KeyError in {Path(__file__).name}",
        "wrong: five",
        "10,000 characters",
    ):
        assert what in whats
    assert re.search(r"takes 0\.[1-9] s", whats)
    faults = [lambda: time.sleep(9)]
    [finding] = fuzzing.run("planted", tmp_path, seed=0, inputs=range(1), alarm=True).findings[:1]
    assert finding.what.startswith("hangs")


def test_an_input_is_drawn_from_its_key_alone(tmp_path, monkeypatch):
    drawn: list[float] = []
    monkeypatch.setitem(fuzzing.TARGETS, "planted", lambda folder: lambda rng: drawn.append(rng.random()))
    fuzzing.run("planted", tmp_path, seed=3, inputs=range(5))
    fuzzing.run("planted", tmp_path, seed=3, inputs=range(4, 5))
    assert drawn[4] == drawn[5]
    assert len(set(drawn)) == 5
