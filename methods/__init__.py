"""The registry of methods: one line each. Packages outside add theirs by the entry-point group `petl_bench.methods`.

Looking a method up imports its file alone. None of these files imports torch before `attach` runs.
"""

from __future__ import annotations

from methods import losses
from methods.base import Method
from methods.registry import Registry

__all__ = ["METHODS", "get", "losses", "names"]

METHODS: Registry[Method] = Registry(
    kind="method",
    base=Method,
    entry_points="petl_bench.methods",
    built_in={
        "zero_shot": "methods.zero_shot:ZeroShot",
        "full_finetune": "methods.full_finetune:FullFinetune",
        "lit": "methods.lit:LiT",
        "last_block": "methods.last_block:LastBlock",
        "bitfit": "methods.bitfit:BitFit",
        "ln_tuning": "methods.ln_tuning:LNTuning",
        "ssf": "methods.ssf:SSF",
        "linear_probe": "methods.linear_probe:LinearProbe",
        "clip_adapter": "methods.clip_adapter:CLIPAdapter",
        "coop": "methods.coop:CoOp",
        "vpt": "methods.vpt:VPT",
        "vl_prompt": "methods.vl_prompt:VLPrompt",
        "maple": "methods.maple:MaPLe",
        "adapter": "methods.adapter:Adapter",
        "adaptformer": "methods.adaptformer:AdaptFormer",
        "convpass": "methods.convpass:Convpass",
        "cross_modal_adapter": "methods.cross_modal_adapter:CrossModalAdapter",
        "uniadapter": "methods.uniadapter:UniAdapter",
        "mrs_adapter": "methods.mrs_adapter:MRSAdapter",
        "harma": "methods.harma:HarMA",
        "posapl": "methods.posapl:POSAPL",
        "mps_adapter": "methods.mps_adapter:MPSAdapter",
        "mma": "methods.mma:MMA",
        "unipt": "methods.unipt:UniPT",
        "reft": "methods.reft:ReFT",
        "lora": "methods.lora:LoRA",
        "peft": "methods.peft:Peft",
    },
)

get = METHODS.get
names = METHODS.names
