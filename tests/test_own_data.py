"""Images and captions of one's own: formats, columns, splits, identity, and what is said of mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench.config.errors import UserError
from bench.config.settings import CaptionSettings, DatasetSettings, SplitFiles
from bench.data import __main__ as cli
from bench.data import identity, load, raw_splits, resolved
from bench.plan.grid import expand
from bench.plan.spec import RunSpec
from tests.standins import render_all

ROWS = [  # name, split, class, captions
    *((f"port/{i}.jpg", "train", "port", [f"port {i}", f'a "port", {i}\nby the sea']) for i in range(6)),
    ("port/6.jpg", "val", "port", ["port 6"]),
    ("beach/7.jpg", "test", "beach", ["a beach", "sand"]),
]


def own(root: Path, **other) -> CaptionSettings:
    return CaptionSettings(name="captions", root=str(root), **other)


def quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def table(separator: str, *columns: str, end: str = "\n") -> str:
    """The rows as a table with these columns: image, caption, split, label under these names."""
    lines = [separator.join(columns)]
    for name, split, label, captions in ROWS:
        for caption in captions:
            lines.append(separator.join([name, quoted(caption), split, label][: len(columns)]))
    return end.join(lines) + end


def entries(image: str, caption: str, *, gathered: bool = False) -> list[dict]:
    found = []
    for name, split, label, captions in ROWS:
        texts = [captions] if gathered else captions
        found += [{image: name, caption: text, "split": split, "label": label} for text in texts]
    return found


def coco() -> str:
    images = [
        {"id": i, "file_name": name, "split": split, "label": label} for i, (name, split, label, _) in enumerate(ROWS)
    ]
    captions = [(i, text) for i, row in enumerate(ROWS) for text in row[3]]
    annotations = [{"id": k, "image_id": i, "caption": text} for k, (i, text) in enumerate(captions)]
    return json.dumps({"info": {}, "images": images, "annotations": annotations})


def karpathy(folders: bool = False) -> str:
    """With folders as in dataset_coco.json: `filepath` is the folder of `filename`."""
    images = [
        {"filename": n, "split": s, "class": c, "sentences": [{"raw": t} for t in texts]} for n, s, c, texts in ROWS
    ]
    for image in images if folders else ():
        path = Path(str(image["filename"]))
        image |= {"filepath": str(path.parent), "filename": path.name}
    return json.dumps({"images": images, "dataset": "mine"})


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def items(splits: dict) -> list[tuple]:
    return [(item.image, split, item.label, list(item.captions)) for split, found in splits.items() for item in found]


FORMATS = {
    "open_clip's csv, with tabs": ("captions.csv", table("\t", "filepath", "title", "split", "label")),
    "commas": ("captions.csv", table(",", "filepath", "caption", "split", "label")),
    "semicolons, a mark, and Windows' line ends": (
        "captions.csv",
        "\ufeff" + table(";", "filename", "caption", "split", "class", end="\r\n"),
    ),
    "tsv": ("captions.tsv", table("\t", "file_name", "text", "split", "label")),
    "a list of entries": ("captions.json", json.dumps(entries("image", "caption"))),
    "lists of captions": ("captions.json", json.dumps(entries("image", "captions", gathered=True))),
    "JSON lines": ("captions.jsonl", lines(entries("image_path", "text")) + "\n"),
    "COCO": ("captions.json", coco()),
    "Karpathy": ("captions.json", karpathy()),
    "Karpathy's COCO": ("captions.json", karpathy(folders=True)),
    "imagefolder, JSON lines": ("metadata.jsonl", lines(entries("file_name", "text"))),
    "imagefolder, csv": ("metadata.csv", table(",", "file_name", "text", "split", "label")),
}


@pytest.mark.parametrize("form", FORMATS)
def test_formats(tmp_path, form):
    file, text = FORMATS[form]
    (tmp_path / file).write_bytes(text.encode())
    given = own(tmp_path)
    assert items(raw_splits(given)) == ROWS
    data = load(given)
    assert (data.split, len(data.train), len(data.val), len(data.test)) == ("by column split", 6, 1, 1)
    found = resolved(given)
    assert isinstance(found, CaptionSettings)
    assert (found.file, found.split, found.title) == (file, "split", tmp_path.name)
    assert items(raw_splits(found)) == ROWS
    assert (load(found).sha256, resolved(found)) == (data.sha256, found)


def test_columns_of_any_name(tmp_path):
    (tmp_path / "a.csv").write_text("Bild,eins,zwei,Teil,Art\nx.jpg,one,two,Training,port\ny.jpg,three,,validation,\n")
    given = own(tmp_path, file="a.csv", image="Bild", caption=("eins", "zwei"), split="Teil", label="Art")
    assert items(raw_splits(given)) == [
        ("x.jpg", "train", "port", ["one", "two"]),
        ("y.jpg", "val", None, ["three", ""]),
    ]
    assert resolved(given).model_dump()["caption"] == ("eins", "zwei")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_imagefolder_in_split_folders(tmp_path, kind):
    for folder in ("train", "validation", "test"):
        (tmp_path / folder).mkdir()
        texts = {
            "jsonl": lines([{"file_name": "a/1.png", "text": folder}]),
            "csv": f"file_name,text\na/1.png,{folder}\n",
        }
        (tmp_path / folder / f"metadata.{kind}").write_text(texts[kind])
    given = own(tmp_path)
    assert load(given).split == "by file"
    assert items(raw_splits(given)) == [
        ("train/a/1.png", "train", None, ["train"]),
        ("validation/a/1.png", "val", None, ["validation"]),
        ("test/a/1.png", "test", None, ["test"]),
    ]
    found = resolved(given)
    assert isinstance(found, CaptionSettings)
    assert found.file == SplitFiles(
        **{split: f"{split.replace('val', 'validation')}/metadata.{kind}" for split in ("train", "val", "test")}
    )
    assert load(found).sha256 == load(given).sha256


def test_one_metadata_file_over_split_folders(tmp_path):
    names = ["train/1.jpg", "train/2.jpg", "dev/1.jpg", "test/1.jpg"]
    (tmp_path / "metadata.jsonl").write_text(lines([{"file_name": name, "text": name} for name in names]))
    assert load(own(tmp_path)).split == "by folder"
    assert [row[:2] for row in items(raw_splits(own(tmp_path)))] == [
        *(("train/1.jpg", "train"), ("train/2.jpg", "train"), ("dev/1.jpg", "val"), ("test/1.jpg", "test")),
    ]


def test_a_file_for_each_split(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.csv").write_text(f"filepath,title,split\n{name}.jpg,{name},whatever\n")
    given = own(tmp_path, file=SplitFiles(train="a.csv", val="b.csv", test=str(tmp_path / "c.csv")))
    data = load(given)
    assert (data.split, [i.image for i in (*data.train, *data.val, *data.test)]) == (
        "by file",
        ["a.jpg", "b.jpg", "c.jpg"],
    )
    (tmp_path / "b.csv").write_text("filepath,title,split\na.jpg,b,x\n")
    with pytest.raises(UserError, match=r"image 'a\.jpg' is both in train and in val"):
        load(given)


def test_what_no_file_names_is_held_out_by_image(tmp_path):
    """By the hash of seed and name, so that neither order nor Python's version matters; all captions go with it."""
    rows = [f"{i}.jpg,caption {k}" for i in range(40) for k in range(2)]
    held = []
    for order, seed in ((1, 0), (-1, 0), (1, 1)):
        (tmp_path / "captions.csv").write_text("\n".join(["filepath,title", *rows[::order]]) + "\n")
        data = load(own(tmp_path, split_seed=seed, test_fraction=0.2))
        assert data.split == f"test 0.2 and val 0.1 held out by seed {seed}"
        assert [len(each) for each in (data.train, data.val, data.test)] == [28, 4, 8]
        assert all(len(item.captions) == 2 for item in (*data.train, *data.val, *data.test))
        held.append(({i.image for i in data.val}, {i.image for i in data.test}))
    assert held[0] == held[1] != held[2]
    assert held[0][0] == {"10.jpg", "25.jpg", "3.jpg", "36.jpg"}  # pinned: published numbers hang on it
    train = "".join(f"{i}.jpg,x,train\n" for i in range(9))
    (tmp_path / "captions.csv").write_text(f"{HEAD}{train}t.jpg,x,test\n")
    assert load(own(tmp_path)).split == "by column split, val 0.1 held out by seed 0"


