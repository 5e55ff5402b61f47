"""The pool tests of test._test_multiprocessing as classes that spawned children can import."""

import multiprocessing

from test import _test_multiprocessing as cpython

# In a mixin's class body multiprocessing.Pool was a bound method; ours is a class, so it must not be bound.
cpython.ProcessesMixin.Pool = staticmethod(multiprocessing.Pool)

# Children of the forkserver need not import what it has already imported.
cpython.PRELOAD.append(__name__)

cpython.install_tests_in_module_dict(globals(), multiprocessing.get_start_method())
