"""The conformance suite: what every method and every loss must keep, as small named checks on tiny random CLIPs.

`check_method` and `check_loss` run them and give back one `Outcome` each; `python -m bench.check` prints them as a
table. A check raises AssertionError with what it saw, or `Skip` where it has nothing to say. An excuse is a reason why
one check is expected to fail for one method; a check that passes in spite of its excuse fails for that.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import torch
import torch.nn.functional as F
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.config import Document, Dumper, parse, parse_yaml
from bench.core.backbone import DualEncoder, Features
from bench.core.train import Batch, EvalSet, evaluate, fit
from bench.errors import UserError
from bench.settings import Settings
from bench.spec import TrainSettings
from bench.weights import shape_of
from methods import losses
from methods.base import Method, ModelShape, describe
from methods.losses import Loss

CLOSE = 1e-5  # largest difference of cosines that counts as rounding

# --- tiny backbones --------------------------------------------------------------------------------------------------

VOCABULARY, CONTEXT = 64, 24
TINY: dict[str, Any] = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 24, "layers": 3, "width": 96, "head_width": 24, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 80, "heads": 4, "layers": 2},
}
# Other widths, depths and proportions, for closed forms.
SHAPES: tuple[dict[str, Any], ...] = (
    TINY,
    {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "head_width": 32, "patch_size": 16, "mlp_ratio": 3},
        "text_cfg": {"context_length": 30, "vocab_size": 50, "width": 128, "heads": 2, "layers": 4, "mlp_ratio": 2},
    },
    {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 72, "head_width": 36, "patch_size": 8},
        "text_cfg": {"context_length": 24, "vocab_size": 40, "width": 96, "heads": 3, "layers": 2},
    },
)
RESNET: dict[str, Any] = TINY | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}}
CLASSES = ("CLIP", "CustomTextCLIP")


@cache
def _clip(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = copy.deepcopy(RESNET if kind == "ResNet" else TINY)
        return getattr(open_clip, "CLIP" if kind == "ResNet" else kind)(**config).eval()  # type: ignore[no-any-return]


def backbone(kind: str = "CLIP") -> DualEncoder:
    """A tiny frozen random CLIP: of either open_clip class, or with a "ResNet" image tower. Always the same."""
    return DualEncoder(copy.deepcopy(_clip(kind)))


def batch(seed: int = 1, image_size: int = 24) -> Batch:
    """Four images with a caption each, of different lengths, the second and third of the same image."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(4, CONTEXT, dtype=torch.long)
    for row, words in enumerate((3, 5, 9, 6)):
        tokens[row, 0] = VOCABULARY - 2
        tokens[row, 1 : words + 1] = torch.randint(1, VOCABULARY - 2, (words,), generator=generator)
        tokens[row, words + 1] = VOCABULARY - 1
    images = torch.randn(4, 3, image_size, image_size, generator=generator)
    return Batch(images, tokens, torch.tensor([0, 1, 1, 2]))


def eval_set() -> EvalSet:
    held_out = batch(seed=9)
    return EvalSet(lambda: [held_out.images], lambda: [held_out.tokens], torch.arange(4), torch.arange(4))


# --- subjects --------------------------------------------------------------------------------------------------------


class Skip(Exception):
    """Raised by a check that has nothing to say about a subject; its text is the reason."""