def test_empty_captions_leave_training_alone(tmp_path):
    (tmp_path / "a.csv").write_text(
        "filepath,title,split\na.jpg,x,train\nb.jpg,.,train\nc.jpg,y,val\nd.jpg,z,test\nd.jpg,,test\n"
    )
    data = load(own(tmp_path, file="a.csv"))
    assert [item.image for item in data.train] == ["a.jpg"]
    assert data.test[0].captions == ("z", "")


def test_a_long_caption_and_odd_characters(tmp_path):
    text = "x" * 200_000
    (tmp_path / "captions.csv").write_text(f"filepath,title\na.jpg,{text}\nb.jpg,a\u2028b\nc.jpg,c\n")
    assert [item.captions[0] for item in raw_splits(own(tmp_path))["train"]] == [text, "a\u2028b", "c"]
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "captions.jsonl").write_text(
        lines([{"filepath": "a.jpg", "title": "a\u2028b"}]).replace("\\u2028", "\u2028")
    )
    assert raw_splits(own(tmp_path))["train"][0].captions == ("a\u2028b",)


HEAD = "filepath,title,split\n"


@pytest.mark.parametrize(
    ("file", "text", "given", "message"),
    [
        (
            "a.csv",
            HEAD,
            {"caption": "titel"},
            r"a\.csv: no column 'titel'; did you mean 'title'\?; its columns are 'filepath', 'title', 'split'; set",
        ),
        ("a.csv", HEAD, {"label": "class"}, r"no column 'class'; its columns are 'filepath'.*; set dataset\.label"),
        ("a.csv", HEAD, {"split": "spilt"}, r"no column 'spilt'; did you mean 'split'"),
        (
            "a.csv",
            "foto,title\n",
            {},
            r"no column of a usual name \(filepath, file_name, .*its columns are 'foto', 'title'; set dataset\.image",
        ),
        ("a.json", '[{"image": "a"}]', {}, r"a\.json: no column of a usual name \(caption, title, text, captions\)"),
        ("a.csv", "", {}, r"a\.csv: empty; its first line names the columns"),
        ("a.csv", HEAD, {}, r"a\.csv: it has no rows"),
        ("a.csv", HEAD + 'a.jpg,"x\ny",train\nb.jpg,y\n', {}, r"a\.csv, line 4: 2 values, but line 1 names 3 columns"),
        ("a.csv", HEAD + "a.jpg,x, y,train\n", {}, r"a\.csv, line 2: 4 values"),
        ("a.csv", HEAD + 'a.jpg,x,train\nb.jpg,"y,test\nc.jpg,z,test\n', {}, r"a\.csv, line 3: not valid csv"),
        ("a.csv", HEAD + 'a.jpg,"x" y,train\n', {}, r"a\.csv, line 2: not valid csv"),
        ("a.csv", "filepath,title,title\n", {}, r"a\.csv, line 1: two columns are named 'title'"),
        ("a.csv", HEAD.encode() + b"a.jpg,\xe9,train\n", {}, r"a\.csv, line 2: not UTF-8"),
        (
            "a.csv",
            HEAD + "a.jpg,x,train\nb.jpg,y,resttest\n",
            {},
            r"a\.csv, line 3: split: expected train, val or test, got 'resttest'",
        ),
        ("a.csv", HEAD + "a.jpg,x,train\na.jpg,y,test\n", {}, r"image 'a\.jpg' is both in train and in test"),
        ("a.csv", HEAD + "../a.jpg,x,train\n", {}, r"a\.csv, line 2: image '\.\./a\.jpg' leaves the dataset's root"),
        (
            "a.csv",
            HEAD + "/data/a.jpg,x,train\n",
            {},
            r"line 2: image '/data/a\.jpg' leaves the dataset's root; write it relative",
        ),
        ("a.csv", HEAD + " ,x,train\n", {}, r"line 2: '' is not an image's file name"),
        ("a.csv", HEAD + "a\0.jpg,x,train\n", {}, r"line 2: .* is not an image's file name"),
        ("a.jsonl", '{"image": "a", "text": "x"}\n{"image": }\n', {}, r"a\.jsonl, line 2: not valid JSON"),
        (
            "a.jsonl",
            '{"image": "a", "text": "x"}\n[1]\n',
            {},
            r"a\.jsonl, line 2: expected \{column: value\}, got \[1\]",
        ),
        (
            "a.jsonl",
            '{"image": "a", "text": "x"}\n{"image": "b"}\n',
            {},
            r"line 2: expected text: a text or a list of texts, got None",
        ),
        ("a.jsonl", '{"image": 3, "text": "x"}\n', {}, r"line 1: expected image: a file's name, got 3"),
        ("a.jsonl", '{"image": "a", "text": "\\ud800"}\n', {}, r"line 1: half a character"),
        ("a.jsonl", "[" * 100_000, {}, r"line 1: not valid JSON"),
        ("a.json", "{}", {}, r"a\.json: expected a list of \{column: value\} entries, or COCO's"),
        ("a.json", '{"images": [{"id": 1}, {"id": 1}], "annotations": []}', {}, r"image 2: a second image with id 1"),
        (
            "a.json",
            '{"images": [{"id": 1}], "annotations": [{"image_id": 2}]}',
            {},
            r"annotation 1: no image has its image_id 2",
        ),
        (
            "a.json",
            '{"images": [{"id": [1]}], "annotations": []}',
            {},
            r"image 1: expected id: a number or a text, got \[1\]",
        ),
        ("a.parquet", "x", {}, r"a\.parquet: a caption file ends with \.csv, \.tsv, \.jsonl"),
        (
            "a.csv",
            HEAD,
            {"file": "b.csv"},
            r"dataset\.file: no file b\.csv in .*; give it relative to the root, which has a\.csv",
        ),
        (
            "a.csv",
            HEAD,
            {"file": None},
            r"no captions or metadata file .* in .* and no metadata file in its folder train; set dataset\.file",
        ),
        ("a.csv", HEAD, {"root": "/nowhere"}, r"dataset\.root of captions: no folder /nowhere"),
        ("a.csv", HEAD, {"root": None}, r"dataset\.root is not set"),
        ("a.csv", HEAD, {"val_fraction": 0.5, "test_fraction": 0.5}, r"leave nothing to train on"),
    ],
)
def test_mistakes_are_one_message(tmp_path, file, text, given, message):
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    settings = CaptionSettings(**{"name": "captions", "root": str(tmp_path), "file": file, **given})
    with pytest.raises(UserError, match=message) as caught:
        load(resolved(settings))
    assert len(str(caught.value)) < 700 + len(str(tmp_path))


