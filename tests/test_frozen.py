"""Intervals of transfer and forgetting, from the ranks that runs save on further test sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.core.ranks import Ranks, Saved, metrics, to_npz
from bench.evidence import frozen, saved
from bench.evidence import statistics as evidence
from bench.reporting.build import build
from bench.store import behaviour
from tests.test_report import done, read_csv, spec, write

SHA, OTHER = "ab" * 32, "cd" * 32
IMAGES, CAPTIONS = 150, 3
BACKBONE = 0.6  # quality of the frozen backbone in `ranks_of`


def ranks_of(quality: float, seed: int, images: int = IMAGES) -> Saved:
    """Ranks of a model: the smaller, the higher the quality; hard images are hard for all models."""
    hard = np.random.default_rng(0).normal(0, 1.5, images)
    rng = np.random.default_rng(seed)

    def above(latent: np.ndarray) -> Ranks:
        noisy = latent + quality + rng.normal(0, 0.3, len(latent))
        count = np.floor(12 / (1 + np.exp(noisy))).astype(int)
        return Ranks(count, np.zeros_like(count), np.ones_like(count))

    return Saved(above(hard), above(hard.repeat(CAPTIONS)), np.full(images, CAPTIONS))


def save(run_dir: Path, quality: float, seed: int, sha: str = SHA, images: int = IMAGES) -> tuple[Path, str]:
    run_dir.mkdir(parents=True, exist_ok=True)
    both = {"before": ranks_of(BACKBONE, 99, images), "after": ranks_of(quality, seed, images)}
    for side in behaviour.SIDES:
        behaviour.ranks_file(run_dir, sha, side).write_bytes(to_npz(both[side]))
    return run_dir, sha


def row(folder: Path, name: str, quality: float, seeds: Sequence[int] = (1, 2, 3)) -> list[frozen.Source]:
    return [save(folder / f"{name}-s{seed}", quality + 0.3 * seed, seed) for seed in seeds]


def mean_recalls(sources: Sequence[frozen.Source], side: behaviour.Side) -> np.ndarray:
    entries = [saved.read_entry(behaviour.ranks_file(run_dir, sha, side)) for run_dir, sha in sources]
    return np.array([evidence.recalls(entry[1], entry[0])[-1] for entry in entries if entry])


def test_a_change_is_paired_with_the_frozen_backbone(tmp_path: Path) -> None:
    """Both models find the same images hard: the change is known far better than either recall."""
    [found] = frozen.compare([row(tmp_path, "lora", 0.7, seeds=[1])])
    assert found is not None
    widths = {name: float(np.diff(getattr(found, name)[-1])[0]) for name in ("before", "after", "change")}
    assert widths["change"] < 0.5 * min(widths["before"], widths["after"])
    [source] = row(tmp_path, "lora", 0.7, seeds=[1])
    captions, before, _ = saved.read_entry(behaviour.ranks_file(*source, "before")) or pytest.fail("no ranks")
    _, after, _ = saved.read_entry(behaviour.ranks_file(*source, "after")) or pytest.fail("no ranks")
    y = (evidence.shares(after[None], captions) - evidence.shares(before[None], captions))[:, 0]
    plain = stats.bootstrap((y,), np.sum, n_resamples=9999, method="percentile", rng=0, vectorized=True)
    assert found.change[-1] == pytest.approx(list(plain.confidence_interval), abs=0.25), (
        "each image has as many captions"
    )


def test_seeds_count_in_the_models_intervals_and_not_in_the_backbones(tmp_path: Path) -> None:
    sources = row(tmp_path, "lora", 0.7)
    [found], [alone] = frozen.compare([sources]), frozen.compare([sources[1:2]])
    assert found is not None
    assert alone is not None
    assert found.before == pytest.approx(alone.before)
    assert np.diff(found.change[-1]) > 2 * np.diff(alone.change[-1]), "three seeds that differ"
    assert np.diff(found.after[-1]) > 1.2 * np.diff(alone.after[-1])
    change = mean_recalls(sources, "after") - mean_recalls(sources, "before")
    half = stats.t.isf(0.025, 2) * stats.sem(change)
    assert 0.5 * np.diff(found.change[-1]) > half, "at least what the seeds alone leave"
    assert found.change[-1][0] < change.mean() < found.change[-1][1]


def test_rows_without_all_their_ranks_or_of_another_test_set_have_no_intervals(tmp_path: Path) -> None:
    whole, old = row(tmp_path, "lora", 0.7), row(tmp_path, "vpt", 0.7)
    behaviour.ranks_file(*old[1], "before").unlink()
    mixed = [*row(tmp_path, "coop", 0.7, seeds=[1]), save(tmp_path / "coop-s2", 0.7, 2, OTHER)]
    shorter = [save(tmp_path / "short", 0.7, 1, OTHER, images=IMAGES - 1)]
    found = frozen.compare([whole, old, mixed, shorter, []])
    assert [each is not None for each in found] == [True, False, False, True, False]
    assert found[0] is not None
    assert found[3] is not None
    assert not np.allclose(found[0].before, found[3].before), "each on its own test set"


# --- the report -------------------------------------------------------------------------------------------------------


def measured(ranks: dict[behaviour.Side, Saved]) -> dict[str, object]:
    return {side: {"scores": metrics(found.i2t, found.t2i)} for side, found in ranks.items()}


def results(folder: Path, keep: bool = True, own: bool = True) -> Path:
    """LoRA trained on RSITMD and on UCM with two seeds, each measured on the other's, its own, and on photos."""
    entries = [
        done(spec("lora", seed, dataset={"name": name}, rank=8), 40.0) for name in ("rsitmd", "ucm") for seed in (0, 1)
    ]
    write(folder, entries)
    for number, run_id in enumerate(sorted(path.name for path in folder.glob("lora-*"))):
        name = json.loads((folder / run_id / "result.json").read_text())["spec"]["dataset"]["name"]
        other = {"rsitmd": "ucm", "ucm": "rsitmd"}[name]
        sets = []
        for role, dataset, quality in (("own", name, 1.4), ("evaluate", other, 1.0), ("forgetting", "photos", -0.4)):
            sha = f"{dataset:x<64}"
            after = ranks_of(quality + 0.1 * number, number)
            ranks: dict[behaviour.Side, Saved] = {"before": ranks_of(BACKBONE, 99), "after": after}
            if keep:
                for side, found in ranks.items():
                    behaviour.ranks_file(folder / run_id, sha, side).write_bytes(to_npz(found))
            if role == "own":
                (folder / run_id / "ranks.npz").write_bytes(to_npz(after))
            if own or role != "own":
                sets.append({"role": role, "dataset": dataset, "sha256": sha, **measured(ranks)})
        (folder / run_id / behaviour.FILE).write_text(json.dumps({"schema": 1, "sets": sets}))
    return folder