@dataclass(frozen=True)
class Subject:
    """A method with settings on one class of backbone, or a loss (then `method` is None)."""

    label: str
    kind: str
    method: Method | None
    loss: Loss

    @cached_property
    def shape(self) -> ModelShape:
        return shape_of("tiny", TINY)

    def attached(self, seed: int = 0, perturbed: bool = False, train: bool = False) -> DualEncoder:
        """A tiny backbone with the method and its loss attached, in eval mode unless `train`; perturbed: moved on."""
        model = backbone(self.kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.method is not None:
                self.method.attach(model)
            self.loss.attach(model)
            if perturbed:
                with torch.no_grad():
                    for parameter in model.trainable().values():
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return model.train(train)

    def loss_of(self, model: DualEncoder, data: Batch) -> Tensor:
        features = model(data.images, data.tokens, self.loss.second_view)
        return self.loss(features, data.image_ids, model) + sum(penalty() for penalty in model.penalties)

    def train(
        self, model: DualEncoder, folder: Path, epochs: int = 2, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Train in the core's own loop, three batches an epoch, and leave the model as the last step left it."""
        settings = TrainSettings(
            epochs=epochs, batch_size=4, lr=1e-2, warmup=0.0, weight_decay=0.1, schedule="constant"
        )
        with torch.random.fork_rng(devices=[]):
            fit(
                model,
                self.loss,
                self.loss.second_view,
                lambda epoch, skip: (batch(3 * epoch + i) for i in range(skip, 3)),
                3,
                eval_set(),
                settings,
                0,
                folder,
                lambda *_, **__: None,
                should_stop,
            )
        model.eval()


def cosines(model: DualEncoder, data: Batch | None = None) -> Tensor:
    """All embeddings of a batch (2 * batch, dim), images first, L2-normalised."""
    data = data or batch()
    with torch.no_grad():
        features = model(data.images, data.tokens)
    return torch.cat([features.image, features.text])


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


# --- the checks ------------------------------------------------------------------------------------------------------

Check = Callable[[Subject], None]
METHOD_CHECKS: dict[str, Check] = {}
LOSS_CHECKS: dict[str, Check] = {}


def _into(table: dict[str, Check]) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        table[check.__name__.removeprefix("check_")] = check
        return check

    return register


on_method, on_loss = _into(METHOD_CHECKS), _into(LOSS_CHECKS)


def _round_trip(settings: Method | Loss) -> None:
    described = describe(settings)
    data = parse_yaml(yaml.dump(described, Dumper=Dumper), "settings")[0]
    assert data.pop("name") == settings.name, "the name changed on its way through YAML"
    again = parse(type(settings), data, settings.name, Document(data, {}))
    assert describe(again) == described, f"{described} became {describe(again)} on its way through YAML"


@on_method
def check_settings_survive_yaml(subject: Subject) -> None:
    assert subject.method is not None
    assert subject.method.paper, "says no `paper`"
    _round_trip(subject.method)
    for preset in subject.method.presets.values():
        _round_trip(type(subject.method).model_validate({**subject.method.model_dump(), **preset}))


@on_method
def check_fits_or_is_refused_while_planning(subject: Subject) -> None:
    """On a backbone with a ResNet `check` says no with a UserError, or all works."""
    assert subject.method is not None
    subject.method.check(subject.shape)
    try:
        subject.method.check(shape_of("tiny-resnet", RESNET))
    except UserError:
        return
    model, data = backbone("ResNet"), batch(image_size=64)
    try:
        subject.method.attach(model)
    except UserError as error:
        raise AssertionError(f"`check` lets a ResNet pass that `attach` refuses; set `needs_slots`: {error}") from error
    for features in (model.encode_image(data.images), model.encode_text(data.tokens)):
        assert torch.isfinite(features).all(), "not finite on a ResNet that `check` lets pass"


@on_method
def check_backbone_unchanged_by_attach(subject: Subject) -> None:
    before, after = backbone(subject.kind).state_dict(), subject.attached().state_dict()
    lost = sorted(before.keys() - after.keys())
    assert not lost, f"{len(lost)} keys of the backbone are gone, such as {lost[0]}"
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert not changed, f"{len(changed)} tensors of the backbone changed, such as {changed[0]}"


@on_method
def check_state_dict_holds_backbone_and_trainable_only(subject: Subject) -> None:
    """What else it held would be saved with neither the backbone nor the adapter, or with both."""
    model = subject.attached()
    trained = {id(parameter) for parameter in model.trainable().values()}  # one that serves twice has two names
    held = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in trained}
    leaked = sorted(held - backbone(subject.kind).state_dict().keys())
    assert not leaked, f"{len(leaked)} tensors are neither backbone nor trainable, such as {leaked[0]}"


@on_method
def check_starts_at_the_backbone(subject: Subject) -> None:
    assert subject.method is not None
    plain, model = cosines(backbone(subject.kind)), cosines(subject.attached())
    size = len(plain) // 2  # heads may change the embeddings' size; cosines compare
    moved = distance(plain[:size] @ plain[size:].T, model[:size] @ model[size:].T)
    if subject.method.starts_elsewhere:
        assert moved > CLOSE, "says that it starts elsewhere, but starts at the backbone"
    else:
        assert moved < CLOSE, f"cosines differ by {moved:.1e} before any training, and `starts_elsewhere` is None"


@on_method
def check_all_that_is_trainable_gets_gradients(subject: Subject) -> None:
    """That nothing else does is what the closed form and the frozen weights show."""
    model = subject.attached(perturbed=True, train=True)
    trainable = model.trainable()
    if not trainable:
        raise Skip("trains nothing")
    subject.loss_of(model, batch()).backward()
    for name, parameter in trainable.items():
        assert parameter.grad is not None, f"{name} is trainable, but gets no gradient"
        assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
        assert parameter.grad.any(), f"the gradient of {name} is zero throughout"


@on_method
def check_frozen_weights_bit_identical_after_training(subject: Subject) -> None:
    model = subject.attached()
    if not model.trainable():
        raise Skip("trains nothing")
    trained = {id(parameter) for parameter in model.trainable().values()}
    frozen = {name: tensor for name, tensor in _tensors(model) if id(tensor) not in trained}
    before = {name: tensor.clone() for name, tensor in frozen.items()}
    with tempfile.TemporaryDirectory() as folder:
        subject.train(model, Path(folder))
    for name, tensor in _tensors(model):
        if name in before:
            kind = "frozen" if isinstance(tensor, nn.Parameter) else "a buffer, which no file keeps"
            assert torch.equal(tensor, before[name]), f"{name} is {kind}, but drifted in training"


@on_method
def check_one_step_changes_the_output(subject: Subject) -> None:
    model = subject.attached()
    if not model.trainable():
        raise Skip("trains nothing")
    before = cosines(model)
    model.train()
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2)
    subject.loss_of(model, batch()).backward()
    optimizer.step()
    moved = distance(before, cosines(model.eval()))
    assert moved > CLOSE, f"the output moved by no more than {moved:.1e} in one step"


