"""SigLIP's towers: timm's blocks with slots, their sizes, attention pooling, and texts without start token and mask."""

from __future__ import annotations

import copy
import re

import open_clip
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

import methods
from bench.config.backbones import model_config, model_names, model_shape
from bench.config.errors import UserError
from bench.conformance.subject import cosines
from bench.conformance.tiny import backbone, batch
from bench.core import weights
from bench.core.blocks import SlottedTimmBlock
from bench.core.layers import OpenTimmAttention
from bench.core.model import DualEncoder
from methods import losses
from methods.layers.prompts import insert_placeholders


def on_meta(name: str) -> torch.nn.Module:
    """open_clip's model of this name without memory for its weights."""
    config = copy.deepcopy(model_config(name))
    cls = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        return cls(**config)


@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-16-SigLIP",
        "ViT-B-32-SigLIP2-256",
        "ViT-L-16-SigLIP-256",
        "ViT-SO400M-14-SigLIP",
        "ViT-SO400M-16-SigLIP-i18n-256",  # no text projection
        "ViT-gopt-16-SigLIP2-256",
    ],
)
def test_sizes_read_from_the_name_are_those_of_the_model(name):
    model, shape = DualEncoder(on_meta(name)), model_shape(name)
    assert model.total_params() == shape.total_params
    assert (model.embed_dim, model.patch, model.context_length) == (shape.embed_dim, shape.patch, shape.text.tokens)
    for side in ("image", "text"):
        blocks, tower = getattr(model, f"{side}_blocks"), getattr(shape, side)
        own = sum(parameter.numel() for parameter in model.tower_parameters(side).values())
        inner = [layer.outputs for layer in blocks.slotted()[0].layers() if layer.name == "mlp.c_fc"]
        assert (len(blocks.list), blocks.width, inner, own) == (
            tower.layers,
            tower.width,
            [tower.mlp_width],
            tower.params,
        )
    assert model.clip.visual.trunk.pos_embed.shape[1] == shape.image.tokens == shape.patches


def test_all_of_open_clips_siglips_have_sizes():
    assert model_shape("ViT-B-16-SigLIP").total_params == 203_155_970
    found = [name for name in model_names() if re.search("SigLIP", name)]
    assert len(found) >= 26
    assert all(model_shape(name).total_params and model_shape(name).logit_bias for name in found)
    assert model_shape("nllb-clip-base-siglip").image.slots is None


def test_slots_change_neither_output_nor_names():
    model, plain = backbone("SigLIP"), backbone("SigLIP")
    blocks = [*model.image_blocks.slotted(), *model.text_blocks.slotted()]
    assert [type(block) is SlottedTimmBlock for block in blocks] == [True] * 3 + [False] * 2
    assert torch.equal(cosines(model), cosines(plain))
    assert list(model.state_dict()) == list(plain.state_dict())
    blocks[0].layer("attn.v")
    assert isinstance(blocks[0].attn, OpenTimmAttention)
    assert torch.allclose(cosines(model), cosines(plain), atol=1e-6)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert blocks[0].attn.qkv.weight.shape == (3 * 64, 64)


@pytest.mark.parametrize("change", [{"qk_norm": True}, {"attn_drop_rate": 0.1}, {"reg_tokens": 2}, {"qkv_bias": False}])
def test_timm_blocks_that_compute_something_else_are_refused(change):
    model = backbone("SigLIP")
    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 0}
    model.clip.visual.trunk = VisionTransformer(class_token=False, global_pool="map", **sizes)
    assert model.image_blocks.width == 64
    model.clip.visual.trunk = VisionTransformer(class_token=False, global_pool="map", **sizes, **change)
    with pytest.raises(UserError, match=r"the image tower \(VisionTransformer\) takes no adapters"):
        _ = model.image_blocks


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_second_view_drops_in_both_towers(checkpointing):
    model, data = backbone("SigLIP").train(), batch()
    model.clip.set_grad_checkpointing(checkpointing)
    features = model(data.images, data.tokens, second_view=0.3)
    assert torch.allclose(torch.cat([features.image, features.text]), cosines(model), atol=1e-5)
    for one, view in ((features.image, features.image_view), (features.text, features.text_view)):
        assert (one - view).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_large_d", "EVA02-B-16"])
