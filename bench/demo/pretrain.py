"""Make the tiny CLIP's weights again: `python -m bench.demo.pretrain`.

Draws a pool of general scenes, trains both towers with InfoNCE, writes tiny-clip.safetensors and prints how the result
scores on the demo world, of which it has seen neither a picture nor a caption. All randomness follows from one seed;
sums round differently on other hardware, though, so expect a file as good rather than the same one. The shipped file
took about two minutes of processor time for its steps, and one for drawing.

It stops after 300 steps on purpose: at 400 steps, with whole pictures and a falling learning rate in the last 60, the
tiny CLIP knows the demo world too well before any method adapts it (33 mean recall on its test split instead of 25).
"""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import PatchDropout
from torch import Tensor, nn

from bench import demo
from bench.config.backbones import model_config
from bench.core.evaluate import score
from bench.core.ranks import metrics
from bench.demo import general, tiny_clip, world
from methods.losses.info_nce import info_nce

SEED = 0
SENTENCES = 4
HIDDEN = 0.7
"""The share of its patches that a picture is embedded without, which saves more than half of the time (FLIP, arXiv
2212.00794)."""
CONTEXT: int = model_config(demo.MODEL)["text_cfg"]["context_length"]
# Words that overhead pictures are described with, beyond the demo world's: their tokens are kept, though untrained.
OVERHEAD = """
airport baseball basketball beach bridge buildings bushes cars church city coast commercial container court crossing
dense dock factory farmland fields football forest grassland green harbor highway houses industrial intersection island
lake land lawn lawns lots meadow mountain ocean overpass park parking path plane planes playground pond pool port
railway residential river road roofs runway school sea ship ships shore square stadium station storage street swimming
tanks tennis tracks trees vehicles viaduct village water waves white yachts
"""


def _draw(index: int) -> tuple[np.ndarray, list[str]]:
    picture, captions = general.scene(SEED, index, SENTENCES)
    return np.asarray(picture), captions


def pool(scenes: int) -> tuple[Tensor, list[list[str]]]:
    """uint8 pictures (scenes, 3, 64, 64) and their captions."""
    with multiprocessing.Pool() as processes:
        drawn = processes.map(_draw, range(scenes), chunksize=256)
    pictures = torch.from_numpy(np.stack([pixels for pixels, _ in drawn])).permute(0, 3, 1, 2).contiguous()
    return pictures, [captions for _, captions in drawn]


def demo_captions() -> list[str]:
    """Every caption of the demo world, for its vocabulary alone."""
    return [caption for index in range(sum(world.SPLITS.values())) for caption in world.scene(0, index)[2]]


def normalised(pictures: Tensor, device: torch.device) -> Tensor:
    """uint8 pictures to what open_clip's default normalisation gives."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD, device=device).view(1, 3, 1, 1)
    return (pictures.to(device).float() / 255 - mean) / std


def train(scenes: int, steps: int, batch: int, lr: float, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """The trained state with a compact token embedding, and the token ids of its rows."""
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    started = time.perf_counter()
    pictures, captions = pool(scenes)
    ids = tokenizer([caption for listed in captions for caption in listed]).view(scenes, SENTENCES, -1)
    known = torch.cat([ids.view(-1, CONTEXT), tokenizer(demo_captions()), tokenizer(OVERHEAD.split())]).unique()
    print(f"{scenes} scenes drawn in {time.perf_counter() - started:.0f} s; {len(known)} tokens kept", flush=True)

    # A table of the kept tokens alone: the other 48,000 rows would cost half of every step. Ids keep their order, so
    # the end token stays the highest, where CLIP pools.
    compact = torch.searchsorted(known, ids)
    lengths = (ids != 0).sum(dim=-1)
    config = copy.deepcopy(model_config(demo.MODEL))
    config["text_cfg"]["vocab_size"] = len(known)
    torch.manual_seed(SEED)
    clip = open_clip.CLIP(**config).to(device)
    clip.visual.patch_dropout = PatchDropout(HIDDEN)  # type: ignore[assignment]
    matrices = [p for p in clip.parameters() if p.ndim >= 2]
    others = [p for p in clip.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}])
    rng = np.random.default_rng(SEED)
    order = np.empty(0, dtype=np.int64)
    for step in range(steps):
        if len(order) < batch:
            order = np.concatenate([order, rng.permutation(scenes)])
        rows, order = torch.from_numpy(order[:batch].copy()), order[batch:]
        said = torch.from_numpy(rng.integers(SENTENCES, size=batch))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100)
        images = pictures[rows]
        if rng.random() < 0.5:
            images = images.flip(-1)  # no caption says left or right
        image = F.normalize(clip.encode_image(normalised(images, device)), dim=-1)
        longest = int(lengths[rows, said].max())
        text = F.normalize(encode_text(clip, compact[rows, said, :longest].to(device)), dim=-1)
        loss = info_nce(image, text, clip.logit_scale.exp())
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))
        if step % 100 == 99 or step + 1 == steps:
            right = (image @ text.T).argmax(dim=1).eq(torch.arange(batch, device=device)).float().mean()
            passed = time.perf_counter() - started
            print(f"step {step + 1}/{steps}  loss {loss:.3f}  right {100 * right:.0f}%  {passed:.0f} s", flush=True)
    return {name: tensor.detach().cpu() for name, tensor in clip.state_dict().items()}, known


def encode_text(clip: open_clip.CLIP, ids: Tensor) -> Tensor:
    """Embeddings (batch, width) of ids (batch, length), which end before the context does: the rest is padding that
    no token before it attends to, and it would cost half of the tower's time."""
    length = ids.shape[1]
    tokens = clip.token_embedding(ids) + clip.positional_embedding[:length]
    tokens = clip.ln_final(clip.transformer(tokens, attn_mask=clip.attn_mask[:length, :length]))
    return tokens[torch.arange(len(ids)), ids.argmax(dim=-1)] @ clip.text_projection


@torch.inference_mode()
def zero_shot(path: Path, split: str = "test") -> float:
    """Mean recall in percent on a split of the demo world."""
    clip = open_clip.CLIP(**model_config(demo.MODEL)).eval()
    clip.load_state_dict(tiny_clip.state_dict(path))
    splits = [name for name, number in world.SPLITS.items() for _ in range(number)]
    scenes = [world.scene(0, index) for index, name in enumerate(splits) if name == split]
    pictures = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for _, picture, _ in scenes])
    captions = [caption for _, _, listed in scenes for caption in listed]
    image = F.normalize(clip.encode_image(normalised(pictures, torch.device("cpu"))), dim=-1)
    text = F.normalize(clip.encode_text(open_clip.SimpleTokenizer(context_length=CONTEXT)(captions)), dim=-1)
    owner = torch.arange(len(captions)) // 5
    return float(metrics(*score(image, text, torch.arange(len(captions)), owner))["mean_recall"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.demo.pretrain", description=__doc__)
    parser.add_argument("--scenes", type=int, default=12_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=demo.WEIGHTS)
    arguments = parser.parse_args(argv)
    state, known = train(
        arguments.scenes, arguments.steps, arguments.batch, arguments.lr, torch.device(arguments.device)
    )
    tiny_clip.pack(state, known, arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 2**20:.1f} MiB")
    print(f"zero-shot mean recall on the demo world: {zero_shot(arguments.out):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