@on_method
def check_counts_equal_the_closed_form(subject: Subject) -> None:
    assert subject.method is not None
    for number, config in enumerate(SHAPES):
        shape = shape_of(f"shape {number}", config)
        closed = subject.method.trainable_params(shape)
        if closed is None:
            raise Skip("no closed form")
        model = DualEncoder(getattr(open_clip, subject.kind)(**copy.deepcopy(config)))
        subject.method.attach(model)
        widths = "/".join(str(tower.width) for tower in shape.towers)
        found = model.trainable_params()
        assert found == closed, f"trains {found:,} on widths {widths}; the closed form says {closed:,}"


@on_method
def check_the_count_grows_with_the_knob(subject: Subject) -> None:
    """What `budget:` relies on."""
    assert subject.method is not None
    knob, step = subject.method.knob, subject.method.knob_step
    if knob is None:
        raise Skip("no knob")
    values = subject.method.model_dump()
    if knob in type(subject.method).model_fields:
        assert isinstance(values[knob], int), f"`knob` is {knob}, which is no whole number"
    found = []
    for multiple in range(1, 65):
        try:
            method = type(subject.method).model_validate({**values, knob: multiple * step})
            method.check(subject.shape)
        except (UserError, ValidationError):
            continue
        count = method.trainable_params(subject.shape)
        if count is None:
            raise Skip("no closed form")
        found.append((multiple * step, count))
        if len(found) == 2:
            break
    assert len(found) == 2 or (found and knob), f"no value of {knob} works up to {64 * step}"
    (low, few), (high, more) = found[0], found[-1]
    assert more > few or low == high, f"{knob}={low} trains {few:,}, {knob}={high} trains {more:,}: not more"


