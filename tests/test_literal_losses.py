"""The losses `distil` and `self_paced` against a second, literal transcription in plain loops, and its teacher."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import methods
from bench.config.settings import TrainSettings
from bench.core.evaluate import EvalSet
from bench.core.model import DualEncoder, Features
from bench.core.state import StateFiles
from bench.core.train import Batch, TrainBatches, fit
from methods import losses
from tests.literal import TOLERANCE, cosine
from tests.test_backbone import batch, tiny

# --- transcriptions ---------------------------------------------------------------------------------------------------


def cross_entropy(logits: list[Tensor], right: int) -> Tensor:
    return torch.log(sum(torch.exp(logit) for logit in logits)) - logits[right]


def softmax(logits: list[Tensor]) -> list[Tensor]:
    total = sum(torch.exp(logit) for logit in logits)
    return [torch.exp(logit) / total for logit in logits]


def distil(student: Features, teacher: Features, temperature: Tensor, share: float) -> Tensor:
    image, text = list(student.image), list(student.text)
    n = len(image)
    pairs = torch.zeros(())
    for i in range(n):
        pairs = pairs + cross_entropy([cosine(image, text, i, j) / temperature for j in range(n)], i) / n / 2
        pairs = pairs + cross_entropy([cosine(text, image, i, j) / temperature for j in range(n)], i) / n / 2
    kl = {}
    for rows in ("image", "text"):
        for columns in ("image", "text"):
            total = torch.zeros(())
            for i in range(n):
                p, q = (
                    softmax([cosine(getattr(each, rows), getattr(each, columns), i, j) / 0.07 for j in range(n)])
                    for each in (teacher, student)
                )
                for j in range(n):
                    total = total + p[j] * (torch.log(p[j]) - torch.log(q[j]))
            kl[rows, columns] = total / n
    across = (kl["image", "text"] + kl["text", "image"]) / 2
    within = (kl["image", "image"] + kl["text", "text"]) / 2
    return pairs + 10 * share * (across + within)


def self_paced(student: Features, cases: list[str] | None = None) -> Tensor:
    image, text = list(student.image), list(student.text)
    n, scale = len(image), math.exp(2.996)
    total = torch.zeros(())
    for i in range(n):
        loss = cross_entropy([scale * cosine(image, text, i, j) for j in range(n)], i)
        loss = loss + cross_entropy([scale * cosine(text, image, i, j) for j in range(n)], i)
        if loss < 18:
            pace, factor = (5, 1.0) if loss < 5 else (18, 0.8)
            w = torch.cos(math.pi / 2 * loss / pace).detach()
            term = w * loss - 2 / math.pi * pace * (w * torch.arccos(w) - torch.sqrt(1 - w**2))
            term = factor * term
        else:
            term = torch.zeros(())
            own = cosine(image, text, i, i)
            for a, b in ((image, text), (text, image)):
                hardest = max((cosine(a, b, i, j) for j in range(n) if j != i), key=Tensor.item)
                margin = 0.6 * (1 + (hardest - own if hardest > own else 0))
                if margin - own + hardest > 0:
                    term = term + margin - own + hardest
            term = 0.9 * term
        if cases is not None:
            cases.append("easy" if loss < 5 else "medium" if loss < 18 else "hard")
        total = total + term / n
    return total


# --- the comparison ---------------------------------------------------------------------------------------------------


def unit(*shape: int, seed: int) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def student_of(name: str) -> Features:
    """Six pairs; of `self_paced` two are easy, two medium and two hard ones."""
    image = unit(6, 16, seed=0)
    mixed = {"distil": [0.0] * 6, "self_paced": [0.4, 0.5, 0.3, 0.2, -0.6, -2.0]}[name]
    text = torch.nn.functional.normalize(unit(6, 16, seed=1) + torch.tensor(mixed)[:, None] * image, dim=-1)
    return Features(image.requires_grad_(), text.requires_grad_())


def difference(name: str, module: ModuleType) -> float:
    """The largest difference of the module's loss from the transcription: in its value and in all gradients."""
    student, model = student_of(name), tiny()
    loss = {"distil": "Distil", "self_paced": "SelfPaced"}[name]
    found = getattr(module, loss)()
    found.attach(model)
    parameters = [student.image, student.text, *model.extras.values()]
    ids = torch.tensor([0, 1, 1, 2, 3, 4])
    if name == "distil":
        model.teacher.after_epoch(2, 5, {})
        teacher = Features(unit(6, 16, seed=2), unit(6, 16, seed=3))
        value = found(Features(student.image, student.text, teacher=teacher), ids, model)
        by_hand = distil(student, teacher, model.extras["temperature"], 0.4)
    else:
        value, by_hand = found(student, ids, model), self_paced(student)
    pairs = [(value, by_hand), *zip(*(torch.autograd.grad(each, parameters) for each in (value, by_hand)), strict=True)]
    assert all(other.abs().max() > 0 for _, other in pairs)
    return max(float((a - b).detach().abs().max() / max(1.0, float(b.detach().abs().max()))) for a, b in pairs)


@pytest.mark.parametrize("name", ["distil", "self_paced"])
def test_value_and_gradients(name):
    assert difference(name, importlib.import_module(f"methods.losses.{name}")) < TOLERANCE


def test_the_pairs_are_of_every_case():
    cases: list[str] = []
    self_paced(student_of("self_paced"), cases)
    assert {case: cases.count(case) for case in set(cases)} == {"easy": 2, "medium": 2, "hard": 2}


