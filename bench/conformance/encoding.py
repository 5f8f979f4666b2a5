"""Checks of the embeddings of an adapted model: batches, padding, files, compilation, merging."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.conformance.subject import CLOSE, Skip, Subject, cosines, distance, on_method
from bench.conformance.tiny import batch, eval_set
from bench.core.evaluate import evaluate
from bench.core.model import DualEncoder


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
                if train and not torch.equal(together, again):
                    raise Skip(f"in training the {name} embedding is random beside its dropout layers")
                alone = distance(together[1], encode(items[1:2], True)[0])
                turned = distance(together, encode(items.flip(0), True).flip(0))
            assert alone < CLOSE, f"in {mode} the {name} embedding moves by {alone:.1e} without the rest of its batch"
            assert turned < CLOSE, f"in {mode} the {name} embedding moves by {turned:.1e} with the order of its batch"


@on_method
def check_padding_matters_only_where_declared(subject: Subject) -> None:
    """Cutting off the padding is exact if the text tower is causal and `trims_text` is true, and only then."""
    assert subject.method is not None
    model, data = subject.attached(perturbed=True), batch()
    whole = model.encode_text(data.tokens, True)
    moved = distance(whole, _trimmed(model, data.tokens))
    if subject.method.trims_text and subject.shape.text.causal:
        assert moved < CLOSE, f"`trims_text` is true, but a text embedding moves by {moved:.1e} without its padding"
    else:
        why = "`trims_text` is false" if subject.shape.text.causal else "the text tower is not causal"
        assert moved > CLOSE, f"{why}, but the padding makes no difference"


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
    if owner.attn_mask is not None:
        owner.attn_mask = owner.attn_mask[:longest, :longest]
    encode: Any = model.clip.encode_text  # open_clip's own pass, not the one that cuts captions
    return F.normalize(model.text_head(encode(tokens[:, :longest])).float(), dim=-1)


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
def check_torch_compile_runs(subject: Subject) -> None:
    """Captured whole by torch.compile (without code generation, which needs a compiler), the output is the same."""
    assert subject.method is not None
    examples = list(subject.method.examples)
    last = len(examples) > 1 and subject.label == f"{subject.method.name} {examples[-1]}".strip()
    if subject.kind != ("SigLIP" if last else "CLIP"):
        raise Skip("slow, and seen on another class: on SigLIP for the last of several examples, else on CLIP")
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