@on_method
def check_an_item_is_independent_of_its_batch(subject: Subject) -> None:
    """An embedding depends neither on the other items of the batch nor on their order; without dropout in training."""
    data = batch()
    for train in (False, True):
        model = subject.attached(perturbed=True, train=train)
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        mode = "training" if train else "evaluation"
        for name, encode, items in (
            ("image", model.encode_image, data.images),
            ("text", model.encode_text, data.tokens),
        ):
            with torch.no_grad():
                together, again = encode(items, True), encode(items, True)
                if not torch.equal(together, again):
                    continue  # random beside its dropout layers, in training
                alone = distance(together[1], encode(items[1:2], True)[0])
                turned = distance(together, encode(items.flip(0), True).flip(0))
            assert alone < CLOSE, f"in {mode} the {name} embedding moves by {alone:.1e} without the rest of its batch"
            assert turned < CLOSE, f"in {mode} the {name} embedding moves by {turned:.1e} with the order of its batch"


@on_method
def check_padding_matters_only_where_declared(subject: Subject) -> None:
    """`trims_text` says whether cutting the padding off is exact; it is cut off here."""
    assert subject.method is not None
    model, data = subject.attached(perturbed=True), batch()
    whole = model.encode_text(data.tokens, True)
    moved = distance(whole, _trimmed(model, data.tokens))
    if subject.method.trims_text:
        assert moved < CLOSE, f"`trims_text` is true, but a text embedding moves by {moved:.1e} without its padding"
    else:
        assert moved > CLOSE, "`trims_text` is false, but the padding makes no difference"


@torch.no_grad()
def _trimmed(model: DualEncoder, tokens: Tensor) -> Tensor:
    """Text embeddings from no more positions than the longest caption has, prompts included."""
    model = copy.deepcopy(model)
    for rewrite in model.token_rewrites:
        tokens = rewrite(tokens)
    model.token_rewrites = []
    longest = int(tokens.argmax(dim=1).max()) + 1
    owner: Any = getattr(model.clip, "text", model.clip)
    owner.positional_embedding = nn.Parameter(owner.positional_embedding[:longest])
    owner.attn_mask = owner.attn_mask[:longest, :longest]
    return model.encode_text(tokens[:, :longest], True)


@on_method
def check_saved_and_loaded_exactly(subject: Subject) -> None:
    """The file holds the trainable part alone; with it a fresh model, of the run's seed, computes the same bits."""
    model, fresh = subject.attached(perturbed=True), subject.attached()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        model.save_adapter(path)
        held = load_file(path)
        assert held.keys() == model.trainable().keys(), "the file holds other tensors than the trainable ones"
        fresh.load_adapter(path)
    moved = distance(cosines(model), cosines(fresh))
    assert moved == 0, f"embeddings differ by {moved:.1e} after loading: something that matters is not in the file"


@on_method
def check_two_instances_share_no_storage(subject: Subject) -> None:
    """Two adapted models in one process know nothing of each other: no tensor, no module is common to both."""
    one, other = subject.attached(), subject.attached()
    modules = {id(module) for module in one.modules()} & {id(module) for module in other.modules()}
    assert not modules, f"{len(modules)} modules belong to two models at once"
    held = {_address(tensor): name for name, tensor in _tensors(one)}
    shared = [held[_address(tensor)] for _, tensor in _tensors(other) if _address(tensor) in held]
    assert not shared, f"two models share the memory of {shared[0]}"
    before = cosines(other)
    with torch.no_grad():
        for parameter in one.trainable().values():
            parameter.add_(0.1)
    assert torch.equal(cosines(other), before), "changing one model's weights changes another's output"


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    found = itertools.chain(model.named_parameters(), model.named_buffers())
    return ((name, tensor) for name, tensor in found if tensor.numel())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@on_method
