"""POSAPL's part-of-speech stream, with a stand-in for the tagger, and with the tagger itself where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from unittest.mock import ANY

import open_clip
import pytest
import torch
from torch import Tensor

import methods
from bench.config.backbones import model_shape
from bench.config.errors import UserError
from bench.conformance import suite
from bench.conformance.subject import METHOD_CHECKS, Subject
from bench.conformance.tiny import backbone
from methods import losses
from methods import posapl as settings
from methods.layers import tags
from tests.literal import data, weights
from tests.test_literal_new import Case, posapl_embeddings, posapl_objective, prepared, tag_mlp


@pytest.fixture
def reversed_ids(monkeypatch):
    """Any vocabulary is CLIP's, and a caption's tags have its own ids in reverse."""
    monkeypatch.setattr(tags, "VOCABULARY", ANY)
    monkeypatch.setattr(tags, "tag_ids", lambda ids: list(ids[::-1]))


@pytest.fixture
def fresh_caches() -> Iterator[None]:
    for function in (tags.tag_ids, tags._tagger):
        function.cache_clear()
    yield
    for function in (tags.tag_ids, tags._tagger):
        function.cache_clear()


def with_stream(ids: Tensor, w: dict) -> dict:
    """The weights with the caption's stream in them, and added to the position embeddings, where it has the effect."""
    places, words = w["positional_embedding"], w["token_embedding.weight"]
    rows = [tag_mlp(words[tag] + places[at], w, "token_embedding.mlp") for at, tag in enumerate(reversed(ids.tolist()))]
    return {**w, "stream": rows, "positional_embedding": places + torch.stack(rows)}


@pytest.mark.parametrize("where", ["input", "blocks"])
def test_the_stream_agrees_with_its_transcription(reversed_ids, where):
    model = prepared("posapl", bottleneck=6, heads=2, fused=2, stride=1, fusion="parallel", tags=where)
    image, text = posapl_embeddings(*data(), weights(model), "parallel", with_stream)
    Case(model, image, text, posapl_objective(image, text, weights(model)), "posapl").compare()


@pytest.mark.parametrize("check", sorted(METHOD_CHECKS.keys() - {"torch_compile_runs"}))  # the tags are found in Python
def test_the_stream_keeps_what_every_method_must_keep(reversed_ids, monkeypatch, check):
    monkeypatch.setattr(settings, "find_spec", lambda name: "installed")
    method = methods.get("posapl")(bottleneck=8, heads=2, fused=2, stride=1, tags="blocks")
    outcome = suite.run_check(check, Subject("posapl tags", "CLIP", method, losses.get("posapl")()))
    assert outcome.state in ("passed", "not applicable"), outcome.reason


def test_words_are_read_from_the_ids_and_tagged_once(monkeypatch, fresh_caches):
    seen = []

    class Tagger:
        def tag(self, text: str) -> list[tuple[str, str]]:
            seen.append(text)
            return list(zip(text.split(), ("JJ", "NNS", "VBP", "PRP$", "NNP-LOC", "``"), strict=True))

    stand_in = ModuleType("textblob.taggers")
    stand_in.PatternTagger = Tagger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "textblob", ModuleType("textblob"))
    monkeypatch.setitem(sys.modules, "textblob.taggers", stand_in)
    tokenizer = open_clip.SimpleTokenizer()
    [caption] = tokenizer(["Many planes  leave their airport -"], context_length=20).tolist()
    expected = tokenizer(["ADJ NOUN VERB PRON PROPN PUNCT"], context_length=20)[0].tolist()
    assert tags.tag_ids(tuple(caption)) == tags.tag_ids(tuple(caption)) == expected
    assert seen == ["many planes leave their airport -"]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its files
def test_textblobs_tagger_needs_no_data(fresh_caches):
    pytest.importorskip("textblob", reason="the extra `tags` is not installed")
    assert tags.tag_sentence("two planes near a long building") == "NUM NOUN ADP DET ADJ NOUN"


def test_without_the_tagger_the_stream_is_refused_while_planning(monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tags: input needs a part-of-speech tagger.*pip install textblob"):
        methods.get("posapl")(tags="input").check(model_shape("ViT-B-32"))
    methods.get("posapl")().check(model_shape("ViT-B-32"))


def test_another_vocabulary_is_refused():
    with pytest.raises(UserError, match="tags need CLIP's vocabulary of 49408, not 64"):
        methods.get("posapl")(fused=2, stride=1, tags="input").attach(backbone())