def test_the_embeddings_size_behind_any_timm_tower(name):
    """Projected by a linear layer, by an MLP, and by timm's own head."""
    assert DualEncoder(on_meta(name)).embed_dim == model_config(name)["embed_dim"]


# --- texts ------------------------------------------------------------------------------------------------------------


def test_prompts_come_first_where_the_last_place_pools():
    ids = torch.tensor([[5, 6, 1, 1, 1], [5, 6, 7, 8, 1]])
    assert insert_placeholders(2, pool="last")(ids).tolist() == [[0, 0, 5, 6, 1], [0, 0, 5, 6, 1]]


def test_coop_by_hand():
    model, ids = backbone("SigLIP"), batch().tokens
    methods.get("coop")(n_ctx=4).attach(model)
    text = model.clip.text
    words = F.embedding(ids, text.token_embedding.weight)
    prompts = text.token_embedding.tokens.expand(len(ids), -1, -1)
    x = torch.cat([prompts, words[:, :-5], words[:, -1:]], dim=1) + text.positional_embedding
    by_hand = text.text_projection(text.ln_final(text.transformer(x))[:, -1])
    assert torch.allclose(model.encode_text(ids), by_hand, atol=1e-5)


@pytest.mark.parametrize("method", ["coop", "vl_prompt", "maple"])
def test_prompts_are_refused_while_planning_where_another_place_pools(method):
    with pytest.raises(UserError, match=rf"{method}: on 'ViT-L-14-worldwide' the text tower pools by 'eos'"):
        methods.get(method)().check(model_shape("ViT-L-14-worldwide"))


def test_a_tokenizer_that_is_not_here_is_named(monkeypatch):
    def gone(name: str) -> None:
        raise OSError("We couldn't connect")

    monkeypatch.setattr(open_clip, "get_tokenizer", gone)
    with pytest.raises(UserError, match=r"tokenizer of 'ViT-B-16-SigLIP2'.*'timm/ViT-B-16-SigLIP2'.*HF_HOME"):
        weights._tokenizer("ViT-B-16-SigLIP2")


# --- images and losses ------------------------------------------------------------------------------------------------


def test_convpass_without_a_class_token_convolves_all_tokens():
    model = backbone("SigLIP")
    methods.get("convpass")(bottleneck=4, places=("beside_mlp",)).attach(model)
    branch = model.image_blocks.slotted()[0].beside_mlp.branch.eval()
    torch.nn.init.normal_(branch.up.weight)
    torch.nn.init.normal_(branch.conv.weight)
    x = torch.randn(2, 9, 64)
    low = branch.down(x)
    grid = branch.conv((low * torch.sigmoid(1.702 * low)).transpose(1, 2).reshape(2, 4, 3, 3))
    mixed = grid.reshape(2, 4, 9).transpose(1, 2)
    assert torch.allclose(branch(x), branch.up(mixed * torch.sigmoid(1.702 * mixed)), atol=1e-5)


def test_losses_take_the_backbones_scale_and_bias():
    """The sigmoid loss starts at both; a softmax takes the scale, and the bias would change nothing."""
    model, data = backbone("SigLIP"), batch()
    with torch.no_grad():
        model.clip.logit_scale.fill_(2.0)
        model.clip.logit_bias.fill_(-7.0)
        features = model(data.images, data.tokens)
    sigmoid = losses.get("siglip")()
    sigmoid.attach(model)
    images, texts = model.clip.get_logits(data.images, data.tokens)
    signs = 2 * torch.eye(4) - 1
    assert torch.allclose(sigmoid(features, data.image_ids, model), -F.logsigmoid(signs * images).sum() / 4)
    softmax = (F.cross_entropy(images, torch.arange(4)) + F.cross_entropy(texts, torch.arange(4))) / 2
    assert torch.allclose(losses.get("info_nce")()(features, data.image_ids, model), softmax, atol=1e-6)


def test_full_finetuning_leaves_the_bias():
    model = backbone("SigLIP")
    methods.get("full_finetune")().attach(model)
    assert {name for name, p in model.clip.named_parameters() if not p.requires_grad} == {"logit_bias"}