def check_same_seed_same_result(subject: Subject) -> None:
    trained = []
    for _ in range(2):
        model = subject.attached(seed=4)
        if not model.trainable():
            raise Skip("trains nothing")
        with tempfile.TemporaryDirectory() as folder:
            subject.train(model, Path(folder), epochs=1)
        trained.append(model.trainable())
    differ = [name for name in trained[0] if not torch.equal(trained[0][name], trained[1][name])]
    assert not differ, f"{differ[0]} differs between two trainings with the same seed"


@on_method
def check_other_seed_other_start(subject: Subject) -> None:
    names = subject.attached().trainable().keys() - dict(backbone(subject.kind).named_parameters()).keys()
    one, other = subject.attached(seed=0).trainable(), subject.attached(seed=1).trainable()
    random = [name for name in names if one[name].numel() > 1 and one[name].min() != one[name].max()]
    if not random:
        raise Skip("nothing in it starts random")
    assert any(not torch.equal(one[name], other[name]) for name in random), "the seed does not reach the start"


@on_method
def check_bf16_autocast_is_finite(subject: Subject) -> None:
    model = subject.attached(perturbed=True, train=True)
    with torch.autocast("cpu", torch.bfloat16):
        features = model(batch().images, batch().tokens, subject.loss.second_view)
    assert features.image.dtype == features.text.dtype == torch.float32, "embeddings leave autocast in another dtype"
    value = subject.loss(features, batch().image_ids, model)
    assert torch.isfinite(value), f"the loss is {float(value)} under bf16"
    if model.trainable():
        value.backward()
        bad = [name for name, p in model.trainable().items() if p.grad is not None and not torch.isfinite(p.grad).all()]
        assert not bad, f"the gradient of {bad[0]} is not finite under bf16"


@on_method
def check_gradient_checkpointing_changes_nothing(subject: Subject) -> None:
    found = []
    for checkpointing in (False, True):
        model = subject.attached(perturbed=True, train=True)
        if not model.trainable():
            raise Skip("trains nothing")
        model.clip.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            value = subject.loss_of(model, batch())
            value.backward()
        found.append([value.detach(), *(p.grad for p in model.trainable().values() if p.grad is not None)])
    assert len(found[0]) == len(found[1]), "other parameters get gradients with gradient checkpointing"
    for plain, again in zip(*found, strict=True):
        assert torch.allclose(plain, again, atol=1e-5, rtol=1e-4), "gradients differ with gradient checkpointing"


@on_method
def check_torch_compile_runs(subject: Subject) -> None:
    """Captured whole by torch.compile (without code generation, which needs a compiler), the output is the same."""
    if subject.kind != CLASSES[0]:
        raise Skip("slow, and seen on the other class")
    model, data = subject.attached(perturbed=True), batch()
    expected = cosines(model)
    torch._dynamo.reset()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        features = torch.compile(model, backend="eager", fullgraph=True)(data.images, data.tokens)
    moved = distance(torch.cat([features.image, features.text]), expected)
    assert moved < CLOSE, f"compiled, the embeddings differ by {moved:.1e}"


@on_method
def check_evaluation_restores_train_and_eval_mode(subject: Subject) -> None:
    """After an evaluation every module is in its mode again, and the same training step computes the same."""

    def step(model: DualEncoder) -> Tensor:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(6)
            features = model(batch().images, batch().tokens)
        return torch.cat([features.image, features.text])

    model = subject.attached(perturbed=True, train=True)
    modes, before = [module.training for module in model.modules()], step(model)
    evaluate(model, eval_set())
    assert [module.training for module in model.modules()] == modes, "evaluation left modules in another mode"
    assert torch.equal(step(model), before), "the same training step computes something else after an evaluation"


@on_method
def check_evaluation_is_deterministic(subject: Subject) -> None:
    model = subject.attached(perturbed=True)
    assert torch.equal(cosines(model), cosines(model)), "two evaluations of the same model differ"


