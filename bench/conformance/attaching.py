"""Checks of what attaching a method does: its settings, its start, its counts."""

from __future__ import annotations

import copy

import torch
import yaml
from pydantic import ValidationError

from bench.config.document import Document, Dumper, parse_yaml
from bench.config.errors import UserError
from bench.config.parse import parse
from bench.config.shapes import shape_of
from bench.conformance.subject import CLOSE, Skip, Subject, address, cosines, distance, on_method, tensors
from bench.conformance.tiny import CONFIGS, RESNET, backbone, batch
from methods.base import Method, describe
from methods.losses import Loss


def round_trip(settings: Method | Loss) -> None:
    described = describe(settings)
    data = parse_yaml(yaml.dump(described, Dumper=Dumper), "settings")[0]
    assert data.pop("name") == settings.name, "the name changed on its way through YAML"
    again = parse(type(settings), data, settings.name, Document(data, {}))
    assert describe(again) == described, f"{described} became {describe(again)} on its way through YAML"


@on_method
def check_settings_survive_yaml(subject: Subject) -> None:
    assert subject.method is not None
    assert subject.method.paper, "has no `paper`"
    round_trip(subject.method)
    for preset in subject.method.presets.values():
        round_trip(type(subject.method).model_validate({**subject.method.model_dump(), **preset}))


@on_method
def check_fits_or_is_refused_while_planning(subject: Subject) -> None:
    """On a backbone with a ResNet, `check` refuses with a UserError, or the method works."""
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
    assert not lost, (
        f"{len(lost)} keys of the backbone are gone, such as {lost[0]}; a wrapper renames what it wraps, "
        "`layer(name).fill(...)` of a block does not"
    )
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert not changed, f"{len(changed)} tensors of the backbone changed, such as {changed[0]}"


@on_method
def check_state_dict_holds_backbone_and_trainable_only(subject: Subject) -> None:
    """Anything else would be saved neither with the backbone nor with the adapter."""
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
        assert moved > CLOSE, "`starts_elsewhere` is set, but the output starts at the backbone's"
    else:
        assert moved < CLOSE, f"cosines differ by {moved:.1e} before any training, and `starts_elsewhere` is None"


@on_method
def check_counts_equal_the_closed_form(subject: Subject) -> None:
    assert subject.method is not None
    for number, config in enumerate(CONFIGS[subject.kind]):
        shape = shape_of(f"shape {number}", config)
        closed = subject.method.trainable_params(shape)
        if closed is None:
            raise Skip("no closed form")
        model = backbone(subject.kind, number)
        subject.method.attach(model)
        widths = "/".join(str(tower.width) for tower in shape.towers)
        found = model.trainable_params()
        assert found == closed, f"trains {found:,} on widths {widths}; the closed form says {closed:,}"


@on_method
def check_the_count_grows_with_the_knob(subject: Subject) -> None:
    """A budget is solved by bisection over the knob, so the count must grow with it."""
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
    assert found, f"no value of {knob} works up to {64 * step}"
    if len(found) == 1:
        raise Skip(f"only one value of {knob} fits")
    (low, few), (high, more) = found
    assert more > few, f"{knob}={low} trains {few:,}, {knob}={high} trains {more:,}: not more"


@on_method
def check_two_instances_share_no_storage(subject: Subject) -> None:
    """Two adapted models in one process are independent: they share no tensor and no module."""
    one, other = subject.attached(), subject.attached()
    modules = {id(module) for module in one.modules()} & {id(module) for module in other.modules()}
    assert not modules, f"{len(modules)} modules belong to two models at once"
    held = {address(tensor): name for name, tensor in tensors(one)}
    shared = [held[address(tensor)] for _, tensor in tensors(other) if address(tensor) in held]
    assert not shared, f"two models share the memory of {shared[0]}"
    before = cosines(other)
    with torch.no_grad():
        for parameter in one.trainable().values():
            parameter.add_(0.1)
    assert torch.equal(cosines(other), before), "changing one model's weights changes another's output"


@on_method
def check_a_copy_is_whole(subject: Subject) -> None:
    """A model made by `copy.deepcopy` computes the same, and with its own parameters: not with the original's."""
    model = subject.attached(perturbed=True)
    other = copy.deepcopy(model)
    assert torch.equal(cosines(other), cosines(model)), "a copy's embeddings differ from the original's"
    for changed, kept in ((other, model), (model, other)):
        before = cosines(kept)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for parameter in changed.trainable().values():
                parameter.add_(0.1 * torch.randn_like(parameter))
        same = torch.equal(cosines(kept), before)
        assert same, "a copy and its original compute with the same weights: does a hook hold a module?"


@on_method
def check_other_seed_other_start(subject: Subject) -> None:
    names = subject.attached().trainable().keys() - dict(backbone(subject.kind).named_parameters()).keys()
    one, other = subject.attached(seed=0).trainable(), subject.attached(seed=1).trainable()
    random = [name for name in names if one[name].numel() > 1 and one[name].min() != one[name].max()]
    if not random:
        raise Skip("nothing in it starts random")
    for name in random:
        assert torch.isfinite(one[name]).all(), f"{name} starts at NaN or infinity"
    assert any(not torch.equal(one[name], other[name]) for name in random), "the seed does not reach the start"
