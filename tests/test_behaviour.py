"""What adaptation does to a model: the plan, whole runs against an independent computation, the command, the report."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import bench
from bench import data
from bench import measure as command
from bench.compute import behaviour as compute
from bench.compute.execute import execute
from bench.config import files
from bench.config.errors import UserError
from bench.config.settings import CaptionSettings, DatasetSettings
from bench.core.ranks import from_npz, metrics
from bench.demo import general, others, pretrain, world
from bench.plan.grid import expand
from bench.plan.spec import RunSpec
from bench.reporting.build import build
from bench.reporting.measured import FROZEN
from bench.store import behaviour, folder, record
from tests.test_report import done, spec, write

MODEL = {"model": "tiny-clip", "weights": "random"}
TEMPLATES = ["{} land", "a view of {} land."]


@pytest.fixture(scope="module")
def labelled(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature dataset with classes: the colour on the left."""
    target = tmp_path_factory.mktemp("labelled") / "data"
    shutil.copytree(root, target)
    content = json.loads((target / "dataset.json").read_text())
    for image in content["images"]:
        image["label"] = image["sentences"][0]["raw"].split()[0].upper()
    (target / "dataset.json").write_text(json.dumps(content))
    return target


@pytest.fixture(scope="module")
def coco(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Some of the pictures as COCO lies on disk: no splits, an image without captions, an annotation a caption."""
    target = tmp_path_factory.mktemp("coco")
    for name in ("val2017", "annotations"):
        (target / name).mkdir()
    images = [{"id": 7 * index, "file_name": f"{index}.png"} for index in range(6)]
    for image in images:
        shutil.copy(root / str(image["file_name"]), target / "val2017")
    said = [{"id": n, "image_id": 7 * (n // 2), "caption": f"picture {n // 2}, said {n}"} for n in range(10)]
    content = {"images": images, "annotations": said}
    (target / "annotations" / "captions_val2017.json").write_text(json.dumps(content))
    file = "../annotations/captions_val2017.json"
    return {"name": "captions", "root": str(target / "val2017"), "file": file, "title": "COCO"}


def sweep_file(tmp_path: Path, labelled: Path, asked: Any, **more: Any) -> Path:
    content = {
        "name": "t",
        "dataset": {"name": "ucm", "root": str(labelled), "split": "karpathy"},
        "backbone": MODEL,
        "train": {"epochs": 1, "batch_size": 8, "lr": 2e-3, "workers": 0},
        "behaviour": asked,
        "grid": {"method": ["zero_shot", {"lora": {"rank": 2}}]},
    }
    path = tmp_path / "t.yaml"
    path.write_text(yaml.dump(content | more, sort_keys=False))
    return path


# --- planning ---------------------------------------------------------------------------------------------------------


def test_a_run_keeps_its_id_and_its_settings(tmp_path, labelled, coco, monkeypatch):
    monkeypatch.setenv("UCM_ROOT", str(labelled))
    plain = expand(sweep_file(tmp_path, labelled, {}))
    asked = {
        "geometry": True,
        "evaluate": ["demo-haze", {"name": "ucm", "root": "$UCM_ROOT", "split": "karpathy"}],
        "forgetting": coco,
    }
    found = expand(sweep_file(tmp_path, labelled, asked))
    assert [run.run_id for run in found.runs] == [run.run_id for run in plain.runs]
    assert all("behaviour" not in run.to_dict() for run in plain.runs)
    for run in found.runs:
        assert RunSpec.from_dict(run.to_dict()) == run
        assert [each.called for each in run.behaviour.evaluate] == ["demo-haze", "ucm"]
        assert run.behaviour.evaluate[1].root == str(labelled)
        assert run.behaviour.forgetting[0].image == "file_name", "found, and written out"


def test_a_known_datasets_name_stands_for_its_environment_variable(tmp_path, labelled, monkeypatch):
    path = sweep_file(tmp_path, labelled, {"evaluate": ["rsicd"]})
    monkeypatch.delenv("RSICD_ROOT", raising=False)
    with pytest.raises(UserError, match=r"t.yaml:\d+: the environment variable RSICD_ROOT is not set"):
        expand(path)
    monkeypatch.setenv("RSICD_ROOT", str(labelled))
    with pytest.raises(UserError, match=r"t.yaml:\d+: .*train.json"):
        expand(path)
    shutil.copy(labelled / "dataset.json", labelled / "dataset_rsicd.json")
    found = expand(
        sweep_file(tmp_path, labelled, {"evaluate": {"name": "rsicd", "root": "$RSICD_ROOT", "split": "karpathy"}})
    )
    assert found.runs[0].behaviour.evaluate[0].split == "karpathy"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"geometri": True}, "unknown key 'geometri'; did you mean 'geometry'"),
        ({"geometry": 1}, "geometry: expected"),
        ({"templates": ["a photo"]}, "templates"),
        ({"evaluate": ["demo-fog"]}, r"behaviour.evaluate: name: expected .*did you mean 'demo"),
        ({"evaluate": [{"nam": "demo"}]}, "behaviour.evaluate"),
        ({"evaluate": [3]}, r"behaviour.evaluate: expected a dataset's name or settings 'name: ...', got 3"),
        ({"evaluate": ["demo", "demo"]}, "behaviour.evaluate: two datasets are called 'demo'"),
        ("geometry", "behaviour: expected settings"),
    ],
)
def test_mistakes(tmp_path, labelled, asked, message):
    with pytest.raises(UserError, match=r"t.yaml:\d+: .*" + message):
        expand(sweep_file(tmp_path, labelled, asked))


# --- test sets alone --------------------------------------------------------------------------------------------------


def test_coco_without_splits_is_all_test(coco):
    found = data.load_test(CaptionSettings(**coco))
    assert (found.name, found.split, found.train, found.val) == ("COCO", "all images", (), ())
    assert [item.image for item in found.test] == [f"{n}.png" for n in range(5)], (
        "an image without a caption is left out"
    )
    assert found.test[1].captions == ("picture 1, said 2", "picture 1, said 3")


def test_karpathys_coco_has_its_test_split(tmp_path):
    entries = [
        {"filepath": "val2014", "filename": f"{n}.jpg", "split": split, "sentences": [{"raw": f"c {n}"}]}
        for n, split in enumerate(["train", "restval", "val", "test"])
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": entries}))
    found = data.load_test(CaptionSettings(name="captions", root=str(tmp_path)))
    assert [item.image for item in found.test] == ["val2014/3.jpg"]
    (tmp_path / "captions.json").write_text(json.dumps({"images": entries[:3]}))
    with pytest.raises(UserError, match="no test images with captions"):
        data.load_test(CaptionSettings(name="captions", root=str(tmp_path)))


def test_the_demos_other_worlds():
    unseen = data.load_test(DatasetSettings(name="demo-general"))
    assert len(unseen.test) == others.GENERAL_SCENES
    assert list(unseen.test[0].captions) == general.scene(others.GENERAL_SEED, 0, others.CAPTIONS)[1]
    assert others.GENERAL_SEED != pretrain.SEED
    with pytest.raises(UserError, match="no train images"):
        data.load(DatasetSettings(name="demo-general"))
    for (name, split, label, picture, captions), index in zip(others.haze_scenes(), range(3), strict=False):
        expected = world.scene(others.HAZE_SEED, index)
        assert (split, label, captions) == ("train", expected[0], expected[2])
        assert name.startswith(label)
        assert 0 < np.std(picture) < np.std(expected[1]), "paler"
        assert captions != world.scene(0, index)[2], "other scenes than the demo's"


# --- whole runs -------------------------------------------------------------------------------------------------------


def start(run: RunSpec, where: Path) -> Path:
    run_dir = where / run.run_id
    run_dir.mkdir(parents=True)
    files.write_bytes(run_dir / folder.RUN, run.dump().encode())
    return run_dir


def embeddings(adapted: Any, dataset: Any) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Of a test set's images and captions, one by one; and each caption's image."""
    with torch.no_grad():
        pictures = [adapted.preprocess(Image.open(dataset.root / item.image)) for item in dataset.test]
        images = [adapted.model.encode_image(each[None], normalize=True)[0].numpy() for each in pictures]
        said = [(text, index) for index, item in enumerate(dataset.test) for text in item.captions]
        texts = [adapted.model.encode_text(adapted.tokenizer(text), normalize=True)[0].numpy() for text, _ in said]
    return np.stack(images), np.stack(texts), [index for _, index in said]


@pytest.fixture(scope="module")
def measured(labelled, coco, tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """(sweep file, run folders by method) of two runs that measured everything."""
    tmp_path = tmp_path_factory.mktemp("measured")
    same = {"name": "ucm", "root": str(labelled), "split": "karpathy"}
    asked = {"geometry": True, "classify": True, "templates": TEMPLATES, "evaluate": [same], "forgetting": coco}
    path = sweep_file(tmp_path, labelled, asked)
    runs = {run.method.name: start(run, tmp_path / "results" / "t") for run in expand(path).runs}
    for run_dir in runs.values():
        assert execute(run_dir).error is None
    return path, runs


def test_a_runs_measures_are_those_of_its_model(measured, labelled, coco):
    run_dir = measured[1]["lora"]
    found = behaviour.read(run_dir)
    own, forgotten = found.sets
    assert [own.role, forgotten.role] == ["own", "forgetting"], "its own test set is not evaluated a second time"
    assert own.after.scores == record.read(run_dir).metrics.test
    adapted, plain = bench.load(run_dir), bench.load(measured[1]["zero_shot"])
    sets = (
        (own, data.load(RunSpec.load(run_dir / folder.RUN).dataset)),
        (
            forgotten,
            data.load_test(CaptionSettings(**coco)),
        ),
    )
    for test, dataset in sets:
        after, before = embeddings(adapted, dataset), embeddings(plain, dataset)
        for measured_, (x, y, owner) in ((test.after, after), (test.before, before)):
            assert measured_.geometry.modality_gap == pytest.approx(np.linalg.norm(x.mean(0) - y.mean(0)), abs=1e-5)
            apart = ((x[owner] - y) ** 2).sum(1).mean()
            assert measured_.geometry.alignment == pytest.approx(apart, abs=1e-5)
            above = [sum(y[row] @ x.T > y[row] @ x[image] + 1e-6) for row, image in enumerate(owner)]
            assert measured_.scores.t2i_r1 == pytest.approx(100 * np.mean(np.array(above) == 0), abs=1e-3)
        for side, drift in enumerate((test.drift_image, test.drift_text)):
            assert drift == pytest.approx(1 - (after[side] * before[side]).sum(1).mean(), abs=1e-5)
            assert drift > 1e-4
    assert forgotten.after.scores.images == 5
    assert forgotten.after.classification is None, "no classes"


def test_the_ranks_behind_the_scores_are_saved_for_both_models(measured):
    for run_dir in measured[1].values():
        for test in behaviour.read(run_dir).sets:
            for side in behaviour.SIDES:
                ranks = from_npz(behaviour.ranks_file(run_dir, test.sha256, side))
                scores = getattr(test, side).scores
                assert record.Scores.model_validate(metrics(ranks.i2t, ranks.t2i)) == scores
                assert (len(ranks.captions), ranks.captions.sum()) == (scores.images, scores.captions)
    lora = behaviour.read(measured[1]["lora"])
    own = from_npz(behaviour.ranks_file(measured[1]["lora"], lora.sets[0].sha256, "after"))
    whole = from_npz(measured[1]["lora"] / folder.RANKS)
    assert (own.t2i.above == whole.t2i.above).all()
    assert (own.captions == whole.captions).all()


def test_runs_that_saved_no_ranks_are_measured_again(measured, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(measured[1]["lora"], run_dir)
    asked = compute.asked_of(RunSpec.load(run_dir / folder.RUN))
    forgotten = behaviour.read(run_dir).sets[1]
    assert behaviour.is_measured(run_dir, asked)
    behaviour.ranks_file(run_dir, forgotten.sha256, "before").unlink()
    assert not behaviour.is_measured(run_dir, asked)
    assert behaviour.is_measured(run_dir, asked | {"forgetting": []}), "only of what is asked for"


def test_classification_is_that_of_the_model(measured, labelled):
    run_dir = measured[1]["lora"]
    adapted, dataset = bench.load(run_dir), data.load(RunSpec.load(run_dir / folder.RUN).dataset)
    names = sorted({item.label for item in dataset.test})
    x, _, _ = embeddings(adapted, dataset)
    with torch.no_grad():
        means = []
        for name in names:
            tokens = adapted.tokenizer([each.replace("{}", name.lower()) for each in TEMPLATES])
            mean = adapted.model.encode_text(tokens, normalize=True).mean(0)
            means.append((mean / mean.norm()).numpy())
    right = np.array([names[int(np.argmax(np.stack(means) @ row))] for row in x]) == [i.label for i in dataset.test]
    found = behaviour.read(run_dir).sets[0].after.classification
    assert (found.classes, found.images) == (len(names), 8)
    assert found.accuracy == pytest.approx(100 * right.mean())
    of = [right[[item.label == name for item in dataset.test]].mean() for name in names]
    assert found.mean_per_class == pytest.approx(100 * np.mean(of))


def test_the_frozen_backbone_has_not_moved(measured):
    for test in behaviour.read(measured[1]["zero_shot"]).sets:
        assert test.before == test.after
        assert test.drift_image == pytest.approx(0, abs=1e-6)


def test_the_backbone_is_embedded_once_for_runs_that_share_it(measured, monkeypatch):
    _, runs = measured
    loads = []
    kept = compute.Finished()
    monkeypatch.setattr(compute, "load_backbone", lambda s, load=compute.load_backbone: loads.append(s) or load(s))
    for run_dir in runs.values():
        old = (run_dir / behaviour.FILE).read_bytes()
        kept.record(run_dir, RunSpec.load(run_dir / folder.RUN))
        assert (run_dir / behaviour.FILE).read_bytes() == old, "the same numbers to the last digit"
    assert len(loads) == 2, "once on its own data, once on COCO"


def test_what_can_not_be_measured_is_noted_and_the_run_is_finished(labelled, coco, tmp_path):
    shutil.copytree(Path(coco["root"]).parent, tmp_path / "broken")
    (tmp_path / "broken/val2017/3.png").write_bytes(b"no picture")
    asked = {"evaluate": [coco | {"root": str(tmp_path / "broken/val2017")}], "forgetting": coco}
    run_dir = start(expand(sweep_file(tmp_path, labelled, asked)).runs[0], tmp_path)
    assert execute(run_dir).finished
    bad, good = behaviour.read(run_dir).sets
    assert "3.png" in bad.note
    assert bad.after is None
    assert good.note == ""
    assert good.after.scores.images == 5
    assert not behaviour.read(run_dir).answers(compute.asked_of(RunSpec.load(run_dir / folder.RUN)))


# --- the command ------------------------------------------------------------------------------------------------------


def test_finished_runs_are_measured_later(measured, coco, tmp_path, capsys):
    path, runs = measured
    results = tmp_path / "results"
    shutil.copytree(runs["lora"].parent, results / "t")
    run_dir = results / "t" / runs["lora"].name
    (run_dir / behaviour.FILE).unlink()
    assert command.main([str(path), "--results", str(results), "--set", "behaviour.forgetting=[]"]) == 0
    assert "1 finished runs measured, of 2 runs" in capsys.readouterr().out, "the other one has more than is asked for"
    whole = behaviour.read(runs["lora"])
    assert behaviour.read(run_dir).sets == whole.sets[:1]
    lacking = [str(path), "--results", str(results), "--set", "behaviour.geometry=false", "behaviour.classify=false"]
    assert command.main(lacking) == 0
    assert "1 finished runs measured" in capsys.readouterr().out
    forgotten, own = behaviour.read(run_dir).sets
    assert own == whole.sets[0], "what was measured before stays"
    assert forgotten.after.scores == whole.sets[1].after.scores
    assert command.main([str(path), "--results", str(results)]) == 0
    assert "0 finished runs measured" in capsys.readouterr().out


def test_the_command_asks_for_something_to_measure(labelled, tmp_path, capsys):
    assert command.main([str(sweep_file(tmp_path, labelled, {}))]) == 2
    assert "asks for nothing" in capsys.readouterr().err


def test_a_sweep_says_that_finished_runs_lack_measures(measured, tmp_path, capsys):
    from bench import sweep

    path, runs = measured
    results = tmp_path / "results"
    shutil.copytree(runs["lora"].parent, results / "t")
    (results / "t" / runs["lora"].name / behaviour.FILE).unlink()
    assert (
        sweep.main([str(path), "--results", str(results), "--reports", str(tmp_path / "r"), "--executor", "inline"])
        == 0
    )
    assert re.search(r"note: 1 finished runs lack what `behaviour` asks for: `.*bench.measure", capsys.readouterr().out)


# --- the report -------------------------------------------------------------------------------------------------------

PLAIN = dict.fromkeys(record.RECALLS, 50.0)
GEOMETRY = {"modality_gap": 0.5, "alignment": 1.0} | {
    side: {"uniformity": -2.0, "similarity": 0.25, "class_similarity": None, "effective_rank": 30.0}
    for side in ("image", "text")
}


def test_set(role: str, dataset: str, before: float, after: float, **more: Any) -> dict[str, Any]:
    def model(mean: float) -> dict[str, Any]:
        return {"scores": PLAIN | {"mean_recall": mean}, "geometry": GEOMETRY}

    drifts = {"drift_image": 0.125, "drift_text": None}
    return {"role": role, "dataset": dataset, "before": model(before), "after": model(after)} | drifts | more


test_set.__test__ = False  # type: ignore[attr-defined]


def results_of(tmp_path: Path) -> Path:
    """LoRA trained on two datasets with two seeds, and zero-shot; one seed of one lacks the measures."""
    entries, sets = [], []
    for name, mean in (("rsitmd", 40.0), ("ucm", 30.0)):
        other = {"rsitmd": "ucm", "ucm": "rsitmd"}[name]
        for seed in (0, 1):
            entries.append(done(spec("lora", seed, dataset={"name": name}, rank=8), mean + seed))
            forgotten = test_set("forgetting", "C<o>co", 80.0, 60.0 - 10 * seed)
            note = {"role": "evaluate", "dataset": "sydney", "note": "no file <x>"}
            sets.append(
                [test_set("own", name, 5.0, mean), test_set("evaluate", other, 10.0, 20.0 + seed), forgotten, note]
            )
        entries.append(done(spec("zero_shot", dataset={"name": name}), 5.0, 0))
        sets.append([test_set("own", name, 5.0, 5.0), test_set("evaluate", other, 10.0, 10.0)])
    results = write(tmp_path / "results", entries)
    run_ids = [each["run_id"] for each in json.loads((results / "plan.json").read_text())["runs"]]
    for run_id, each in list(zip(run_ids, sets, strict=True))[1:]:
        (results / run_id / behaviour.FILE).write_text(json.dumps({"schema": 1, "sets": each}))
    return results


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables(tmp_path):
    out = build(results_of(tmp_path), tmp_path / "out").out_dir
    transfer = {(row["method"], row["trained_on"]): row for row in read(out / "transfer.csv")}
    assert set(transfer) == {(FROZEN, ""), ("lora", "rsitmd"), ("lora", "ucm")}, "zero-shot is the frozen row"
    cells = {key: [row[f"mean_recall_{name}"] for name in ("rsitmd", "ucm")] for key, row in transfer.items()}
    assert cells[FROZEN, ""] == ["10.0", "10.0"]
    assert cells["lora", "rsitmd"] == ["40.5", "21.0"], "on its own data the main table's"
    assert cells["lora", "ucm"] == ["20.5", "30.5"]
    assert float(transfer["lora", "ucm"]["mean_recall_rsitmd_std"]) == pytest.approx(0.5**0.5)
    assert transfer["lora", "rsitmd"]["mean_recall_ucm_std"] == "", "one of two seeds was measured"
    lost = {(row["method"], row["trained_on"]): row for row in read(out / "forgetting.csv")}
    assert [lost["lora", "ucm"][key] for key in ("runs", "mean_recall", "change")] == ["2", "55.0", "-25.0"]
    assert float(lost["lora", "ucm"]["kept"]) == 68.75
    assert lost["lora", "ucm"]["drift_text"] == ""
    rows = read(out / "geometry.csv")
    assert [row["method"] for row in rows] == [FROZEN, FROZEN, "lora", "lora"]
    assert rows[0]["modality_gap"] == "0.5"
    text = (out / "table.md").read_text()
    for shown in ("LoRA (1 of 2 runs)", "−25.0", "55.0 ± 7.1", "−2.00 / −2.00", "0.125 / –"):
        assert shown in text
    assert "Not measured: sydney in 3 runs: no file &lt;x&gt;" in text
    page = (out / "index.html").read_text()
    assert "<o>" not in page
    assert ">C&lt;o&gt;co</td>" in page
    assert page.count("Transfer; the numbers are in the table below") == 1
    assert (out / "transfer.png").stat().st_size > 5000


def test_a_report_without_measures_has_no_such_tables(tmp_path):
    results = results_of(tmp_path)
    for file in results.glob(f"*/{behaviour.FILE}"):
        file.write_text("{" if "lora" in file.parent.name else '{"schema": 2}')
    out = build(results, tmp_path / "out").out_dir
    assert not [*out.glob("transfer*"), *out.glob("forgetting*"), *out.glob("geometry*")]
