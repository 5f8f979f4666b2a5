"""Annotation layouts, hold-out, image paths, `python -m bench.data`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import bench.demo
from bench.config.errors import UserError
from bench.config.files import cache_dir, file_sha256
from bench.config.settings import DatasetSettings
from bench.data import __main__ as cli
from bench.data import identity, is_empty, load, locate
from bench.data.captions import clean
from bench.data.pixels import prepare
from tests.standins import render_all

SHARED = Path(__file__).resolve().parents[2] / "shared" / "annotations"


def dataset(root: Path, name: str = "rsitmd", split: str | None = None, **other):
    """Dataset settings as load() reads them."""
    given = {"annotations": None, "val_fraction": 0.2, "split_seed": 0, "exclude": None, "shuffle_captions": 0} | other
    return SimpleNamespace(name=name, called=name, root=str(root), split=split, **given)


def write_pir(root: Path) -> None:
    train = [
        {"caption": f"{word} a", "image": f"train/{word}_1.tif", "image_id": 7, "label_name": word, "label": 0}
        for word in ("bridge", "bridge", "park")
    ]
    (root / "train.json").write_text(json.dumps(train))
    for split in ("val", "test"):
        entry = {"image": f"{split}/port_2.tif", "caption": [f"a port {i} ." for i in range(5)]}
        (root / f"{split}.json").write_text(json.dumps([entry]))


def write_precomp(root: Path, images: int = 10, captions: list[str] | None = None, order: int | None = None) -> None:
    names = [f"port_{i}.tif" for i in range(images)]
    if order is not None:
        random.Random(order).shuffle(names)
    (root / "train_filename.txt").write_text("".join(f"{name}\n" for name in names))
    lines = captions or [f"{name} has {i} ships ." for name in names for i in range(5)]
    (root / "train_caps.txt").write_text("".join(f"{line}\n" for line in lines))
    (root / "test_filename.txt").write_text("park_1.tif\n" * 5 + "park_2.tif\n" * 5)
    (root / "test_caps.txt").write_text("a park .\n" * 9 + "\n")


def karpathy_entry(name: str, split: str, *raws: str) -> dict:
    return {"filename": name, "split": split, "imgid": 0, "sentences": [{"raw": raw, "tokens": []} for raw in raws]}


def write_karpathy(root: Path, *entries: dict, file: str = "dataset.json") -> None:
    (root / file).write_text(json.dumps({"images": entries, "dataset": "mini"}))


def test_pir(tmp_path):
    write_pir(tmp_path)
    data = load(dataset(tmp_path))
    assert (data.name, data.split, data.root) == ("rsitmd", "pir", tmp_path)
    assert [(i.image, i.captions, i.label) for i in data.train] == [
        ("train/bridge_1.tif", ("bridge a", "bridge a"), "bridge"),
        ("train/park_1.tif", ("park a",), "park"),
    ]
    assert data.val[0].image == "val/port_2.tif"
    assert data.test[0].captions == tuple(f"a port {i} ." for i in range(5))
    assert data.test[0].label is None


def test_precomp_test_files_list_one_line_a_caption(tmp_path):
    write_precomp(tmp_path)
    data = load(dataset(tmp_path, split="precomp"))
    assert [len(items) for items in (data.train, data.val, data.test)] == [8, 2, 2]
    assert all(len(i.captions) == 5 and i.captions[0] == f"{i.image} has 0 ships ." for i in data.train + data.val)
    assert data.test[1].captions == ("a park .",) * 4 + ("",)  # kept in test


def test_karpathy_and_its_published_file_names(tmp_path):
    write_karpathy(
        tmp_path,
        karpathy_entry("a.jpg", "train", "one .", "two ."),
        karpathy_entry("b.jpg", "val", "three ."),
        karpathy_entry("c.jpg", "test", "four ."),
        file="dataset_RSITMD.json",
    )
    data = load(dataset(tmp_path, split="karpathy"))
    assert [i.image for i in data.train + data.val + data.test] == ["a.jpg", "b.jpg", "c.jpg"]
    assert data.train[0].captions == ("one .", "two .")


def test_karpathy_without_validation_images_holds_some_out(tmp_path):
    entries = [karpathy_entry(f"{i}.jpg", "train", "one .") for i in range(10)]
    write_karpathy(tmp_path, *entries, karpathy_entry("c.jpg", "test", "four ."))
    data = load(dataset(tmp_path, split="karpathy"))
    assert (len(data.train), len(data.val)) == (8, 2)


def test_nwpu_own_layout(tmp_path):
    classes = {
        label: [
            {"filename": f"{label}_{i}.jpg", "imgid": i, "split": split, "raw": f"{label} x", "raw_1": "y"}
            for i, split in enumerate(("train", "val", "test"))
        ]
        for label in ("airport", "beach")
    }
    (tmp_path / "dataset_nwpu.json").write_text(json.dumps(classes))
    data = load(dataset(tmp_path, "nwpu"))
    assert [i.image for i in data.test] == ["airport/airport_2.jpg", "beach/beach_2.jpg"]
    assert (data.train[0].captions, data.train[0].label) == (("airport x", "y"), "airport")


def test_empty_captions_leave_training_alone(tmp_path):
    write_precomp(tmp_path, 3, ["", " . ", "ships", "", ""] + [""] * 5 + ["boats 2"] * 5)
    data = load(dataset(tmp_path, split="precomp", val_fraction=0.5))
    assert {i.image: i.captions for i in data.train + data.val} == {
        "port_0.tif": ("ships",),
        "port_2.tif": ("boats 2",) * 5,
    }
    assert is_empty(" .,")
    assert not is_empty("2")


def test_hold_out_depends_on_names_and_seed_alone(tmp_path):
    held = []
    for order, seed in ((None, 0), (1, 0), (1, 1)):
        write_precomp(tmp_path, 50, order=order)
        held.append(sorted(i.image for i in load(dataset(tmp_path, split="precomp", split_seed=seed)).val))
    assert held[0] == held[1] != held[2]
    assert len(held[0]) == 10
    assert held[0][:3] == ["port_18.tif", "port_19.tif", "port_22.tif"]  # pinned: published numbers hang on it


def test_hashes_follow_content(tmp_path):
    write_precomp(tmp_path)
    given = [dataset(tmp_path, split="precomp", split_seed=seed) for seed in (0, 1)]
    assert len({identity(each) for each in given}) == len({load(each).sha256 for each in given}) == 2
    before = identity(given[0]), load(given[0]).sha256
    assert before == (identity(given[0]), load(given[0]).sha256)
    caps = tmp_path / "test_caps.txt"
    caps.write_text(caps.read_text().replace("a park", "one park", 1))
    assert before[0] != identity(given[0])
    assert before[1] != load(given[0]).sha256


def test_annotations_may_lie_elsewhere(tmp_path):
    for folder in ("images", "notes"):
        (tmp_path / folder).mkdir()
    write_pir(tmp_path / "notes")
    with pytest.raises(UserError, match=r"no file train\.json .* in .*images; put it there"):
        load(dataset(tmp_path / "images"))
    assert load(dataset(tmp_path / "images", annotations=str(tmp_path / "notes"))).root == tmp_path / "images"


def break_file(name: str, content: bytes | str):
    def apply(root: Path) -> None:
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return apply


TEST_ENTRY = {"image": "test/a.tif", "caption": ["x"]}


@pytest.mark.parametrize(
    ("split", "damage", "message"),
    [
        ("pir", break_file("val.json", '[{"image": \n oops}]'), r"val\.json, line 2, column 2: not valid JSON"),
        ("pir", break_file("val.json", "{}"), r"val\.json: expected a list"),
        ("pir", break_file("val.json", "[]"), "no val images"),
        ("pir", break_file("val.json", '[{"image": "a"}]'), r"val\.json, entry 1: expected"),
        ("pir", break_file("val.json", '[{"image": "a", "caption": [1]}]'), r"val\.json, entry 1: expected"),
        ("pir", break_file("val.json", '[{"image": "a", "caption": []}]'), r"image 'a' has no caption"),
        ("pir", break_file("val.json", '["a"]'), r"val\.json, entry 1: expected .* got 'a'"),
        ("pir", break_file("val.json", b'[\n{"image": "\xff"}]'), r"val\.json, line 2: not UTF-8"),
        ("pir", break_file("val.json", "[" * 200_000), r"val\.json: .*nested"),
        (
            "pir",
            break_file("val.json", '[{"image": "/a.tif", "caption": "x"}]'),
            "entry 1: .* leaves the dataset's root",
        ),
        ("pir", break_file("val.json", '[{"image": "a/../../b", "caption": "x"}]'), "entry 1: .* leaves the dataset's"),
        ("pir", break_file("val.json", '[{"image": "", "caption": "x"}]'), "entry 1: '' is not an image's file name"),
        ("pir", break_file("val.json", json.dumps([{"image": "x" * 300, "caption": "x"}])), "entry 1: .* file name"),
        ("pir", break_file("val.json", json.dumps([{"image": "é" * 128, "caption": "x"}])), "entry 1: .* file name"),
        ("pir", break_file("val.json", json.dumps([{"image": "a/" * 2000, "caption": "x"}])), "entry 1: .* file name"),
        ("pir", break_file("val.json", '[{"image": "\\ud800", "caption": "x"}]'), "entry 1: half a character .*ud800"),
        (
            "pir",
            break_file("val.json", '[{"image": "a", "caption": ["\\udfff"]}]'),
            "entry 1: half a character .*udfff",
        ),
        ("pir", break_file("val.json", f'[{{"image": {"9" * 5000}}}]'), r"val\.json: not valid JSON"),
        ("pir", break_file("val.json", f"[{'[' * 900 + ']' * 900}]"), r"val\.json, entry 1: expected"),
        ("pir", break_file("val.json", json.dumps([TEST_ENTRY, TEST_ENTRY | {"image": "test/port_2.tif"}])), "both in"),
        (
            "precomp",
            break_file("train_caps.txt", "a\n" * 7),
            r"train_caps\.txt has 7 lines .*train_filename\.txt has 10",
        ),
        ("precomp", break_file("test_caps.txt", b"a\n" * 9 + b"\xe9\n"), r"test_caps\.txt, line 10: not UTF-8"),
        ("precomp", break_file("test_filename.txt", "a.tif\n" * 9 + "\n"), r"test_filename\.txt, line 10: '' is not"),
        ("precomp", break_file("train_filename.txt", "../a.tif\n" * 10), r"train_filename\.txt, line 1: .* leaves"),
        ("karpathy", break_file("dataset.json", "[1]"), r'dataset\.json: expected {"images"'),
        (
            "karpathy",
            break_file("dataset.json", '{"images": [{"filename": "a"}]}'),
            r"dataset\.json, entry 1: expected",
        ),
        ("karpathy", break_file("dataset.json", '{"airport": [3]}'), r"dataset\.json, entry 1: expected"),
        (
            "karpathy",
            break_file("dataset.json", json.dumps({"images": [karpathy_entry("a", "restval", "x")]})),
            "entry 1: expected .*train, val or test",
        ),
        ("demo", break_file("x", ""), "rsitmd has no split 'demo'; it has pir, karpathy, precomp"),
    ],
)
def test_malformed_annotations(tmp_path, split, damage, message):
    write_pir(tmp_path)
    write_precomp(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load(dataset(tmp_path, split=split))


def test_paths_that_no_system_takes(tmp_path, monkeypatch, capsys):
    write_pir(tmp_path)
    for root in ("x" * 300, "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(UserError, match=r"dataset\.root of rsitmd: no folder"):
            identity(dataset(root))
    code, _, err = check_output(capsys, "rsitmd", "--root", "\udcff")
    assert code == 2
    assert "half a character" in err
    (tmp_path / "train.json").unlink()
    (tmp_path / "train.json").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"no file train\.json"):
        load(dataset(tmp_path))


def test_without_a_home_the_cache_wants_a_folder(monkeypatch):
    monkeypatch.delenv("PETL_BENCH_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no such user")))
    with pytest.raises(UserError, match=r"no home folder .* set PETL_BENCH_CACHE"):
        cache_dir()


def test_an_odd_cache_folder_is_one_message_for_the_demo(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"can't write the cache .*file.* set PETL_BENCH_CACHE"):
        load(DatasetSettings(name="demo"))


def test_a_remembered_hash_is_believed_only_if_it_is_one(tmp_path, monkeypatch):
    """The note of a large file's hash may be damaged, or its folder one that can't be written."""
    monkeypatch.setattr("bench.config.files.LARGE_BYTES", 4)
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "weights").write_text("weights")
    expected = file_sha256(tmp_path / "weights")
    (note,) = (tmp_path / "cache" / "hashes").iterdir()
    for damage in (b"", b"\xff\xfe", expected[:-1].encode(), b"g" * 64):
        note.write_bytes(damage)
        assert file_sha256(tmp_path / "weights") == expected
        assert note.read_text() == expected
    (tmp_path / "file").touch()
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "file"))
    assert file_sha256(tmp_path / "weights") == expected
    with pytest.raises(UserError, match="can't be read"):
        file_sha256(Path("/proc/self/mem"))


def test_missing_folders(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        identity(dataset(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"dataset\.annotations of rsitmd: no folder"):
        load(dataset(tmp_path, annotations=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"dataset\.root is not set"):
        load(DatasetSettings(name="rsitmd"))
    with pytest.raises(UserError, match="no dataset 'coco'"):
        load(dataset(tmp_path, "coco"))


def test_locate_takes_the_first_place_that_has_the_image(tmp_path):
    places = ["train/x.tif", "images/train/x.tif", "imgs/train/x.tif", "x.tif", "images/x.tif"]
    for place in reversed(places):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
        assert locate(tmp_path, "train/x.tif", "train") == tmp_path / place
    assert locate(tmp_path, "x.tif", "train") == tmp_path / "x.tif"
    assert locate(tmp_path, "y.tif", "train") is None


def test_a_missing_test_folder_is_not_served_from_training_pictures(tmp_path, capsys):
    """The folder in the name decides; a bare name is looked for in its split's folders, which validation shares."""
    for folder in ("train", "images/val"):
        render_all(tmp_path, [f"{folder}/x.tif"])
    for name, split in (("test/x.tif", "test"), ("x.tif", "test"), ("test/x.tif", "train"), ("a/test/b/x.tif", "val")):
        assert locate(tmp_path, name, split) is None
    assert locate(tmp_path, "val/x.tif", "val") == tmp_path / "images/val/x.tif"
    assert locate(tmp_path, "x.tif", "train") == tmp_path / "train/x.tif"
    assert locate(tmp_path, "x.tif", "val") == tmp_path / "images/val/x.tif"
    (tmp_path / "images/val/x.tif").unlink()
    assert locate(tmp_path, "x.tif", "val") == tmp_path / "train/x.tif"  # held out of the training pictures
    assert locate(tmp_path, "val/x.tif", "val") is None

    write_pir(tmp_path)
    render_all(tmp_path, ["train/bridge_1.tif", "train/park_1.tif", "train/port_2.tif", "val/port_2.tif"])
    given = load(dataset(tmp_path))
    with pytest.raises(UserError, match=r"1 of 1 images missing .*\n  test/port_2\.tif \(.*train/port_2\.tif is of"):
        prepare(given.root, [item.image for item in given.test], 16, "crop", split="test")
    code, out, _ = check_output(capsys, "rsitmd", "--root", str(tmp_path))
    assert code == 1
    assert "missing images: 1\n  test/port_2.tif (" in out


