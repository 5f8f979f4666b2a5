"""The README's commands for data of one's own, run as they are typed."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.standins import render

ROOT = Path(__file__).parents[1]
QUICK = ["backbone.model=tiny-clip", "backbone.weights=random", "train.epochs=1", "train.workers=0", "grid.seed=0"]


def block(before: str) -> str:
    """The README's next block of commands behind these words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(before, 1)[1]
    found = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    render(path.name).save(path)


def with_a_table(root: Path) -> None:
    rows = [
        (f"class{i % 3}/{i}.png", f"a place, number {i}", ["train", "test", "val"][(i > 69) + (i > 79)])
        for i in range(90)
    ]
    for name, *_ in rows:
        picture(root / name)
    with (root / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filepath", "title", "split"), *rows])


def with_imagefolder(root: Path) -> None:
    for split, count in (("train", 80), ("test", 12)):
        for i in range(count):
            picture(root / split / f"{i}.jpg")
        lines = [json.dumps({"file_name": f"{i}.jpg", "text": f"a {split} place, number {i}"}) for i in range(count)]
        (root / split / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("make", "split"), [(with_a_table, "by column split"), (with_imagefolder, "by file, val 0.1 held out")]
)
def test_from_a_folder_of_pictures_to_a_report(tmp_path, make, split):
    root = tmp_path / "my airports"
    make(root)
    (tmp_path / "sweeps").symlink_to(ROOT / "sweeps")
    commands = block("Three commands lead from there to a report")
    assert len(commands.splitlines()) == 3
    quick = " ".join(f"--set {each}" for each in QUICK)
    commands = commands.replace("=/data/airports", f"={str(root)!r}")
    commands = commands.replace("sweeps/captions.yaml ", f"sweeps/captions.yaml --executor local {quick} ")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(["bash", "-ec", commands], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no problems in" in done.stdout
    with (tmp_path / "reports/captions/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["zero_shot", "linear_probe", "lora", "full_finetune"]
    assert {row["dataset"] for row in rows} == {"my airports"}
    assert all(float(row["mean_recall"]) > 0 for row in rows)
    assert split in (tmp_path / "reports/captions/table.md").read_text()
