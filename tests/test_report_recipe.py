"""What the report says of the recipe: what all rows share, what a row departs in, and what validation would choose."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.launch import start
from bench.plan.grid import expand
from bench.reporting import build, summary
from bench.store import planned
from tests.test_report import done, read_csv, rows_of, spec, write

HMMC = {"name": "hmmc", "margin": 0.2}
FULL = {
    **{"epochs": 20, "batch_size": 64, "accumulate": 2, "lr": 1e-3, "optimizer": "adamw", "weight_decay": 0.01},
    **{"schedule": "cosine", "warmup": 0.1, "augment": "none", "captions": "none", "precision": "fp32"},
}


def texts(tmp_path: Path, entries: Any) -> dict[str, str]:
    """The report's texts by the ending of their file, and `terminal`."""
    built = build.build(write(tmp_path / "r", entries), tmp_path / "out")
    found = {path.suffix: path.read_text() for path in built.paths if path.stem in ("table", "index")}
    return found | {"terminal": built.text}


def line(text: str, start: str) -> str:
    """The one line that starts so."""
    [found] = [line for line in text.splitlines() if line.strip().startswith(start)]
    return found


def unwrapped(tex: str) -> str:
    """LaTeX without what lets long cells break."""
    return re.sub(r"\\raggedright\\hangindent=1em |\\hspace\{0pt\}", "", tex)


def recipe_entries() -> list[Any]:
    entries = [done(spec("zero_shot", train={"lr": 1e-4}), 20, 0)]
    entries += [done(spec(name, seed, train=FULL)) for name in ("lora", "vpt") for seed in (0, 1)]
    entries += [done(spec("harma", train=FULL | {"lr": 3e-3, "augment": "harma"}, loss=HMMC))]
    return entries


def test_the_report_states_the_recipe_once_and_each_departure(tmp_path: Path) -> None:
    found = texts(tmp_path, recipe_entries())
    for kind in (".md", ".html"):
        for part in ("epochs 20", "batch 128 (64 x 2)", "optimizer adamw", "lr 0.001", "schedule cosine"):
            assert part in found[kind].replace("\\", ""), f"{part} in {kind}"
        for part in ("augment none", "captions none", "precision fp32", "loss info_nce", "test set scored once"):
            assert part in found[kind].replace("\\_", "_"), f"{part} in {kind}"
        assert found[kind].count("batch 128") == 1
    assert "batch 128 (64 x 2)" in found[".tex"]
    assert "test set scored once" in found[".tex"]
    assert "epochs 20, batch 128 (64 x 2), lr 0.001" in found["terminal"]
    assert "loss=hmmc, lr=0.003, augment=harma" in line(found[".md"], "| harma")
    assert "loss=hmmc, lr=0.003, augment=harma" in found[".html"]
    assert "loss=hmmc, lr=0.003, augment=harma" in line(unwrapped(found[".tex"]), "HarMA")
    for name in ("zero_shot", "lora", "vpt"):
        assert "=" not in line(found[".md"], f"| {name}")


def test_the_csv_has_each_rows_recipe_in_full(tmp_path: Path) -> None:
    texts(tmp_path, recipe_entries())
    zero, lora, _, harma = read_csv(tmp_path / "out" / "table.csv")
    keys = ("epochs", "batch_size", "accumulate", "lr", "loss", "augment", "captions", "precision", "optimizer")
    assert [lora[key] for key in keys] == ["20", "64", "2", "0.001", "info_nce", "none", "none", "fp32", "adamw"]
    assert [harma[key] for key in ("lr", "loss", "loss_settings")] == ["0.003", "hmmc", '{"margin":0.2}']
    assert [zero[key] for key in ("epochs", "lr", "loss", "loss_settings")] == [""] * 4  # it does not train
    assert lora["betas"] == "[0.9,0.98]"
    assert lora["eps"] == ""  # the result does not say


