"""The slotted backbone: nothing changes until a slot is filled; adapters come back exactly; foreign files are read."""

from __future__ import annotations

import copy
import os
import zipfile

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import methods
from bench.config.backbones import model_config, model_shape
from bench.config.errors import UserError
from bench.config.settings import BackboneSettings
from bench.core import model as core
from bench.core.weights import load_backbone, read_state_dict, state_sha256
from methods import losses

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 48, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def tiny(custom_text: bool = False, **changes) -> core.DualEncoder:
    """A tiny random CLIP of either open_clip class."""
    cls = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    torch.manual_seed(0)
    return core.DualEncoder(cls(**copy.deepcopy(TINY | changes)).eval())


def batch(size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    words = ["two ships in a harbour", "a long bridge", "many green trees are near a river", "farmland"]
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    return torch.randn(size, 3, 32, 32), tokenizer(words[:size])


def similarity(model: core.DualEncoder) -> torch.Tensor:
    with torch.no_grad():
        features = model(*batch())
    return features.image @ features.text.T


@pytest.mark.parametrize("custom_text", [False, True])
def test_slots_change_neither_output_nor_names(custom_text):
    model = tiny(custom_text)
    before, keys = similarity(model), list(model.state_dict())
    model.image_blocks.slotted()
    model.text_blocks.slotted()
    assert torch.equal(similarity(model), before)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("custom_text", [False, True])
def test_gradient_checkpointing_changes_nothing(custom_text):
    results = []
    for checkpointing in (False, True):
        model = tiny(custom_text)
        torch.manual_seed(0)
        methods.get("mrs_adapter")(bottleneck=8, shared_dim=8).attach(model)
        model.clip.set_grad_checkpointing(checkpointing)
        model.train()
        torch.manual_seed(2)
        features = model(*batch(), second_view=0.2)
        loss = losses.get("hmmc")()(features, torch.arange(3), model)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.trainable().values())])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


def test_a_slot_takes_one_module():
    block = tiny().image_blocks.slotted()[0]
    block.fill(exit=torch.nn.Identity())
    with pytest.raises(ValueError, match="taken"):
        block.fill(exit=torch.nn.Identity())
    with pytest.raises(ValueError, match="no slot"):
        block.fill(besides=torch.nn.Identity())


def test_second_view_drops_only_there():
    model = tiny()
    features = model(*batch(), second_view=0.3)
    plain = model(*batch())
    assert torch.allclose(features.image, plain.image, atol=1e-6)
    assert torch.allclose(features.text, plain.text, atol=1e-6)
    for view, whole in ((features.image_view, plain.image), (features.text_view, plain.text)):
        assert view.norm(dim=1).tolist() == pytest.approx([1] * len(view), abs=1e-5)
        cosines = (view * whole).sum(dim=1)
        assert 0 < cosines.min() < cosines.max() < 0.999, "dropout of 3 in 10 turns an embedding, but not away"


@pytest.mark.parametrize("model", ["RN50", "convnext_base", "coca_ViT-B-32", "roberta-ViT-B-32", "EVA02-B-16"])
def test_towers_without_slots_are_refused_by_name(model):
    method = methods.get("harma")()
    if model.startswith("coca"):
        with pytest.raises(UserError, match="CoCa"):
            load_backbone(BackboneSettings(model=model, weights="random", seed=0))
        return
    with pytest.raises(UserError, match="tower of"):
        method.check(model_shape(model))


def test_custom_blocks_are_refused_when_attached():
    changes = {"vision_cfg": TINY["vision_cfg"] | {"qk_norm": True}}
    with pytest.raises(UserError, match="CustomResidualAttentionBlock"):
        methods.get("harma")(bottleneck=16).attach(tiny(**changes))


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_models(monkeypatch):
    """Makes `tiny-test` and its QuickGELU twin known to open_clip and to the harness."""
    known = {"tiny-test": TINY, "tiny-test-quickgelu": TINY | {"quick_gelu": True}}
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", open_clip.factory._MODEL_CONFIGS | known)
    monkeypatch.setattr("bench.config.backbones.model_config", lambda model: known.get(model) or model_config(model))
    model_shape.cache_clear()
    yield
    model_shape.cache_clear()


def settings(weights, model="tiny-test") -> BackboneSettings:
    return BackboneSettings(model=model, weights=str(weights), seed=0)