def test_demo_is_built_once(tmp_path, monkeypatch):
    builds = []

    def build(root: Path) -> None:
        builds.append(root)
        root.mkdir(parents=True)
        write_karpathy(
            root, *(karpathy_entry(f"{s}.png", s, f"{s} .") | {"label": "x"} for s in ("train", "val", "test"))
        )

    monkeypatch.setitem(sys.modules, "bench.demo.world", SimpleNamespace(build=build))
    monkeypatch.setattr(bench.demo, "world", SimpleNamespace(build=build), raising=False)
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "cache"))
    given = DatasetSettings(name="demo")
    first, second = load(given), load(given)
    assert first == second
    assert first.split == "demo"
    assert first.test[0].label == "x"
    assert len(builds) == 1
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"demo-{bench.demo.VERSION}"]
    assert identity(given) == f"demo-{bench.demo.VERSION}"


@pytest.mark.parametrize(
    ("name", "split", "images", "captions"),
    [
        ("rsitmd", "pir", (3435, 856, 452), (17175, 4280, 2260)),
        ("rsitmd", "precomp", (3430, 857, 452), (17150, 4285, 2260)),  # 4291 less four without captions
        ("rsicd", "precomp", (7862, 1966, 1093), (39309, 9828, 5465)),  # 49140 captions less three empty ones
        ("ucm", "precomp", (1512, 378, 210), (7560, 1890, 1050)),
    ],
)
def test_real_annotations(tmp_path, name, split, images, captions):
    folder = SHARED / f"{name}_{split}"
    if not folder.is_dir():
        pytest.skip(f"the real annotations are not in {folder}")
    data = load(dataset(tmp_path, name, split, annotations=str(folder)))
    splits = (data.train, data.val, data.test)
    assert tuple(map(len, splits)) == images
    assert tuple(sum(len(item.captions) for item in items) for items in splits) == captions
    for preset in ("clip", "harma"):
        assert all(clean(caption, preset) for item in data.train for caption in item.captions)


