"""Whether other processes can import the caller's ``__main__``."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache


def is_importable() -> bool:
    """Whether a process that is not forked from this one can import this one's ``__main__``.

    It cannot if that is a notebook, a prompt, ``-c``, standard input or the ``__main__.py`` of a package.
    """
    if "ps1" in sys.__dict__:  # a prompt, perhaps after a script (python -i)
        return False
    names = sys.modules["__main__"].__dict__  # not getattr, which takes longer: this is asked for each task
    spec = names.get("__spec__")
    if spec is not None:
        return str(spec.name).rpartition(".")[2] != "__main__"  # multiprocessing does not import these
    return _names_a_file(names.get("__file__"))


@contextmanager
def hidden_if_no_file() -> Iterator[None]:
    """Have multiprocessing start processes although ``__main__.__file__`` is ``'<stdin>'``.

    Children of spawn and forkserver would try to run a file of that name, and die of it.
    """
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is None or getattr(main, "__spec__", None) is not None or _names_a_file(path):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = path


@lru_cache(maxsize=8)
def _names_a_file(path: str | None) -> bool:
    return path is not None and os.path.exists(path)
