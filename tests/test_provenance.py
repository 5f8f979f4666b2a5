"""The recorded commit is this code's own, or none."""

from __future__ import annotations

import subprocess

import pytest

from bench.store import provenance


@pytest.fixture
def git(tmp_path, monkeypatch):
    """A repository with a committed copy of bench/store/provenance.py, which the module is made to believe it is."""

    def run(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "bench" / "store").mkdir(parents=True)
    (tmp_path / "methods").mkdir()
    (tmp_path / "bench" / "store" / "provenance.py").write_text("a")
    run("init", "-q")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "bench" / "store" / "provenance.py"))
    return run


def test_code_inside_another_repository_has_no_commit(git):
    git("commit", "-q", "--allow-empty", "-m", "someone else's")
    assert provenance.commit() is None
    assert provenance.is_dirty() is None


def test_a_new_method_makes_the_code_dirty_and_results_do_not(git, tmp_path):
    git("add", ".")
    git("commit", "-q", "-m", "ours")
    assert provenance.commit() == git("rev-parse", "HEAD")
    (tmp_path / "results.json").write_text("{}")
    assert provenance.is_dirty() is False
    (tmp_path / "methods" / "mine.py").write_text("")
    assert provenance.is_dirty() is True
