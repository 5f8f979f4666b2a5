"""What the core leaves out: what is found in a model, where it is kept, and that no number of a run depends on it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import methods
from bench.compute.execute import execute
from bench.config import errors
from bench.config.errors import UserError
from bench.conformance import suite
from bench.conformance.subject import Subject
from bench.conformance.tiny import CLASSES, RESNET, backbone
from bench.core import feed, passes, prefix_cache, shortcuts
from bench.core.blocks import SlottedBlock
from bench.core.layers import OpenAttention
from bench.core.model import DualEncoder
from bench.core.passes import Depth
from bench.core.shortcuts import Shortcuts, frozen_depth
from bench.core.taps import Tap
from bench.store import attempts, folder, record
from methods.harma import HarMA
from methods.layers.harma import HarmaAdapter
from tests.test_run import in_pieces, make_run, numbers

CHECK = "shortcuts_change_nothing"


def subject(name: str, kind: str = "CLIP") -> Subject:
    return next(each for each in suite.method_subjects(methods.get(name)) if each.kind == kind)


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_what_each_kind_of_method_leaves_to_compute(kind):
    found = {}
    for name in ("zero_shot", "linear_probe", "coop", "vpt", "maple", "last_block", "lora", "harma", "bitfit"):
        one = subject(name, kind)
        found[name] = shortcuts.find(one.attached(), trims_text=one.method.trims_text, second_view=None)
    cuts = kind != "SigLIP"  # whose text tower sees padding; its passes are not cut between blocks, either

    def expected(
        image: Depth,
        text: Depth,
        *pooled: str,
        packed: bool = True,
        cut: bool = True,
        replaced: tuple[str, ...] = (),
    ) -> Shortcuts:
        # open_clip's own text tower, which SigLIP has beside timm's image tower, has torch's attention.
        replaced = replaced if cuts else tuple(side for side in replaced if side == "text")
        return Shortcuts(cuts and cut, image, text, False, pooled if cuts else (), replaced, packed)

    assert found == {
        "zero_shot": expected("whole", "whole"),
        "linear_probe": expected("whole", "whole"),
        "coop": expected("whole", 0, "text"),
        "vpt": expected(0, "whole", "image", replaced=("image",)),
        "maple": expected(0, 0, "image", "text", replaced=("image", "text")),
        "last_block": expected(2 if cuts else 0, 1 if cuts else 0, "image", "text"),  # of 3 and 2 blocks
        "lora": expected(0, 0, "image", "text", packed=False),
        "harma": expected(0, 0, cut=False),
        "bitfit": expected(0, 0, "image", "text"),
    }


def _dropout(model: DualEncoder) -> None:
    model.clip.visual.patch_dropout = nn.Dropout(0.1)


def _attention_dropout(model: DualEncoder) -> None:
    model.clip.visual.transformer.resblocks[1].attn.dropout = 0.1


def _hook(model: DualEncoder) -> None:
    model.clip.visual.transformer.resblocks[1].register_forward_hook(lambda *_: None)


def _foreign(model: DualEncoder) -> None:
    model.image_blocks.slotted()[1].fill(exit=nn.Identity())


def _replaced(model: DualEncoder) -> None:
    class Own(nn.LayerNorm):
        pass

    model.clip.visual.ln_pre = Own(96).requires_grad_(False)


def _patched(model: DualEncoder) -> None:
    model.clip.visual.ln_pre.forward = lambda x: 2 * x


def _first(model: DualEncoder) -> None:
    model.clip.visual.class_embedding.requires_grad_(True)


def _last(model: DualEncoder) -> None:
    model.clip.visual.proj.requires_grad_(True)


def _layer(model: DualEncoder) -> None:
    model.image_blocks.slotted()[2].layer("ln_1").fill(after=nn.Identity())


@pytest.mark.parametrize(
    ("change", "depth"),
    [
        (_dropout, 0),
        (_attention_dropout, 1),
        (_hook, 1),
        (_foreign, 1),
        (_replaced, 0),
        (_patched, 0),
        (_first, 0),
        (_last, 3),
        (_layer, 2),
        (lambda model: None, "whole"),
    ],
)
def test_a_tower_is_frozen_up_to_what_is_trained_attached_or_random(change, depth):
    model = backbone()
    change(model)
    assert frozen_depth(model, "image") == depth
    assert frozen_depth(model, "text") == "whole"


def test_a_tower_without_open_clips_blocks_is_frozen_as_a_whole_or_not_at_all():
    model = backbone("ResNet")
    assert frozen_depth(model, "image") == "whole"
    model.clip.visual.layer4.requires_grad_(True)
    assert frozen_depth(model, "image") == 0


def test_text_is_not_cut_where_it_is_not_causal():
    model = DualEncoder(
        open_clip.CustomTextCLIP(**RESNET | {"text_cfg": RESNET["text_cfg"] | {"no_causal_mask": True}})
    )
    assert not shortcuts.find(model, trims_text=True, second_view=None).cuts_text


def test_outputs_that_the_next_block_replaces_are_not_computed():
    """VPT-deep: of the prompts only keys and values are multiplied, 2/12 of a block's products with its weights."""
    method = methods.get("vpt")(n_ctx=50)
    counted, widths = {}, {}
    for shortcut in (True, False):
        model = backbone()
        method.attach(model)
        if shortcut:
            shortcuts.apply(model, Shortcuts(replaced=("image",)))
        seen = widths[shortcut] = []
        for block in model.image_blocks.list:
            block.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.shape[1]))
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model.encode_image(torch.zeros(2, 3, model.image_size, model.image_size))
        counted[shortcut] = counter.get_total_flops()
    tokens = widths[True][-1]
    assert widths == {True: [tokens] * 3, False: [tokens + 50, tokens + 50, tokens]}
    assert counted[True] < 0.6 * counted[False]


