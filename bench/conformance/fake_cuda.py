"""A GPU that is not there: fake tensors on `cuda:0`, with shapes and types but without numbers.

Code that runs on them is held to what a GPU would hold it to: an operation on tensors of two devices raises, and so
does whatever needs a number on the host (`.item()`, `if tensor:`, `nonzero`, indexing by a mask), for which a real GPU
would make the host wait. Only the forward pass and the optimizer's step can be traced: autograd's backward pass asks
the driver for a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from bench.conformance.tiny import Pairs

DEVICE = torch.device("cuda:0")

# What torch and the core ask the driver, and the answers of a card that knows bf16.
ANSWERS = {
    "torch.cuda.amp.common.amp_definitely_not_available": False,  # else torch.autocast("cuda") turns itself off
    "torch.cuda.is_bf16_supported": True,
    "torch.cuda.reset_peak_memory_stats": None,
    "torch.cuda.max_memory_allocated": 0,
}


class FakeCuda:
    """Puts models and tensors on a fake GPU, which computes within `on()`."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within it torch computes on fake tensors, and `torch.autocast("cuda")` casts although there is no GPU."""
        with ExitStack() as stack:
            for name, answer in ANSWERS.items():
                stack.enter_context(patch(name, lambda *_, answer=answer, **__: answer))
            stack.enter_context(self.mode)
            yield

    def tensor(self, tensor: Tensor) -> Tensor:
        """A fake tensor of the same shape and type on `cuda:0`."""
        return FakeTensor(self.mode, torch.empty_like(tensor, device="meta"), DEVICE)  # type: ignore[no-any-return]

    def batch(self, batch: Pairs) -> Pairs:
        """The batch on `cuda:0`."""
        return Pairs(self.tensor(batch.images), self.tensor(batch.tokens), self.tensor(batch.image_ids))

    def model(self, model: nn.Module) -> None:
        """Replace every parameter and buffer of the model by a fake one on `cuda:0`, a shared one by the same.

        As with `model.to("cuda")`, tensors that are neither parameters nor buffers stay where they are.
        """
        found: dict[int, tuple[Tensor, Tensor]] = {}  # the old tensor is kept with the new: its id must stay its own
        for module in model.modules():
            for table in (module._parameters, module._buffers):
                for name, old in table.items():
                    if old is None:
                        continue
                    if id(old) not in found:
                        new = self.tensor(old)
                        if isinstance(old, nn.Parameter):
                            new = nn.Parameter(new, requires_grad=old.requires_grad)
                        found[id(old)] = old, new
                    table[name] = found[id(old)][1]  # type: ignore[assignment]
