"""Where a method here is known not to pass a check of `bench.conformance`, and why: (label or name, check) -> reason.

The test suite holds each as a strict xfail: an excuse that is no longer needed is an error.
"""

from __future__ import annotations

_SPLIT = "q, k and v are split into layers of their own, and peft wraps what it adapts: the weights have other keys"
_BESIDE = "the state dict has the frozen layers under their new keys, and the tuner's fixed parts"

EXCUSES: dict[tuple[str, str], str] = {
    ("lora", "backbone_unchanged_by_attach"): _SPLIT,
    ("lora", "state_dict_holds_backbone_and_trainable_only"): _BESIDE,
    ("mrs_adapter trained", "all_that_is_trainable_gets_gradients"): "its loss has no temperature, but the released "
    "optimizer holds CLIP's all the same, and the published count has it",
    ("peft", "backbone_unchanged_by_attach"): _SPLIT,
    ("peft", "state_dict_holds_backbone_and_trainable_only"): _BESIDE,
    ("peft pissa", "other_seed_other_start"): "it starts from the singular vectors of the weights, not at random",
}
