"""CPython's own tests of multiprocessing.Pool, run against ours under every start method.

Left out: test_worker_finalization_via_atexit_handler_of_multiprocessing starts a program
that imports the stock Pool by name; test_pool.py has its counterpart for ours.
"""

import multiprocessing
import unittest
from functools import partial

import pytest

import shmarray

base = pytest.importorskip("test._test_multiprocessing", reason="this Python comes without its own tests")

# Their names must not be collected here, and the three are one file's business.
_BASES = {name: getattr(base, name) for name in ("_TestPool", "_TestPoolWorkerErrors", "_TestPoolWorkerLifetime")}
_LEFT_OUT = "test_worker_finalization_via_atexit_handler_of_multiprocessing"


def _bound(name, method):
    """One of CPython's test classes, with our Pool and a start method."""
    context = multiprocessing.get_context(method)
    pool = partial(shmarray.Pool, context=context)

    class Bound(_BASES[name], base.ProcessesMixin, unittest.TestCase):
        Pool = staticmethod(pool)

        def setUp(self):
            super().setUp()
            self.stock = multiprocessing.Pool
            multiprocessing.Pool = pool

        def tearDown(self):
            multiprocessing.Pool = self.stock
            super().tearDown()

    if hasattr(Bound, _LEFT_OUT):
        setattr(Bound, _LEFT_OUT, None)
    # Workers find the methods that tests pass to them by these.
    Bound.__name__ = Bound.__qualname__ = f"Test{name.removeprefix('_Test')}Under{method.capitalize()}"
    Bound.__module__ = __name__
    return Bound


for _name in _BASES:
    for _method in ("fork", "spawn", "forkserver"):
        _class = _bound(_name, _method)
        globals()[_class.__name__] = _class
del _class