def test_two_caption_files_are_a_question(tmp_path):
    for name in ("captions.csv", "metadata.csv"):
        (tmp_path / name).write_text(HEAD)
    with pytest.raises(UserError, match=r"several caption files: .*captions\.csv, .*metadata\.csv; set dataset\.file"):
        identity(own(tmp_path))


# --- identity, sweeps and reports -------------------------------------------------------------------------------------

SWEEP = """name: mine
dataset: {{name: captions, root: {root}, title: My airports}}
backbone: {{model: tiny-clip, weights: random}}
train: {{epochs: 1, batch_size: 2, workers: 0}}
grid: {{seed: 0, method: [zero_shot]}}
"""


def plan(tmp_path: Path, root: Path, *overrides: str) -> list[RunSpec]:
    (tmp_path / "mine.yaml").write_text(SWEEP.format(root=root))
    return list(expand(tmp_path / "mine.yaml", overrides).runs)


def ids(tmp_path: Path, root: Path, *overrides: str) -> list[str]:
    return [run.run_id for run in plan(tmp_path, root, *overrides)]


def test_a_runs_id_follows_the_content_and_not_the_place(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "captions.csv").write_text(FORMATS["commas"][1])
    first = ids(tmp_path, here)
    shutil.copytree(here, tmp_path / "there")
    assert ids(tmp_path, tmp_path / "there") == first
    assert ids(tmp_path, here, "dataset.title=x") == first
    assert ids(tmp_path, here, "dataset.file=captions.csv", "dataset.image=filepath") == first
    (here / "captions.csv").rename(here / "other.csv")
    assert ids(tmp_path, here, "dataset.file=other.csv") == first
    different = [
        ids(tmp_path, here, "dataset.file=other.csv", f"dataset.{setting}")
        for setting in ("val_fraction=0.3", "test_fraction=0.3", "split_seed=1")
    ]
    (here / "changed.csv").write_text(FORMATS["commas"][1].replace("sand", "sea"))
    different.append(ids(tmp_path, here, "dataset.file=changed.csv"))
    assert len({*map(tuple, different), tuple(first)}) == 5


