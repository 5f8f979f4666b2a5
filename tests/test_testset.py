"""The file of a test set in a results folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.store import testset
from bench.store.planned import PLAN

SHA = "ab" * 32


@pytest.fixture(autouse=True)
def sweep_folder(tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text("{}")


def test_a_test_set_is_read_as_it_was_written_once(tmp_path: Path):
    testset.write(tmp_path, "ucm", SHA, ["a.tif", "b.tif"], ["river", None], [["a river"], ["b", "飞机 <b>"]])
    before = testset.path_of(tmp_path, SHA).stat().st_mtime_ns
    testset.write(tmp_path, "ucm", SHA, ["c.tif"], [None], [["other"]])

    found = testset.read(tmp_path, SHA)
    assert found is not None
    assert found.images == ("a.tif", "b.tif")
    assert found.labels == ("river", None)
    assert found.captions == (("a river",), ("b", "飞机 <b>"))
    assert testset.path_of(tmp_path, SHA).stat().st_mtime_ns == before


@pytest.mark.parametrize("content", ["", "[]", '{"dataset": "ucm"}', None])
def test_a_broken_file_is_no_test_set_and_is_written_anew(tmp_path: Path, content: str | None):
    path = testset.path_of(tmp_path, SHA)
    if content is not None:
        path.parent.mkdir()
        path.write_text(content)
    assert testset.read(tmp_path, SHA) is None
    testset.write(tmp_path, "ucm", SHA, ["a.tif"], [None], [["a river"]])
    assert testset.read(tmp_path, SHA) is not None


def test_another_datasets_file_and_numbers_that_differ_are_refused(tmp_path: Path):
    testset.write(tmp_path, "ucm", SHA, ["a.tif"], [None], [["a river"]])
    path = testset.path_of(tmp_path, SHA)
    other = SHA[:16] + "cd" * 24
    assert testset.read(tmp_path, other) is None
    assert testset.read(tmp_path, "../" + SHA[3:]) is None
    path.write_text(path.read_text().replace('"a.tif"', '"a.tif", "b.tif"'))
    assert testset.read(tmp_path, SHA) is None


def test_nothing_is_written_beside_a_lone_run(tmp_path: Path):
    (tmp_path / PLAN).unlink()
    testset.write(tmp_path, "ucm", SHA, ["a.tif"], [None], [["a river"]])
    assert list(tmp_path.iterdir()) == []


def test_no_run_fails_for_want_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / testset.FOLDER).write_text("a file where the folder should be")
    testset.write(tmp_path, "ucm", SHA, ["a.tif"], [None], [["a river"]])
    assert "could not be written" in capsys.readouterr().err
    assert testset.read(tmp_path, SHA) is None
