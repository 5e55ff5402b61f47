"""The one owner of a mapped address range.

An array of ours refers, through its ``base``, to a Mapping; so does every view of it.
When the last of them is gone the range is unmapped: nothing has to be closed, nothing
can be used after it was closed.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shmarray.core import posix
from shmarray.core.names import Name

Mode = Literal["r+", "r", "c"]


class Mapping:
    """Part of a file in the address space of this process, until it is garbage.

    Parameters
    ----------
    fd : int
        The open file; it may be closed afterwards.
    size : int
        Bytes from the beginning of the file.
    mode : {'r+', 'r', 'c'}
        As for `numpy.memmap`: shared, read-only, private copy-on-write.
    name : Name
        What the file was opened as, absolute.
    identity : tuple of int
        Its device and inode.

    Notes
    -----
    A forked child inherits the range: 'r+' and 'r' stay shared with its parent, 'c' is
    each one's own from then on.  Unmapping it in one of them does not touch the other.
    """

    __slots__ = ("__weakref__", "address", "identity", "mode", "name", "size")

    def __init__(self, fd: int, size: int, mode: Mode, name: Name, identity: posix.Identity) -> None:
        self.address = address = posix.map_file(fd, size, mode != "r", mode == "c")
        self.size = size
        self.mode = mode
        self.name = name
        self.identity = identity
        range_ = _Range(self, _unmap)
        range_.address = address
        range_.size = size
        _ranges[address] = range_
        range_.key = identity, mode
        if mode != "c":  # what is private to one attachment is not another's
            _live.setdefault(range_.key, range_)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "typestr": "|u1", "shape": (self.size,), "data": (self.address, self.mode == "r")}

    def octets(self) -> NDArray[np.uint8]:
        """The whole range; the array keeps the mapping alive, not the other way round."""
        return np.asarray(self)

    def store(self, header: bytes) -> None:
        """Write the first bytes through the mapping; the pages must be there."""
        self.octets()[: len(header)] = np.frombuffer(header, np.uint8)

    def array(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        offset: int,
        strides: Sequence[int] | None = None,
        order: Literal["C", "F"] = "C",
    ) -> NDArray[Any]:
        """A view of the range; ValueError if it would reach outside."""
        # Its base is an array of bytes, not the Mapping: `flags.writeable` can then be set
        # to False and back, which numpy allows only over a base that is writeable itself.
        return np.ndarray(shape, dtype, self.octets(), offset, strides, order)


class _Range(weakref.ref[Mapping]):
    """What is left of a Mapping when it is gone: the range that its callback unmaps.

    Not ``Mapping.__del__``: weak references still answer while that runs, and `live` would
    hand another thread a mapping that is being unmapped.
    """

    __slots__ = ("address", "key", "size")
    address: int
    size: int
    key: tuple[posix.Identity, Mode]


_ranges: dict[int, _Range] = {}
_live: dict[tuple[posix.Identity, Mode], _Range] = {}


def _unmap(
    gone: _Range,
    # Bound here: at interpreter exit it may be called when the modules are empty already.
    live: dict[tuple[posix.Identity, Mode], _Range] = _live,
    ranges: dict[int, _Range] = _ranges,
    unmap: Callable[[int, int], None] = posix.unmap,
) -> None:
    if live.get(gone.key) is gone:
        del live[gone.key]
    # Before the range is given back: the next mapping may get the same address.
    del ranges[gone.address]
    unmap(gone.address, gone.size)


def live(identity: posix.Identity, mode: Mode) -> Mapping | None:
    """A mapping of that file that this process has already, if any.

    An inode is not used again while it is mapped, so this is the same file for certain.
    """
    found = _live.get((identity, mode))
    return None if found is None else found()


def is_live(identity: posix.Identity) -> bool:
    """Whether this process has that file mapped, to be seen by others: then it is an array for certain."""
    return (identity, "r+") in _live or (identity, "r") in _live


def mapped(fd: int, size: int, mode: Mode, name: Name, identity: posix.Identity) -> Mapping:
    """The mapping that this process has of the open file, or else a new one."""
    found = live(identity, mode)
    if found is None or found.size < size or found.name != name:
        found = Mapping(fd, size, mode, name, identity)
    return found


def owner(array: NDArray[Any]) -> Mapping | None:
    """The mapping that an array lies in; None if it is not in memory of ours.

    Goes down the chain of bases: views, `as_strided` and memoryviews in between.
    """
    base: Any = array
    while base is not None and type(base) is not Mapping:
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base


def require_owner(array: NDArray[Any]) -> Mapping:
    """As `owner`, but TypeError with the remedy where there is none."""
    mapping = owner(array) if isinstance(array, np.ndarray) else None
    if mapping is None:
        what = f"this {type(array).__name__}" + (f" of shape {array.shape}" if isinstance(array, np.ndarray) else "")
        raise TypeError(
            f"{what} is not in shared memory: copy it there with shmarray.create(name, data=array) "
            "or shmarray.scoped(data=array), and use the array that those give"
        )
    return mapping
