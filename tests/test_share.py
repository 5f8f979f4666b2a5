"""Results one can use: the tidy table, the adapted model, images for a caption, and results of several people."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import bench
from bench.compute import retrieval, sheet
from bench.compute.execute import execute
from bench.config.errors import UserError
from bench.reporting.summary import summarise
from bench.store import planned, record, testset, tidy
from bench.store.frame import collect
from tests.test_report import done, failed, spec, write
from tests.test_run import make_run

DOCS = Path(__file__).parents[1] / "docs" / "sharing.md"


# --- the table --------------------------------------------------------------------------------------------------------


def test_one_row_a_run_with_its_settings(tmp_path):
    write(tmp_path / "a", [done(spec("lora", seed, rank=4), 40 + seed, git_dirty=True) for seed in (0, 1)])
    write(tmp_path / "b", [done(spec("vpt", 0, n_ctx=8)), failed(spec("harma", 0), "no")])
    found = bench.results(tmp_path / "*")
    assert list(found["method"]) == ["lora", "lora", "vpt"]
    assert list(found["mean_recall"]) == [40, 41, 40]
    assert list(found["method.rank"].dropna()) == [4, 4]
    assert found.loc[2, "method.n_ctx"] == 8
    assert list(found["git_dirty"]) == [True, True, False]
    assert list(found.columns[: len(tidy.COLUMNS)]) == list(tidy.COLUMNS)
    assert found.loc[0, "folder"] == str(tmp_path / "a" / found.loc[0, "run_id"])
    every = bench.results([tmp_path / "a", str(tmp_path / "b")], unfinished=True)
    assert list(every["status"]) == ["finished", "finished", "finished", "failed"]
    assert every.loc[3, "note"].endswith("no")
    assert every["mean_recall"].isna().sum() == 1


def test_where_nothing_matches_is_one_message(tmp_path):
    write(tmp_path / "a", [done(spec("lora", 0))])
    run = next(path for path in (tmp_path / "a").iterdir() if path.is_dir())
    for given, words in ((tmp_path / "none", "no results folder"), (run, "give the folder above it")):
        with pytest.raises(UserError, match=words):
            bench.results(given)


def test_every_column_is_documented():
    text = DOCS.read_text(encoding="utf-8")
    for name, (kind, meaning) in tidy.COLUMNS.items():
        assert f"| `{name}` | {kind} | {meaning} |" in text


def test_importing_bench_loads_neither_torch_nor_pandas():
    code = "import bench, sys; print({'torch', 'pandas', 'PIL'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- several people ---------------------------------------------------------------------------------------------------


def test_results_of_several_people_merge_by_copying(tmp_path):
    """A has seeds 0 and 1, B seeds 1 and 2, with B's own plan and test sets: copied into one, all three seeds count."""
    for person, seeds in (("a", (0, 1)), ("b", (1, 2))):
        entries = [done(spec("lora", seed), 40.0 + seed, finished=f"2026-01-0{seed + 1}") for seed in seeds]
        folder = write(tmp_path / person, entries)
        named = {}
        for path, (a_spec, _) in zip(sorted(folder.glob("*-s*")), entries, strict=True):
            run_id = f"lora-s{a_spec['seed']}-deadbeef"  # the same settings have the same id everywhere
            result = json.loads((path / "result.json").read_text()) | {"run_id": run_id}
            (path / "result.json").write_text(json.dumps(result))
            path.rename(folder / run_id)
            named[run_id] = a_spec
        planned.write(folder, planned.Plan("s", named))
        testset.write(folder, "rsitmd", person * 64, ["x.tif"], [None], [["a river"]])
    merged = shutil.copytree(tmp_path / "a", tmp_path / "merged")
    shutil.copytree(tmp_path / "b", merged, dirs_exist_ok=True)
    rows = summarise(collect(merged))
    assert list(rows["seeds"]) == [3]
    assert rows.loc[0, "mean_recall"] == 41
    assert len(bench.results(merged)) == 3
    assert len(bench.results([tmp_path / "a", tmp_path / "b"])) == 4  # a run of both is there twice, with its folder
    assert [testset.read(merged, person * 64) is not None for person in "ab"] == [True, True]


# --- the model and the pictures ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Path:
    run_dir = make_run(root, tmp_path_factory.mktemp("run") / "lora", {"name": "lora", "rank": 2}, epochs=1)
    assert execute(run_dir).error is None
    return run_dir


def test_a_loaded_model_encodes_as_its_run_was_scored(run, root):
    adapted = bench.load(run, "cpu")
    items = json.loads((root / "dataset.json").read_text())["images"][32:]
    images = adapted.encode_images([root / item["filename"] for item in items], batch_size=3)
    texts = adapted.encode_texts([sentence["raw"] for item in items for sentence in item["sentences"]])
    cosines = adapted.similarity(images, texts)
    assert cosines.shape == (8, 16)
    i2t = [sorted(row.tolist(), reverse=True) for row in cosines]
    found = np.mean([max(row[2 * i : 2 * i + 2]) in i2t[i][:5] for i, row in enumerate(cosines.tolist())]) * 100
    assert found == pytest.approx(record.read(run).metrics.test.i2t_r5)
    with Image.open(root / "33.png") as picture:
        assert torch.equal(adapted.encode_images([picture])[0], adapted.encode_images([root / "33.png"])[0])
    assert torch.allclose(images.norm(dim=1), torch.ones(8))
    for wrong in (root / "none.png", root / "dataset.json"):
        with pytest.raises(UserError, match="can't be read as a picture"):
            adapted.encode_images([wrong])


