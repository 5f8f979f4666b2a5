"""Every method: exact counts, the start, what is trained, save and load, independence of a sample from its batch."""

from __future__ import annotations

import json
import subprocess
import sys

import open_clip
import pytest
import torch

import methods
from bench import methods as listing
from bench.core import backbone as core
from bench.errors import UserError
from bench.weights import model_config, model_shape
from methods import losses
from methods.base import ModelShape, TowerShape
from methods.layers import insert_placeholders
from tests.test_backbone import batch, similarity, tiny

SMALL = {
    "linear_probe": {"out_dim": 40},
    "lora": {"targets": ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.c_fc", "mlp.c_proj")},
    "coop": {"n_ctx": 4},
    "vpt": {"n_ctx": 3},
    "mrs_adapter": {"bottleneck": 8, "shared_dim": 8},
    "harma": {"bottleneck": 16, "heads": 4},
}
TRAINED = [name for name in methods.names() if name != "zero_shot"]
STARTS_ELSEWHERE = {"coop": "prompts take part in attention", "vpt": "prompts take part in attention"}
SHAPE = ModelShape(
    "tiny-test",
    TowerShape("VisionTransformer", 48, 3, 17, mlp_width=192),
    TowerShape("TextTransformer", 32, 2, 24, mlp_width=128),
    embed_dim=32,
    patch=8,
    total_params=None,
)


def attached(name: str, custom_text: bool = False, seed: int = 0, **settings):
    model, method = tiny(custom_text), methods.get(name)(**(SMALL.get(name, {}) | settings))
    torch.manual_seed(seed)
    method.attach(model)
    loss = losses.get(method.default_loss)()
    loss.attach(model)
    return model.eval(), method, loss


def train(model, loss, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2)
    torch.manual_seed(3)
    model.train()
    for _ in range(steps):
        loss(model(*batch(), second_view=loss.second_view), torch.arange(3), model).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("zero_shot", {}, 0),
        ("full_finetune", {}, 151_277_313),
        ("linear_probe", {}, 1_048_576),
        ("coop", {"n_ctx": 16, "prompt_depth": "all"}, 98_304),
        ("coop", {"n_ctx": 16, "prompt_depth": 1}, 8_192),
        ("vpt", {"n_ctx": 50, "prompt_depth": "all"}, 460_800),
        ("mrs_adapter", {}, 161_088),
        ("harma", {}, 5_934_397),
        ("harma", {"shared": "both"}, 5_934_397),
        ("lora", {"rank": 4, "targets": ("mlp.c_fc", "mlp.c_proj")}, 614_400),
        ("lora", {"rank": 4, "targets": ("attn.q", "attn.k", "attn.v", "attn.out")}, 491_520),
    ],
)
def test_counts_on_vit_b_32(name, settings, count):
    method = methods.get(name)(**settings)
    loss = losses.get(method.default_loss)()
    closed = method.trainable_params(model_shape("ViT-B-32")) + (loss.params if method.trains else 0)
    assert closed == count
    with torch.device("meta"):  # the real thing, without its memory
        model = core.DualEncoder(open_clip.CLIP(**model_config("ViT-B-32")))
        method.attach(model)
        if method.trains:
            loss.attach(model)
    assert model.trainable_params() == count


@pytest.mark.parametrize("model", ["ViT-g-14", "ViT-L-14", "ViT-B-16-plus-240"])
def test_counts_follow_the_towers_own_proportions(model):
    method = methods.get("lora")(targets=("mlp.c_fc", "attn.out"))
    with torch.device("meta"):
        real = core.DualEncoder(open_clip.CLIP(**model_config(model)))
        total = real.total_params()
        method.attach(real)
    assert real.trainable_params() == method.trainable_params(model_shape(model))
    assert total == model_shape(model).total_params


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("custom_text", [False, True])
def test_closed_form_equals_what_is_attached(name, custom_text):
    model, method, loss = attached(name, custom_text)
    closed = method.trainable_params(SHAPE)
    if name == "full_finetune":
        closed = sum(p.numel() for p in tiny().parameters())
    assert model.trainable_params() == closed + loss.params


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("custom_text", [False, True])
def test_starts_at_the_backbone(name, custom_text):
    model, _, _ = attached(name, custom_text)
    distance = float((similarity(model) - similarity(tiny(custom_text))).abs().max())
    assert (distance > 1e-5) if name in STARTS_ELSEWHERE else (distance < 1e-5)


@pytest.mark.parametrize("loss_name", losses.names())
@pytest.mark.parametrize("name", TRAINED)
def test_any_method_with_any_loss(name, loss_name):
    model, _, _ = attached(name)
    loss = losses.get(loss_name)()
    loss.attach(model)
    model.train()
    value = loss(model(*batch(), second_view=loss.second_view), torch.tensor([0, 1, 1]), model)
    value.backward()
    idle = [key for key, p in model.trainable().items() if p.grad is None or not torch.isfinite(p.grad).all()]
    # A parameter that this loss does not use is the only one without a gradient.
    unused = {"clip.logit_scale"} if loss_name != "info_nce" else set()
    unused |= {"extras.temperature"} if loss_name != "harma" else set()
    assert set(idle) <= unused