def test_both_layouts_of_rsitmd_hold_the_same_test_set(tmp_path):
    if not (SHARED / "rsitmd_pir").is_dir():
        pytest.skip(f"the real annotations are not in {SHARED}")
    pir, precomp = (
        load(dataset(tmp_path, split=split, annotations=str(SHARED / f"rsitmd_{split}")))
        for split in ("pir", "precomp")
    )
    assert {Path(i.image).name: i.captions for i in pir.test} == {i.image: i.captions for i in precomp.test}


def test_rsicd_pir_names_the_missing_file(tmp_path):
    if not (SHARED / "rsicd_pir").is_dir():
        pytest.skip(f"the real annotations are not in {SHARED}")
    with pytest.raises(UserError, match=r"no file train\.json .*rsicd_pir"):
        load(dataset(tmp_path, "rsicd", annotations=str(SHARED / "rsicd_pir")))


def test_clean():
    text = "  Two  &amp;amp; three T-shaped/long piers; it's (a) port!\n"
    assert clean(text, "none") == text
    assert clean(text, "clip") == "two & three t-shaped/long piers; it's (a) port!"
    assert clean(text, "harma") == "two &ampamp three t shaped long piers its a port"
    assert clean("a " * 40, "harma").split() == ["a"] * 30
    assert clean(" . ", "harma") == ""


