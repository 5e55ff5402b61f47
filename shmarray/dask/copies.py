"""The copies of shared arrays in this process, and how other processes of this host find them.

A copy is in anonymous memory, which the kernel frees with its last user.  Each process that has
it mapped also keeps a descriptor, and records it in the array's register.  The next process can
use any of them, so nothing is lost if one process dies.
"""

import hashlib
import io
import os
import resource
import threading
import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmarray.core import (
    Mapping,
    Name,
    Reference,
    Register,
    Undo,
    create_temporary,
    host_of_memory,
    identity_of,
    owner,
    refer,
    resolve,
    sweep_registers,
)

Entry = list[Any]
"""Of a register: the path of a descriptor, device and inode, bytes of the file, offset of the data."""


@dataclass(frozen=True, slots=True)
class Description:
    """What every holder of an array's handle knows about the array.

    Attributes
    ----------
    key : str
        The scheduler's, unique.
    shape : tuple of int
    dtype : numpy.dtype
    strides : tuple of int or None
        Bytes; None for row-major.
    nbytes : int
    topic : str
        Of the events that tell the client that an array is to be sent.
    interval : float
        Seconds between two questions to the scheduler whether it still knows the key.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] | None
    nbytes: int
    topic: str
    interval: float


class Copy:
    """One array's bytes in the memory of this host.

    Attributes
    ----------
    octets : ndarray of uint8
        All of them, read-only.
    """

    def __init__(self, octets: NDArray[np.uint8], reference: Reference, undo: Undo) -> None:
        self.octets = octets
        self._reference = reference
        self._undo = undo
        # Private mappings that nobody looks at: of tasks that have ended, and those that show the copy again.
        self._returned: deque[Mapping] = deque()
        self._clean: deque[Mapping] = deque()

    @classmethod
    def of(cls, writable: NDArray[np.uint8], undo: Undo) -> "Copy":
        """The copy in memory that `new_memory` made and that is full now."""
        reference = refer(writable)._replace(mode="r", writeable=False)
        try:
            octets = resolve(reference)
        except BaseException:
            undo_all(undo)
            raise
        if reference.name.kind != "anonymous" or not _may_keep(3 / 4):
            undo_all(undo)
        return cls(octets, reference, undo)

    @classmethod
    def attached(cls, entry: Entry, nbytes: int) -> "Copy":
        """The copy that another process has; OSError if it has it no more."""
        path, device, inode, size, offset = entry
        file = io.FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        try:
            own = Name("anonymous array", "anonymous", f"/proc/{os.getpid()}/fd/{file.fileno()}")
            reference = Reference(
                host_of_memory(anonymous=True),
                own,
                (device, inode),
                None,
                "r",
                size,
                offset,
                (nbytes,),
                (1,),
                "|u1",
                writeable=False,
            )
            octets = resolve(reference)
        except BaseException:
            file.close()
            raise
        undo: Undo = [file.close]
        if not _may_keep(1 / 2):
            undo_all(undo)
        return cls(octets, reference, undo)

    @property
    def entry(self) -> Entry | None:
        """Where other processes of this host find it; None if they cannot."""
        if not self._undo:
            return None
        reference = self._reference
        return [reference.name.path, *reference.identity, reference.size, reference.offset]

    def withdraw(self) -> None:
        """Let no other process have it from this one any more; arrays here stay valid."""
        undo_all(self._undo)

    def shared(self, about: Description) -> NDArray[Any]:
        """The array, read-only."""
        return np.ndarray(about.shape, about.dtype, self.octets, 0, about.strides)

    def private(self, about: Description) -> NDArray[Any]:
        """The array, copy-on-write: it begins with the shared content, and nobody else sees what is written to it."""
        mapping = self._private_mapping()
        if mapping is None:
            array: NDArray[Any] = self.shared(about).copy(order="K")
            return array
        octets = np.asarray(_Lease(mapping, self._returned))
        return np.ndarray(about.shape, about.dtype, octets, self._reference.offset, about.strides)

    def _private_mapping(self) -> Mapping | None:
        # A mapping for each task would have to be faulted in again, which is several times slower.
        for mappings in (self._clean, self._returned):
            while mappings:
                try:
                    mapping = mappings.pop()
                except IndexError:  # another thread took the last one
                    break
                if mappings is self._clean or _is_reset(mapping):
                    return mapping
        if not self._undo:
            return None  # without a descriptor it cannot be mapped again
        return owner(resolve(self._reference._replace(mode="c", writeable=True)))

    def tidy(self) -> None:
        """Give back to the system what tasks that have ended have written."""
        while self._returned:
            try:
                mapping = self._returned.pop()
            except IndexError:  # another thread took the last one
                break
            if _is_reset(mapping):
                self._clean.append(mapping)


def _is_reset(mapping: Mapping) -> bool:
    try:
        mapping.discard_writes()
    except OSError:  # mlockall
        return False
    return True


class _Lease:
    """A private mapping for as long as an array refers to it.

    It lies below the arrays because numpy makes a view of a view refer to what is at the bottom.
    """

    __slots__ = ("_mapping", "_returned")

    def __init__(self, mapping: Mapping, returned: deque[Mapping]) -> None:
        self._mapping = mapping
        self._returned = returned

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._mapping.__array_interface__

    def __del__(self) -> None:
        self._returned.append(self._mapping)


def new_memory(nbytes: int, data: NDArray[np.uint8] | None = None) -> tuple[NDArray[np.uint8], Undo]:
    """Memory for a copy, to be filled; what the list holds makes it unreachable for other processes.

    Raises
    ------
    SharedMemoryFullError
        If it cannot be had.
    """
    undo: Undo = []
    try:
        return create_temporary(undo, None, (nbytes,), np.uint8, data=data), undo
    except BaseException:
        undo_all(undo)
        raise


def undo_all(undo: Undo) -> None:
    """Let no other process reach the memory any more; what is mapped stays."""
    while undo:
        undo.pop()()


def _may_keep(part: float) -> bool:
    """Whether this process may have one more descriptor open for a copy's sake.

    Beyond that part of ``ulimit -n``, it has the memory but others cannot have it from this process.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit == resource.RLIM_INFINITY or len(COPIES) < limit * part