def test_the_tables_have_intervals_and_changes_from_the_frozen_backbone(tmp_path: Path) -> None:
    out = build(results(tmp_path / "r"), tmp_path / "out").out_dir
    transfer = {row["trained_on"]: row for row in read_csv(out / "transfer.csv")}
    for trained, tested in (("rsitmd", "ucm"), ("ucm", "rsitmd"), ("rsitmd", "rsitmd")):
        low, change, high = (float(transfer[trained][f"change_{tested}{end}"]) for end in ("_low", "", "_high"))
        assert low < change < high, (trained, tested)
    table = {row["dataset"]: row for row in read_csv(out / "table.csv")}
    assert transfer["ucm"]["mean_recall_ucm_low"] == table["ucm"]["mean_recall_low"] != "", "the main table's"
    assert float(transfer[""]["mean_recall_ucm_low"]) < float(transfer[""]["mean_recall_ucm"])
    assert transfer[""]["change_ucm_low"] == ""
    lost = {row["trained_on"]: row for row in read_csv(out / "forgetting.csv")}
    assert float(lost["ucm"]["change_high"]) < 0, "less than before, beyond chance"
    assert float(lost["ucm"]["i2t_r1_low"]) < float(lost["ucm"]["i2t_r1"]) < float(lost["ucm"]["i2t_r1_high"])
    assert lost[""]["change_low"] == ""
    assert float(lost[""]["mean_recall_low"]) < float(lost[""]["mean_recall"]) < float(lost[""]["mean_recall_high"])
    ends = " to ".join(f"{float(lost['ucm'][f'mean_recall_{end}']):.1f}" for end in ("low", "high"))
    text = (out / "table.md").read_text()
    assert f"{float(lost['ucm']['mean_recall']):.1f} ({ends})" in text
    assert "paired with the frozen backbone by image" in text


def test_on_its_own_data_a_row_has_the_main_tables_interval_even_if_that_was_not_measured(tmp_path: Path) -> None:
    out = build(results(tmp_path / "r", own=False), tmp_path / "out").out_dir
    [line] = [row for row in read_csv(out / "transfer.csv") if row["trained_on"] == "ucm"]
    [main] = [row for row in read_csv(out / "table.csv") if row["dataset"] == "ucm"]
    assert line["mean_recall_ucm_low"] == main["mean_recall_low"] != ""
    assert line["change_ucm"] == line["change_ucm_low"] == "", "the backbone was not measured there"


def test_runs_that_saved_no_ranks_have_dashes_for_intervals(tmp_path: Path) -> None:
    out = build(results(tmp_path / "r", keep=False), tmp_path / "out").out_dir
    for name, column in (("transfer", "change_ucm"), ("forgetting", "change")):
        [line] = [row for row in read_csv(out / f"{name}.csv") if row["trained_on"] == "rsitmd"]
        assert line[column] != ""
        assert line[f"{column}_low"] == line[f"{column}_high"] == ""
    assert "±" in (out / "table.md").read_text().partition("## Forgetting")[2]
