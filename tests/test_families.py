"""`--backbones`: what is said of a family of backbones is what each method's `check` says of each of its models."""

from __future__ import annotations

import json

import pytest

import methods
from bench import methods as command
from bench.config.backbones import model_names, model_shape
from bench.config.errors import UserError
from bench.plan import families
from bench.plan.families import Family, why_not


@pytest.fixture(scope="module")
def found() -> list[Family]:
    return families.families()


def test_every_model_is_in_one_family(found):
    assert sorted(model for family in found for model in family.models) == sorted(model_names())


def test_each_model_takes_what_its_family_takes(found):
    """Without methods whose `check` builds a model of the size."""
    for family in found:
        refused = [(name, reason) for reason, names in family.refused.items() for name in names]
        assert sorted([*family.takes, *(name for name, _ in refused)]) == sorted(methods.names())
        for model in family.models:
            if family.towers.startswith("CoCa"):
                with pytest.raises(UserError, match="CoCa"):
                    model_shape(model)
                continue
            said = dict(refused) | dict.fromkeys(family.takes)
            for name in set(methods.names()) - set(families.BUILDS):
                assert why_not(methods.get(name), model_shape(model)) == said[name], (model, name)


def test_what_is_known_of_some_families(found):
    takes = {model: set(family.takes) for family in found for model in family.models}
    everything, pooled = set(methods.names()), {"posapl", "unipt"}  # which need a class token and an end token
    for model in ("ViT-B-32", "ViT-B-16-quickgelu"):
        assert takes[model] == everything, model
    for model in ("ViT-B-16-SigLIP", "ViT-gopt-16-SigLIP2-384", "ViT-L-14-CLIPA"):
        assert everything - takes[model] == pooled, model
    assert everything - takes["ViT-SO400M-14-SigLIP"] == {"coop", "vl_prompt"} | pooled, "its context has 16 tokens"
    assert everything - takes["ViT-H-14-worldwide"] == {"coop", "vl_prompt", "maple"} | pooled
    assert {"coop", "linear_probe"} <= takes["RN50"] & takes["EVA02-B-16"] & takes["convnext_base"]
    assert not {"vpt", "harma", "lora"} & (takes["RN50"] | takes["EVA02-B-16"] | takes["MobileCLIP-B"])
    assert takes["coca_ViT-B-32"] == set()


def test_the_command_fits_80_columns(found, monkeypatch, capsys):
    monkeypatch.setattr(command, "families", lambda: found)
    assert command.main(["--backbones"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "image: timm's vit of SigLIP; text: TextTransformer, not causal" in shown
    assert "the image tower takes no adapters or prompts: it has no transformer blocks" in " ".join(shown.split())
    assert command.main(["--backbones", "--json"]) == 0
    assert [entry["models"] for entry in json.loads(capsys.readouterr().out)] == [list(each.models) for each in found]