def test_the_recipe_is_what_most_trained_rows_have_in_each_block(tmp_path: Path) -> None:
    other = {"dataset": {"name": "ucm"}}
    entries = [done(spec("zero_shot", train={"lr": 1e-4}), 20, 0), done(spec("coop", train={"epochs": 5}, **other))]
    entries += [done(spec(name, train={"epochs": n})) for name, n in (("a", 7), ("b", 9), ("c", 9))]
    rows = rows_of(write(tmp_path / "r", entries))
    assert dict(zip(rows["method"], rows["config"], strict=True)) == {
        **{"zero_shot": "", "coop": "", "a": "epochs=7", "b": "", "c": ""}
    }


def test_a_method_that_does_not_train_departs_in_what_its_evaluation_reads(tmp_path: Path) -> None:
    entries = [done(spec("lora", train=FULL | {"captions": "harma"})), done(spec("zero_shot", train=FULL), 20, 0)]
    assert rows_of(write(tmp_path / "r", entries))["config"].tolist() == ["", "captions=none"]


def test_a_recipe_that_no_row_shares_still_has_every_setting(tmp_path: Path) -> None:
    """A setting that a row departs in is stated, even one that the short recipe leaves out."""
    entries = [done(spec("lora")), done(spec("vpt", train={"betas": [0.9, 0.999]}))]
    table = texts(tmp_path, entries)[".md"]
    assert "betas 0.9 and 0.98" in table or "betas \\[0.9,0.98\\]" in table
    assert "betas=\\[0.9,0.999\\]" in line(table, "| vpt")


def grid(lora: dict[float, float], **others: float) -> list[Any]:
    """LoRA by learning rate: validation recall; the test recall is the opposite. Other methods have one row."""

    def scored(a_spec: dict[str, Any], val: float) -> Any:
        a_spec, result = done(a_spec, 100 - val)
        result["metrics"]["val"] = result["metrics"]["val"] | {"mean_recall": val}
        return a_spec, result

    entries = [
        scored(spec("lora", seed, train={"lr": lr}), val + step)
        for lr, val in lora.items()
        for seed, step in enumerate((-10, 10))
    ]
    return entries + [scored(spec(name), val) for name, val in others.items()]


def test_the_row_that_validation_would_choose_is_marked(tmp_path: Path) -> None:
    found = texts(tmp_path, grid({1e-3: 40, 1e-2: 45, 1e-1: 20}, vpt=50))
    rows = read_csv(tmp_path / "out" / "table.csv")
    assert [(row["method"], row["val_mean_recall"], row["chosen"]) for row in rows] == [
        *(("lora", "40.0", "false"), ("lora", "45.0", "true"), ("lora", "20.0", "false"), ("vpt", "50.0", ""))
    ]
    assert line(found[".md"], "| lora   | lr=0.01◆")
    assert "lr=0.01)$^\\diamond$" in found[".tex"]
    for kind in (".md", ".html", "terminal"):
        assert found[kind].count("◆") == (3 if kind == ".html" else 2), kind  # the row, here twice, and its meaning
        assert summary.MEANINGS[summary.CHOSEN] in found[kind]
    assert summary.MEANINGS[summary.CHOSEN] in found[".tex"]


def test_a_row_with_fewer_seeds_is_compared_and_says_so(tmp_path: Path) -> None:
    entries = grid({1e-3: 40, 1e-2: 45})
    entries[3] = (entries[3][0], None)  # of the second learning rate only seed 0 is there: 35
    entries += [(spec("lora", train={"lr": 1.0}), None)]
    rows = rows_of(write(tmp_path / "r", entries))
    assert rows["chosen"].tolist() == [True, False, None]
    assert rows["val_mean_recall"].tolist()[:2] == [40, 35]


def test_one_row_with_a_validation_recall_is_no_choice(tmp_path: Path) -> None:
    entries = [*grid({1e-3: 40}), (spec("lora", train={"lr": 1.0}), None)]
    entries += [done(spec("lora", train={"lr": 1e-3}, dataset={"name": "ucm"}))]
    found = texts(tmp_path, entries)
    assert "◆" not in "".join(found.values())