@pytest.fixture
def album(root, tmp_path) -> Path:
    """Six pictures at several depths, and what must not be opened."""
    folder = tmp_path / "album"
    (folder / "sub" / "机场").mkdir(parents=True)
    names = ["0.png", "sub/1.PNG", "sub/机场/飞机 <b>&_%$.png", f"sub/{50 * 'long'}.png", "x.png", "y.png"]
    for number, name in enumerate(names):
        shutil.copyfile(root / f"{number}.png", folder / name)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "drawn.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (folder / "notes.txt").write_text("no picture by its name")
    outside = tmp_path / "secret.png"
    shutil.copyfile(root / "7.png", outside)
    (folder / "link.png").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "twin.png").symlink_to(folder / "x.png")
    return folder


def test_the_best_images_are_those_of_the_highest_similarity(run, album):
    adapted, seen = bench.load(run, "cpu"), []
    found = bench.retrieve(adapted, "red land", album, top=3, progress=lambda *each: seen.append(each))
    paths = sorted(path for path in album.rglob("*") if path.suffix.lower() == ".png" and path.is_file())
    paths = [path for path in paths if path.name not in ("broken.png", "link.png")]
    scores = adapted.similarity(adapted.encode_images(paths), adapted.encode_texts("red land"))[:, 0]
    best = sorted(zip(paths, scores.tolist(), strict=True), key=lambda each: (-each[1], str(each[0])))[:3]
    assert [path for path, _ in found] == [path for path, _ in best]
    assert [score for _, score in found] == pytest.approx([score for _, score in best], abs=1e-6)
    assert (found.searched, len(found)) == (7, 3)
    assert seen[-1][0] == seen[-1][1]
    twins = [score for path, score in bench.retrieve(adapted, "red land", album) if path.name in ("x.png", "twin.png")]
    assert twins[0] == pytest.approx(twins[1], abs=1e-6)


def test_what_is_not_opened_is_said(run, album):
    skipped = {path.name: reason for path, reason in bench.retrieve(run, "red", album).skipped}
    assert skipped.keys() == {"broken.png", "drawn.jpg", "link.png", "linked"}
    assert "not followed" in skipped["link.png"]
    assert "not followed" in skipped["linked"]
    assert "EPS" in skipped["drawn.jpg"]


def test_mistakes_are_one_message(run, album, tmp_path):
    (tmp_path / "empty").mkdir()
    for parts, words in [
        (("red", tmp_path / "none"), "no folder"),
        (("red", tmp_path / "empty"), "no pictures under"),
        (("  ", album), "caption is empty"),
        (("red", album, 0), "at least one"),
    ]:
        with pytest.raises(UserError, match=words):
            bench.retrieve(run, *parts)
    for path in album.rglob("*.[pP]*"):
        path.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"none of the .* can be compared"):
        bench.retrieve(run, "red", album)


def test_the_command_prints_and_draws(run, album, tmp_path, capsys):
    command, out = import_module("bench.retrieve"), tmp_path / "sheet.png"
    caption = f"两架飞机 <b>&_%$ \x00\x1b[31m {'very long ' * 60}"
    assert command.main([str(run), caption, str(album), "--top", "5", "--out", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "机场/飞机 <b>&_%$.png" in printed
    assert "skipped 4:" in printed
    assert "\x1b" not in printed
    with Image.open(out) as drawn:
        assert drawn.width == 4 * (sheet.TILE + sheet.MARGIN) + sheet.MARGIN
        assert drawn.height < 1000
    assert command.main([str(run), "red", str(album), "--out", str(tmp_path / "sheet.exe")]) == 2
    assert "ends with .png" in capsys.readouterr().err


def test_the_function_is_still_there_when_the_command_is_imported(run, album):
    import_module("bench.retrieve")
    assert callable(bench.retrieve)
    assert isinstance(bench.retrieve(run, "red", str(album), top=1), retrieval.Retrieval)


@pytest.mark.parametrize("text", ["two planes " * 40, "飞机" * 200, "w" * 500, "", "a\nb\tc\ud800"])
def test_texts_fit_their_width(text):
    lines = sheet.wrapped(text, 20, 300, 3)
    assert len(lines) <= 3
    assert all(sheet._length(line, 20) <= 300 for line in [*lines, sheet.shortened(text, 20, 300)])
    draw = ImageDraw.Draw(Image.new("RGB", (400, 100)))
    for line in lines:
        sheet._write(draw, (0, 0), line, 20, "white")
    if len(text) > 100:
        assert lines[-1].endswith("…")