def _exit_mixes_tokens(model: DualEncoder) -> None:
    model.image_blocks.slotted()[0].fill(exit=nn.MultiheadAttention(96, 1))


def _output_is_read(model: DualEncoder) -> None:
    model.image_blocks.list[0].register_forward_hook(lambda *_: None)


def _input_is_read(model: DualEncoder) -> None:
    model.image_blocks.list[1].register_forward_pre_hook(lambda *_: None)


@pytest.mark.parametrize("look", [_exit_mixes_tokens, _output_is_read, _input_is_read])
def test_outputs_that_anything_else_looks_at_are_computed(look):
    model = backbone()
    methods.get("vpt")(n_ctx=3, prompt_depth=2).attach(model)
    assert shortcuts.find(model, trims_text=True, second_view=None).replaced == ("image",)
    look(model)
    assert shortcuts.find(model, trims_text=True, second_view=None).replaced == ()


def test_a_second_view_is_in_front_of_all_blocks():
    found = shortcuts.find(backbone(), trims_text=True, second_view=0.2)
    assert [found.depth("image", training=training) for training in (True, False)] == [0, "whole"]


# --- planted faults that the conformance check finds ------------------------------------------------------------------


def test_text_cut_for_harma_is_found():
    class Careless(HarMA):
        trims_text = True

    [first, *_] = suite.method_subjects(Careless)
    outcome = suite.run_check(CHECK, first)
    assert outcome.state == "failed"
    assert "text embeddings move" in outcome.reason


@pytest.mark.parametrize("name", ["coop", "last_block", "bitfit", "lora"])
def test_a_prefix_with_something_trained_in_it_is_found(name, monkeypatch):
    monkeypatch.setattr(shortcuts, "frozen_depth", lambda model, side: "whole")
    outcome = suite.run_check(CHECK, subject(name))
    assert outcome.state == "failed"
    assert re.search("embeddings move|value or gradient|does not require grad", outcome.reason)


def test_a_prefix_of_one_block_too_many_is_found(monkeypatch):
    real = frozen_depth
    monkeypatch.setattr(shortcuts, "frozen_depth", lambda model, side: real(model, side) + 1)
    assert "value or gradient" in suite.run_check(CHECK, subject("last_block")).reason


def test_a_module_that_looks_at_several_tokens_and_denies_it_is_found(monkeypatch):
    monkeypatch.setattr(HarmaAdapter, "token_wise", True, raising=False)
    outcome = suite.run_check(CHECK, subject("harma"))
    assert outcome.state == "failed"
    assert "embeddings move" in outcome.reason


def test_an_embedding_taken_at_another_token_is_found(monkeypatch):
    monkeypatch.setattr(passes, "ends", lambda text, ids: ids.argmax(dim=1) - 1)
    assert "text embeddings move" in suite.run_check(CHECK, subject("lora")).reason


