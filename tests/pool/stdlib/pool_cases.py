"""The pool tests of test._test_multiprocessing as classes that spawned children can import."""

import multiprocessing

from test import _test_multiprocessing as cpython

# To a mixin's class body multiprocessing.Pool was a bound method; ours is a class, and binds nothing.
cpython.ProcessesMixin.Pool = staticmethod(multiprocessing.Pool)

# What the forkserver has imported, its children need not.
cpython.PRELOAD.append(__name__)

cpython.install_tests_in_module_dict(globals(), multiprocessing.get_start_method())