FAULTS = [
    (
        "distil",
        "log_p, log_q = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)",
        "log_q, log_p = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)",
    ),
    ("distil", "(image, image), ", ""),
    ("distil", "(text, image), ", "(image, text), "),
    ("distil", ".sum() / 2", ".sum() / 4"),
    ("distil", "model.teacher.share", "1.0"),
    ("distil", "self.teacher_temperature)", "model.extras['temperature'] * 2)"),
    ("distil", 'reduction="batchmean"', 'reduction="sum"'),
    ("distil", "1 / temperature)", "1 / temperature, image_ids)"),
    ("self_paced", "paced(losses, self.hard)", "paced(losses, self.easy)"),
    ("self_paced", "torch.sin(math.pi / 2 / pace * losses)", "torch.sin(math.pi / pace * losses)"),
    ("self_paced", "self.medium_weight *", ""),
    ("self_paced", "self.hard_weight *", ""),
    ("self_paced", "others.amax(dim=0)", "others.amax(dim=1)"),
    ("self_paced", "margin * (1 + F.relu(error))", "margin"),
    ("self_paced", "(1 + F.relu(error))", "(1 + F.relu(error).detach())"),
    ("self_paced", ' + F.cross_entropy(logits.T, pairs, reduction="none")', ""),
    ("self_paced", "terms.mean()", "terms.sum()"),
    ("self_paced", "losses < self.hard,", "losses < self.easy,"),
]


@pytest.mark.parametrize(("name", "right", "wrong"), FAULTS)
def test_a_planted_fault_is_seen(name, right, wrong):
    source = Path(sys.modules[f"methods.losses.{name}"].__file__).read_text(encoding="utf-8")
    code = source.partition('"""\n\nfrom __future__')[2]  # docstrings may quote what is replaced
    assert source.count(right) >= 1, right
    head, tail = source[: len(source) - len(code)], code
    where = tail.rindex(right)
    planted = ModuleType("planted")
    sys.modules["planted"] = planted
    exec(compile(head + tail[:where] + wrong + tail[where + len(right) :], "planted", "exec"), planted.__dict__)
    assert difference(name, planted) > 10 * TOLERANCE


# --- the teacher ------------------------------------------------------------------------------------------------------


def noisy(name: str, **settings) -> DualEncoder:
    torch.manual_seed(0)
    model = tiny()
    methods.get(name)(**settings).attach(model)
    losses.get("distil")().attach(model)
    stir(model)
    return model.train()


def stir(model: DualEncoder) -> None:
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1 * torch.randn_like(parameter))


def copies(model: DualEncoder) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.trainable().items()}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("mrs_adapter", {"bottleneck": 8, "shared_dim": 8}), ("full_finetune", {}), ("lora", {"dropout": 0.5})],
)
def test_the_teacher_is_the_model_with_mean_weights_in_eval_mode(name, settings):
    model, inputs = noisy(name, **settings), batch()
    ends = []
    for epoch in (1, 2, 3):
        stir(model)
        ends.append(copies(model))
        model.teacher.after_epoch(epoch, 3, model.trainable())
    parameters, state = dict(model.named_parameters(remove_duplicate=False)), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    taught = model.teacher(model, *inputs)
    assert torch.equal(torch.get_rng_state(), state), "the teacher draws random numbers"
    assert [module.training for module in model.modules()] == modes
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[key] is parameter for key, parameter in parameters.items()), "means were left in the model"
    assert not taught.image.requires_grad
    with torch.no_grad():
        for key, parameter in model.trainable().items():
            parameter.copy_(sum(end[key] for end in ends) / 3)
        wanted = model.eval()(*inputs)
    assert torch.allclose(taught.image, wanted.image, atol=1e-5)
    assert torch.allclose(taught.text, wanted.text, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_student_is_not_touched_by_the_teacher(precision):
    """Autocast keeps casts of parameters: a teacher's must not be given to the student."""
    found = []
    for taught in (True, False):
        model, (images, tokens) = noisy("full_finetune"), batch()
        if taught:
            model.teacher.after_epoch(1, 2, model.trainable())
        stir(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            features = model(images, tokens)
        (features.image[0] @ features.text[0]).backward()
        found.append(
            [features.image, features.text, *(p.grad for p in model.trainable().values() if p.grad is not None)]
        )
    assert len(found[0]) == len(found[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_training_averages_the_ends_of_epochs(tmp_path):
    """In three epochs: the weights behind each, and what the loss sees of the teacher in each."""
    model = noisy("linear_probe", out_dim=8)
    images, tokens = batch()
    one = Batch(images, tokens, torch.arange(3))
    loss, ends, shares = losses.get("distil")(), [], []

    class Watched:
        second_view = None

        def __call__(self, features, image_ids, model):
            shares.append(None if features.teacher is None else model.teacher.share)
            return loss(features, image_ids, model)

    def on_progress(phase, **facts):
        if phase == "validate" and "val_mean_recall" not in facts:
            ends.append(copies(model))

    fit(
        model,
        loss=Watched(),
        batches=TrainBatches(lambda *_: (each for each in [one]), 1),
        validation=EvalSet(lambda: [images], lambda: [tokens], torch.arange(3), torch.arange(3)),
        settings=TrainSettings(epochs=3, lr=1e-2, warmup=0, schedule="constant"),
        seed=0,
        files=StateFiles(tmp_path / "state.pt"),
        on_progress=on_progress,
    )
    assert shares == [None, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert model.teacher.share == 1
    for key, mean in model.teacher.weights.items():
        assert torch.allclose(mean, sum(end[key] for end in ends) / 3, atol=1e-6)
    key = "image_head.weight"
    assert not torch.allclose(model.teacher.weights[key], ends[-1][key], atol=1e-4)
