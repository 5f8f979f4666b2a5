"""The loop's parts by hand: schedules, accumulation, frozen statistics, the weights of the adaptive triplet."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import methods
from bench.config.settings import TrainSettings
from bench.core.evaluate import EvalSet, evaluate
from bench.core.state import StateFiles
from bench.core.train import Batch, TrainBatches, fit, lr_factor, make_optimizer
from methods import losses as registry
from methods.losses.harma import adaptive_triplet
from tests.test_backbone import batch, tiny


def factors(total: int, per_epoch: int, **settings) -> list[float]:
    given = TrainSettings(**settings)
    return [lr_factor(step, total=total, steps_per_epoch=per_epoch, settings=given) for step in range(total)]


def test_schedules_by_hand():
    assert factors(4, 2, schedule="constant", warmup=0.5) == [0.5, 1, 1, 1]
    assert factors(4, 2, schedule="linear", warmup=0) == [1, 0.75, 0.5, 0.25]
    cosine = [(1 + math.cos(math.pi * done)) / 2 for done in (0, 0.25, 0.5, 0.75)]
    assert factors(4, 2, schedule="cosine", warmup=0) == pytest.approx(cosine)
    halves = factors(6, 2, schedule="step", warmup=0, step_epochs=1, step_gamma=0.5)
    assert halves == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    # As released with MRS-Adapter: x 0.7 in epoch 20, counted from 1, not after it.
    assert [round(each, 3) for each in factors(41, 1, schedule="step", warmup=0)] == [1] * 19 + [0.7] * 20 + [0.49] * 2


def decayed(**settings) -> set[str]:
    """What decays of HarMA's parameters and of its loss's, by the last part of the name."""
    model = tiny()
    methods.get("harma")(bottleneck=16, heads=4).attach(model)
    registry.get("harma")().attach(model)
    groups = make_optimizer(model.trainable(), TrainSettings(weight_decay=0.3, **settings)).param_groups
    assert sum(len(group["params"]) for group in groups) == len(model.trainable())
    assert {group["weight_decay"] for group in groups} <= {0.3, 0.0}
    chosen = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    return {name.rpartition(".")[2] for name, p in model.trainable().items() if id(p) in chosen}


def test_weight_decay_falls_on_what_the_settings_say():
    matrices, gates = {"weight", "in_proj_weight"}, {"gate", "inner_gate", "temperature"}
    assert decayed() == matrices
    assert decayed(decay="not_biases") == matrices | gates  # as in HarMA's released optimizer
    assert decayed(decay="all") == matrices | gates | {"bias", "in_proj_bias"}


class Cosine:
    """A loss without negatives."""

    second_view = None

    def __call__(self, features, image_ids, model):
        return (1 - (features.image * features.text).sum(dim=1)).mean()


def train(folder: Path, per_batch: int, **settings):
    """Two epochs over four pairs in batches, with a loss without negatives; returns model and the number of calls."""
    folder.mkdir()
    model = tiny()
    torch.manual_seed(0)
    methods.get("linear_probe")(out_dim=8).attach(model)
    images, tokens = (torch.cat([part, part[:1]]) for part in batch())
    parts = range(0, 4, per_batch)

    def batches(epoch, skip):
        for start in parts[skip:]:
            chosen = slice(start, start + per_batch)
            yield Batch(images[chosen], tokens[chosen], torch.arange(4)[chosen])

    split = EvalSet(lambda: [images], lambda: [tokens], torch.arange(4), torch.arange(4))
    given = TrainSettings(epochs=2, lr=1e-2, warmup=0, schedule="constant", clip_grad_norm=None, **settings)
    done = fit(
        model,
        loss=Cosine(),
        batches=TrainBatches(batches, len(parts)),
        validation=split,
        settings=given,
        seed=0,
        files=StateFiles(folder / "state.pt"),
    )
    return model, done


def test_accumulated_batches_equal_one_batch(tmp_path):
    whole, _ = train(tmp_path / "whole", 4)
    halves, done = train(tmp_path / "halves", 2, accumulate=2)
    quarters, _ = train(tmp_path / "quarters", 1, accumulate=4)
    for other in (halves, quarters):
        for one, two in zip(whole.trainable().values(), other.trainable().values(), strict=True):
            assert torch.allclose(one, two, atol=1e-5)
    assert done.pairs == 8


def test_the_last_short_window_is_a_step(tmp_path):
    short, _ = train(tmp_path / "short", 1, accumulate=3)  # windows of 3 and 1
    long, _ = train(tmp_path / "long", 1, accumulate=4)
    moved = (short.image_head.weight - long.image_head.weight).abs()
    assert torch.isfinite(moved).all()
    # Adam's steps are about the learning rate each: four of 1e-2 against two.
    assert 5e-3 < moved.median() < 5e-2


def test_a_resumed_run_has_the_threads_it_started_with(tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        train(tmp_path / "run", 4)
        torch.set_num_threads(2)
        model = tiny()
        methods.get("linear_probe")(out_dim=8).attach(model)
        split = EvalSet(list, list, torch.arange(4), torch.arange(4))
        settings = TrainSettings(epochs=2, lr=1e-2, warmup=0, schedule="constant", clip_grad_norm=None)
        done = fit(
            model,
            loss=Cosine(),
            batches=TrainBatches(lambda *_: (_ for _ in ()), 1),
            validation=split,
            settings=settings,
            seed=0,
            files=StateFiles(tmp_path / "run" / "state.pt"),
        )
        assert torch.get_num_threads() == 1
        assert len(done.history) == 2
    finally:
        torch.set_num_threads(threads)


def test_batch_norms_of_a_frozen_backbone_do_not_drift(tmp_path):
    changes = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None, "image_size": 32}
    model = tiny(vision_cfg=changes)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    methods.get("linear_probe")(out_dim=8).attach(model)
    images, tokens = batch()
    split = EvalSet(lambda: [images], lambda: [tokens], torch.arange(3), torch.arange(3))
    loss = registry.get("info_nce")()
    settings = TrainSettings(epochs=2, lr=1e-2)
    one = Batch(images, tokens, torch.arange(3))
    fit(
        model,
        loss=loss,
        batches=TrainBatches(lambda *_: (each for each in [one]), 1),
        validation=split,
        settings=settings,
        seed=0,
        files=StateFiles(tmp_path / "state.pt"),
    )
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_evaluation_restores_the_mode():
    model = tiny()
    images, tokens = batch()
    split = EvalSet(lambda: [images], lambda: [tokens], torch.arange(3), torch.arange(3))
    for training in (True, False):
        model.train(training)
        evaluate(model, split)
        assert model.training is training


def test_adaptive_triplet_weights_are_part_of_the_gradient():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(4, 6, dtype=torch.float64), dim=-1) for _ in range(2))
    image.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: adaptive_triplet(a, text, 0.2), (image,))
