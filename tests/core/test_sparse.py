"""A memory file used in parts: they are reserved, mapped shared or private, and freed."""

import errno
import os
import weakref

import numpy as np
import pytest

from shmarray.core.posix import SparseFile, maps, pages, sparse
from shmarray.errors import SharedMemoryFullError
from tests.helpers import raw

FAR = 5 << 36
SIZE = 2 << 20


@pytest.fixture
def file():
    file = SparseFile.create()
    yield file
    file.close()


def bytes_used(file):
    return 512 * os.fstat(file.fd).st_blocks


def test_only_what_was_reserved_takes_memory(file):
    file.reserve(FAR, SIZE)
    assert bytes_used(file) == SIZE
    file.reserve(FAR + SIZE, SIZE)
    assert bytes_used(file) == 2 * SIZE


def test_memory_given_back_is_free_although_it_is_mapped_and_reads_as_zeros(file):
    file.reserve(FAR, SIZE)
    octets = file.map(FAR, SIZE).octets()
    octets[:] = 7
    file.free(FAR, SIZE)
    assert bytes_used(file) == 0
    assert not octets.any()


def test_a_part_gives_its_memory_back_without_the_descriptor(file):
    file.reserve(FAR, SIZE)
    part = file.map(FAR, SIZE)
    part.octets()[:] = 7
    owner = weakref.WeakSet()
    owner.kept = part.free_with(owner, file, 0, part.size)
    assert bytes_used(file) == SIZE
    del owner
    assert bytes_used(file) == 0


def test_parts_of_one_range_are_the_same_memory_unless_they_are_private(file):
    file.reserve(FAR, SIZE)
    one, other, private = file.map(FAR, SIZE), file.map(FAR, SIZE), file.map(FAR, SIZE, private=True)
    one.octets()[0] = 1
    assert other.octets()[0] == 1
    private.octets()[0] = 2
    assert one.octets()[0] == 1


def test_a_part_made_private_keeps_its_place_and_what_was_written(file):
    file.reserve(FAR, SIZE)
    part, other = file.map(FAR, SIZE), file.map(FAR, SIZE)
    octets = part.octets()
    octets[0] = 1
    address = part.address

    part.make_private(file.fd)
    octets[1] = 2

    assert part.private
    assert (part.address, list(octets[:2])) == (address, [1, 2])
    assert list(other.octets()[:2]) == [1, 0]


def test_discarded_writes_show_the_file_again(file):
    file.reserve(FAR, SIZE)
    file.map(FAR, SIZE).octets()[:] = 3
    part = file.map(FAR, SIZE, private=True)
    part.octets()[:] = 4
    part.discard_writes()
    assert (part.octets() == 3).all()


def test_arrays_keep_a_part_mapped(file):
    file.reserve(FAR, SIZE)
    octets = file.map(FAR, SIZE).octets()[100:200]
    file.close()
    octets[:] = 5
    assert np.all(octets == 5)


def test_a_reservation_that_fails_says_so_and_takes_nothing(file, monkeypatch):
    def full(fd, size, offset):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(pages, "reserve", full)
    with pytest.raises(SharedMemoryFullError):
        file.reserve(FAR, SIZE)
    assert bytes_used(file) == 0


@pytest.mark.usefixtures("portable")
def test_without_memfd_the_name_is_gone_at_once_and_the_size_given_once(monkeypatch):
    file = SparseFile.create()
    assert not raw.names(f"shmarray-{os.getpid()}-")
    size = os.fstat(file.fd).st_size
    assert size > FAR

    def only_once(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(pages.os, "ftruncate", only_once)
    file.reserve(FAR, SIZE)
    octets = file.map(FAR, SIZE).octets()
    octets[:] = 7
    assert bytes_used(file) == SIZE
    file.free(FAR, SIZE)
    assert bytes_used(file) == 0
    assert not octets.any()
    assert os.fstat(file.fd).st_size == size


@pytest.mark.usefixtures("portable")
def test_a_smaller_size_is_used_if_the_system_refuses_a_large_one(monkeypatch):
    truncate = pages.truncate

    def limited(fd, size):
        if size > 1 << 42:
            raise OSError(errno.EFBIG, "File too large")
        truncate(fd, size)

    monkeypatch.setattr(pages, "truncate", limited)
    file = SparseFile.create()
    assert os.fstat(file.fd).st_size == 1 << 42


@pytest.mark.usefixtures("portable")
def test_no_file_is_created_if_no_size_is_accepted(monkeypatch):
    def refused(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(pages, "truncate", refused)
    assert SparseFile.create() is None
    monkeypatch.setattr(sparse.files, "_shm_open", refused)
    assert SparseFile.create() is None


def test_errors_of_the_kernel_are_raised(file):
    file.reserve(0, SIZE)
    part = file.map(0, SIZE)
    with pytest.raises(OSError, match="Bad file"):
        part.make_private(-1)
    with pytest.raises(OSError, match="Invalid"):
        maps.discard_writes(part.address + 1, SIZE)
    with pytest.raises(OSError, match="Bad file"):
        pages.punch(-1, SIZE, 0)


def test_closing_twice_is_no_error(file):
    file.close()
    file.close()
