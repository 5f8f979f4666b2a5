"""The registry of losses: one line each. Packages outside add theirs by the entry-point group `petl_bench.losses`."""

from __future__ import annotations

from methods.losses.base import Loss
from methods.registry import Registry

__all__ = ["LOSSES", "Loss", "get", "names"]

LOSSES: Registry[Loss] = Registry(
    kind="loss",
    base=Loss,
    entry_points="petl_bench.losses",
    built_in={
        "info_nce": "methods.losses.info_nce:InfoNCE",
        "siglip": "methods.losses.siglip:SigLIP",
        "triplet": "methods.losses.triplet:Triplet",
        "hmmc": "methods.losses.hmmc:HMMC",
        "harma": "methods.losses.harma:HarMALoss",
        "distil": "methods.losses.distil:Distil",
        "self_paced": "methods.losses.self_paced:SelfPaced",
    },
)

get = LOSSES.get
names = LOSSES.names