def test_a_run_file_holds_what_was_found(tmp_path):
    (tmp_path / "captions.csv").write_text(FORMATS["commas"][1])
    (run,) = plan(tmp_path, tmp_path)
    (tmp_path / "run.yaml").write_text(run.dump())
    assert RunSpec.load(tmp_path / "run.yaml") == run
    assert run.dataset == own(
        tmp_path,
        file="captions.csv",
        image="filepath",
        caption="caption",
        split="split",
        label="label",
        title="My airports",
    )
    assert [run.dataset.split_seed for run in plan(tmp_path, tmp_path, "dataset.split_seed=[0, 1]")] == [0, 1]
    (run,) = plan(tmp_path, tmp_path, "dataset.caption=[caption, label]")  # a list is the value here, no axis
    assert run.dataset.caption == ("caption", "label")


def test_ids_of_known_datasets_are_those_of_version_0_2(tmp_path):
    """Pinned from before one's own captions could be read: no finished run may be lost."""
    images = [{"filename": f"{s}.jpg", "split": s, "sentences": [{"raw": s}]} for s in ("train", "val", "test")]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    known = f"{{name: rsitmd, root: {tmp_path}, split: karpathy}}"
    assert ids(tmp_path, tmp_path, f"dataset={known}") == ["zero_shot-s0-472b3787"]
    assert ids(tmp_path, tmp_path, f"dataset={known}", "dataset.split_seed=1") == ["zero_shot-s0-ef62d895"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{name: caption, root: .}", r"name: expected 'demo', .*, 'captions', got 'caption'; did you mean 'captions'"),
        (
            "{name: captions, root: ., captoin: x}",
            r"unknown key 'captoin'; did you mean 'caption'.*allowed: name, root, file, image",
        ),
        ("{name: rsitmd, root: ., file: x}", r"unknown key 'file'.*\(allowed: name, root, split, annotations"),
        (
            "{name: captions, root: ., file: {train: a.csv, dev: b.csv}}",
            r"dataset: unknown key 'file.dev'|file: expected",
        ),
        (
            "{name: captions, root: ROOT, image: bild}",
            r"mine\.yaml:2: .*captions\.csv: no column 'bild'; its columns are",
        ),
        (
            "[{name: captions, root: ROOT}, {name: captions, root: ROOT, file: more.csv}]",
            r"two datasets have the title .*give each",
        ),
    ],
)
def test_mistakes_in_a_sweep_have_file_and_line(tmp_path, written, message):
    for name in ("captions.csv", "more.csv"):
        (tmp_path / name).write_text(FORMATS["commas"][1])
    text = SWEEP.format(root=tmp_path).splitlines()
    text[1] = f"dataset: {written.replace('ROOT', str(tmp_path))}"
    (tmp_path / "mine.yaml").write_text("\n".join(text))
    with pytest.raises(UserError, match=message):
        expand(tmp_path / "mine.yaml")