@on_method
def check_merged_equals_unmerged(subject: Subject) -> None:
    assert subject.method is not None
    if not subject.method.mergeable:
        raise Skip("not mergeable")
    model = subject.attached(perturbed=True)
    before = cosines(model)
    subject.method.merge(model)
    merged = cosines(model)
    moved = distance(before, merged)
    assert moved < CLOSE, f"embeddings move by {moved:.1e} when the adapter is merged"
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.zero_()
    assert torch.equal(cosines(model), merged), "after merging the output still depends on the adapter's own weights"


@on_method
def check_trains_with_every_loss(subject: Subject) -> None:
    for name in losses.names():
        cls = losses.get(name)
        other = Subject(subject.label, subject.kind, subject.method, _built(cls, next(iter(cls.examples.values()))))
        model = other.attached(perturbed=True, train=True)
        own = [parameter for key, parameter in model.trainable().items() if not key.startswith("extras.")]
        if not own:
            raise Skip("trains nothing")
        value = other.loss_of(model, batch())
        assert torch.isfinite(value), f"the loss {name} is {float(value)}"
        value.backward()
        assert any(p.grad is not None and p.grad.any() for p in own), f"the loss {name} gives the method no gradient"


# --- losses ----------------------------------------------------------------------------------------------------------


def _features(seed: int = 0, requires_grad: bool = False) -> Features:
    generator = torch.Generator().manual_seed(seed)
    drawn = [F.normalize(torch.randn(4, 16, generator=generator), dim=-1) for _ in range(4)]
    return Features(*(each.requires_grad_(requires_grad) for each in drawn))


