"""Methods beside the conformance suite: the counts of the papers, what is refused, presets, the listing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import open_clip
import pytest
import torch

import methods
from bench import methods as listing
from bench.config import errors
from bench.config.backbones import model_config, model_shape
from bench.config.errors import UserError
from bench.conformance import suite as checks
from bench.core import model as core
from methods import losses
from methods.layers import bottlenecks
from methods.layers.prompts import insert_placeholders
from tests.test_backbone import similarity, tiny


def attached(name: str, seed: int = 0, **settings):
    model, method = tiny(), methods.get(name)(**settings)
    torch.manual_seed(seed)
    method.attach(model)
    return model.eval(), method


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("zero_shot", {}, 0),
        ("full_finetune", {}, 151_277_313),
        ("linear_probe", {}, 1_048_576),
        ("coop", "paper", 8_192),
        ("coop", "table", 98_304),
        ("vpt", {}, 460_800),
        ("vl_prompt", {}, 468_992),
        ("maple", {}, 3_555_072),
        ("adapter", "table", 165_248),
        ("clip_adapter", "table", 524_288),
        ("convpass", "table", 136_064),
        ("adaptformer", "table", 165_250),
        ("cross_modal_adapter", "table", 164_208),
        ("cross_modal_adapter", "paper", 519_168),
        ("adapter", {}, 4_031_488),
        ("uniadapter", {}, 13_290_496),
        ("uniadapter", {"projections": False}, 12_635_136),
        ("mrs_adapter", {}, 161_088),
        ("mrs_adapter", {"backbone": "trained"}, 151_438_401),
        ("harma", {}, 5_934_397),
        ("harma", {"shared": "both"}, 5_934_397),
        ("bitfit", {}, 171_008),
        ("ln_tuning", {}, 65_536),
        ("ssf", {}, 337_920),
        ("last_block", {}, 10_898_176),
        ("lit", {}, 63_428_097),
        ("lora", {"rank": 4, "targets": ("mlp.c_fc", "mlp.c_proj")}, 614_400),
        ("lora", {"rank": 4, "targets": ("attn.q", "attn.k", "attn.v", "attn.out")}, 491_520),
        ("lora", "table", 491_520),
        ("lora", "table_mlp", 614_400),
        ("peft", {"type": "LORA", "r": 4, "targets": ("mlp.c_fc", "mlp.c_proj")}, 614_400),
        # out for k, in for c_proj, whose input is scaled
        ("peft", {"type": "IA3", "targets": ("attn.k", "mlp.c_proj"), "feedforward_modules": ["mlp.c_proj"]}, 76_800),
        # q and v of 12 + 12 blocks: r + out
        ("peft", {"type": "VERA", "r": 64}, 24 * (64 + 768) + 24 * (64 + 512)),
        # two products of two factors
        ("peft", {"type": "LOHA", "r": 4}, 24 * 4 * 4 * 768 + 24 * 4 * 4 * 512),
        # width / 32 rotations of 32 * 31 / 2 angles
        ("peft", {"type": "OFT", "oft_block_size": 32}, 24 * 24 * 496 + 24 * 16 * 496),
    ],
)
def test_counts_on_vit_b_32(name, settings, count):
    cls = methods.get(name)
    method = cls(**(cls.presets[settings] if isinstance(settings, str) else settings))
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


def test_another_adapter_is_refused(tmp_path):
    attached("vpt", n_ctx=3)[0].save_adapter(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="another method's"):
        attached("coop", n_ctx=3)[0].load_adapter(tmp_path / "a.safetensors")


def test_mrs_adapter_is_one_module_for_all_blocks():
    model, _ = attached("mrs_adapter", bottleneck=8, shared_dim=8)
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


def test_a_depth_beyond_the_tower_is_refused():
    with pytest.raises(UserError, match="prompt_depth 9 exceeds"):
        attached("vpt", prompt_depth=9)


def test_what_does_not_fit_is_refused_while_planning():
    with pytest.raises(UserError, match="75 prompts leave no room"):
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
    assert len(rows) >= 20
    assert all(row["paper"] for row in rows.values())
    assert rows["coop"]["presets"]["table"]["trainable_params"] == 98_304
    assert rows["peft"]["trainable_params"] is None


def test_listing_says_why_a_method_cannot_go_there(capsys):
    assert listing.main(["--backbone", "RN50"]) == 0
    assert "harma needs open_clip's own transformer blocks" in " ".join(capsys.readouterr().out.split())


def test_a_text_only_tuner_leaves_the_image_tower_alone():
    """The library takes names for endings: the text tower's "transformer.resblocks.0" also ends the image tower's."""
    for name, settings in (("lora", {}), ("peft", {"type": "LORA"})):
        model, _ = attached(name, towers="text", targets=("mlp.c_fc", "attn.out"), **settings)
        assert model.trainable()
        assert not [key for key in model.trainable() if "visual" in key]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "VERRA"}, "peft: unknown type 'VERRA'; did you mean 'VERA'"),
        ({"type": "LORA", "rank": 4}, "peft LORA: unknown key 'rank'"),
        ({"type": "LORA", "target_modules": ["x"]}, "unknown key 'target_modules'"),
        ({"type": "ADALORA", "init_r": 4, "target_r": 2, "total_step": 0}, "peft ADALORA: "),
        ({"type": "MISS", "r": 1000}, "peft MISS: "),
        ({"type": "HRA", "r": 10**10}, r"peft HRA: r 10000000000 .*'ViT-B-32': at most 3,072, the widest layer"),
        ({"type": "VERA", "r": 3073}, "peft VERA: r 3073 is too large"),
        ({"type": "LORA", "rank_pattern": {"attn.q": 10**10}}, "peft LORA: rank_pattern 10000000000 is too large"),
        ({"type": "VBLORA", "num_vectors": 10**9}, "peft VBLORA: num_vectors 1000000000 is too large"),
        ({"type": "FOURIERFT", "n_frequency": 10**9}, "peft FOURIERFT: n_frequency .*at most 2,359,296, all weights"),
    ],
)
def test_what_the_library_does_not_take_is_refused_while_planning(settings, message):
    with pytest.raises(UserError, match=message):
        methods.get("peft")(**settings).check(model_shape("ViT-B-32"))


def test_a_seed_may_be_any_number():
    found = methods.get("peft")(type="VERA", r=4, projection_prng_key=2**31).trainable_params(model_shape("ViT-B-32"))
    assert found == methods.get("peft")(type="VERA", r=4).trainable_params(model_shape("ViT-B-32"))


def test_adalora_allocates_and_goes_on_where_it_stood(tmp_path):
    """Ranks are masked in training, and a resumed training masks as an undisturbed one does."""
    subject = next(each for each in checks.method_subjects(methods.get("peft")) if each.label == "peft adalora")
    whole, resumed = subject.attached(), subject.attached()
    for folder in ("whole", "part"):
        (tmp_path / folder).mkdir()
    subject.train(whole, tmp_path / "whole")
    steps = iter([False, False, False, True])
    with pytest.raises(errors.Stopped):
        subject.train(subject.attached(), tmp_path / "part", should_stop=lambda: next(steps))
    subject.train(resumed, tmp_path / "part")
    assert all(torch.equal(p, q) for p, q in zip(whole.trainable().values(), resumed.trainable().values(), strict=True))
    masked = [p for name, p in whole.trainable().items() if "lora_E" in name and (p == 0).any()]
    assert masked


def test_adalora_needs_steps_to_allocate_in(tmp_path):
    subject = next(each for each in checks.method_subjects(methods.get("peft")) if each.label == "peft adalora")
    method = methods.get("peft")(type="ADALORA", init_r=3, target_r=2, tinit=4, tfinal=4)
    subject = replace(subject, method=method)
    with pytest.raises(UserError, match="tinit 4 \\+ tfinal 4 leave none of the 6 steps"):
        subject.train(subject.attached(), tmp_path, epochs=2)


def test_the_published_constants():
    """Numbers that neither counts nor the start of the output would show."""
    model, _ = attached("harma", bottleneck=16, heads=4)
    adapter = model.text_blocks.list[0].after_mlp
    assert [float(gate.detach()) for gate in (adapter.gate, adapter.inner_gate, adapter.shared.gate)] == pytest.approx(
        [0.6] * 3
    )
    losses.get("harma")().attach(model)
    assert float(model.extras["temperature"].detach()) == pytest.approx(0.07)
    assert losses.get("harma")().margin == losses.get("hmmc")().margin == losses.get("hmmc")().view_dropout == 0.2
    assert (
        attached("mrs_adapter", bottleneck=8, shared_dim=8)[0].image_blocks.list[0].beside_mlp.module.dropout.p == 0.5
    )
    assert methods.get("clip_adapter")().ratio == 0.2
    assert methods.get("adaptformer")().scale == 0.1
    table = methods.get("adaptformer")(**methods.get("adaptformer").presets["table"])
    assert float(attached("adaptformer", **table.model_dump())[0].image_blocks.list[0].beside_mlp.scale.detach()) == 1
    conv = attached("convpass", bottleneck=4)[0].image_blocks.list[0].beside_mlp.branch.conv
    picture = torch.randn(1, 4, 5, 5)
    assert torch.equal(conv(picture), picture)
    siglip = tiny()
    losses.get("siglip")().attach(siglip)
    assert [float(siglip.extras[name].detach()) for name in ("siglip_scale", "siglip_bias")] == pytest.approx(
        [2.302585, -10]
    )


def parts(name: str, **settings) -> dict[str, torch.Tensor]:
    """What a method adds to a tiny backbone before training, by name."""
    model, _ = attached(name, **settings)
    names = dict(tiny().named_parameters())
    return {key: parameter.detach() for key, parameter in model.trainable().items() if key not in names}


def spread(added: dict[str, torch.Tensor], *words: str) -> float:
    """The standard deviation of all weights whose name has these words; all biases must be zero."""
    assert all(not value.any() for key, value in added.items() if key.endswith("bias") and "norm" not in key)
    chosen = [value for key, value in added.items() if key.endswith("weight") and all(word in key for word in words)]
    assert chosen
    return float(torch.cat([value.flatten() for value in chosen]).std())


def test_methods_start_as_released():
    houlsby = parts("adapter", bottleneck=64)
    assert spread(houlsby, "down") == pytest.approx(0.88e-3, rel=0.02)  # of a normal that is cut off at two deviations
    assert spread(houlsby, "up") == pytest.approx(0.88e-3, rel=0.02)
    assert max(float(value.abs().max()) for value in houlsby.values()) <= 2e-3
    cross_modal = parts("cross_modal_adapter", bottleneck=64, shared_dim=8)
    assert [spread(cross_modal, part) for part in ("down", "up.", "up_shared")] == pytest.approx([0.01] * 3, rel=0.03)
    uniadapter = parts("uniadapter", bottleneck=64)
    assert spread(uniadapter, "up.image") == pytest.approx(0.02, rel=0.03)
    assert spread(uniadapter, "up.text") == 0
    clip_adapter = parts("clip_adapter", bottleneck=64)  # torch's own: uniform in +-1 / sqrt(inputs)
    assert spread(clip_adapter, "down") == pytest.approx((3 * 32) ** -0.5, rel=0.05)
    assert spread(clip_adapter, "up") == pytest.approx((3 * 64) ** -0.5, rel=0.05)


def test_uniadapter_is_the_released_one_where_towers_have_one_width():
    """One LayerNorm, one down-projection and two up-projections a depth; without a part for the wider tower."""
    module = bottlenecks.SharedDownBottleneck({"image": 12, "text": 12}, 4, 0.1)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "norm.12.weight": (12,),
        "down.weight": (4, 12),
        "up.image.weight": (12, 4),
        "up.text.weight": (12, 4),
    }


def test_a_method_that_trains_its_layer_norms_trains_all_of_them():
    model, _ = attached("adapter", bottleneck=4)
    norms = [module for module in model.clip.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * (3 + 2) + 3
    assert all(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def test_convpass_drops_more_of_deeper_blocks():
    model, _ = attached("convpass", bottleneck=4, drop_path=0.4)
    rates = [[getattr(b, slot).p for slot in ("after_attn", "after_mlp")] for b in model.image_blocks.list[1:]]
    assert rates == [[0.2, 0.2], [0.4, 0.4]]
    assert [block.beside_mlp.drop_path.p for block in model.image_blocks.list] == [0.0, 0.2, 0.4]
    assert model.image_blocks.list[0].after_attn is None