def test_other_tokens_left_out_than_the_next_block_replaces_are_found(monkeypatch):
    real = SlottedBlock.leave_out
    monkeypatch.setattr(SlottedBlock, "leave_out", lambda self, start, count: real(self, start - 1, count))
    assert "image embeddings move" in suite.run_check(CHECK, subject("vpt")).reason


# --- one token of the last block --------------------------------------------------------------------------------------


def _conv(model: DualEncoder) -> None:
    model.image_blocks.slotted()[-1].fill(after_mlp=nn.Conv1d(65, 65, 1))


def _hooked_block(model: DualEncoder) -> None:
    model.clip.visual.transformer.resblocks[-1].register_forward_hook(lambda *_: None)


def _tapped(model: DualEncoder) -> None:
    model.image_blocks.slotted()[-1].fill(exit=Tap())


def _norm_behind(model: DualEncoder) -> None:
    model.layer("image", "ln_post").fill(after=Tap())


def _mean_pool(model: DualEncoder) -> None:
    model.clip.visual.pool_type = "avg"


def _checkpointed(model: DualEncoder) -> None:
    model.clip.set_grad_checkpointing(True)


def _early(model: DualEncoder) -> None:
    model.image_blocks.slotted()[0].fill(exit=Tap())


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (_conv, False),
        (_hooked_block, False),
        (_tapped, False),
        (_norm_behind, False),
        (_mean_pool, False),
        (_checkpointed, False),
        (_early, True),
        (lambda model: None, True),
    ],
)
def test_one_token_is_kept_where_nothing_behind_attention_looks_at_several(change, kept):
    model = backbone()
    model.clip.visual.conv1.requires_grad_(True)  # else the tower is frozen as a whole
    change(model)
    assert shortcuts.keeps_one_token(model, "image") is kept
    assert not shortcuts.keeps_one_token(model, "text"), "it is frozen as a whole"


@pytest.mark.parametrize(
    ("lengths", "views", "parts"),
    [
        ([5, 30, 7, 31], 1, [[0, 2], [1, 3]]),
        ([5, 30, 7, 31], 2, [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ([10, 10, 9, 10], 1, [[2, 0, 1, 3]]),  # would save less than a tenth
        ([8], 1, [[0]]),
    ],
)
def test_texts_are_parted_where_that_leaves_out_padding(lengths, views, parts):
    assert [part.tolist() for part in passes.parted(torch.tensor(lengths * views), views)] == parts


def test_opened_attention_gives_the_same_numbers_also_at_one_token_of_each_item():
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(32, 4, batch_first=True)
    nn.init.normal_(packed.in_proj_bias)
    opened = OpenAttention(packed)
    x, mask = torch.randn(3, 7, 32), torch.full((7, 7), -torch.inf).triu(1)
    expected = packed(x, x, x, need_weights=False, attn_mask=mask)[0]
    assert torch.allclose(opened(x, x, x, attn_mask=mask)[0], expected, atol=1e-6)

    rows = mask[torch.tensor([2, 6, 4])].repeat_interleave(4, dim=0)[:, None]
    at = x[torch.arange(3), torch.tensor([2, 6, 4])][:, None]
    for attention in (packed, opened):
        one = attention(at, x, x, need_weights=False, attn_mask=rows)[0]
        assert torch.allclose(one[:, 0], expected[torch.arange(3), torch.tensor([2, 6, 4])], atol=1e-6)


# --- where it is kept -------------------------------------------------------------------------------------------------


def parts(calls: list[int]) -> Iterator[Tensor]:
    for number in range(3):
        calls.append(number)
        yield torch.full((2, 3), float(number), dtype=torch.bfloat16)


def cache(path: Path | None) -> prefix_cache.PrefixCache:
    return prefix_cache.PrefixCache(path, {}, torch.device("cpu"), 0.0)


def test_a_prefix_is_computed_once_and_read_by_others(tmp_path):
    calls: list[int] = []
    first, again = cache(tmp_path), cache(tmp_path)
    one = first.get(["key"], lambda: parts(calls))
    assert one is first.get(["key"], lambda: parts(calls))
    other = again.get(["key"], lambda: parts(calls))
    assert calls == [0, 1, 2]
    assert torch.equal(one, torch.cat(list(parts([]))))
    assert torch.equal(one, other)
    assert other.dtype == torch.bfloat16
    again.get(["another key"], lambda: parts(calls))
    assert len(calls) == 6
    assert torch.equal(cache(None).get(["key"], lambda: parts([])), one)


def test_what_an_evaluation_computes_can_be_trained_on():
    with torch.inference_mode():
        found = cache(None).get(["key"], lambda: parts([]))
    layer = nn.Linear(3, 1, dtype=torch.bfloat16)
    layer(found).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "empty", "foreign"])
