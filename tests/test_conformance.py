"""Every registered method and loss against the conformance suite, and the suite against planted faults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import nn

import methods
from bench import check as cli
from bench.conformance import suite as checks
from bench.conformance import tiny
from bench.conformance.subject import LOSS_CHECKS, METHOD_CHECKS, Skip, Subject, address, tensors
from methods import losses, registry
from methods.base import Method, ModelShape
from methods.excuses import EXCUSES
from methods.losses import Loss


def cases():
    for table, subjects in (
        (
            METHOD_CHECKS,
            [each for name in methods.names() for each in checks.method_subjects(methods.get(name))],
        ),
        (LOSS_CHECKS, [each for name in losses.names() for each in checks.loss_subjects(losses.get(name))]),
    ):
        for subject in subjects:
            for check in table:
                label = subject.label.replace(" ", "-") + ("" if table is LOSS_CHECKS else f"-{subject.kind}")
                yield pytest.param(check, subject, id=f"{label}-{check}")


@pytest.mark.parametrize(("check", "subject"), list(cases()))
def test_conformance(check: str, subject: Subject):
    outcome = checks.run_check(check, subject, checks.excuse_for(subject, check, EXCUSES))
    if outcome.state == "not applicable":
        pytest.skip(f"not applicable: {outcome.reason}")
    if outcome.state == "excused":
        pytest.xfail(outcome.reason)
    assert outcome.state == "passed", outcome.reason


def idle(table: Iterable[str], subjects: Sequence[Subject]) -> list[str]:
    """The checks that apply to none of the subjects."""
    return [
        check
        for check in table
        if all(checks.run_check(check, subject).state == "not applicable" for subject in subjects)
    ]


def test_every_check_applies_to_something():
    """A check that skips everywhere checks nothing."""
    subjects = [each for name in methods.names() for each in checks.method_subjects(methods.get(name))]
    assert idle(METHOD_CHECKS, subjects) == []
    assert idle(LOSS_CHECKS, [each for name in losses.names() for each in checks.loss_subjects(losses.get(name))]) == []


def test_a_check_that_never_applies_is_seen(monkeypatch):
    def check_of_dreams(_: Subject) -> None:
        raise Skip("not today")

    monkeypatch.setitem(METHOD_CHECKS, "of_dreams", check_of_dreams)
    assert idle(("settings_survive_yaml", "of_dreams"), checks.method_subjects(methods.get("bitfit"))) == ["of_dreams"]


def test_every_excuse_is_of_something_there():
    labels = {each.label for name in methods.names() for each in checks.method_subjects(methods.get(name))}
    for subject, check in EXCUSES:
        assert subject in labels | set(methods.names()) | set(losses.names())
        assert check in METHOD_CHECKS | LOSS_CHECKS


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP", "SigLIP", "ResNet"])
def test_a_tiny_backbone_is_a_whole_copy(kind):
    made, again, origin = tiny.backbone(kind).clip, tiny.backbone(kind).clip, tiny._clip(kind)
    assert [type(module) for module in made.modules()] == [type(module) for module in origin.modules()]
    assert not made.training
    held = dict(tensors(origin))
    assert held.keys() == dict(tensors(made)).keys()
    for (name, one), (_, other) in zip(tensors(made), tensors(again), strict=True):
        assert torch.equal(one, held[name])
        assert one.stride() == held[name].stride()
        assert len({address(one), address(other), address(held[name])}) == 3


# --- planted faults: the sound method passes every check, each fault is caught by the check named for it --------------


class Branch(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, 8), nn.Linear(8, width)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, m):
        h = torch.tanh(self.down(m))
        return m + self.up(self.dropout(h + self.attention(h, h, h, need_weights=False)[0]))


class Sound(Method):
    name = "sound"
    paper = "none, for tests"
    needs_slots = ("image",)

    def branch(self, width: int) -> nn.Module:
        return Branch(width)

    def attach(self, model) -> None:
        for block in model.image_blocks.slotted():
            block.fill(after_mlp=self.branch(model.image_blocks.width))

    def trainable_params(self, shape: ModelShape) -> int | None:
        width = shape.image.width
        return shape.image.layers * ((width + 1) * 8 + 9 * width + 4 * 8 * 9)


class AcrossTheBatch(Sound):
    def branch(self, width: int) -> nn.Module:
        branch = Branch(width)
        branch.attention.batch_first = False
        return branch


class Drifts(Sound):
    def attach(self, model) -> None:
        super().attach(model)

        def sink(block: nn.Module, args: tuple) -> None:
            if block.training:
                with torch.no_grad():
                    block.ln_1.weight.mul_(0.999)

        model.image_blocks.list[0].register_forward_pre_hook(sink)


class Numbed(Branch):
    """Turns its dropout off for evaluation, and forgets to turn it on again."""

    def train(self, mode: bool = True):
        if not mode:
            self.dropout.p = 0.0
        return super().train(mode)


class DropoutLeftOff(Sound):
    def branch(self, width: int) -> nn.Module:
        return Numbed(width)


KNOWN: dict[int, nn.Module] = {}


class Global(Sound):
    def branch(self, width: int) -> nn.Module:
        return KNOWN.setdefault(width, Branch(width))

    def trainable_params(self, shape: ModelShape) -> int | None:
        count = super().trainable_params(shape)
        assert count is not None
        return count // shape.image.layers


class MixesInTraining(Sound):
    """Batch statistics that evaluation does not use."""

    def branch(self, width: int) -> nn.Module:
        class Mixing(Branch):
            def forward(self, m):
                return super().forward(m - m.mean(0) if self.training else m)

        return Mixing(width)


class IdleMerge(Sound):
    @property
    def mergeable(self) -> bool:
        return True

    def merge(self, model) -> None:
        pass


class Shrinks(Sound):
    """A knob that is a divisor."""

    knob = "reduction"
    reduction: int = 1

    def trainable_params(self, shape: ModelShape) -> int | None:
        return 1000 // self.reduction


class Leaks(Sound):
    def attach(self, model) -> None:
        super().attach(model)
        for block in model.image_blocks.list:
            block.after_mlp.register_buffer("initial", block.after_mlp.up.weight.detach().clone())


class HooksHold(Sound):
    """A hook that holds the module it calls: the hook of a copied model calls the original's."""

    def attach(self, model) -> None:
        for block in model.image_blocks.list:
            block.branch = self.branch(model.image_blocks.width)
            block.mlp.register_forward_hook(lambda _, inputs, m, branch=block.branch: branch(m))


