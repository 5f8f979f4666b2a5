"""Self-distillation towards the mean of the weights of earlier epochs."""

from __future__ import annotations

from pydantic import Field

from methods.lazy import DualEncoder, F, Features, Float, Int, Tensor, torch
from methods.losses.base import Loss
from methods.losses.harma import COLDEST
from methods.losses.info_nce import info_nce


def distillation(student: Features, teacher: Features, temperature: float) -> Float[Tensor, ""]:
    """`(KL i2t + KL t2i) / 2 + (KL i2i + KL t2t) / 2` between the teacher's and the student's similarities.

    Each KL is KL(teacher || student) of the softmax of cosines / temperature in a row, the mean over the rows. i2t has
    a row for each image, over the texts, t2i a row for each text, over the images; i2i and t2t compare within a
    modality, each item with itself included. Zero where both agree.
    """
    terms = map(_divergence, _logits(student, temperature), _logits(teacher, temperature))
    return torch.stack(list(terms)).sum() / 2


def _logits(features: Features, temperature: float) -> list[Float[Tensor, "batch batch"]]:
    image, text = features.image, features.text
    return [a @ b.T / temperature for a, b in ((image, text), (text, image), (image, image), (text, text))]


def _divergence(student: Float[Tensor, "rows items"], teacher: Float[Tensor, "rows items"]) -> Float[Tensor, ""]:
    log_p, log_q = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class Distil(Loss):
    """Cross-entropy of pairs at a trained temperature, plus distillation from a teacher that lags behind (DSD-RSITR).

    `info_nce(pairs, 1 / temperature) + weight * (finished epochs / epochs) * distillation`, where the teacher is the
    model with the mean of the trained weights at the ends of all finished epochs (`bench.core.teacher`). In the first
    epoch the factor is zero and there is no teacher: each later batch costs one forward pass more. The teacher runs in
    eval mode, without dropout, so that its targets are not random. It is never scored: validation and test see the
    student.

    KL(teacher || student), as released: it is the cross-entropy with the teacher's soft targets up to a constant, and
    asks the student to cover all that the teacher finds likely. The released code computes the teacher's pass in the
    first epoch as well and multiplies it by zero, and updates all weights; here only those that are trained can differ.
    There the teacher is in training mode, which for CLIP, which has no dropout, is the same. The temperature is kept at
    `COLDEST` or above, as in HarMA's loss.
    """

    name = "distil"
    paper = "DSD-RSITR 2025, code github.com/zzl0107/DSD-RSITR"
    params = 1
    has_teacher = True
    temperature: float = Field(0.07, gt=0)
    """Of the cross-entropy at the start; it is trained."""
    teacher_temperature: float = Field(0.07, gt=0)
    """Of the distributions that are distilled, for teacher and student."""
    weight: float = Field(10.0, ge=0)
    """Weight of the distillation at the end of training."""

    def attach(self, model: DualEncoder) -> None:
        model.extras["temperature"] = torch.nn.Parameter(torch.tensor(self.temperature))
        model.add_teacher()

    def __call__(self, features: Features, image_ids: Int[Tensor, " batch"], model: DualEncoder) -> Float[Tensor, ""]:
        temperature = model.extras["temperature"]
        with torch.no_grad():
            temperature.clamp_(min=COLDEST)
        pairs = info_nce(features.image, features.text, 1 / temperature)
        if features.teacher is None:
            return pairs
        assert model.teacher is not None
        distilled = distillation(features, features.teacher, self.teacher_temperature)
        return pairs + self.weight * model.teacher.share * distilled
