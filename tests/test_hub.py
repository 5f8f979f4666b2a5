"""Models in open_clip's folder format: in a local folder, and in Hugging Face's cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from bench.config import backbones, hub
from bench.config.errors import UserError
from bench.config.settings import BackboneSettings
from bench.core.weights import load_backbone, state_sha256
from bench.plan.grid import expand
from bench.store.frame import _differing, _identity
from tests.test_backbone import TINY, batch

PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "squash", "interpolation": "bicubic"}


@pytest.fixture(autouse=True)
def _forget():
    """Each test has its own folders, perhaps under a name that another had."""
    for remembered in (hub.folder_of, backbones.model_config, backbones.model_shape):
        remembered.cache_clear()


def write(folder: Path, file: str | None = "open_clip_model.safetensors", seed: int = 0, **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hub.CONFIG).write_text(json.dumps({"model_cfg": TINY | config, "preprocess_cfg": PREPROCESS}))
    if file is not None:
        torch.manual_seed(seed)
        state = open_clip.CLIP(**json.loads(json.dumps(TINY | config))).state_dict()
        save = save_file if file.endswith("safetensors") else torch.save
        save(state, folder / file)
    return folder


def cached(home: Path, monkeypatch, files: Path | None, commit: str = "c" * 40) -> None:
    """A cache of the Hugging Face Hub that holds org/name at a commit, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if files is not None:
        repository = home / "models--org--name"
        shutil.copytree(files, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_local_folder_gives_what_open_clip_reads_from_it(tmp_path, file):
    model = f"local-dir:{write(tmp_path / 'own', file)}"
    found = load_backbone(BackboneSettings(model=model, weights="folder"))
    expected = open_clip.create_model(model).eval()
    pictures, tokens = batch()
    with torch.no_grad():
        torch.testing.assert_close(found.model.clip.encode_image(pictures), expected.encode_image(pictures))
        torch.testing.assert_close(found.model.clip.encode_text(tokens), expected.encode_text(tokens))
    assert found.sha256 == state_sha256(expected)
    assert (list(found.mean), list(found.std), found.resize) == (PREPROCESS["mean"], PREPROCESS["std"], "squash")
    assert found.tokenizer(["a port"]).shape == (1, TINY["text_cfg"]["context_length"])
    shape = backbones.model_shape(model)
    assert (shape.image.width, shape.image.layers, shape.text.tokens) == (48, 3, 24)
    assert shape.total_params == sum(tensor.numel() for tensor in expected.parameters())


def test_a_model_on_the_hub_is_read_from_the_cache_and_known_by_its_commit(tmp_path, monkeypatch):
    cached(tmp_path / "home", monkeypatch, write(tmp_path / "own"))
    settings = BackboneSettings(model="hf-hub:org/name", weights="hub")
    found = load_backbone(settings)
    local = load_backbone(BackboneSettings(model=f"local-dir:{tmp_path / 'own'}", weights="folder"))
    assert found.sha256 == local.sha256
    assert (found.resize, found.mean) == (local.resize, local.mean)
    assert backbones.identity(settings).startswith(f"commit:{'c' * 40} of ")


def test_a_config_from_the_hub_with_other_weights(tmp_path, monkeypatch):
    cached(tmp_path / "home", monkeypatch, write(tmp_path / "own", file=None))
    write(tmp_path / "trained", seed=1)
    file = str(tmp_path / "trained" / "open_clip_model.safetensors")
    found = [load_backbone(BackboneSettings(model="hf-hub:org/name", weights=each)).sha256 for each in ("random", file)]
    assert found[0] != found[1]
    assert (
        found[1] == load_backbone(BackboneSettings(model=f"local-dir:{tmp_path / 'trained'}", weights="folder")).sha256
    )
    with pytest.raises(
        UserError, match=r"open_clip_model\.safetensors of 'hf-hub:org/name' is not in .*can't be downloaded"
    ):
        load_backbone(BackboneSettings(model="hf-hub:org/name", weights="hub"))


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("local-dir:ROOT/gone", "folder", r"backbone\.model: no folder .*gone"),
        ("local-dir:ROOT/empty", "folder", r"no open_clip_config\.json in .*empty; local-dir: takes a folder"),
        ("local-dir:ROOT/odd", "folder", r"odd/open_clip_config\.json is no open_clip config; expected"),
        ("local-dir:ROOT/shape", "folder", r"the config of 'local-dir:.*shape' can't be read"),
        ("local-dir:ROOT/extra", "folder", r"the model 'local-dir:.*extra' can't be built: .*unexpected keyword"),
        ("local-dir:ROOT/bare", "folder", r"no file of weights \(open_clip_model\.safetensors, .*in .*bare"),
        ("local-dir:ROOT/own", "openai", r"'openai' does not belong to 'local-dir:.*'; use folder"),
        ("local-dir:ROOT/own", "hub", r"'hub' does not belong to 'local-dir:.*'; use folder"),
        ("ViT-B-32", "hub", r"'hub' is for a model local-dir:\.\.\. or hf-hub:\.\.\."),
        ("hf-hub:org/gone", "hub", r"open_clip_config\.json of 'hf-hub:org/gone' is not in .*without internet"),
        ("hf-hub:", "hub", r"of 'hf-hub:' is not in .* can't be downloaded"),
        ("local-dir:ROOT/swapped", "folder", r"swapped/open_clip_model\.safetensors does not fit 'local-dir:"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(tmp_path, monkeypatch, model, weights, message):
    cached(tmp_path / "home", monkeypatch, None)
    write(tmp_path / "own")
    write(tmp_path / "bare", file=None)
    write(tmp_path / "shape", file=None, vision_cfg={"layers": 3, "patch_size": "x"})
    write(tmp_path / "extra")
    write(tmp_path / "extra", file=None, colour="red")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / hub.CONFIG).write_text('{"model_type": "clip"}')
    write(tmp_path / "swapped", text_cfg=TINY["text_cfg"] | {"width": 64})
    shutil.copy(tmp_path / "own" / "open_clip_model.safetensors", tmp_path / "swapped")
    with pytest.raises(UserError, match=message):
        load_backbone(BackboneSettings(model=model.replace("ROOT", str(tmp_path)), weights=weights))


SWEEP = """name: hub
dataset: {{name: demo}}
backbone: {{model: {model}, weights: folder}}
grid: {{seed: 0, method: [zero_shot, lora]}}
"""


def plan(tmp_path: Path, model: str, *overrides: str):
    (tmp_path / "hub.yaml").write_text(SWEEP.format(model=model))
    return expand(tmp_path / "hub.yaml", overrides).runs


def test_a_runs_id_follows_the_folders_content_and_not_its_place(tmp_path, monkeypatch):
    write(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    runs = plan(tmp_path, f"local-dir:{tmp_path / 'here'}")
    there = plan(tmp_path, f"local-dir:{tmp_path / 'there'}")
    assert [run.run_id for run in runs] == [run.run_id for run in there]
    assert _differing(runs[0].to_dict(), there[0].to_dict()) == ""
    assert _identity(runs[0].to_dict())["backbone"] == "here/folder"
    monkeypatch.chdir(tmp_path)
    assert plan(tmp_path, "local-dir:here") == runs
    others = [write(tmp_path / "a", seed=1), write(tmp_path / "b", quick_gelu=True)]
    found = {plan(tmp_path, f"local-dir:{folder}")[0].run_id for folder in others}
    assert len(found | {runs[0].run_id}) == 3
    assert plan(tmp_path, f"local-dir:{tmp_path / 'here'}")[1].trainable_params() == runs[1].trainable_params() > 0


def test_planning_with_such_a_model_imports_no_torch(tmp_path):
    (tmp_path / "hub.yaml").write_text(SWEEP.format(model=f"local-dir:{write(tmp_path / 'own')}"))
    code = "import sys; from pathlib import Path; import bench; from bench.plan.grid import expand; "
    code += "expand(Path(sys.argv[1])); print({'torch', 'open_clip', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "hub.yaml"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
