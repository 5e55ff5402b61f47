"""Whatever the system refuses, and with whatever errno, the portable fallback behaves as documented.

Each call is replaced by one that fails with each errno that old kernels, seccomp, AppArmor, SELinux and
file systems return; finally all calls fail at once.
"""

import ctypes
import errno
import os

import numpy as np
import pytest

import shmarray
from shmarray.core import temporary
from shmarray.core.posix import SparseFile, files, libc, pages
from shmarray.errors import InvalidNameError
from tests.helpers import raw

MB = 1 << 20
ERRNOS = sorted({*libc.REFUSALS})


def refusing(code):
    def call(*_args, **_options):
        raise OSError(code, os.strerror(code))

    return call


def refusing_in_c(code):
    def call(*_):
        ctypes.set_errno(code)
        return -1

    return call


def no_unnamed_files(monkeypatch, code):
    true_open = os.open

    def open_(path, flags, *args, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(code, os.strerror(code))
        return true_open(path, flags, *args, **options)

    monkeypatch.setattr(files.os, "open", open_)


def no_linkat(monkeypatch, code):
    monkeypatch.setattr(libc, "linkat", refusing_in_c(code))


def no_link(monkeypatch, code):
    no_linkat(monkeypatch, code)
    monkeypatch.setattr(files.os, "link", refusing(code))


def no_memfd(monkeypatch, code):
    monkeypatch.setattr(files.os, "memfd_create", refusing(code))


def no_posix_fallocate(monkeypatch, code):
    monkeypatch.setattr(pages.os, "posix_fallocate", refusing(code))


def no_punching(monkeypatch, code):
    monkeypatch.setattr(libc, "fallocate", refusing_in_c(code))


def no_populating(monkeypatch, code):
    """Refuse posix_fallocate too, because populating is a substitute for it."""
    no_posix_fallocate(monkeypatch, code)
    true_madvise = libc.madvise

    def madvise(address, size, advice):
        if advice in (libc.MADV_POPULATE_READ, libc.MADV_POPULATE_WRITE, libc.MADV_HUGEPAGE):
            return refusing_in_c(code)()
        return true_madvise(address, size, advice)

    monkeypatch.setattr(libc, "madvise", madvise)


def no_size_of_the_file_system(monkeypatch, code):
    monkeypatch.setattr(pages.os, "fstatvfs", refusing(code))


CALLS = [
    no_unnamed_files,
    no_linkat,
    no_link,
    no_memfd,
    no_posix_fallocate,
    no_punching,
    no_populating,
    no_size_of_the_file_system,
]


def everything(monkeypatch, code):
    for call in CALLS:
        call(monkeypatch, code)


def nothing_but_posix(monkeypatch, code):
    """Allow only shm_open and mmap, as on macOS: no directory of shared memory, no read, no write."""
    everything(monkeypatch, code)
    monkeypatch.setattr(files, "SHM_DIRECTORY", None)
    monkeypatch.setattr(pages.os, "pwrite", refusing(errno.ENXIO))
    monkeypatch.setattr(files.os, "pread", refusing(errno.ENXIO))


def the_contract_of_named_arrays(name, location):
    """Check what a program sees of create, attach, require and delete, with small, large and no data."""
    rng = np.random.default_rng(0)
    for data in (rng.random(100), rng.random((300, 700)), rng.random((1000, 6000))[:, ::2]):
        array = shmarray.create(name, data=data)
        assert np.array_equal(array, data)
        other = shmarray.attach(name)
        other[0] = 5
        assert (array[0] == 5).all()
        with pytest.raises(shmarray.ArrayExistsError):
            shmarray.create(name, 3)
        assert np.shares_memory(shmarray.require(name, data.shape), array)
        shmarray.delete(name)
        with pytest.raises(shmarray.ArrayNotFoundError):
            shmarray.attach(name)
    zeros = shmarray.create(name, 3 * MB, "u1")
    status = os.stat(location)
    assert not zeros.any()
    assert status.st_size > 3 * MB
    shmarray.delete(name)
    with shmarray.scoped(10) as anonymous:
        anonymous[:] = 3


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", [*CALLS, everything, nothing_but_posix], ids=lambda call: call.__name__)
def test_named_arrays_do_without(call, code, name, monkeypatch):
    call(monkeypatch, code)
    the_contract_of_named_arrays(name, raw.path(name))
    assert not raw.names(name)


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", [*CALLS, everything], ids=lambda call: call.__name__)
def test_arrays_in_files_do_without(call, code, tmp_path, monkeypatch):
    call(monkeypatch, code)
    path = f"{tmp_path}/a.npy"
    the_contract_of_named_arrays(f"file://{path}", path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", [*CALLS, everything], ids=lambda call: call.__name__)
def test_space_is_reserved_all_the_same(call, code, name, monkeypatch):
    call(monkeypatch, code)
    shmarray.create(name, 5 * MB, "u1")
    status = os.stat(raw.path(name))
    assert 512 * status.st_blocks >= status.st_size


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", [*CALLS, everything], ids=lambda call: call.__name__)
def test_files_of_pools_do_without(call, code, monkeypatch):
    call(monkeypatch, code)
    file = SparseFile.create()
    file.reserve(5 << 36, 2 * MB)
    octets = file.map(5 << 36, 2 * MB).octets()
    octets[:] = 7
    assert file.allocated() == 2 * MB
    file.reserve(5 << 36, 3 * MB)  # existing content is kept
    assert (octets == 7).all()
    file.free(5 << 36, 3 * MB)
    assert file.allocated() == 0
    assert not octets.any()
    assert not raw.names(f"shmarray-{os.getpid()}-")


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
def test_memory_that_no_call_can_free_is_an_error_and_stays(code, monkeypatch):
    no_punching(monkeypatch, code)
    monkeypatch.setattr(libc, "madvise", refusing_in_c(code))
    file = SparseFile.create()
    file.reserve(0, MB)
    octets = file.map(0, MB).octets()
    octets[:] = 7
    with pytest.raises(OSError, match=r".") as caught:
        file.free(0, MB)
    assert caught.value.errno == code
    assert (octets == 7).all()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EMFILE], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", [no_unnamed_files, no_posix_fallocate], ids=lambda call: call.__name__)
def test_other_errors_are_raised_and_nothing_is_left(call, code, name, monkeypatch):
    """No space, a broken disk or too many open files: a fallback would only hide the error."""
    call(monkeypatch, code)
    with pytest.raises(OSError, match=r".") as caught:
        shmarray.create(name, 10)
    assert caught.value.errno == code
    assert not raw.names(name)


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
def test_an_error_of_the_fallback_is_raised(code, name, monkeypatch):
    no_unnamed_files(monkeypatch, errno.EPERM)
    monkeypatch.setattr(files, "open_exclusive", refusing(code))
    with pytest.raises(OSError, match=r".") as caught:
        shmarray.create(name, 10)
    assert caught.value.errno in (code, errno.EINVAL)


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
def test_a_lock_that_is_refused_says_what_to_do(code, name, monkeypatch):
    shmarray.create(name, 3)
    monkeypatch.setattr(files.fcntl, "flock", refusing(code))
    with pytest.raises(OSError, match="file:// array") as caught, shmarray.lock(name, timeout=0):
        pass
    assert caught.value.errno == errno.ENOTSUP


def test_permissions_that_cannot_be_set_are_never_wider(name, monkeypatch):
    monkeypatch.setattr(files.os, "fchmod", refusing(errno.EINVAL))
    shmarray.create(name, 3, permissions=0o666)
    assert os.stat(raw.path(name)).st_mode & 0o777 & ~0o666 == 0


# --- macOS -------------------------------------------------------------------------------


@pytest.fixture
def short_names(portable, monkeypatch):
    """PSHMNAMLEN is 31 bytes, including the slash."""
    true_open = files._shm_open

    def shm_open(path, *args):
        if len(os.fsencode(path)) > 30:
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        return true_open(path, *args)

    monkeypatch.setattr(files, "_shm_open", shm_open)


@pytest.mark.usefixtures("short_names")
def test_names_too_long_for_the_system_are_refused_before_anything_exists(shm_name):
    name = shm_name("-" + "x" * 40)
    for call in (shmarray.attach, lambda name: shmarray.create(name, 3), lambda name: shmarray.require(name, 3)):
        with pytest.raises(InvalidNameError, match="too long for this system"):
            call(name)
    assert not raw.names(name)


@pytest.mark.usefixtures("short_names")
def test_names_that_the_library_makes_are_short_enough(monkeypatch):
    monkeypatch.setattr(temporary.os, "getpid", lambda: 4_194_304)  # the largest pid on Linux
    with shmarray.scoped(3) as array:
        assert array.shape == (3,)
    file = SparseFile.create()
    assert file is not None


@pytest.mark.usefixtures("portable")
def test_files_without_inodes_are_not_taken_for_one_another(shm_name, monkeypatch):
    """On macOS, every shared memory object has device 0 and inode 0."""
    monkeypatch.setattr(files, "identity", lambda _: (0, 0))
    first, second = shm_name(), shm_name()
    a = shmarray.create(first, data=[1, 2])
    b = shmarray.create(second, data=[3, 4])
    shmarray.delete(first)
    again = shmarray.create(first, data=[5, 6])
    assert shmarray.attach(first).tolist() == again.tolist() == [5, 6]
    assert shmarray.attach(second).tolist() == b.tolist() == [3, 4]
    assert a.tolist() == [1, 2]
