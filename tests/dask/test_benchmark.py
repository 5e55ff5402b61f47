"""The benchmark of clusters runs, and its results are correct; its timings are not checked."""

import pytest

pytest.importorskip("distributed", reason="needs distributed (the extra dask)")

from benchmarks import cluster


def test_one_run():
    figures = cluster.turn("shmarray.dask.Pool.starmap", 2, 4, 1)
    assert figures["seconds"] > 0
    assert figures["bytes"] > 0