@pytest.mark.parametrize("layout", ["safetensors", "bare", "training", "remoteclip", "openai"])
def test_checkpoint_layouts_load_alike(tiny_models, tmp_path, layout):
    state = {name: tensor.clone() for name, tensor in tiny().clip.state_dict().items()}
    path = tmp_path / ("w.safetensors" if layout == "safetensors" else "w.pt")
    model = "tiny-test"
    if layout == "safetensors":
        save_file(state, path)
    elif layout == "training":
        torch.save({"epoch": 3, "name": "x", "state_dict": {f"module.{key}": t for key, t in state.items()}}, path)
    elif layout == "openai":
        model = "tiny-test-quickgelu"
        extras = {key: torch.tensor(1) for key in ("input_resolution", "context_length", "vocab_size")}
        torch.save(state | extras, path)
    else:
        torch.save(state, path)
    loaded = load_backbone(settings(path, model))
    assert loaded.sha256 == state_sha256(tiny().clip)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_openai_torchscript_archive_is_read_without_running_it(tmp_path):
    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = torch.nn.Parameter(torch.randn(3, 4).half())

        def forward(self, x):
            return x @ self.proj

    class Clip(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = Tower()
            self.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
            for key in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(key, torch.tensor(7))

        def forward(self, x):
            return self.visual(x) * self.logit_scale

    clip, path = Clip(), tmp_path / "ViT.pt"
    torch.jit.trace(clip, torch.randn(2, 3).half()).save(str(path))
    state, openai = read_state_dict(path)
    assert openai
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {"visual.proj": (3, 4), "logit_scale": ()}
    assert torch.equal(state["visual.proj"], clip.visual.proj.detach().float())
    assert state["logit_scale"] == clip.logit_scale.detach()


def test_quickgelu_mismatch_is_an_error(tiny_models, tmp_path):
    path = tmp_path / "openai.pt"
    extras = {key: torch.tensor(1) for key in ("input_resolution", "context_length", "vocab_size")}
    torch.save(tiny().clip.state_dict() | extras, path)
    with pytest.raises(UserError, match="use model: tiny-test-quickgelu"):
        load_backbone(settings(path))
    with pytest.raises(UserError, match="use model: ViT-B-32-quickgelu"):
        load_backbone(settings("openai", "ViT-B-32"))
    with pytest.raises(UserError, match=r"use model: ViT-B-32$"):
        load_backbone(settings("laion2b_s34b_b79k", "ViT-B-32-quickgelu"))


def test_weights_that_cannot_be_had(tiny_models, tmp_path):
    with pytest.raises(UserError, match=r"no file .*gone.pt.*put its path there"):
        load_backbone(settings(tmp_path / "gone.pt"))
    with pytest.raises(UserError, match="neither a file nor one of open_clip's tags"):
        load_backbone(settings("opnai", "ViT-B-32"))
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="can't be read as a checkpoint"):
        load_backbone(settings(tmp_path / "cut.pt"))
    (tmp_path / "empty.pt").touch()
    with pytest.raises(UserError, match="can't be read as a checkpoint"):
        load_backbone(settings(tmp_path / "empty.pt"))
    torch.save({"state_dict": {"visual.proj": torch.ones(2)}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="does not fit 'tiny-test'"):
        load_backbone(settings(tmp_path / "other.pt"))


def _tiny_state() -> dict:
    return {name: tensor.clone() for name, tensor in tiny().clip.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {3: torch.ones(1)}, "3 has a key that is no name"),
        (lambda state: {"visual.proj": state["visual.proj"].to_sparse()}, "visual.proj is sparse"),
        (lambda state: {"visual.proj": torch.empty(48, 32, device="meta")}, "visual.proj has no values"),
        (
            lambda state: {"visual.proj": torch.quantize_per_tensor(state["visual.proj"], 0.1, 0, torch.qint8)},
            "visual.proj is quantized",
        ),
        (lambda state: {"visual.proj": state["visual.proj"].to(torch.complex64)}, "visual.proj is complex"),
        (lambda state: {"visual.proj": state["visual.proj"].to(torch.int8)}, "visual.proj is int8"),
        (lambda state: {"visual.proj": torch.full((48, 32), torch.nan)}, "visual.proj has values that are no numbers"),
        (
            lambda state: {"visual.proj": torch.full((48, 32), 1e300, dtype=torch.double)},
            "visual.proj has values that are no numb",
        ),
        (lambda state: {"logit_scale": torch.ones(2)}, "1 of another shape"),
        (lambda state: {"logit_scale": torch.tensor(torch.inf)}, "logit_scale has values that are no numbers"),
        (
            lambda state: {"visual.proj": torch.ones(1, dtype=torch.half).expand(10**12)},
            "visual.proj is larger than the file",
        ),
        (lambda state: {"module.visual.proj": state["visual.proj"]}, "two tensors named visual.proj"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights_are_refused_by_name(tiny_models, tmp_path, change, message):
    state = _tiny_state()
    torch.save(state | change(state), tmp_path / "odd.pt")
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(settings(tmp_path / "odd.pt"))
    assert "odd.pt" in str(caught.value)


def test_what_is_no_checkpoint_file_is_refused(tiny_models, tmp_path):
    torch.save(_tiny_state(), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for info in plain.infolist():
            bomb.writestr(info.filename, plain.read(info), zipfile.ZIP_STORED)
        bomb.writestr("archive/data/bomb", bytes(50_000_000), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"bomb\.pt .*compressed"):
        load_backbone(settings(tmp_path / "bomb.pt"))
    for special in ("/proc/self/mem", "/dev/zero"):
        with pytest.raises(UserError, match=f"{special} is no regular file"):
            load_backbone(settings(special))
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(UserError, match=r"pipe\.pt is no regular file"):
        load_backbone(settings(tmp_path / "pipe.pt"))
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="can't be read as a checkpoint"):
        load_backbone(settings(tmp_path / "cut.safetensors"))


class _Harm:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_a_checkpoint_cannot_run_code(tiny_models, tmp_path, capsys):
    torch.save({"state_dict": {"x": torch.ones(1)}, "harm": _Harm()}, tmp_path / "harm.pt")
    with pytest.raises(UserError, match="can't be read as a checkpoint"):
        load_backbone(settings(tmp_path / "harm.pt"))
    assert capsys.readouterr().out == ""


def test_random_weights_follow_their_seed(tiny_models):
    first, again = load_backbone(settings("random")), load_backbone(settings("random"))
    other = load_backbone(BackboneSettings(model="tiny-test", weights="random", seed=1))
    assert first.sha256 == again.sha256 != other.sha256