def planned_folder(folder: Path) -> Path:
    """Results whose plan says how the sweep was started, as `bench.launch` writes it."""
    write(folder, [done(spec("lora"))])
    plan = json.loads((folder / "plan.json").read_text())
    start = {"executor": "local", "reports": "/r", "plugins": ["/home/me/side <i>.py"]}
    start |= {"command": "python -m bench.sweep sweeps/r.yaml --set 'grid.seed=[0]'"}
    content = {"name": "r", "train": {"lr": 0.001}, "grid": {"seed": [0], "method": ["lora", {"<b>": {"on": "yes"}}]}}
    (folder / "plan.json").write_text(json.dumps(plan | {"start": start, "content": content}))
    return folder


def test_the_page_has_the_command_the_resolved_sweep_file_and_the_plugins(tmp_path: Path) -> None:
    built = build.build(planned_folder(tmp_path / "r"), tmp_path / "out")
    page = (built.out_dir / "index.html").read_text()
    command = "python -m bench.sweep sweeps/r.yaml --set 'grid.seed=[0]'"
    assert command in html.unescape(page)
    assert "/home/me/side <i>.py" in html.unescape(page)
    assert "<b>" not in page + page.replace("<i>", "<b>")
    [folded] = [part for part in re.findall("<details>.*?</details>", page, re.DOTALL) if "sweep file" in part]
    [text] = re.findall("<pre>(.*?)</pre>", folded, re.DOTALL)
    content = json.loads((tmp_path / "r" / "plan.json").read_text())["content"]
    assert yaml.safe_load(html.unescape(text)) == content
    assert f"`{command}`" in (built.out_dir / "table.md").read_text()


def test_plans_of_earlier_versions_have_no_resolved_sweep_file(tmp_path: Path) -> None:
    found = texts(tmp_path, [done(spec("lora"))])
    assert "all overrides" not in found[".html"]
    assert "Command: `python -m bench.sweep sweeps/r.yaml`" in found[".md"]


def test_a_command_with_markup_in_it_is_escaped_in_markdown(tmp_path: Path) -> None:
    folder = planned_folder(tmp_path / "r")
    plan = json.loads((folder / "plan.json").read_text())
    plan["start"]["command"] = "python -m bench.sweep '`<b>`.yaml'"
    (folder / "plan.json").write_text(json.dumps(plan))
    table = (build.build(folder, tmp_path / "out").out_dir / "table.md").read_text()
    assert "\\`&lt;b&gt;\\`.yaml" in table


def test_a_plan_names_each_runs_settings_that_are_not_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = expand(Path(__file__).parents[1] / "sweeps" / "demo.yaml")
    monkeypatch.setattr(start, "unfinished", lambda sweep, folder: {})
    start.start(sweep, folder=tmp_path / "demo", reports=tmp_path / "out", executor="local")
    plan = planned.read(tmp_path / "demo")
    assert plan is not None
    own = {plan.runs[run_id]["method"]["name"]: keys for run_id, keys in plan.own.items()}
    assert own["vpt"] == ["method.n_ctx"]
    assert own["zero_shot"] == []
    assert set(own["mrs_adapter"]) == {"method.bottleneck", "method.shared_dim"}


def test_settings_that_are_not_defaults_are_shown_even_where_all_rows_agree(tmp_path: Path) -> None:
    entries = [done(spec("lora", seed, rank=8, alpha=16)) for seed in (0, 1)]
    entries += [done(spec("vpt", n_ctx=4, shape={"a": 1, "b": 2})), done(spec("coop", loss=HMMC | {"k": 3}))]
    folder = write(tmp_path / "r", entries)
    assert rows_of(folder)["config"].tolist() == ["", "", "loss=hmmc"]  # a plan of an earlier version
    plan = json.loads((folder / "plan.json").read_text())
    own = [["method.rank"], ["method.rank"], ["method.shape"], ["loss.margin"]]
    for run, keys in zip(plan["runs"], own, strict=True):
        run["own"] = keys
    (folder / "plan.json").write_text(json.dumps(plan))
    assert rows_of(folder)["config"].tolist() == ["rank=8", "a=1, b=2", "loss=hmmc, margin=0.2"]


