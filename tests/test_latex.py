"""The LaTeX tables, set by pdflatex in an article of two columns: nothing is too wide, whatever the names are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from itertools import permutations
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

import methods
from bench.reporting import figures, latex, options, summary, tables
from bench.reporting.build import build
from bench.reporting.further import Section
from bench.store.frame import RECALLS, Runs, collect, collect_all
from bench.store.naming import canonical, distinguish
from methods.base import Target
from tests.test_report import NASTY, done, spec, twelve, write

HOSTILE = (
    NASTY,
    "方法_适配器<script>",
    "🚀 é ø ß Ł Ω α ẹ̈",
    "x" * 150,
    "a_name_" * 20,
    "%",
    "\\end{table}",
    "$x$ #1 ^^M",
)


@pytest.fixture(scope="module")
def pdflatex() -> str:
    found = shutil.which("pdflatex")
    if found is None:
        assert not os.environ.get("PETL_BENCH_REQUIRE_LATEX"), "pdflatex is required here, and absent"
        pytest.skip("there is no pdflatex (Debian: texlive-latex-recommended)")
    return found


def compiled(pdflatex: str, folder: Path, *names: str) -> str:
    """The log of an article with these files, or of the one document named x.tex; no error, nothing too wide."""
    inputs = "\n".join(f"Text before.\n\n\\input{{{name}}}\nText behind.\n" for name in names)
    head = "\\documentclass[twocolumn]{article}\\usepackage{booktabs}\\begin{document}\n"
    if names != ("supplement",):
        (folder / "paper.tex").write_text(f"{head}{inputs}\\end{{document}}\n")
    document = "supplement" if names == ("supplement",) else "paper"
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", f"{document}.tex"]
    done_ = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    log = (folder / f"{document}.log").read_text(errors="replace")
    assert done_.returncode == 0, log[-3000:]
    assert "Overfull" not in log, "\n".join(line for line in log.splitlines() if "Overfull" in line)
    assert "Float too large" not in log
    return log


def written(runs: Runs, folder: Path) -> str:
    """table.tex and table_notes.tex in the folder; the text of the first."""
    folder.mkdir(exist_ok=True)
    parts = tables.blocks(runs, summary.summarise(runs))
    text = latex.tables(runs, parts)
    (folder / "table.tex").write_text(text, encoding="ascii")
    (folder / "table_notes.tex").write_text(latex.notes(runs, parts), encoding="ascii")
    return text


def asked(folder: Path, **report: object) -> Runs:
    runs = collect(folder)
    return Runs(**{**vars(runs), "content": {"report": report}})


def body(text: str) -> list[list[str]]:
    """The cells of the rows between the rules, without what is around them."""
    rows = text.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", row.removesuffix("\\\\"))] for row in rows]


def test_tables_of_one_sweep_several_and_few_columns_are_set(tmp_path: Path, pdflatex: str) -> None:
    folder = write(tmp_path / "a", twelve())
    other = write(tmp_path / "b", [done(spec("lora", s, dataset={"name": "ucm"}, rank=4), 50 + s) for s in (0, 1)])
    both = written(collect_all([folder, other]), tmp_path / "both")
    assert both.count("\\begin{table*}") == both.count("\\begin{tabular}") == 1
    assert "\\textit{RSITMD, ViT-B-32-quickgelu" in both.replace("\\hspace{0pt}", "")
    compiled(pdflatex, tmp_path / "both", "table", "table_notes")
    few = written(asked(folder, columns=["params", "mean_recall"], precision=1), tmp_path / "few")
    assert "\\begin{table}" in few
    assert "table*" not in few
    assert body(few)[1][1] == "151.28"
    compiled(pdflatex, tmp_path / "few", "table")
    apart = written(
        Runs(**{**vars(collect_all([folder, other])), "content": {"report": {"group": "separate"}}}), tmp_path / "two"
    )
    assert apart.count("\\begin{tabular}") == 2
    compiled(pdflatex, tmp_path / "two", "table")


def test_hostile_names_are_set_and_legible(tmp_path: Path, pdflatex: str) -> None:
    entries = [done(spec(name, note=name), 40 + i) for i, name in enumerate(HOSTILE)]
    entries += [done(spec("lora", note=name), 30 + i) for i, name in enumerate(HOSTILE)]
    folder = write(tmp_path / "r %$_é方", entries)
    text = written(asked(folder, caption=f"{NASTY} 方 \\input{{x}}"), tmp_path / "out")
    assert "\\input{x}" not in text
    assert "\\petlchar{65B9}" in text
    assert "\\'{e} \\o{} \\ss{} \\L{}" in text
    compiled(pdflatex, tmp_path / "out", "table", "table_notes")


def test_a_bracket_behind_a_rows_end_is_no_length(tmp_path: Path, pdflatex: str) -> None:
    folder = write(tmp_path / "r", [done(spec("lora"), 40.0), done(spec("[x]"), 41.0)])
    text = written(asked(folder, columns=["params", "mean_recall"]), tmp_path / "out")
    assert "raggedright\\hangindent" not in text  # which would stand in between
    compiled(pdflatex, tmp_path / "out", "table")


def test_hostile_backbones_head_their_rows(tmp_path: Path, pdflatex: str) -> None:
    entries = [
        done(spec("lora", backbone={"model": name}), 40.0 + i) for i, name in enumerate(("a_&%$#{x}~^", "方 \\x"))
    ]
    text = written(collect(write(tmp_path / "r", entries)), tmp_path / "out")
    assert "\\textit{RSITMD, a\\_\\&\\%\\$\\#" in text.replace("\\hspace{0pt}", "")
    compiled(pdflatex, tmp_path / "out", "table", "table_notes")


def test_the_whole_supplement_is_set(tmp_path: Path, pdflatex: str) -> None:
    folders = [
        write(tmp_path / name, [done(spec("lora", dataset={"name": name}, rank=r)) for r in (2, 4)])
        for name in ("ucm", "rsicd")
    ]
    out = build(folders, tmp_path / "out").out_dir
    log = compiled(pdflatex, out, "supplement")
    assert "recall_vs_params.pdf" in log


def test_each_column_has_one_format(tmp_path: Path) -> None:
    entries = [*twelve(), done(spec("bitfit", note="a"), 7.0, 3), done(spec("bitfit", note="b"), 8.126, 99_999)]
    rows = body(written(collect(write(tmp_path / "r", entries)), tmp_path / "out"))
    for column in (1, 3, 5, 7, 9, 11, 13, 15):
        numbers = [re.sub(r"\\petl\w+\{(.*)\}", r"\1", row[column]) for row in rows]
        formats = {re.sub(r"\d+(?=\.)|\d", lambda found: "0" if len(found[0]) == 1 else "00", each) for each in numbers}
        assert len({len(each.partition(".")[2]) for each in numbers}) == 1, numbers
        assert all(re.fullmatch(r"[\d.]+", each) for each in numbers), formats


def leaders(tmp_path: Path, means: list[float]) -> tuple[list[str], list[str]]:
    entries = [done(spec(f"m{i}"), mean) for i, mean in enumerate(means)]
    rows = body(written(collect(write(tmp_path / "r", entries)), tmp_path / "out"))
    return tuple([row[0] for row in rows if command in row[-1]] for command in ("petlbest", "petlsecond"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("means", "best", "second"),
    [
        ([0.0, 0.0, 0.0], [], []),
        ([40.0, 40.001, 40.0], [], []),
        ([41.0], [], []),
        ([41.0, 42.0], ["M1"], []),
        ([41.0, 42.0, 40.0], ["M1"], ["M0"]),
        ([42.0, 42.0, 41.0, 40.0, 41.0], ["M0", "M1"], ["M2", "M4"]),
    ],
)
def test_the_best_is_bold_and_the_second_underlined(
    tmp_path: Path, means: list[float], best: list[str], second: list[str]
) -> None:
    assert leaders(tmp_path, means) == (best, second)


def test_a_failed_comparison_has_nothing_bold(tmp_path: Path) -> None:
    built = build(write(tmp_path / "r", [done(spec(name), 0.0) for name in ("lora", "vpt", "coop")]), tmp_path / "out")
    assert "\\petlbest{" not in (built.out_dir / "table.tex").read_text()
    assert "**0.00**" not in (built.out_dir / "table.md").read_text()


def test_long_tables_show_the_rows_that_validation_chose(tmp_path: Path) -> None:
    entries = [done(spec("lora", rank=rank), 30 + rank / 10) for rank in range(60)] + [done(spec("vpt"), 35)]
    folder = write(tmp_path / "r", entries)
    text = written(collect(folder), tmp_path / "out")
    assert [row[0].partition("$")[0] for row in body(text)] == ["LoRA (r=59)", "VPT"]
    assert "61 rows, of which 2 are shown" in text
    assert len(body(written(asked(folder, rows="all"), tmp_path / "out"))) == 55


def test_columns_order_precision_and_caption_are_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", twelve())
    runs = asked(
        folder, columns=["mean_recall", "params", "flops_per_pair"], order="mean_recall", precision=1, caption="A & B"
    )
    text = written(runs, tmp_path / "out")
    assert "\\caption{A \\& B}" in text
    rows = body(text)
    assert rows[0][0] == "HarMA"
    assert rows[0][1] == "\\petlbest{47.2}"
    assert rows[-1][0] == "Zero-shot CLIP"
    assert {row[4] for row in rows} == {"--"}
    table = tables.markdown(runs, tables.blocks(runs, summary.summarise(runs)))
    assert re.search(r"\| Method +\| Config +\| +mR \| +Params \| FLOPs a pair \|", table)
    assert "**47.2** ± 0.7" in table


def test_rows_are_ordered_by_parameters_and_blocks_by_backbone(tmp_path: Path) -> None:
    rn50 = {"model": "RN50"}
    entries = [
        done(spec("lora"), 40, 3000),
        done(spec("vpt"), 41, 1000),
        done(spec("lora", backbone=rn50), 30, 9),
        done(spec("lora", dataset={"name": "ucm"}), 60, 3000),
        done(spec("lora", dataset={"name": "ucm"}, backbone=rn50), 50, 9),
    ]
    folder = write(tmp_path / "r", entries)

    def shown(**report: object) -> list[tuple[str, str]]:
        runs = asked(folder, **report)
        parts = tables.blocks(runs, summary.summarise(runs))
        return [(block.dataset, block.backbone.partition("/")[0]) for block in parts]

    vit = "ViT-B-32-quickgelu"
    assert shown() == [("rsitmd", vit), ("rsitmd", "RN50"), ("ucm", vit), ("ucm", "RN50")]
    assert shown(group="backbone") == [("rsitmd", "RN50"), ("ucm", "RN50"), ("rsitmd", vit), ("ucm", vit)]
    runs = asked(folder, order="params")
    [first, *_] = tables.blocks(runs, summary.summarise(runs))
    assert [line.title for line in first.lines] == ["VPT", "LoRA"]
    assert "LoRA" in (text := written(runs, tmp_path / "out"))
    assert text.index("VPT") < text.index("LoRA")


def test_rows_that_validation_passed_over_are_left_out_if_asked(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", [done(spec("lora", rank=rank), 40 + rank) for rank in (2, 4)] + [done(spec("vpt"))])
    every, chosen = (body(written(asked(folder, **report), tmp_path / "o")) for report in ({}, {"rows": "chosen"}))
    assert [row[0].partition("$")[0] for row in every] == ["LoRA (r=2)", "LoRA (r=4)", "VPT"]
    assert [row[0].partition("$")[0] for row in chosen] == ["LoRA (r=4)", "VPT"]


def test_every_method_has_a_title_of_its_own() -> None:
    titles = [methods.get(name).called() for name in methods.names()]
    assert len(set(titles)) == len(titles)
    assert {"MRS-Adapter", "LoRA", "CLIP-Adapter", "HarMA", "Full fine-tuning"} <= set(titles)
    assert all(methods.get(name).title for name in methods.METHODS.built_in)
    assert options.title("my_own_method", {}) == "My Own Method"
    assert options.title("my_own_method", {"my_own_method": "MoM"}) == "MoM"
    assert options.named("LoRA", "rank=8, lr=0.1") == "LoRA (r=8, lr=0.1)"


LAYERS = get_args(Target)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (LAYERS, "all linear"),
        (LAYERS[:4], "attention"),
        (LAYERS[4:], "MLP"),
        (("attn.q", "attn.v"), "q+v"),
        (("attn.v", "attn.q"), "v+q"),
        (("attn.q", "mlp.c_fc"), "q+fc"),
        (LAYERS[::-1], "proj+fc+out+v+k+q"),
        (("attn.q", "my.layer"), 'targets=["attn.q","my.layer"]'),
    ],
)
def test_targeted_layers_are_named_as_in_papers(targets: tuple[str, ...], words: str) -> None:
    """In tables, figures and on the page; table.csv keeps the setting."""
    [text, _] = distinguish([{"method.rank": 8, "method.targets": each} for each in (targets, ("attn.k",))])
    assert options.named("LoRA", text) == f"LoRA ({words})"
    assert options.short(f"rank=8, {text}, lr=0.1") == f"rank=8, {words}, lr=0.1"


def test_different_targets_have_different_words() -> None:
    orders = [order for count in range(1, 7) for order in permutations(LAYERS, count)]
    assert len({options.short(f"targets={canonical(order)}") for order in orders}) == len(orders)


def test_long_lists_of_layers_are_in_no_table_or_figure(tmp_path: Path) -> None:
    entries = [
        done(spec("lora", rank=rank, targets=targets), 40 + rank + len(targets), 1000 * rank * len(targets))
        for targets in (LAYERS, LAYERS[:4])
        for rank in (2, 8)
    ]
    out = build(write(tmp_path / "r", entries), tmp_path / "out").out_dir
    assert 'targets=[""attn.q"",""attn.k""' in (out / "table.csv").read_text()
    assert "| rank=8, all linear" in (out / "table.md").read_text()
    table = (out / "table.tex").read_text().replace("\\hspace{0pt}", "")
    assert "LoRA (r=8, all linear)" in table
    assert "LoRA (r=2, attention)" in table
    assert '"rank=8, all linear"' in (out / "index.html").read_text().replace(chr(9670), "")
    parts = tables.blocks(runs := collect(tmp_path / "r"), summary.summarise(runs))
    texts = [text.get_text() for text in figures.recall_vs_params(parts).axes[0].texts]
    assert sorted(texts) == ["LoRA all linear r=8", "LoRA attention r=8", "r=2", "r=2"]
    for file in ("table.md", "table.tex", "table_notes.tex"):
        assert "attn." not in (out / file).read_text(), file


def test_published_names_are_the_methods_titles() -> None:
    """A row of published.csv is called as the paper calls it, and the method as well."""
    from bench.reporting import published

    for row in (row for name in ("rsitmd", "rsicd", "ucm") for row in published.of_dataset(name) if row["registered"]):
        assert options.title(row["registered"], {}) == row["method"]


def test_recalls_are_what_the_columns_say(tmp_path: Path) -> None:
    scores = dict(zip(RECALLS, (11.0, 22.0, 33.0, 44.0, 55.0, 66.0, 38.5), strict=True))
    a_spec, result = done(spec("lora"))
    result["metrics"]["test"] |= scores
    [row] = body(written(collect(write(tmp_path / "r", [(a_spec, result)])), tmp_path / "out"))
    assert [float(cell) for cell in row[3:]] == list(scores.values())


def test_a_minus_and_a_square_are_set_by_every_engine() -> None:
    assert latex.escape("−0.3, exp(−2d²)") == "$-$0.3, exp($-$2d$^2$)"


def test_a_further_table_with_many_columns_breaks_its_headings(tmp_path: Path, pdflatex: str) -> None:
    names = ["Full fine-tuning", "CLIP-Adapter", "Cross-Modal Adapter", "Linear probe", "Zero-shot CLIP", "AdaptFormer"]
    shown = pd.DataFrame({"class": ["storage tanks"]} | {f"{name} {i}": ["50.1"] for i in (1, 2) for name in names})
    text = latex.section(Section("classes", "Recall by class", "A note.", shown, shown))
    assert r"\shortstack[r]{Full \\ fine- \\ tuning \\ 1}" in text
    (tmp_path / "classes.tex").write_text(text)
    compiled(pdflatex, tmp_path, "classes")
    few = shown.iloc[:, :3]
    assert r"\shortstack" not in latex.section(Section("classes", "Recall by class", "A note.", few, few))
