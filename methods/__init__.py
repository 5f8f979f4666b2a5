"""The registry of methods: one line each. Packages outside add theirs by the entry-point group `petl_bench.methods`.

Looking a method up imports its file alone, and none of these files imports torch: `attach` does.
"""

from __future__ import annotations

from methods.base import Method
from methods.registry import Registry

METHODS: Registry[Method] = Registry(
    kind="method",
    entry_points="petl_bench.methods",
    built_in={
        "zero_shot": "methods.zero_shot:ZeroShot",
        "full_finetune": "methods.full_finetune:FullFinetune",
        "linear_probe": "methods.linear_probe:LinearProbe",
        "lora": "methods.lora:LoRA",
        "coop": "methods.coop:CoOp",
        "vpt": "methods.vpt:VPT",
        "mrs_adapter": "methods.mrs_adapter:MRSAdapter",
        "harma": "methods.harma:HarMA",
    },
)

get = METHODS.get
names = METHODS.names
