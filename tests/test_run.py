"""Whole runs on a miniature dataset: interrupted, repeated, loaded again, failed."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import bench
from bench.compute.build import preflight
from bench.compute.execute import _gpus_held, execute
from bench.config import errors, files
from bench.config.backbones import model_config
from bench.core import cost, state
from bench.core.inputs import Inputs
from bench.core.model import DualEncoder
from bench.core.position import Position
from bench.plan.spec import RunSpec
from bench.run import main
from bench.store import attempts, folder, record, testset
from bench.store.planned import PLAN
from tests.test_backbone import batch, tiny


def make_run(root: Path, run_dir: Path, method: dict, loss: str = "info_nce", seed: int = 0, **train) -> Path:
    settings = {"epochs": 3, "batch_size": 8, "lr": 1e-3, "workers": 0, "augment": "clip"} | train
    spec = RunSpec.from_dict(
        {
            "sweep": "test",
            "dataset": {"name": "ucm", "root": str(root), "split": "karpathy"},
            "backbone": {"model": "tiny-clip", "weights": "random"},
            "method": method,
            "loss": {"name": loss},
            "train": settings,
            "seed": seed,
        }
    )
    run_dir.mkdir(parents=True)
    files.write_bytes(run_dir / folder.RUN, spec.dump().encode())
    return run_dir


EPOCHS = 12
MRS = {"name": "mrs_adapter", "bottleneck": 16, "shared_dim": 16}


def numbers(run_dir: Path) -> dict:
    """Everything about a run that must not depend on how it came about."""
    with (run_dir / folder.HISTORY).open() as file:
        history = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    ranks = np.load(run_dir / folder.RANKS)
    return {
        "metrics": record.read(run_dir).metrics,
        "history": history,
        "adapter": (run_dir / folder.ADAPTER).read_bytes(),
        "ranks": {key: ranks[key].tolist() for key in ranks.files},
    }


def epochs_done(run_dir: Path) -> int:
    path = run_dir / folder.HISTORY
    return len(path.read_text().splitlines()) - 1 if path.exists() and path.stat().st_size else 0


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory) -> Path:
    run_dir = make_run(root, tmp_path_factory.mktemp("runs") / "whole", MRS, "hmmc", epochs=EPOCHS)
    (run_dir.parent / PLAN).write_text("{}")
    assert execute(run_dir).error is None
    return run_dir


def test_a_finished_run_holds_what_is_promised(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        folder.RUN,
        folder.RESULT,
        folder.ADAPTER,
        folder.RANKS,
        folder.TOP,
        folder.HISTORY,
        folder.ATTEMPTS,
        folder.LOCK,
    }
    result = record.read(finished)
    assert result.status == "finished"
    assert result.cost.trainable_params == 2 * (128 * 16 + 16 + 17 * 112) + 17 * 16
    assert result.cost.adapter_bytes < 4 * result.cost.trainable_params + 4000
    assert result.cost.flops_per_pair > 1e6
    assert all(getattr(result.cost, key) for key in ("train_seconds", "images_per_second", "peak_bytes"))
    assert result.metrics.test.images == 8
    assert result.metrics.test.captions == 16
    best = result.metrics.best_epoch
    values = [float(row["val_mean_recall"]) for row in numbers(finished)["history"]]
    assert best == 1 + values.index(max(values))
    assert result.metrics.val.mean_recall == max(values)
    queries = testset.read(finished.parent, result.provenance["dataset_sha256"])
    assert (len(queries.images), sum(map(len, queries.captions))) == (8, 16)


def test_same_seed_same_numbers_other_seed_others(root, finished, tmp_path):
    again = make_run(root, tmp_path / "again", MRS, "hmmc", epochs=EPOCHS)
    other = make_run(root, tmp_path / "other", MRS, "hmmc", epochs=EPOCHS, seed=1)
    execute(again)
    execute(other)
    assert numbers(again) == numbers(finished)
    losses = [[float(row["train_loss"]) for row in numbers(run)["history"]] for run in (other, finished)]
    assert np.isfinite(losses).all()
    assert np.abs(np.subtract(*losses)).min() > 1e-4, "another seed, other losses in every epoch"


def test_killed_twice_and_resumed_equals_uninterrupted(root, finished, tmp_path):
    run_dir = make_run(root, tmp_path / "killed", MRS, "hmmc", epochs=EPOCHS, workers=1)
    for epoch in (1, 4):
        process = subprocess.Popen([sys.executable, "-m", "bench.run", str(run_dir)], stdout=subprocess.DEVNULL)
        while epochs_done(run_dir) < epoch:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        time.sleep(random.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not record.is_finished(run_dir)
    assert execute(run_dir).error is None
    assert numbers(run_dir) == numbers(finished)


def in_pieces(run_dir: Path, pieces: Iterator[int]) -> int:
    """Execute a run that is told to stop after so many optimizer steps, again and again; how often it was stopped."""
    for stops, steps in enumerate(pieces):
        asked = itertools.count(1)
        try:
            assert execute(run_dir, should_stop=lambda asked=asked, steps=steps: next(asked) >= steps).error is None
        except errors.Stopped:
            assert not (run_dir / folder.RESULT).exists()
            assert not folder.is_claimed(run_dir)
        else:
            return stops
    raise AssertionError


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_at_any_step_equals_uninterrupted(root, finished, tmp_path, workers):
    """With a second view under dropout: the random state within an epoch goes on as well."""
    run_dir = make_run(root, tmp_path / "stopped", MRS, "hmmc", epochs=EPOCHS, workers=workers)
    pieces = [random.randint(3, 34) for _ in range(EPOCHS * 6)]
    stops = in_pieces(run_dir, iter(pieces))
    assert stops >= 2
    assert numbers(run_dir) == numbers(finished), pieces[: stops + 1]
    made = attempts.read_attempts(run_dir)
    assert [attempt.outcome for attempt in made] == ["stopped"] * stops + ["finished"]
    assert all(a.reached == b.at for a, b in itertools.pairwise(made))
    assert made[0].at == (0, 0)
    assert made[-1].reached == (EPOCHS, 0)


def test_stopped_at_every_step_with_accumulation(root, tmp_path):
    """Six batches in windows of four and two, augmented: stops fall between windows, also behind an epoch's last."""
    settings = {"epochs": 2, "accumulate": 4, "augment": "harma"}
    whole = make_run(root, tmp_path / "whole", MRS, "hmmc", **settings)
    execute(whole)
    pieces = make_run(root, tmp_path / "pieces", MRS, "hmmc", **settings)
    assert in_pieces(pieces, itertools.repeat(1)) == 5
    assert numbers(pieces) == numbers(whole)
    reached = [attempt.reached for attempt in attempts.read_attempts(pieces)]
    assert reached == [(0, 4), (0, 6), (1, 0), (1, 4), (1, 6), (2, 0)]


