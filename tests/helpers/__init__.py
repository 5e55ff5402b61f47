"""Code shared by the tests; functions that run in spawned children are here because they must be importable."""