def test_both_kinds_of_dataset_in_one_sweep(tmp_path):
    (tmp_path / "captions.csv").write_text(FORMATS["commas"][1])
    runs = plan(tmp_path, tmp_path, f"dataset=[{{name: captions, root: {tmp_path}}}, {{name: demo}}]")
    assert [type(run.dataset) for run in runs] == [CaptionSettings, DatasetSettings]


def test_data_check_of_own_captions(tmp_path, capsys):
    (tmp_path / "captions.csv").write_text(FORMATS["commas"][1])
    render_all(tmp_path, [name for name, *_ in ROWS])
    assert cli.main(["check", "captions", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "split by column split" in out
    assert out.endswith("no problems in 8 images\n")
    (tmp_path / "captions.csv").rename(tmp_path / "x.csv")
    files = ["--file", "x.csv", "--image", "filepath", "--caption", "caption", "--split", "split", "--label", "label"]
    assert cli.main(["check", "captions", "--root", str(tmp_path), *files]) == 0
    assert cli.main(["check", "captions", "--root", str(tmp_path), *files[:3], "foto"]) == 2
    assert "no column 'foto'" in capsys.readouterr().err
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(table(",", "filepath", "title").replace(".jpg", f"_{split}.jpg"))
    assert cli.main(["check", "captions", "--root", str(tmp_path), "--file", "train=train.csv", "test=test.csv"]) == 1
    assert "by file, val 0.1 held out by seed 0" in capsys.readouterr().out
    assert cli.main(["list"]) == 0
    assert "captions" in capsys.readouterr().out