@pytest.mark.parametrize("name", TRAINED)
def test_only_the_trainable_changes_and_it_changes_the_output(name):
    model, _, loss = attached(name)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    start = similarity(model)
    train(model, loss)
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved <= set(model.trainable())
    assert not torch.allclose(similarity(model), start, atol=1e-5)


@pytest.mark.parametrize("name", methods.names())
def test_saved_and_loaded_exactly(name, tmp_path):
    model, _, loss = attached(name)
    if model.trainable():
        train(model, loss)
    model.save_adapter(tmp_path / "a.safetensors")
    fresh, _, _ = attached(name)
    fresh.load_adapter(tmp_path / "a.safetensors")
    assert torch.equal(similarity(fresh), similarity(model))


def test_another_adapter_is_refused(tmp_path):
    attached("vpt")[0].save_adapter(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="another method's"):
        attached("coop")[0].load_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", methods.names())
def test_an_item_does_not_depend_on_its_batch(name):
    model, _, loss = attached(name)
    if model.trainable():
        train(model, loss)
    images, tokens = batch()
    with torch.no_grad():
        together, alone = model(images, tokens), model(images[1:2], tokens[1:2])
        turned = model(images.flip(0), tokens.flip(0))
    assert torch.allclose(together.image[1], alone.image[0], atol=1e-6)
    assert torch.allclose(together.text[1], alone.text[0], atol=1e-6)
    assert torch.allclose(together.image, turned.image.flip(0), atol=1e-6)
    assert torch.allclose(together.text, turned.text.flip(0), atol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_same_seed_same_start_other_seed_other(name):
    (one, _, _), (again, _, _), (other, _, _) = (attached(name, seed=s) for s in (5, 5, 6))
    assert all(torch.equal(p, q) for p, q in zip(one.trainable().values(), again.trainable().values(), strict=True))
    if name != "full_finetune":  # it adds nothing, so there is nothing to start from
        differ = [
            not torch.equal(p, q) for p, q in zip(one.trainable().values(), other.trainable().values(), strict=True)
        ]
        assert any(differ)


@pytest.mark.parametrize("name", TRAINED)
def test_bf16_autocast_is_finite(name):
    model, _, loss = attached(name)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        features = model(*batch(), second_view=loss.second_view)
    value = loss(features, torch.arange(3), model)
    value.backward()
    assert torch.isfinite(value)
    assert features.image.dtype == torch.float32


def test_mrs_adapter_is_one_module_for_all_blocks():
    model, _, _ = attached("mrs_adapter")
    owners = {id(block.beside_mlp.module) for tower in (model.image_blocks, model.text_blocks) for block in tower.list}
    assert len(owners) == 1


def test_split_attention_equals_the_packed_one():
    model = tiny()
    before = similarity(model)
    methods.get("lora")(targets=("attn.q",)).attach(model)
    assert torch.allclose(similarity(model), before, atol=1e-6)


def test_placeholders_keep_the_end_token():
    ids = torch.tensor([[90, 1, 2, 99, 0, 0, 0], [90, 1, 2, 3, 4, 5, 99]])
    assert insert_placeholders(2)(ids).tolist() == [[90, 0, 0, 1, 2, 99, 0], [90, 0, 0, 1, 2, 3, 99]]


def test_prompt_depths_in_between():
    for name, depth in (("coop", 1), ("coop", 2), ("vpt", 1), ("vpt", 2)):
        model, method, _ = attached(name, prompt_depth=depth)
        assert model.trainable_params() == method.trainable_params(SHAPE)
        assert torch.isfinite(similarity(model)).all()
    with pytest.raises(UserError, match="prompt_depth 9 exceeds"):
        attached("vpt", prompt_depth=9)


def test_what_does_not_fit_is_refused_while_planning():
    with pytest.raises(UserError, match="n_ctx 75 leaves no room"):
        methods.get("coop")(n_ctx=75).check(model_shape("ViT-B-32"))
    with pytest.raises(UserError, match="loss hmmc needs open_clip's own transformer blocks"):
        losses.get("hmmc")().check(model_shape("RN50"))
    losses.get("info_nce")().check(model_shape("RN50"))


def test_registry_suggests():
    with pytest.raises(UserError, match="unknown method 'lroa'; did you mean 'lora'"):
        methods.get("lroa")


def test_listing_needs_no_torch():
    code = "import sys; from bench.methods import main; main(['--json']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["harma"]["trainable_params"] == 5_934_397
    assert rows["mrs_adapter"]["trainable_params"] == 161_088
    assert set(rows) == set(methods.names())


def test_listing_says_why_a_method_cannot_go_there(capsys):
    assert listing.main(["--backbone", "RN50"]) == 0
    assert "harma needs open_clip's own transformer blocks" in " ".join(capsys.readouterr().out.split())