def test_clean_clip_is_what_open_clip_does():
    tokenizer = pytest.importorskip("open_clip.tokenizer")
    for text in ("A  bridge.\n", "â€œquotedâ€\x9d", "&lt;b&gt; CAFE\u0301", "\u2028x\tY "):
        assert clean(text, "clip") == tokenizer.get_clean_fn("lower")(text)


def check_output(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["check", *arguments])
    return code, *capsys.readouterr()


def test_check_clean(tmp_path, capsys):
    write_pir(tmp_path)
    render_all(tmp_path, ["bridge_1.tif", "images/park_1.tif", "val/port_2.tif", "test/port_2.tif"])
    code, out, _ = check_output(capsys, "rsitmd", "--root", str(tmp_path))
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert rows["train"] == ["2", "3", "2", "0"]  # images, captions, unique, shared
    assert rows["test"] == ["1", "5", "5", "0"]
    assert code == 0
    assert "no problems in 4 images" in out


def test_check_lists_every_problem(tmp_path, capsys):
    write_precomp(tmp_path, 6, ["ships"] * 25 + [""] * 5)
    render_all(tmp_path, [f"images/port_{i}.tif" for i in range(4)] + ["park_1.tif"])
    (tmp_path / "park_2.tif").write_bytes((tmp_path / "park_1.tif").read_bytes()[:-3000])
    code, out, _ = check_output(capsys, "rsitmd", "--root", str(tmp_path), "--split", "precomp")
    assert code == 1
    assert "empty captions (a note, no problem): 2\n  port_5.tif (train): 5 of 5\n  park_2.tif (test): 1 of 5\n" in out
    assert "dropped from training: 5 captions, 1 images" in out
    assert "missing images: 1\n  port_4.tif (nearest: images/port_" in out
    assert "unreadable images: 1\n  park_2.tif: " in out
    assert "files with several names: 0" in out
    assert "2 problems" in out
    assert ["test", "2", "10", "2", "9"] in [line.split() for line in out.splitlines()]  # nine "a park ." of two images


