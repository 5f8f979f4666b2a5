"""The published numbers: each row says what is known of its run, and what is unknown is empty, never a guess."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import methods
from bench.plan import recipes
from bench.reporting import build, published
from tests.test_report import done, spec, write

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
ROWS = [row for name in ("rsitmd", "rsicd", "ucm") for row in published.of_dataset(name)]


def test_every_row_is_numbers_or_empty_and_has_a_source():
    assert len(ROWS) == 92
    for row in ROWS:
        assert row["source"]
        assert row["selection"] in ("", "validation", "test")
        assert all(re.fullmatch(r"\d*", row[key]) for key in ("batch", "epochs"))
        assert all(re.fullmatch(r"(\d+\.\d\d)?", row[key]) for key in (*RECALLS, "mean_recall", "mean_recall_spread"))
        assert row["mean_recall"]
        six = [float(row[key]) for key in RECALLS if row[key]]
        assert len(six) in (0, 6)
        if six and "differs from the mean" not in row["note"]:
            assert abs(statistics.mean(six) - float(row["mean_recall"])) < 0.011, row["method"]


def test_rows_are_of_registered_methods():
    named = {row["registered"] for row in ROWS} - {""}
    assert named <= set(methods.names())
    assert {"zero_shot", "mrs_adapter", "harma", "posapl"} <= named


def test_conditions_agree_with_the_recipe_of_the_same_method():
    """HarMA's and MRS-Adapter's rows: weights, batch and epochs are those of their released recipes."""
    compared = 0
    for recipe in (recipes.get(name, name) for name in recipes.names()):
        for row in ROWS:
            if row["registered"] == recipe.released and row["batch"]:
                layer = recipe.layer(row["dataset"].lower(), row["registered"])
                stated = (layer.backbone["weights"], str(layer.train["batch_size"]), str(layer.train["epochs"]))
                assert (row["weights"].replace("LAION-2B", "laion2b_s34b_b79k"), row["batch"], row["epochs"]) == stated
                compared += 1
    assert compared >= 2 + 3


def test_notes_group_rows_with_the_same_source_and_conditions():
    table, mrs, harma = published.notes("rsitmd (split=pir)", ["coop", "vpt", "mrs_adapter", "harma"])
    assert table == "Yuan, Zhan, Xiong 2023 (arXiv 2308.12509), Table II, as printed: coop 30.51, vpt 34.14"
    assert "mrs_adapter 44.47 (weights openai, batch 16, epochs 30, epoch chosen on validation; the released" in mrs
    assert "harma 46.53 (weights laion2b_s34b_b79k, batch 428, epochs 50, epoch chosen on test; LAION-2B" in harma
    assert published.notes("demo", ["coop"]) == published.notes("rsitmd", ["bitfit"]) == []


def test_the_page_shows_what_is_known_and_a_dash_for_the_rest(tmp_path: Path):
    built = build.build(write(tmp_path / "r", [done(spec("harma"))]), tmp_path / "out")
    rows = re.findall(r"<tr><th[^>]*>(\S+) .*?</tr>", (built.out_dir / "index.html").read_text(), re.DOTALL)
    assert {"HarMA", "POSAPL", "RRSITR"} <= set(rows)
    page = (built.out_dir / "index.html").read_text()

    def cells(method: str) -> list[str]:
        row = page[page.index(f'<th class="name" scope="row">{method} ') :].partition("</tr>")[0]
        return [re.sub("<[^>]*>", " ", cell).strip() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]

    assert cells("HarMA")[:7] == ["CLIP(ViT-B-32)", "laion2b_s34b_b79k", "5.93M", "428", "50", "test", "46.53"]
    assert cells("RRSITR")[:8] == ["–", "–", "–", "–", "–", "–", "46.10 ± 1.08", "–"]
    assert "46.53" in (built.out_dir / "table_notes.tex").read_text()
    assert "46.53" in (built.out_dir / "table.md").read_text()
