"""The model card of an exported run: what it is, its scores, data and settings, its licence, and how to load it."""

from __future__ import annotations

import re
from typing import Any

import open_clip
import yaml

from bench.compute.adapted import Adapted
from bench.config import backbones, hub
from bench.config.settings import Protocol
from bench.config.version import VERSION
from bench.store.record import RECALLS, Record, Scores

_LIBRARY = {"open_clip": "open_clip", "peft": "peft", "adapter": "petl-bench"}
_CHOICE: dict[Protocol, str] = {
    "strict": " The epoch was chosen on the validation split.",
    "test-selected": " The epoch was chosen on the test set itself: do not compare with models chosen by validation.",
    "last-epoch": " The weights are the last epoch's.",
}
_RECALL_NAMES = {
    **{
        f"{way}_r{k}": f"{words} R@{k}"
        for way, words in (("i2t", "image-to-text"), ("t2i", "text-to-image"))
        for k in (1, 5, 10)
    },
    "mean_recall": "mean recall",
}

_ATTENTION = (
    "PyTorch's attention has q, k and v in one matrix. The peft library merges its update of that for each batch, "
    "which is slow and rounds: `merge_and_unload` merges it once. Where q, k and v had updates of their own, these "
    "were put together (rank: the sum of theirs), which gives the same product."
)


def text(adapted: Adapted, result: Record, chosen: str, name: str, licence: str | None, difference: float) -> str:
    """The card as Markdown with a YAML head. Missing numbers are dashes; no path of this machine is in it."""
    spec = adapted.spec
    head = {
        "library_name": _LIBRARY[chosen],
        "license": licence or "unknown",
        "tags": ["clip", "image-text-retrieval", "remote-sensing", spec.method.name],
    }
    if hub.scheme(spec.backbone.model) == hub.HUB:
        head["base_model"] = spec.backbone.model.removeprefix(hub.HUB)
    done = "trained" if spec.method.trains else "scored"
    terms = f"`{_code(licence)}`" if licence else "not stated by who exported it"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {_plain(name)}",
        f"`{_code(spec.method.name)}` on `{_code(_backbone(adapted))}`, {done} on "
        f"{_plain(spec.dataset.called)} for image-text retrieval, by the run `{_code(result.run_id)}` of PETL-Bench "
        f"{VERSION}.",
        f"Licence: {terms}. The backbone's weights and the data have licences of their own, which hold as well.",
        "## Load it",
        _loading(adapted, chosen),
        f"Embeddings of random pictures and of captions, loaded again from these files, differed from the run's own by "
        f"at most {difference:.1e} in any number (of length 1).",
        "## Scores",
        _scores(result, spec.evaluation.protocol),
        "## Data",
        _data(adapted, result),
        "## Settings",
        _fenced("yaml", yaml.safe_dump(_settings(adapted), sort_keys=False, allow_unicode=True)),
        "## Origin",
        _fenced("yaml", yaml.safe_dump(_origin(adapted.provenance), sort_keys=False, allow_unicode=True)),
    ]
    return "\n\n".join(parts) + "\n"


def _backbone(adapted: Adapted) -> str:
    settings = adapted.spec.backbone
    return f"{_tail(settings.model)} / {_tail(settings.weights)}"


def _tail(name: str) -> str:
    """The name without the folders of this machine."""
    is_path = hub.scheme(name) == hub.LOCAL or (backbones.is_file(name) and hub.scheme(name) is None)
    return re.split(r"[/\\]", name)[-1] if is_path else name


