"""Exported models, loaded by plain open_clip and plain peft in a process of their own, which has no part of this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import bench
from bench import export as command
from bench.compute import export as exporting
from bench.compute import plain
from bench.compute.execute import execute
from bench.config.errors import UserError
from bench.core.model import DualEncoder
from bench.store import folder, record
from methods import get
from tests.test_backbone import batch, tiny
from tests.test_run import make_run

CAPTIONS = ["red land beside blue land", "the left is green"]

# What a model card tells others to do; sys.argv: the folder, the backbone's folder or "", a picture, captions.
PLAIN = """
import json, sys
import open_clip, torch
from PIL import Image
out, base, picture, *captions = sys.argv[1:]
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:" + (base or out))
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, out)
model = model.eval()
tokens = open_clip.get_tokenizer("local-dir:" + (base or out))(captions)
with torch.no_grad():
    image = preprocess(Image.open(picture).convert("RGB"))[None]
    once = model.encode_image(image, normalize=True), model.encode_text(tokens, normalize=True)
    if base:
        model = model.merge_and_unload()
    twice = model.encode_image(image, normalize=True), model.encode_text(tokens, normalize=True)
assert not {"bench", "methods"} & sys.modules.keys()
print(json.dumps([torch.cat(each).tolist() for each in (once, twice)]))
"""


def in_another_process(out: Path, base: Path | str, picture: Path) -> np.ndarray:
    """(2, 3, dim): of the picture and the captions, as loaded, and with peft's adapter merged."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, str(out), str(base), str(picture), *CAPTIONS],
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        cwd=out,
    )
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]))


def finished(root: Path, run_dir: Path, method: dict, **train) -> Path:
    result = execute(make_run(root, run_dir, method, **{"epochs": 1, "lr": 3e-3, **train}))
    assert result.error is None, result.error
    return run_dir


@pytest.fixture(scope="module")
def lora(root, tmp_path_factory) -> Path:
    targets = ["attn.q", "attn.v", "mlp.c_fc"]
    method = {"name": "lora", "rank": 3, "alpha": 5.0, "targets": targets}
    return finished(root, tmp_path_factory.mktemp("runs") / "lora", method)


@pytest.fixture(scope="module")
def backbone(root, tmp_path_factory) -> Path:
    run_dir = finished(root, tmp_path_factory.mktemp("runs") / "zero", {"name": "zero_shot"})
    out = run_dir.with_name("backbone")
    assert command.main([str(run_dir), str(out)]) == 0
    return out


@pytest.mark.parametrize("form", ["peft", "open_clip"])
def test_lora_in_a_process_without_this_package(lora, backbone, root, tmp_path, form):
    adapted = bench.load(lora, "cpu")
    picture = root / "0.png"
    own = torch.cat([adapted.encode_images([picture]), adapted.encode_texts(CAPTIONS)]).numpy()
    out = tmp_path / "out"
    assert command.main([str(lora), str(out), "--format", form]) == 0
    found = in_another_process(out, backbone if form == "peft" else "", picture)
    assert np.abs(found - own).max() < 1e-5
    frozen = in_another_process(backbone, "", picture)
    assert np.abs(frozen - own).max() > 1e-3  # what was trained is in it
