"""The only owner of a mapped address range.

An array of this library, and every view of it, refers to a Mapping through its ``base``.  When
the last of them is gone, the range is unmapped, so nothing needs to be closed, and nothing can
be used after it was closed.
"""

import threading
import weakref
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from shmarray.core.layout import WORD
from shmarray.core.names import Name
from shmarray.core.posix import files, maps, pages

Mode = Literal["r+", "r", "c"]

# Bits of what the kernel tells of a page.
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


class Mapping(maps.Range):
    """Part of a file in the address space of this process, until it is garbage.

    Parameters
    ----------
    fd : int
        The open file; it may be closed afterwards.
    nbytes : int
        Bytes from the beginning of the file, which must be there.
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

    __slots__ = ("identity", "mode", "name")
    mode: Mode
    name: Name
    identity: files.Identity

    def __new__(cls, fd: int, nbytes: int, mode: Mode, name: Name, identity: files.Identity) -> Self:
        self = cls.of_file(fd, nbytes, mode != "r", mode == "c")
        self.mode = mode
        self.name = name
        self.identity = identity
        if mode != "c":  # what is private to one attachment is not another's
            _remember(weakref.ref(self), (identity, mode))
        return self

    def store(self, header: bytes) -> None:
        """Write the first bytes through the mapping, the first word last; the pages must be there.

        A process that reads that word also sees everything written before it, on any processor.
        """
        octets, source = self.octets(), np.frombuffer(header, np.uint8)
        octets[WORD : len(header)] = source[WORD:]
        # Python has no fence.  What precedes the first release of a lock stays before it, and
        # what follows the second acquire stays after it.  A lock of its own, because a fork
        # would leave a common one held in the child.
        fence = threading.Lock()
        for _ in range(2):
            with fence:
                pass
        octets[:WORD].view(np.uint64)[0] = source[:WORD].view(np.uint64)[0]

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

    def discard_writes(self) -> None:
        """Make a private mapping ('c') show its file again, if anything was written to it.

        Raises
        ------
        OSError
            With EINVAL, if it is locked into memory (mlockall): it still shows what was written.
        """
        # Not always, because pages that were only read would have to be faulted in again.
        if self._may_be_written():
            maps.discard_writes(self.address, self.nbytes)

    def _may_be_written(self) -> bool:
        try:
            entries = np.frombuffer(pages.page_entries(self.address, self.nbytes), np.uint64)
        except OSError:
            return True
        written = (entries & (_PRESENT | _SWAPPED)).astype(bool) & ~(entries & _OF_FILE).astype(bool)
        return len(entries) * pages.PAGE < self.nbytes or bool(written.any())


_Key = tuple[files.Identity, Mode]
_live: dict[_Key, weakref.ref[Mapping]] = {}
# Entries of mappings that are gone stay until there are as many again: to take each out
# when it ends would need Python code there (see maps.Unmapping).
_FEW = 256
_limit = _FEW


def _remember(reference: weakref.ref[Mapping], key: _Key) -> None:
    global _limit  # noqa: PLW0603 - two threads that prune at once do no harm
    # Each operation on the dictionary is atomic, with a GIL or without.  No lock: a finalizer
    # that makes an array may run in the middle, and a fork would leave it held in the child.
    if len(_live) >= _limit:
        for old, other in _live.copy().items():
            # Another thread may have mapped the file again since the check.
            if other() is None and (popped := _live.pop(old, other)) is not other:
                _live.setdefault(old, popped)
        _limit = max(_FEW, 2 * len(_live))
    known = _live.get(key)
    if known is None or known() is None:
        _live[key] = reference


def live(identity: files.Identity, mode: Mode) -> Mapping | None:
    """A mapping of that file that this process has already, if any.

    An inode is not used again while it is mapped, so this is the same file for certain.
    Where shared memory objects have none (macOS), it is 0, and nothing is known.
    """
    if not identity[1]:
        return None
    found = _live.get((identity, mode))
    return None if found is None else found()


def is_live(identity: files.Identity) -> bool:
    """Whether this process has that file mapped, to be seen by others: then it is an array for certain."""
    return live(identity, "r+") is not None or live(identity, "r") is not None


def mapped(fd: int, size: int, mode: Mode, name: Name, identity: files.Identity) -> Mapping:
    """The mapping that this process has of the open file, or else a new one."""
    found = live(identity, mode)
    if found is None or found.nbytes < size or found.name != name:
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
    """As `owner`, but raise TypeError, with the remedy, if there is none."""
    mapping = owner(array) if isinstance(array, np.ndarray) else None
    if mapping is None:
        raise TypeError(_not_shared(array))
    return mapping


def _not_shared(thing: object) -> str:
    what = f"this {type(thing).__name__} is not in shared memory: "
    if isinstance(thing, str):
        return what + "attach it with shmarray.attach(name), and pass the array"
    if hasattr(thing, "array"):
        return what + "pass its .array"
    if isinstance(thing, np.memmap):
        return what + "open the file with shmarray.attach(name), not with numpy"
    return what + (
        "copy it there with shmarray.create(name, data=array) or shmarray.scoped(data=array), and use the array that "
        "they return, or a view of it; operations and indexing with a list return copies"
    )
