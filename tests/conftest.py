"""What the tests share: no cache of the user's is touched, and one thread is enough."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """One cache for the whole session: the demo world is drawn once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETL_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