# --- of this process -----------------------------------------------------------------


class Copies:
    """The copies of this process, by key.  Safe to use from many threads."""

    def __init__(self) -> None:
        self._copies: dict[str, tuple[Copy, Description, set[Hashable]]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._copies)

    def get(self, key: str, holder: Hashable = None) -> Copy | None:
        """The copy, if there is one; it is kept until the holder, if one is given, releases it."""
        with self._lock:
            copy, _, holders = self._copies.get(key, (None, None, set()))
            if copy is not None and holder is not None:
                holders.add(holder)
            return copy

    def add(self, about: Description, copy: Copy, holder: Hashable) -> None:
        with self._lock:
            self._copies[about.key] = copy, about, {holder}

    def of(self, holder: Hashable) -> list[Description]:
        """What a holder has not released."""
        with self._lock:
            return [about for _, about, holders in self._copies.values() if holder in holders]

    def release(self, key: str, holder: Hashable) -> None:
        """Release a copy if it has no other holder; existing arrays stay valid until they are garbage."""
        with self._lock:
            copy, _, holders = self._copies.get(key, (None, None, set()))
            holders.discard(holder)
            if copy is None or holders:
                return
            del self._copies[key]
            copy.withdraw()
        unregister(key)

    def tidy(self) -> None:
        with self._lock:
            copies = [copy for copy, _, _ in self._copies.values()]
        for copy in copies:
            copy.tidy()


COPIES = Copies()


# --- of this host --------------------------------------------------------------------


def host_id() -> str:
    """The same for processes that can share a copy: one kernel, one pid namespace, one user."""
    return f"{host_of_memory(anonymous=True)}/{os.geteuid()}"


def open_register(key: str) -> Register | None:
    """The processes of this host that have an array; None while another process looks, or brings the array here."""
    register = Register.try_open(_prefix() + key)
    if register is not None:
        register.entries[:] = filter(_is_valid, register.entries)
    return register


def update(register: Register, copy: Copy | None) -> None:
    """Write down which processes have the array, this one included."""
    register.entries[:] = filter(_is_valid, register.entries)
    entry = None if copy is None else copy.entry
    if entry is not None and entry not in register.entries:
        register.entries.append(entry)
    register.store()


def unregister(key: str) -> None:
    """Take this process's closed descriptor out of the register.

    A process that has the register for longer than this tries is one that brings the
    array here; it looks again which descriptors are open when it has done so.
    """
    for _ in range(10):
        register = open_register(key)
        if register is not None:
            with register:
                register.store()
            return
        time.sleep(0.01)


def sweep() -> None:
    """Remove the registers of processes that were killed."""
    sweep_registers(_prefix(), _is_valid)


def attached(register: Register, nbytes: int) -> Copy | None:
    """The copy of any process that has it."""
    for entry in register.entries:
        try:
            return Copy.attached(entry, nbytes)
        except OSError:  # it has just ended, or is one that the kernel protects
            continue
    return None


def _is_valid(entry: Entry) -> bool:
    return identity_of(Name("", "anonymous", str(entry[0]))) == tuple(entry[1:3])


def _prefix() -> str:
    return f"shmarray-cluster-{_digest(host_id())}-"


@lru_cache(maxsize=4)
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
