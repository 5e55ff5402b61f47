"""The benchmark of clusters runs, and its results are right; its figures are nobody's business here."""

from benchmarks import cluster


def test_a_turn_is_taken():
    figures = cluster.turn("shmarray.dask.Pool.starmap", 2, 4, 1)
    assert figures["seconds"] > 0
    assert figures["bytes"] > 0