def test_a_damaged_file_is_computed_anew(tmp_path, damage):
    cache(tmp_path).get(["key"], lambda: parts([]))
    [path] = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(
        {
            "flipped": bytes([content[0] ^ 1]) + content[1:],
            "cut": content[:-3],
            "longer": content[:4] + content,
            "empty": b"",
            "foreign": b"[1, 2]\n" * 9,
        }[damage]
    )
    calls: list[int] = []
    found = cache(tmp_path).get(["key"], lambda: parts(calls))
    assert calls == [0, 1, 2]
    assert torch.equal(found, torch.cat(list(parts([]))))
    assert path.read_bytes() == content


def test_what_is_interrupted_leaves_no_file(tmp_path):
    def broken() -> Iterator[Tensor]:
        yield torch.zeros(2, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path).get(["key"], broken)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_users_matter(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="PETL_BENCH_CACHE"):
        cache(tmp_path / "file").get(["key"], lambda: parts([]))


# --- whole runs -------------------------------------------------------------------------------------------------------

PROBE = {"name": "linear_probe", "out_dim": 32}
LAST = {"name": "last_block"}


@pytest.fixture
def computed(monkeypatch, tmp_path) -> list[str]:
    """An empty cache; the towers that are computed for it."""
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "cache"))
    found: list[str] = []
    compute = feed.Source.compute
    monkeypatch.setattr(
        feed.Source, "compute", lambda self, side, parts: found.append(side) or compute(self, side, parts)
    )
    return found


def losses(run_dir: Path) -> list[float]:
    return [float(row["train_loss"]) for row in numbers(run_dir)["history"]]


@pytest.mark.parametrize("method", [PROBE, LAST, {"name": "coop", "n_ctx": 2}, {"name": "vpt", "n_ctx": 2}])
def test_a_run_with_shortcuts_equals_one_without(root, tmp_path, computed, method):
    runs = [make_run(root, tmp_path / each, method, augment="none") for each in ("on", "off")]
    text = (runs[1] / folder.RUN).read_text()
    (runs[1] / folder.RUN).write_text(text.replace("shortcuts: 'on'", "shortcuts: 'off'"))
    assert execute(runs[0]).error is None
    found = len(computed)
    assert found >= 3, "training, validation and test of a tower at least"
    assert execute(runs[1]).error is None
    assert len(computed) == found
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=1e-5)
    one, other = (record.read(run).metrics for run in runs)
    assert one == other
    costs = [record.read(run).cost for run in runs]
    assert costs[0].flops_per_pair == costs[1].flops_per_pair


def test_a_cached_run_in_pieces_and_from_files_equals_a_whole_one(root, tmp_path, computed):
    whole = make_run(root, tmp_path / "whole", LAST, augment="none")
    execute(whole)
    assert sorted(set(computed)) == ["image", "text"]
    found = len(computed)
    pieces = make_run(root, tmp_path / "pieces", LAST, augment="none")
    assert in_pieces(pieces, itertools.repeat(2)) > 3
    assert len(computed) == found, "all was read from files"
    assert numbers(pieces) == numbers(whole)
    for path in (tmp_path / "cache" / "prefixes").iterdir():
        path.unlink()
    anew = make_run(root, tmp_path / "anew", LAST, augment="none")
    execute(anew)
    assert numbers(anew) == numbers(whole)


def test_fixed_views_are_cached_and_shared_by_seeds(root, tmp_path, computed):
    views = {"augment": "harma", "views": 3}
    first, other = (make_run(root, tmp_path / str(seed), PROBE, seed=seed, **views) for seed in (0, 1))
    off = make_run(root, tmp_path / "off", PROBE, **views)
    (off / folder.RUN).write_text((off / folder.RUN).read_text().replace("shortcuts: 'on'", "shortcuts: 'off'"))
    execute(first)
    found = len(computed)
    execute(other)
    assert len(computed) == found
    execute(off)
    assert losses(first) == pytest.approx(losses(off), abs=1e-5)
    assert np.abs(np.subtract(losses(first), losses(other))).max() > 1e-4
    assert attempts.read_attempts(first)[-1].outcome == "finished"
    assert not isinstance(record.read(first).error, errors.Stopped)