class Renames(Sound):
    """A wrapper around a layer renames its weights."""

    def attach(self, model) -> None:
        super().attach(model)
        for block in model.image_blocks.list:
            block.ln_1 = nn.Sequential(block.ln_1)


class StartsAtNaN(Sound):
    """NaN differs from itself: without a look at it, two seeds would seem to give two starts."""

    def branch(self, width: int) -> nn.Module:
        branch = Branch(width)
        nn.init.constant_(branch.down.weight, float("nan"))
        nn.init.constant_(branch.attention.in_proj_weight, 0.1)
        nn.init.constant_(branch.attention.out_proj.weight, 0.1)
        for bias in (branch.down.bias, branch.attention.in_proj_bias, branch.attention.out_proj.bias):
            nn.init.zeros_(bias)
        return branch


FAULTS = {
    AcrossTheBatch: "an_item_is_independent_of_its_batch",
    Drifts: "frozen_weights_bit_identical_after_training",
    DropoutLeftOff: "evaluation_restores_train_and_eval_mode",
    HooksHold: "a_copy_is_whole",
    Renames: "backbone_unchanged_by_attach",
    Global: "two_instances_share_no_storage",
    Leaks: "state_dict_holds_backbone_and_trainable_only",
    MixesInTraining: "an_item_is_independent_of_its_batch",
    IdleMerge: "merged_equals_unmerged",
    Shrinks: "the_count_grows_with_the_knob",
    StartsAtNaN: "other_seed_other_start",
}


def test_a_sound_method_passes():
    assert {o.check: o.reason for o in checks.check_method(Sound) if o.state == "failed"} == {}


