"""The papers' own numbers, as printed, with what is known of the runs behind them. No torch."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

_FILE = Path(__file__).with_name("published.csv")

# What is known of the runs behind a number, as notes name it.
_CONDITIONS = {"weights": "weights", "batch": "batch", "epochs": "epochs", "selection": "epoch chosen on"}


def of_dataset(name: str) -> list[dict[str, str]]:
    """The rows of published.csv for this dataset, which the report may call `rsitmd (split=pir)`. Missing is empty."""
    dataset = name.partition(" (")[0]
    with _FILE.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["dataset"].lower() == dataset]


def notes(dataset: str, methods: Collection[str]) -> list[str]:
    """The published mean recall of these methods on the dataset, a text for each source and known conditions.

    "Huang 2024 ...: harma 46.53 (weights laion2b_s34b_b79k, batch 428, epochs 50, epoch chosen on test; ...)". Nothing
    is said of what is unknown.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for row in of_dataset(dataset):
        if row["registered"] in methods:
            conditions = ", ".join(f"{words} {row[key]}" for key, words in _CONDITIONS.items() if row[key])
            about = "; ".join(filter(None, (conditions, row["differs"])))
            found.setdefault((row["source"], about), []).append(f"{row['registered']} {row['mean_recall']}")
    return [f"{source}: {', '.join(rows)}{f' ({about})' if about else ''}" for (source, about), rows in found.items()]
