"""Where pictures are found, what is said of those that are not, and that a root is read once."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from bench.config.errors import UserError
from bench.data import __main__ as cli
from bench.data import images, locate
from bench.data.images import locate_all
from bench.data.pixels import prepare
from tests.standins import render, render_all

SHARED = Path(__file__).resolve().parents[2] / "shared" / "annotations"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def check(capsys, *arguments: str) -> tuple[int, str]:
    code = cli.main(["check", *arguments])
    return code, capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("port_1.tif", "port_1.jpg"),
        ("port_1.tif", "port_1.JPG"),
        ("port_1.jpg", "images/port_1.PNG"),
        ("train/port_1.tif", "port_1.jpg"),
        ("train/port_1.tif", "port/port_1.jpg"),
        ("port_1.tif", "RSITMD_images/port_1.tif"),
        ("RSICD_images/port_1.jpg", "rsicd_images/port_1.jpg"),
        ("port_1.tif", "RSITMD_images/port/port_1.jpeg"),
        ("port_1.tif", "UCMerced_LandUse/Images/port/port_1.tif"),
        ("port/port_1.tif", "data/port/port_1.tif"),
        ("port_1.tif", "training/port/port_1.tif"),
        ("v1.5_port", "v1.5_port.png"),
    ],
)
def test_an_image_is_found(tmp_path, name, file):
    touch(tmp_path, file, "beach/beach_1.tif")
    assert locate(tmp_path, name, "train") == tmp_path / file


@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("port_1.tif", "test", "train/port/port_1.jpg"),
        ("port_1.tif", "test", "validation/port/port_1.tif"),
        ("test/port_1.tif", "test", "images/train/port/port_1.tif"),
        ("port_1.tif", "train", "port/test/port_1.tif"),
        ("port_1.tif", None, "images/train/port/port_1.tif"),
        ("port/1.tif", "test", "beach/1.tif"),
        ("port_1.tif", "train", "port_1.json"),
        ("port_1.tif", "train", ".trash/port_1.tif"),
    ],
)
def test_another_picture_is_never_served(tmp_path, name, split, file):
    touch(tmp_path, file)
    assert locate(tmp_path, name, split) is None


def test_the_name_itself_comes_before_another_extension(tmp_path):
    touch(tmp_path, "images/x.tif", "x.jpg")
    assert locate(tmp_path, "x.tif", "train") == tmp_path / "images/x.tif"
    (tmp_path / "images/x.tif").unlink()
    assert locate(tmp_path, "x.tif", "train") == tmp_path / "x.jpg"
    touch(tmp_path, "a/test/x.tif", "a/train/y.tif", "a/val/y.tif")
    assert locate(tmp_path, "y.tif", "val") == tmp_path / "a/val/y.tif"
    assert locate(tmp_path, "y.tif", "train") == tmp_path / "a/train/y.tif"


def test_a_name_that_two_files_fit_is_refused(tmp_path, capsys):
    render_all(tmp_path, ["port/1.jpg", "beach/1.jpg", "a.jpg", "b.jpg"])
    with pytest.raises(UserError, match=r"1\.jpg: ambiguous: beach/1\.jpg and port/1\.jpg; write its folder"):
        locate(tmp_path, "1.jpg", "train")
    assert locate(tmp_path, "port/1.jpg", "train") == tmp_path / "port/1.jpg"
    touch(tmp_path, "x.png", "x.JPG")
    with pytest.raises(UserError, match=r"x\.tif: ambiguous: x\.JPG and x\.png"):
        locate(tmp_path, "x.tif", "train")
    (tmp_path / "more").symlink_to(tmp_path / "port")
    (tmp_path / "beach/1.jpg").unlink()
    assert locate(tmp_path, "1.jpg", "train") == tmp_path / "more/1.jpg"  # the same file by two paths
    (tmp_path / "more").unlink()
    render_all(tmp_path, ["beach/1.jpg"])
    entries = [{"filename": n, "split": s, "sentences": [{"raw": "x"}]}
               for n, s in (("1.jpg", "train"), ("a.jpg", "val"), ("b.jpg", "test"))]  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps({"images": entries}))
    code, out = check(capsys, "ucm", "--root", str(tmp_path), "--split", "karpathy")
    assert code == 1
    assert "missing images: 1\n  1.jpg: ambiguous: beach/1.jpg and port/1.jpg; " in out
    with pytest.raises(UserError, match=r"1 of 1 images missing .*\n  1\.jpg: ambiguous"):
        prepare(tmp_path, ["1.jpg"], 16, "crop", split="train")


def test_links_lead_where_their_owner_wants_and_names_do_not(tmp_path):
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    touch(scratch, "port/x.jpg", "y.tif")
    root.mkdir()
    (root / "images").symlink_to(scratch)
    (root / "z.tif").symlink_to(scratch / "y.tif")
    (scratch / "port" / "circle").symlink_to(scratch)
    (root / "dead").symlink_to(tmp_path / "nowhere")
    assert locate(root, "x.tif", "train") == root / "images/port/x.jpg"
    assert locate(root, "y.tif", "train") == root / "images/y.tif"
    assert locate(root, "z.tif", "train") == root / "z.tif"
    for name in ("../scratch/y.tif", str(scratch / "y.tif"), "images/../../scratch/y.tif"):
        with pytest.raises(UserError, match="leaves the dataset's root"):
            locate(root, name, "train")


def test_a_root_is_read_once_until_a_folder_changes(tmp_path, monkeypatch):
    touch(tmp_path, *(f"c{i % 3}/{i}.jpg" for i in range(30)))
    past = time.time() - 60
    for folder in (tmp_path, *tmp_path.iterdir()):
        os.utime(folder, (past, past))
    calls = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: calls.append(path) or scandir(path))
    found, missing = locate_all(tmp_path, ((f"{i}.tif", "train") for i in range(30)))
    assert (len(found), missing, len(calls)) == (30, {}, 4)
    locate_all(tmp_path, ((f"{i}.tif", "train") for i in range(30)))
    assert len(calls) == 4
    touch(tmp_path, "c1/new.jpg")
    assert locate(tmp_path, "new.tif", "train") == tmp_path / "c1/new.jpg"
    now = (tmp_path / "c1").stat().st_mtime_ns
    touch(tmp_path, "c1/newer.jpg")
    os.utime(tmp_path / "c1", ns=(now, now))  # as within one tick of the file system's clock
    assert locate(tmp_path, "newer.tif", "train") == tmp_path / "c1/newer.jpg"


def test_a_root_with_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_MOST_FILES", 5)
    touch(tmp_path, *(f"{i}.jpg" for i in range(6)))
    with pytest.raises(UserError, match=r"over 5 files under .*set dataset\.root to the folder that holds the images"):
        locate(tmp_path, "1.jpg", "train")


def test_what_is_missing_says_where_it_looked_and_what_is_near(tmp_path):
    render_all(tmp_path, ["port/port_01.jpg", "images/beach_1.jpg"])
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, ["port_1.tif", *(f"zz{i}.tif" for i in range(12))], 16, "crop", split="train")
    message = str(caught.value)
    assert "13 of 13 images missing" in message
    assert "\n  port_1.tif (nearest: port/port_01.jpg)\n  zz0.tif\n" in message
    assert "\n  and 3 more\n" in message
    assert f"looked in {tmp_path} and 2 folders below it (images, port): 2 pictures" in message


def test_long_lists_are_cut_and_written_whole(tmp_path, capsys):
    for layout in ("train", "test"):
        (tmp_path / f"{layout}_filename.txt").write_text("".join(f"{layout}_{i}.tif\n" for i in range(40)))
        (tmp_path / f"{layout}_caps.txt").write_text("a port .\n" * 39 + ".\n")
    arguments = ("ucm", "--root", str(tmp_path))
    code, out = check(capsys, *arguments)
    assert code == 1
    assert "missing images: 79\n" in out
    assert "  and 69 more\n" in out
    assert out.count("test_") + out.count("train_") < 20
    whole = Path(out.split("the whole lists: ")[1].strip())
    assert {line.split(" (")[0].strip() for line in whole.read_text().splitlines()} > {
        f"test_{i}.tif" for i in range(40)
    }
    code, out = check(capsys, *arguments, "--out", str(tmp_path / "new" / "list.txt"))
    assert (tmp_path / "new" / "list.txt").read_text() == whole.read_text()
    assert f"the whole lists: {tmp_path / 'new' / 'list.txt'}" in out


def test_empty_captions_of_a_released_file_are_a_note(tmp_path, capsys):
    for layout in ("train", "test"):
        (tmp_path / f"{layout}_filename.txt").write_text("".join(f"{layout}_{i}.tif\n" for i in range(5)))
        (tmp_path / f"{layout}_caps.txt").write_text("a port .\n" * 24 + " .\n")
        render_all(tmp_path, [f"{layout}_{i}.tif" for i in range(5)])
    code, out = check(capsys, "ucm", "--root", str(tmp_path))
    assert "empty captions (a note, no problem): 2\n  train_4.tif (train): 1 of 5\n  test_4.tif (test): 1 of 5\n" in out
    assert out.endswith("no problems in 10 images\n")
    assert code == 0


def test_rsitmd_as_jpg_in_class_folders_behind_a_link(tmp_path, capsys):
    annotations = SHARED / "rsitmd_pir"
    if not annotations.is_dir():
        pytest.skip(f"the real annotations are not in {annotations}")
    scratch, root = tmp_path / "scratch", tmp_path / "RSITMD"
    root.mkdir()
    (root / "RSITMD_images").symlink_to(scratch)
    names = {
        Path(entry["image"]).stem
        for split in ("train", "val", "test")
        for entry in json.loads((annotations / f"{split}.json").read_text())
    }
    picture = tmp_path / "picture.jpg"
    render("x").save(picture)
    for name in names:
        folder = scratch / name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, folder / f"{name}.jpg")
    arguments = ("rsitmd", "--root", str(root), "--annotations", str(annotations))
    code, out = check(capsys, *arguments)
    assert out.endswith("no problems in 4,743 images\n")
    assert code == 0
    for name in sorted(names)[::2]:
        (scratch / name.split("_")[0] / f"{name}.jpg").unlink()
    code, out = check(capsys, *arguments)
    assert "missing images: 2372\n" in out
    assert code == 1


def test_a_link_in_a_circle_costs_itself_alone(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.png").touch()
        (tmp_path / f"{number}-circle.png").symlink_to(f"{number}-circle.png")
    found = images.images(tmp_path)
    assert [number for number in range(20) if found.find(f"{number}.png", None) is None] == []
    assert found.unreadable == []
