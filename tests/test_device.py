"""The device of a run: never the CPU by accident where a GPU was given, and always the CPU where none was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.compute import build
from bench.compute.build import pick_device
from bench.compute.execute import execute
from bench.config.errors import GpuLost, UserError
from bench.launch.task import run_one
from bench.store import attempts, record
from bench.store.folder import RESULT
from tests.test_run import make_run

NAMES = ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_JOB_ID")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """machine(files, NAME="value") makes a machine without working CUDA, with such files in /dev and variables."""

    def make(*files: str, built: bool = True, **variables: str) -> None:
        devices = tmp_path / "dev"
        devices.mkdir()
        for name in files:
            (devices / name).touch()
        monkeypatch.setattr(build, "DEVICES", devices, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return make


@pytest.mark.parametrize(
    ("files", "variables"),
    [
        ((), {}),
        (("nvidiactl", "nvidia-uvm", "nvidia-caps"), {}),
        (("nvidia0",), {"CUDA_VISIBLE_DEVICES": ""}),
        (("nvidia0",), {"CUDA_VISIBLE_DEVICES": "-1"}),
        (("nvidia0",), {"CUDA_VISIBLE_DEVICES": "NoDevFiles", "SLURM_JOB_ID": "7"}),
        (("nvidia0",), {"SLURM_JOB_ID": "7"}),  # a job on a GPU machine that asked for none
        ((), {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": ""}),
    ],
)
def test_the_cpu_where_no_gpu_was_given(machine, files, variables):
    machine(*files, **variables)
    assert pick_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("files", "variables", "evidence"),
    [
        (("nvidia0", "nvidia1"), {}, "/dev/nvidia0"),
        ((), {"CUDA_VISIBLE_DEVICES": "3"}, "CUDA_VISIBLE_DEVICES=3"),
        ((), {"CUDA_VISIBLE_DEVICES": "MIG-7"}, "CUDA_VISIBLE_DEVICES=MIG-7"),
        ((), {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0,1"}, "SLURM_JOB_GPUS=0,1"),
        ((), {"SLURM_JOB_ID": "7", "SLURM_STEP_GPUS": "2", "SLURM_JOB_GPUS": "0,2"}, "SLURM_STEP_GPUS=2"),
    ],
)
def test_no_cpu_where_a_gpu_was_given(machine, files, variables, evidence):
    machine(*files, **variables)
    with pytest.raises(GpuLost, match=rf"{evidence}\), but CUDA does not start: .*nvidia-smi.*CUDA_VISIBLE_DEVICES"):
        pick_device()


def test_a_torch_without_cuda_is_the_users_to_change(machine):
    machine("nvidia0", built=False)
    with pytest.raises(UserError, match=r"nvidia0\), but torch .* is built without CUDA: install a build with it"):
        pick_device()


def test_a_run_that_finds_its_gpu_broken_is_lost_then_failed(machine, root, tmp_path):
    """The pool and Slurm try it once more elsewhere; no epoch is computed on the CPU."""
    run_dir = make_run(root, tmp_path / "run", {"name": "bitfit"})
    machine(CUDA_VISIBLE_DEVICES="0")
    with pytest.raises(GpuLost, match="run: a GPU is there"):
        execute(run_dir)
    assert not (run_dir / RESULT).exists()
    assert run_one(run_dir) == "lost"
    assert [attempt.outcome for attempt in attempts.read_attempts(run_dir)] == ["lost", "lost"]
    found = record.read(run_dir)
    assert found is not None
    assert found.error is not None
    assert "CUDA does not start" in found.error.message


def test_a_run_with_a_torch_without_cuda_fails_with_one_message(machine, root, tmp_path):
    run_dir = make_run(root, tmp_path / "run", {"name": "bitfit"})
    machine("nvidia0", built=False)
    result = execute(run_dir)
    assert result.error is not None
    assert (result.status, result.error.type, result.error.user) == ("failed", "UserError", True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here CUDA starts")
def test_a_real_process_does_not_go_on_without_the_gpu_that_it_was_given():
    code = "from bench.compute.build import pick_device; print(pick_device())"
    for value, wanted in (("", "cpu\n"), ("0", "")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"CUDA_VISIBLE_DEVICES": value},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == wanted
        assert ("a GPU is there" in done.stderr) == (value == "0")