def test_check_names_pictures_without_a_known_range(tmp_path, capsys):
    write_pir(tmp_path)
    render_all(tmp_path, ["bridge_1.tif", "park_1.tif", "val/port_2.tif", "test/port_2.tif"])
    Image.new("F", (9, 9), 0.5).save(tmp_path / "park_1.tif")
    code, out, _ = check_output(capsys, "rsitmd", "--root", str(tmp_path))
    assert code == 1
    assert "unreadable images: 1\n  train/park_1.tif: grey values with fractions have no known range" in out


def test_check_sees_two_names_for_one_file(tmp_path, capsys):
    write_karpathy(tmp_path, *(karpathy_entry(f"{split}/x.png", split, "x") for split in ("train", "val", "test")))
    render_all(tmp_path, ["x.png"])
    code, out, _ = check_output(capsys, "ucm", "--root", str(tmp_path), "--split", "karpathy")
    assert code == 1
    assert "x.png: test/x.png, train/x.png, val/x.png" in out


def test_check_user_mistakes(tmp_path, capsys):
    code, _, err = check_output(capsys, "rsitmd", "--root", str(tmp_path / "nowhere"))
    assert code == 2
    assert err.startswith("error: dataset.root of rsitmd: no folder")
    code, _, err = check_output(capsys, "rsitmd")
    assert code == 2
    assert "dataset.root is not set" in err
    with pytest.raises(SystemExit, match="2"):
        check_output(capsys, "coco", "--root", str(tmp_path))


def test_list_names_datasets_splits_and_files(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "RSITMD" in out
    assert "pir (default)" in out
    assert "train_caps.txt" in out


def test_reading_annotations_imports_no_numpy():
    code = "import sys, bench.data, bench.data.__main__; print({'numpy', 'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