@pytest.mark.parametrize(("fault", "check"), FAULTS.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_planted_fault_is_caught(fault, check):
    assert "failed" in {checks.run_check(check, subject).state for subject in checks.method_subjects(fault)}


class Lopsided(Loss):
    name = "lopsided"
    paper = "none, for tests"
    params = 1

    def __call__(self, features, image_ids, model):
        return (features.image[0] * features.text.detach()[0]).sum()


def test_a_faulty_loss_is_caught():
    failed = {outcome.check for outcome in checks.check_loss(Lopsided) if outcome.state == "failed"}
    assert {"reaches_both_towers", "declares_its_parameters", "order_of_the_batch_does_not_matter"} <= failed


def test_an_excuse_must_be_needed():
    for subject in checks.method_subjects(Sound):
        excuse = checks.excuse_for(subject, "starts_at_the_backbone", {("sound", "starts_at_the_backbone"): "old"})
        outcome = checks.run_check("starts_at_the_backbone", subject, excuse)
        assert (outcome.state, outcome.reason) == ("failed", "passes, so this excuse is out of date: old")


def test_an_excuse_must_be_of_something_that_applies():
    """`Sound` has no knob: the check that one grows can't fail for it."""
    for subject in checks.method_subjects(Sound):
        outcome = checks.run_check("the_count_grows_with_the_knob", subject, "old")
        assert (outcome.state, outcome.reason) == (
            "failed",
            "does not apply (no knob), so this excuse is out of date: old",
        )


@pytest.fixture(autouse=True)
def no_plugins_left(monkeypatch):
    monkeypatch.setattr(registry, "_MODULES", [])
    monkeypatch.setenv(registry.PLUGINS, "")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table(capsys):
    assert cli.main(["bitfit"]) == 0
    shown = capsys.readouterr().out
    assert "frozen weights bit identical after training" in shown
    assert "78 checks: 67 passed, 11 not applicable, 0 excused, 0 failed" in shown
    assert "not applicable: merged equals unmerged: not mergeable (3x)" in shown


def test_the_command_tells_a_failure(tmp_path, capsys):
    path = tmp_path / "odd.py"
    path.write_text(
        "from methods.base import Method\n\n\n"
        "class Odd(Method):\n    name = 'odd'\n    paper = 'none'\n\n"
        "    def attach(self, model):\n        model.clip.logit_scale.requires_grad_(True)\n\n"
        "    def trainable_params(self, shape):\n        return 2\n"
    )
    assert cli.main([str(path)]) == 1
    shown = capsys.readouterr().out
    assert "odd: counts equal the closed form: trains 1 on widths 96/80; the closed form says 2" in shown


def test_a_module_may_excuse_itself_but_not_for_nothing(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "from methods.bitfit import BitFit\n\n\nclass Mine(BitFit):\n    name = 'mine'\n\n"
        "    def trainable_params(self, shape):\n        return 1\n\n\n"
        "EXCUSES = {('mine', 'counts_equal_the_closed_form'): 'counts in dozens',\n"
        "           ('mine', 'evaluation_is_deterministic'): 'none'}\n"
    )
    assert cli.main([str(path)]) == 1
    shown = capsys.readouterr().out
    assert "excused: mine: counts equal the closed form: counts in dozens" in shown
    assert "failed: mine: evaluation is deterministic: passes, so this excuse is out of date" in shown


def test_a_method_and_its_own_loss_in_one_file(tmp_path, capsys):
    path = tmp_path / "both.py"
    path.write_text(
        "from methods.bitfit import BitFit\nfrom methods.losses.triplet import Triplet\n\n\n"
        "class Wide(Triplet):\n    name = 'wide'\n    margin: float\n    examples = {'': {'margin': 0.5}}\n\n\n"
        "class Mine(BitFit):\n    name = 'mine_too'\n    default_loss = 'triplet'\n"
    )
    assert cli.main([str(path)]) == 0
    assert " 0 failed" in capsys.readouterr().out


def test_a_module_that_is_registered_already(capsys):
    assert cli.resolve("methods.losses.triplet") == cli.resolve("triplet") == [losses.get("triplet")]
    assert cli.main(["methods.losses.triplet", "triplet"]) == 0
    assert " 0 failed" in capsys.readouterr().out


def test_examples_must_suffice(tmp_path, capsys):
    path = tmp_path / "needy.py"
    path.write_text("from methods.bitfit import BitFit\n\n\nclass Needy(BitFit):\n    name = 'needy'\n    rank: int\n")
    assert cli.main([str(path)]) == 2
    assert "needy: `examples` must give settings that work: rank" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["nosuch", "json", "/nosuch.py"])
def test_a_target_that_means_nothing(target, capsys):
    assert cli.main([target]) == 2
    assert "error: " in capsys.readouterr().err