def test_killed_right_behind_a_saved_step(root, finished, tmp_path):
    run_dir = make_run(root, tmp_path / "killed", MRS, "hmmc", epochs=EPOCHS)
    code = (
        "import itertools, os, sys; from pathlib import Path; from bench.compute import execute as run\n"
        "run._note_stop = lambda *_: os.kill(os.getpid(), 9)\n"
        "asked = itertools.count(1); run.execute(Path(sys.argv[1]), should_stop=lambda: next(asked) >= 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run_dir)], check=False).returncode == -signal.SIGKILL
    assert execute(run_dir).error is None
    assert numbers(run_dir) == numbers(finished)
    killed, last = attempts.read_attempts(run_dir)
    assert (killed.outcome, killed.reached, last.at, last.outcome) == ("killed", (1, 2), (1, 2), "finished")
    assert killed.started <= killed.ended <= last.started


def test_what_breaks_while_everything_is_ended_is_no_failure(root, tmp_path, monkeypatch):
    run_dir = make_run(root, tmp_path / "ended", MRS)
    monkeypatch.setattr(Inputs, "train_batches", lambda *_: 1 / 0)
    with pytest.raises(errors.Stopped):
        execute(run_dir, should_stop=lambda: True)
    assert not (run_dir / folder.RESULT).exists()
    assert folder.read_progress(run_dir)["phase"] == "stopped"


def test_a_torn_note_of_an_attempt_is_passed_over(tmp_path):
    attempts.start_attempt(tmp_path, gpus=1, job=None, at=Position())
    with (tmp_path / folder.ATTEMPTS).open("a") as file:
        file.write('{"ended": 17')
    attempts.start_attempt(tmp_path, gpus=0.5, job="7", at=Position(2, 5))
    attempts.end_attempt(tmp_path, "stopped", reached=Position(3))
    attempts.start_attempt(tmp_path, gpus=1, job="12_3", at=Position(3))
    made = attempts.read_attempts(tmp_path)
    assert [attempt.outcome for attempt in made] == ["killed", "stopped", None]
    assert [attempt.job for attempt in made] == [None, "7", "12_3"]
    assert made[0].ended == made[0].started  # it gave no sign of life
    assert made[1].reached == made[2].at == (3, 0)


def test_gpus_that_a_run_keeps(monkeypatch):
    """All of its job's, divided among runs side by side; without a job the one that it computes on."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv(attempts.GPUS_HELD, raising=False)
    assert _gpus_held(None) == 1
    assert _gpus_held("12") == 4
    monkeypatch.setenv(attempts.GPUS_HELD, "0.5")
    assert _gpus_held("12") == 0.5
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert _gpus_held("12") == 0


def test_load_scores_the_same_to_the_last_digit(finished, root):
    adapted = bench.load(finished)
    assert adapted.score("test") == record.read(finished).metrics.test.model_dump()
    with Image.open(root / "0.png") as image:
        assert adapted.preprocess(image).shape == (3, 64, 64)
    assert adapted.tokenizer("a red field").shape == (1, adapted.model.context_length)


@pytest.mark.parametrize("strict", [False, True])
def test_scoring_leaves_torchs_settings_as_they_were(finished, monkeypatch, strict):
    adapted = bench.load(finished)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(strict)
    try:
        threads = torch.get_num_threads()
        adapted.score("test")
        assert torch.are_deterministic_algorithms_enabled() is strict
        assert torch.backends.cudnn.allow_tf32 is True
        assert torch.get_num_threads() == threads
    finally:
        torch.use_deterministic_algorithms(before)


def test_a_peak_that_cannot_be_reset_is_missing(monkeypatch):
    cpu = torch.device("cpu")
    cost.reset_peak_memory(cpu)
    assert cost.peak_memory(cpu) > 0

    def refuse(*_, **__):
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        cost.reset_peak_memory(cpu)
        assert cost.peak_memory(cpu) is None
    cost.reset_peak_memory(cpu)
    assert cost.peak_memory(cpu) > 0


def test_data_workers_change_nothing(root, tmp_path):
    runs = [make_run(root, tmp_path / str(n), MRS, epochs=1, augment="harma", workers=n) for n in (0, 2)]
    for run_dir in runs:
        assert execute(run_dir).error is None
    assert numbers(runs[0]) == numbers(runs[1])


def test_zero_shot_is_scored_without_training(root, tmp_path):
    run_dir = make_run(root, tmp_path / "zero", {"name": "zero_shot"})
    result = execute(run_dir)
    assert result.error is None
    assert result.metrics.best_epoch is None
    assert result.cost.train_seconds is None
    assert result.cost.peak_bytes is None  # an evaluation's memory is not a training's
    assert result.cost.trainable_params == 0
    assert bench.load(run_dir).score("test") == result.metrics.test.model_dump()


def test_divergence_is_a_failure_with_its_reason(root, tmp_path):
    run_dir = make_run(root, tmp_path / "nan", {"name": "full_finetune"}, lr=1e12, clip_grad_norm=None)
    result = execute(run_dir)
    assert result.status == "failed"
    assert "lower" in result.error.message
    assert "Traceback" in result.error.traceback
    assert result.metrics is None
    assert not record.is_finished(run_dir)


def test_the_test_set_is_scored_once(root, tmp_path, monkeypatch):
    asked = []
    eval_set = Inputs.eval_set
    monkeypatch.setattr(Inputs, "eval_set", lambda self, split: asked.append(split) or eval_set(self, split))
    assert execute(make_run(root, tmp_path / "once", MRS, epochs=2)).error is None
    assert asked == ["val", "test"]


def test_one_process_at_a_time(root, tmp_path):
    run_dir = make_run(root, tmp_path / "locked", MRS)
    hold = (
        "import sys, pathlib; from bench.store import folder; lock = folder.claim(pathlib.Path(sys.argv[1])); "
        "lock.__enter__(); print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", hold, str(run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(folder.RunLocked):
            execute(run_dir)
        assert folder.is_claimed(run_dir)
        other.kill()
    assert execute(run_dir).error is None  # the claim went with its process


def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("unexpected pos 704 vs 598")  # torch's words for it

    monkeypatch.setattr("bench.config.files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(bench.config.errors.UserError, match="no space left"), files.disk_errors(tmp_path / "part"):
        full()


def test_command_line(finished, tmp_path, capsys):
    assert main([str(finished / folder.RUN)]) == 0
    assert json.loads(capsys.readouterr().out) == record.read(finished).metrics.test.model_dump()
    assert main([str(tmp_path)]) == 2
    assert "no run.yaml" in capsys.readouterr().err


def test_preflight_names_a_corrupt_image(root, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in root.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "3.png").write_bytes(b"not a picture")
    spec = RunSpec.load(make_run(broken, tmp_path / "run", MRS) / folder.RUN)
    with pytest.raises(bench.config.errors.UserError, match=r"3\.png"):
        preflight([spec])


def test_a_corrupt_checkpoint_says_what_to_do(root, tmp_path):
    run_dir = make_run(root, tmp_path / "state", MRS)
    (run_dir / folder.STATE).write_bytes(b"half")
    result = execute(run_dir)
    assert result.status == "failed"
    assert "delete it to start this run afresh" in result.error.message
    assert result.error.user


def test_flipped_bits_of_a_checkpoint_are_found(root, tmp_path):
    """Each flip leaves the state as it was (it hit padding) or is refused; none is trained on."""
    run_dir = make_run(root, tmp_path / "flips", MRS, epochs=3)
    with pytest.raises(errors.Stopped):
        execute(run_dir, should_stop=lambda: epochs_done(run_dir) >= 1)
    whole, path = (run_dir / folder.STATE).read_bytes(), tmp_path / "state.pt"
    rng, refused = random.Random(0), 0
    for _ in range(150):
        at, flipped = rng.randrange(len(whole)), bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            state._check_whole(path)
            found = torch.load(path, weights_only=True)
        except Exception:
            refused += 1
        else:
            assert _saved(found) == _saved(torch.load(run_dir / folder.STATE, weights_only=True)), at
    assert refused > 100
    with zipfile.ZipFile(run_dir / folder.STATE) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    at = largest.header_offset + largest.file_size // 2  # in a tensor's numbers
    (run_dir / folder.STATE).write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
    result = execute(run_dir)
    assert result.error is not None
    assert "is damaged" in result.error.message
    assert "delete it to start this run afresh" in result.error.message


def _saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_a_cut_adapter_is_one_clear_message(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / finished.name)
    whole = (copy / folder.ADAPTER).read_bytes()
    for length in (len(whole) - 1, 100, 7, 0):
        (copy / folder.ADAPTER).write_bytes(whole[:length])
        with pytest.raises(errors.UserError, match=r"adapter\.safetensors can't be read"):
            bench.load(copy)
    (copy / folder.ADAPTER).unlink()
    with pytest.raises(errors.UserError, match=r"adapter\.safetensors can't be read"):
        bench.load(copy)


def test_an_edited_run_is_not_computed_in_its_old_folder(root, tmp_path):
    """Its numbers would stand in the row of the settings that it was planned with."""
    run_dir = make_run(root, tmp_path / "plain", MRS, epochs=1)
    planned = run_dir.rename(tmp_path / RunSpec.load(run_dir / folder.RUN).run_id)
    text = (planned / folder.RUN).read_text()
    (planned / folder.RUN).write_text(text.replace("lr: 0.001", "lr: 0.1"))
    result = execute(planned)
    assert result.error is not None
    assert result.error.user
    assert RunSpec.load(planned / folder.RUN).run_id in result.error.message
    (planned / folder.RUN).write_text(text)
    assert execute(planned).error is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE])
def test_results_that_cannot_be_written_are_one_message(number, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(errors.UserError, match=re.escape(str(tmp_path))):
        files.write_json(tmp_path / "plan.json", {})


def test_flops_of_a_pair_by_hand():
    """ViT-B-32 on 224 pixels and 77 tokens; attention counts on this device, whatever kernel computes it."""
    image, text = (_tower_flops(tokens, width) for tokens, width in ((50, 768), (77, 512)))
    ends = 2 * 49 * 3 * 32 * 32 * 768 + 2 * 768 * 512 + 2 * 512 * 512
    model = DualEncoder(open_clip.CLIP(**model_config("ViT-B-32")))
    found = cost.flops_per_pair(model, torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long))
    assert found == image + text + ends == 14_777_163_776


def _tower_flops(tokens: int, width: int) -> int:
    """12 blocks: four projections and the MLP's two of 4 x width (12 width^2 a token), scores and their mixing."""
    return 12 * 2 * (12 * tokens * width * width + 2 * tokens * tokens * width)


def test_flops_of_linear_layers_by_hand():
    model = tiny()
    one = cost.flops_per_pair(model, *batch(1))
    assert one == cost.flops_per_pair(model, *batch(3))
    model.image_head, model.text_head = (torch.nn.Linear(32, 10, bias=False) for _ in range(2))
    assert cost.flops_per_pair(model, *batch(1)) - one == 2 * (2 * 32 * 10)