def _map(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    assert features.image_view is not None
    assert features.text_view is not None
    return Features(*map(change, (features.image, features.text, features.image_view, features.text_view)))


def _value(subject: Subject, features: Features, ids: Sequence[int] = (0, 1, 1, 2)) -> Tensor:
    if subject.loss.second_view is None:
        features = Features(features.image, features.text)
    return subject.loss(features, torch.tensor(ids), subject.attached())


@on_loss
def check_loss_settings_survive_yaml(subject: Subject) -> None:
    assert subject.loss.paper, "says no `paper`"
    _round_trip(subject.loss)


@on_loss
def check_is_a_finite_scalar(subject: Subject) -> None:
    value = _value(subject, _features())
    assert value.shape == (), f"the loss has the shape {tuple(value.shape)}"
    assert torch.isfinite(value), f"the loss is {float(value)}"


@on_loss
def check_reaches_both_towers(subject: Subject) -> None:
    features = _features(requires_grad=True)
    _value(subject, features).backward()
    for side in ("image", "text"):
        gradient = getattr(features, side).grad
        assert gradient is not None, f"no gradient reaches the {side} tower"
        assert gradient.any(), f"the gradient of the {side} tower is zero"


@on_loss
def check_declares_its_parameters(subject: Subject) -> None:
    """`params` is what `attach` adds, and all of it is trained."""
    model = subject.attached()
    found = sum(parameter.numel() for parameter in model.extras.values())
    assert found == subject.loss.params, f"adds {found} parameters; `params` says {subject.loss.params}"
    features = _features() if subject.loss.second_view else Features(_features().image, _features().text)
    if found:
        subject.loss(features, torch.tensor([0, 1, 1, 2]), model).backward()
    idle = [name for name, parameter in model.extras.items() if parameter.grad is None]
    assert not idle, f"{idle} get no gradient" if idle else ""


@on_loss
def check_order_of_the_batch_does_not_matter(subject: Subject) -> None:
    order = torch.tensor([2, 0, 3, 1])
    features, ids = _features(), torch.tensor([0, 1, 1, 2])
    turned = _value(subject, _map(features, lambda x: x[order]), ids[order].tolist())
    moved = abs(float(_value(subject, features) - turned))
    assert moved < 1e-4, f"the loss moves by {moved:.1e} with the order of the batch"


@on_loss
def check_prefers_matching_pairs(subject: Subject) -> None:
    image = _features().image
    matched, crossed = (
        float(_value(subject, Features(image, text, image, text), (0, 1, 2, 3))) for text in (image, image.flip(0))
    )
    assert matched < crossed, f"{matched:.3g} for matching pairs, {crossed:.3g} for crossed ones"


@on_loss
def check_one_step_lowers_it(subject: Subject) -> None:
    features = _features(requires_grad=True)
    before = _value(subject, features)
    before.backward()

    def stepped(x: Tensor) -> Tensor:
        return x.detach() if x.grad is None else F.normalize(x.detach() - 1e-3 * F.normalize(x.grad, dim=-1), dim=-1)

    after = _value(subject, _map(features, stepped))
    assert after < before, f"a small step against the gradient takes it from {before:.6g} to {after:.6g}"


# --- running them ----------------------------------------------------------------------------------------------------

Excuses = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Outcome:
    """One check of one subject: "passed", "failed", "excused" or "skipped", and why if not passed."""

    check: str
    subject: str
    kind: str
    state: str
    reason: str = ""
    seconds: float = field(default=0.0, compare=False)


def run_check(name: str, subject: Subject, excuse: str | None = None) -> Outcome:
    """Run one check; with an excuse it is expected to fail, and passing is what fails."""
    check = (METHOD_CHECKS | LOSS_CHECKS)[name]
    started = time.perf_counter()
    state, reason = "passed", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's remarks on its own settings
            check(subject)
    except Skip as skip:
        state, reason = "skipped", str(skip)
    except Exception as error:
        told = str(error).strip().splitlines()
        reason = told[0] if told else type(error).__name__
        state = "failed"
        if not isinstance(error, AssertionError):
            last = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {reason} ({last.filename}:{last.lineno})"
    if excuse is not None and state == "failed":
        state, reason = "excused", excuse
    elif excuse is not None and state == "passed":
        state, reason = "failed", f"passes, so this excuse is out of date: {excuse}"
    return Outcome(name, subject.label, subject.kind, state, reason, time.perf_counter() - started)


def method_subjects(cls: type[Method]) -> list[Subject]:
    """A method under each of its examples, on each class of backbone."""
    made = [(f"{cls.name} {label}".strip(), _built(cls, settings)) for label, settings in cls.examples.items()]
    loss = _built(losses.get(cls.default_loss), {})
    return [Subject(label, kind, method, loss) for label, method in made for kind in CLASSES]


def loss_subjects(cls: type[Loss]) -> list[Subject]:
    """A loss under each of its examples."""
    made = [(f"{cls.name} {label}".strip(), _built(cls, settings)) for label, settings in cls.examples.items()]
    return [Subject(label, "CLIP", None, loss) for label, loss in made]


S = TypeVar("S", bound=Settings)


def _built(cls: type[S], settings: Mapping[str, Any]) -> S:
    """The class with these settings; UserError if they are not all it needs."""
    try:
        return cls(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{cls.name}: `examples` must give settings that work: {key}: {first['msg']}") from error  # type: ignore[attr-defined]


def check_method(cls: type[Method], excuses: Excuses | None = None) -> list[Outcome]:
    """Every check of a method. `excuses` maps (label or name, check) to the reason why it is expected to fail."""
    return list(_run(method_subjects(cls), METHOD_CHECKS, excuses or {}))


def check_loss(cls: type[Loss], excuses: Excuses | None = None) -> list[Outcome]:
    """Every check of a loss."""
    return list(_run(loss_subjects(cls), LOSS_CHECKS, excuses or {}))


def excuse_for(subject: Subject, check: str, excuses: Excuses) -> str | None:
    """The reason given for the subject's own label, else for its class or one that it extends."""
    classes = type(subject.loss if subject.method is None else subject.method).__mro__
    names = [subject.label, *(cls.__dict__["name"] for cls in classes if "name" in cls.__dict__)]
    return next((excuses[name, check] for name in names if (name, check) in excuses), None)


def _run(subjects: Iterable[Subject], checks: Iterable[str], excuses: Excuses) -> Iterator[Outcome]:
    for subject, check in itertools.product(subjects, list(checks)):
        yield run_check(check, subject, excuse_for(subject, check, excuses))
