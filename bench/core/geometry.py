"""How embeddings lie on the sphere, what has moved since before training, and classes told from their names.

All of it is computed from L2-normalised embeddings x of images and y of captions, both on the unit sphere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 1024  # rows whose distances to all others are held at once: 22 MB for RSICD's 5,465 captions


@dataclass(frozen=True)
class Modality:
    """How the embeddings of one modality lie.

    uniformity: log of the mean over pairs i < j of exp(-2 |x_i - x_j|^2) (Wang and Isola 2020, arXiv 2005.10242, with
    t = 2): 0 if all are equal, lower if they are spread evenly. similarity: mean cosine over the same pairs.
    class_similarity: over the pairs of one class alone; None without such a pair. effective_rank: exp of the entropy of
    the singular values divided by their sum, of the embeddings as they are, not centred (Roy and Vetterli 2007; RankMe,
    arXiv 2210.02885): between 1 and the dimension.
    """

    uniformity: float
    similarity: float
    class_similarity: float | None
    effective_rank: float


def modality_gap(images: Float[Tensor, "images dim"], texts: Float[Tensor, "texts dim"]) -> float:
    """Distance between the mean embedding of the images and that of the texts (Liang et al. 2022, arXiv 2203.02053).

    Between 0 and 2.
    """
    return float((images.double().mean(dim=0) - texts.double().mean(dim=0)).norm())


def alignment(
    images: Float[Tensor, "images dim"], texts: Float[Tensor, "texts dim"], owner: Int[Tensor, " texts"]
) -> float:
    """Mean of |x - y|^2 over pairs of a text and its image, `owner` (Wang and Isola 2020, alpha = 2): 0 to 4."""
    return float((images[owner] - texts).double().square().sum(dim=1).mean())


def modality(points: Float[Tensor, "items dim"], classes: Int[Tensor, " items"] | None = None) -> Modality | None:
    """The measures of one modality; None for fewer than two items. `classes`: from 0, -1 for an item without one."""
    if len(points) < 2:
        return None
    return Modality(
        uniformity=uniformity(points),
        similarity=similarity(points),
        class_similarity=None if classes is None else class_similarity(points, classes),
        effective_rank=effective_rank(points),
    )


def uniformity(points: Float[Tensor, "items dim"]) -> float:
    """As in `Modality`, for at least two items: in blocks, so that memory grows with the number of items alone."""
    count, total = len(points), 0.0
    for start in range(0, count, BLOCK):
        rows, others = points[start : start + BLOCK], points[start:]
        inside = torch.triu(torch.ones(len(rows), len(others), dtype=torch.bool, device=points.device), diagonal=1)
        kernel = (4 * (rows @ others.T) - 4).exp_()  # |x - y|^2 is 2 - 2 x.y
        total += float(kernel.mul_(inside).sum(dtype=torch.float64))
    return float(torch.tensor(total / (count * (count - 1) / 2), dtype=torch.float64).log())


def similarity(points: Float[Tensor, "items dim"]) -> float:
    """Mean cosine over all pairs of at least two items, from the length of their sum: |sum x|^2 = n + 2 sum x_i.x_j."""
    count, squares = len(points), float(points.double().square().sum())
    return (float(points.double().sum(dim=0).square().sum()) - squares) / (count * (count - 1))


def class_similarity(points: Float[Tensor, "items dim"], classes: Int[Tensor, " items"]) -> float | None:
    """Mean cosine over all pairs of items of one class; each pair counts the same. None if there is no such pair."""
    known = classes >= 0
    points, classes = points[known].double(), classes[known]
    if not len(points):
        return None
    member = torch.nn.functional.one_hot(classes).double()  # a matrix product adds up in one order, also on a GPU
    sizes = member.sum(dim=0)
    pairs = float((sizes * (sizes - 1)).sum())
    if not pairs:
        return None
    return (float((member.T @ points).square().sum()) - float(points.square().sum())) / pairs


def effective_rank(points: Float[Tensor, "items dim"]) -> float:
    """As in `Modality`. The singular values are roots of the smaller Gram matrix's eigenvalues, in float64."""
    wide = points.double()
    gram = wide.T @ wide if wide.shape[0] > wide.shape[1] else wide @ wide.T
    values = torch.linalg.eigvalsh(gram.cpu()).clamp_min(0).sqrt()
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def drift(after: Float[Tensor, "items dim"], before: Float[Tensor, "items dim"]) -> float:
    """Mean of 1 - cosine between the embeddings of the same items by two models: 0 if none has turned, at most 2."""
    return float((1 - (after.double() * before.double()).sum(dim=1)).mean())


def class_name(label: str) -> str:
    """A class as a prompt has it: `sparse_residential`, `SparseResidential` to "sparse residential"."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_\-/]+", " ", label)
    return " ".join(parted.split()).lower()


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template, `{}` in which stands for the name, with every class: all of the first class, then the second."""
    return [template.replace("{}", class_name(name)) for name in names for template in templates]


def accuracy(
    images: Float[Tensor, "images dim"],
    prompted: Float[Tensor, "prompts dim"],
    classes: Int[Tensor, " images"],
    count: int,
) -> tuple[float, float]:
    """Top-1 accuracy in percent over all images, and its mean over the classes that have images.

    `prompted`: the embeddings of `prompts`, for `count` classes; a class is the mean of its own, as in CLIP. `classes`:
    each image's true one. An image whose class ties with others at the top counts as its chance under a random order.
    """
    means = torch.nn.functional.normalize(prompted.float().unflatten(0, (count, -1)).mean(dim=1), dim=-1)
    scores = images.float() @ means.T
    best = scores == scores.amax(dim=1, keepdim=True)
    right = best.gather(1, classes[:, None])[:, 0].double() / best.sum(dim=1)
    member = torch.nn.functional.one_hot(classes, len(means)).double()
    sizes = member.sum(dim=0)
    each = (right @ member)[sizes > 0] / sizes[sizes > 0]
    return 100 * float(right.mean()), 100 * float(each.mean())
