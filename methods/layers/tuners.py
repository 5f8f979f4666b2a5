"""The peft library's tuners inside a dual encoder, with layers named in CLIP's terms."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from open_clip import CLIP
from peft import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.fourierft.layer import FourierFTLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from bench.config.errors import UserError
from bench.config.shapes import ModelShape
from bench.core.model import DualEncoder
from methods.layers.attention import split_attention

ADAPTER = "default"


@torch.compiler.substitute_in_graph(dequantize_module_weight)
def _plain_weight(module: nn.Module) -> Any:
    """What torch.compile traces in place of the library's function, which DoRA calls in every forward pass.

    Dynamo can't follow the library's test for quantized weights (`type(weight).__module__.startswith`, in every release
    from 0.15 to 0.21). No layer is quantized here. Without torch.compile the library's own function runs.
    """
    if type(module.weight) is not nn.Parameter:
        raise TypeError(f"torch.compile: {type(module.weight).__name__} is no plain weight")
    return module.weight


def inject(model: DualEncoder, config: Any, towers: str, targets: Sequence[str]) -> BaseTuner:
    """Put a tuner of the library on the targeted layers of "image", "text" or "both" towers, in place.

    `config` is the library's own. Where attention is targeted, a block's packed attention is split first. Raises
    UserError for towers without slots, and what the library raises for layers that it does not adapt.
    """
    names, renamed = [], set[tuple[str, str]]()
    for side in ("image", "text") if towers == "both" else (towers,):
        blocks = getattr(model, f"{side}_blocks")
        for block, (prefix, _) in zip(blocks.slotted(), blocks.named_blocks(), strict=True):
            if any(target.startswith("attn.") for target in targets):
                split_attention(block)
            own = {target: target if target.startswith("attn.") else block.own_name(target) for target in targets}
            names += [f"{prefix}.{name}" for name in own.values()]
            renamed |= own.items()
    config = copy.copy(config)
    # A pattern, since the library takes names in a list for endings: the text tower's would match the image tower's.
    config.target_modules = "|".join(map(re.escape, names))
    feedforward = getattr(config, "feedforward_modules", None)  # of IA3: endings, if no pattern
    if isinstance(feedforward, set):
        config.feedforward_modules = feedforward | {own for target, own in renamed if target in feedforward}
    tuner: BaseTuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model.clip, config, adapter_name=ADAPTER)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.token_wise = True  # type: ignore[assignment]  # as the linear layers in whose places they stand
    return tuner


def attach(model: DualEncoder, config: Any, towers: str, targets: Sequence[str]) -> None:
    """`inject`, and what the library does outside of the forward pass: AdaLoRA's rank allocation and regulariser."""
    tuner = inject(model, config, towers, targets)
    for layer in model.modules():
        if isinstance(layer, FourierFTLayer):
            # A plain dict would stay on the CPU and be copied to the GPU in every forward pass.
            layer.indices = BufferDict(layer.indices)  # type: ignore[assignment]
    if hasattr(tuner, "update_and_allocate"):
        allocation = Allocation(tuner)
        model.after_step.append(allocation)
        model.penalties.append(allocation.penalty)


def merge(model: DualEncoder) -> None:
    """Fold every tuner of the library in the model into the layers that it adapts."""
    for module in list(model.modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)


class Allocation:
    """AdaLoRA's rank allocation after every optimizer step, and its orthogonality term (arXiv 2303.10512)."""

    def __init__(self, tuner: BaseTuner) -> None:
        # A plain attribute of a plain object: the tuner holds the model, whose list `after_step` holds this.
        self.tuner: Any = tuner
        self.allocator: Any = self.tuner.rankallocator
        self.config: Any = self.tuner.peft_config[ADAPTER]

    def __call__(self, step: int, total: int) -> None:
        """Called after optimizer step `step` (from 1) of `total`, before the gradients are set to zero.

        Raises UserError if `total` is too small for the phases without allocation at the start and at the end.
        """
        if self.config.total_step != total:
            if self.config.tinit + self.config.tfinal >= total:
                raise UserError(
                    f"peft ADALORA: tinit {self.config.tinit} + tfinal {self.config.tfinal} leave none of the {total} "
                    "steps to allocate ranks in; lower them or train longer"
                )
            self.allocator.set_total_step(total)
            self.config.total_step = total
        with _any_kthvalue():
            self.tuner.update_and_allocate(step)

    def penalty(self) -> Float[Tensor, ""]:
        """`orth_reg_weight` times the mean Frobenius norm of `A A' - I` and `B' B - I` over all matrices A and B."""
        terms = []
        for name, matrix in self.tuner.model.named_parameters():
            if f"lora_A.{ADAPTER}" in name or f"lora_B.{ADAPTER}" in name:
                product = matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix
                terms.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
        return self.config.orth_reg_weight * torch.stack(terms).mean()

    def state_dict(self) -> dict[str, Any]:
        """What later allocations depend on, as tensors and plain values."""
        kept = ("ipt", "exp_avg_ipt", "exp_avg_unc")
        return {name: dict(getattr(self.allocator, name)) for name in kept} | {"pattern": self.config.rank_pattern}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; each tensor goes to the device of the matrix that it belongs to."""
        self.config.rank_pattern = state["pattern"]
        devices = {name: matrix.device for name, matrix in self.tuner.model.named_parameters()}
        for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            setattr(self.allocator, name, {key: tensor.to(devices[key]) for key, tensor in state[name].items()})


@contextmanager
def _any_kthvalue() -> Iterator[None]:
    """Let `torch.kthvalue` run on CUDA, where it refuses to be deterministic in torch before 2.10.

    Only the index that it returns can differ between calls; AdaLoRA takes the value.
    """
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def count(config: Any, shape: ModelShape, towers: str, targets: Sequence[str]) -> int:
    """How many parameters the tuner trains on a model of this shape. Raises UserError if it does not fit.

    Counted on a model on the meta device, which takes no memory, or on the CPU for tuners that read weights (BOFT).
    """
    try:
        return _counted(config, shape, towers, targets, "meta")
    except (RuntimeError, NotImplementedError):
        return _counted(config, shape, towers, targets, "cpu")


def _counted(config: Any, shape: ModelShape, towers: str, targets: Sequence[str], device: str) -> int:
    image, text = shape.towers
    edge = round(shape.patches**0.5) * shape.patch
    vision_cfg: dict[str, Any] = {
        "image_size": edge,
        "layers": image.layers,
        "width": image.width,
        "patch_size": shape.patch,
    }
    vision_cfg |= {"head_width": image.width, "mlp_ratio": image.mlp_width / image.width}
    text_cfg: dict[str, Any] = {"context_length": text.tokens, "vocab_size": 2, "width": text.width, "heads": 1}
    text_cfg |= {"layers": text.layers, "mlp_ratio": text.mlp_width / text.width}
    with torch.device(device), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns again when the run attaches the tuner
        model = DualEncoder(CLIP(shape.embed_dim, vision_cfg, text_cfg))
        try:
            inject(model, config, towers, targets)
            model(torch.zeros(1, 3, edge, edge), torch.zeros(1, text.tokens, dtype=torch.long))
        except Exception as error:
            if device == "meta" and isinstance(error, RuntimeError | NotImplementedError):
                raise  # the tuner read weights
            raise UserError(f"peft {config.peft_type.value}: {error}") from error
    return model.trainable_params()