def _loading(adapted: Adapted, chosen: str) -> str:
    spec = adapted.spec
    captions = (
        f"\n\nCaptions were cleaned before tokenising (`captions: {spec.train.captions}`); plain libraries do not."
    )
    more = captions if spec.train.captions != "none" and chosen != "adapter" else ""
    if chosen == "adapter":
        return _fenced(
            "python",
            'import bench  # PETL-Bench\n\nadapted = bench.load("THIS_FOLDER")  # weights="FILE" where the '
            'backbone\'s lie elsewhere\nadapted.encode_images(["a.png"])\nadapted.encode_texts("two planes")',
        )
    if chosen == "open_clip":
        lines = [
            "import open_clip",
            "",
            'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:THIS_FOLDER")',
            'tokenizer = open_clip.get_tokenizer("local-dir:THIS_FOLDER")',
        ]
        if spec.backbone.model in open_clip.list_models() and spec.backbone.model not in backbones.BUILT_IN:
            file = "THIS_FOLDER/open_clip_model.safetensors"
            lines += ["# or:", f'model = open_clip.create_model("{spec.backbone.model}", pretrained="{file}")']
        return _fenced("python", "\n".join(lines)) + more
    adapts = any(target.startswith("attn.") for target in getattr(spec.method, "targets", ()))
    return _fenced("python", "\n".join(_peft_lines(adapted))) + (f"\n\n{_ATTENTION}" if adapts else "") + more


def _peft_lines(adapted: Adapted) -> list[str]:
    model, weights = adapted.spec.backbone.model, adapted.spec.backbone.weights
    sha = adapted.backbone.sha256
    if hub.scheme(model) == hub.HUB:
        base = [f'model, _, preprocess = open_clip.create_model_and_transforms("{model}")']
    elif weights in open_clip.list_pretrained_tags_by_model(model):
        base = [f'model, _, preprocess = open_clip.create_model_and_transforms("{model}", pretrained="{weights}")']
    else:
        base = [
            f"# The backbone: {_tail(model)} with the weights {_tail(weights)} (tensors' sha256 {sha[:16]}).",
            "# An export of a zero_shot run with that backbone is such a folder.",
            'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER_OF_THE_BACKBONE")',
        ]
    return [
        *("import open_clip", "from peft import PeftModel", "", *base),
        'model = PeftModel.from_pretrained(model, "THIS_FOLDER").merge_and_unload().eval()',
    ]


def _scores(result: Record, protocol: Protocol) -> str:
    assert result.metrics is not None
    val, test = result.metrics.val, result.metrics.test
    rows = [f"| {_RECALL_NAMES[key]} | {_number(test, key)} | {_number(val, key)} |" for key in RECALLS]
    known = test is not None and test.images and test.captions
    size = f" Test set: {test.images:,} images, {test.captions:,} captions." if known else ""  # type: ignore[union-attr]
    chosen = _CHOICE[protocol] if result.metrics.best_epoch is not None else ""
    note = f"Recall in percent, one seed.{chosen}{size}"
    return "\n".join([note, "", "| | test | validation |", "|---|---:|---:|", *rows])


def _number(scores: Scores | None, key: str) -> str:
    return "—" if scores is None else f"{getattr(scores, key):.2f}"


def _data(adapted: Adapted, result: Record) -> str:
    origin = adapted.provenance
    lines = {
        "dataset": adapted.spec.dataset.called,
        "split": origin.get("split"),
        "hash of its file lists and captions (sha256)": origin.get("dataset_sha256"),
    }
    return "\n".join(f"- {what}: {_plain(str(value))}" for what, value in lines.items() if value)


def _settings(adapted: Adapted) -> dict[str, Any]:
    """The run's settings, without its names and paths on this machine."""
    settings = adapted.spec.to_dict()
    del settings["sweep"], settings["core"]
    for key in ("root", "annotations", "file", "exclude"):
        settings["dataset"].pop(key, None)
    settings["backbone"] |= {key: _tail(settings["backbone"][key]) for key in ("model", "weights")}
    return settings


def _origin(provenance: dict[str, Any]) -> dict[str, Any]:
    kept = ("git_commit", "git_dirty", "packages", "python", "device", "weights_sha256", "finished")
    return {key: provenance[key] for key in kept if provenance.get(key) is not None}


# --- text of others inside Markdown -----------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Text in a line of Markdown, with nothing that means something there."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|~&$])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Text inside backticks."""
    return " ".join(text.replace("`", "'").split())


def _fenced(language: str, text: str) -> str:
    """A block of code, with a fence that the text does not hold."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