def test_a_training_setting_that_is_not_the_default_is_stated_even_where_all_rows_share_it(tmp_path: Path) -> None:
    entries = [done(spec(name, train={"captions_per_epoch": "one", "eps": 1e-8})) for name in ("lora", "vpt")]
    table = texts(tmp_path, entries)[".md"]
    assert "captions_per_epoch one" in table
    assert ", eps " not in table
    assert "betas" not in table


def test_settings_of_another_commands_runs_are_shown_too(tmp_path: Path) -> None:
    """A second command, whose plan is smaller, takes nothing from the first one's rows."""
    folder = write(tmp_path / "r", [done(spec("lora", rank=8)), done(spec("vpt", n_ctx=8))])
    lora, vpt = json.loads((folder / "plan.json").read_text())["runs"]
    own = {lora["run_id"]: ["method.rank"], vpt["run_id"]: ["method.n_ctx"]}
    both = {run["run_id"]: run["spec"] for run in (lora, vpt)}
    planned.write(folder, planned.Plan("r", both, own=own))
    planned.write(folder, planned.Plan("r", {vpt["run_id"]: vpt["spec"]}, own={vpt["run_id"]: ["method.n_ctx"]}))
    rows = rows_of(folder)
    assert dict(zip(rows["method"], rows["config"], strict=True)) == {"vpt": "n_ctx=8", "lora": "rank=8"}


def with_recipes(folder: Path, said: dict[str, tuple[str, list[str]]]) -> Path:
    """Results of these methods; the plan says each one's recipe and the keys in which it departs from that."""
    write(folder, [done(spec(name)) for name in said])
    plan = json.loads((folder / "plan.json").read_text())
    for run in plan["runs"]:
        recipe, keys = said[run["spec"]["method"]["name"]]
        run |= {"recipe": recipe, "departs": keys} if recipe else {}
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def test_the_table_names_each_rows_recipe_and_marks_who_departs_from_it(tmp_path: Path) -> None:
    keys = ["train.lr", "loss.name"]
    said = {"lora": ("common", []), "vpt": ("common", keys), "coop": ("common", keys), "bitfit": ("", [])}
    built = build.build(with_recipes(tmp_path / "r", said), tmp_path / "out")
    found = {path.suffix: path.read_text() for path in built.paths if path.stem in ("table", "index")}
    found[".tex"] += (tmp_path / "out" / "table_notes.tex").read_text()
    assert re.search(r"\| Method +\| Recipe ", found[".md"])
    assert re.search(r"\| lora +\| common +\|", found[".md"])
    assert re.search(r"\| vpt +\| common§ +\|", found[".md"])
    assert re.search(r"\| bitfit +\| +\|", found[".md"])
    assert '<td class="name recipe">common§</td>' in found[".html"]
    assert "VPT & common$^\\S$ &" in found[".tex"]
    assert "common§" in built.text
    for kind in (".md", ".html", ".tex"):
        assert "common, vpt, coop: train.lr, loss.name" in found[kind].replace("VPT, CoOp", "vpt, coop"), kind
        assert summary.MEANINGS[summary.DEPARTS] in html.unescape(found[kind]), kind
    rows = {row["method"]: (row["recipe"], row["recipe_departs"]) for row in read_csv(tmp_path / "out" / "table.csv")}
    assert rows == {method: (recipe, " ".join(keys)) for method, (recipe, keys) in said.items()}


def test_a_recipe_that_all_rows_follow_is_stated_once(tmp_path: Path) -> None:
    folder = with_recipes(tmp_path / "r", {"lora": ("common", []), "vpt": ("common", [])})
    table = (build.build(folder, tmp_path / "out").out_dir / "table.md").read_text()
    assert "- Recipe: common\n" in table
    assert table.count("common") == 1
    assert "§" not in table
