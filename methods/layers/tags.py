"""Part-of-speech tags as a second sentence in the text tower: POSAPL's stream."""

from __future__ import annotations

from functools import cache
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.config.errors import UserError
from bench.core.taps import Tap
from methods.layers.bottlenecks import zeroed

VOCABULARY = 49_408  # of CLIP's tokenizer

# The names that spaCy has for the tags of the Penn Treebank; punctuation is all else.
UNIVERSAL = {
    "CC": "CCONJ",
    "CD": "NUM",
    "DT": "DET",
    "EX": "PRON",
    "FW": "X",
    "IN": "ADP",
    "JJ": "ADJ",
    "LS": "X",
    "MD": "AUX",
    "NN": "NOUN",
    "NNP": "PROPN",
    "PDT": "DET",
    "POS": "PART",
    "PRP": "PRON",
    "RB": "ADV",
    "RP": "ADP",
    "SYM": "SYM",
    "TO": "PART",
    "UH": "INTJ",
    "VB": "VERB",
    "WDT": "PRON",
    "WP": "PRON",
    "WRB": "ADV",
}


@cache
def _tagger() -> Any:
    from textblob.taggers import PatternTagger

    return PatternTagger()


_tokenizer = cache(open_clip.SimpleTokenizer)


def tag_sentence(caption: str) -> str:
    """The tags of a caption's words by their universal names: "a long building" gives "DET ADJ NOUN"."""
    penn = (tag.split("-")[0].rstrip("$") for _, tag in _tagger().tag(caption))
    # NNS, JJR, VBZ and the like are forms of a shorter tag's words.
    return " ".join(UNIVERSAL.get(tag, UNIVERSAL.get(tag[:3], UNIVERSAL.get(tag[:2], "PUNCT"))) for tag in penn)


@cache
def tag_ids(ids: tuple[int, ...]) -> list[int]:
    """The token ids of a caption's tags, as many as the caption's own, padding included; each caption is tagged once.

    The words are decoded from the ids: what CLIP's tokenizer drops (case, white space) the tagger does not see.
    """
    words = ids[1 : ids.index(max(ids))]
    sentence = tag_sentence(_tokenizer().decode(list(words)).strip())
    found: list[int] = _tokenizer()(sentence, context_length=len(ids))[0].tolist()
    return found


class TagMLP(nn.Module):
    """`W2 ReLU(W1 x)`, from `width` to `hidden` and back; W2 and its bias start at zero."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = zeroed(nn.Linear(hidden, width))

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        out: Tensor = self.up(F.relu(self.down(x)))
        return out


class TaggedEmbedding(nn.Embedding):
    """A token embedding that adds a stream made of the caption's tags; it takes over the frozen table and its key.

    The stream is a `TagMLP` of the tags' token and position embeddings, and goes through `tap`. The tags are found on
    the CPU, for which a GPU waits in every forward pass. Raises UserError for another vocabulary than CLIP's.
    """

    def __init__(self, embedding: nn.Embedding, positions: Float[nn.Parameter, "context width"], tap: Tap) -> None:
        nn.Module.__init__(self)
        if embedding.num_embeddings != VOCABULARY:
            raise UserError(f"posapl: tags need CLIP's vocabulary of {VOCABULARY}, not {embedding.num_embeddings}")
        self.__dict__.update({key: value for key, value in vars(embedding).items() if not key.startswith("_")})
        self.weight = embedding.weight
        self.mlp = TagMLP(embedding.embedding_dim, embedding.embedding_dim)
        self.tap = tap
        self._positions = (positions,)  # the text tower's, not registered here a second time

    def forward(self, input: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context width"]:
        tags = torch.tensor([tag_ids(tuple(row)) for row in input.tolist()], device=input.device)
        stream = self.mlp(super().forward(tags) + self._positions[0][: tags.shape[1]])
        return super().forward(input) + self.tap(stream)


class TagAdapter(nn.Module):
    """A `TagMLP` of the stream that last went through `tap`, whatever the input is."""

    def __init__(self, tap: Tap, width: int, hidden: int) -> None:
        super().__init__()
        self.tap, self.mlp = tap, TagMLP(width, hidden)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        stream: Tensor = self.mlp(self.tap.kept)  # not taken: the other blocks read it, too
        return stream
