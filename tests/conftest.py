"""Fixtures for all tests: unique names, and a check that every test cleans up after itself."""

import ctypes
import errno
import gc
import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker

import pytest
from hypothesis import HealthCheck, settings

import shmarray
from shmarray.core.posix import files, libc, pages
from tests.helpers import processes, raw

# Timings on a shared machine are meaningless; the function-scoped fixtures serve all examples of a test.
settings.register_profile(
    "default",
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("default")


def pytest_configure():
    """Restore the handler of Ctrl-C: a shell ignores SIGINT in commands that it starts in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Return the number of processes for `-n auto`: most tests spend half of their time waiting for child processes."""
    return 2 * (os.process_cpu_count if hasattr(os, "process_cpu_count") else os.cpu_count)() + 1


@pytest.fixture(scope="session", autouse=True)
def _lasting_helpers():
    """Start the helper processes that live until exit, so that they do not count as a leak of one test."""
    resource_tracker.ensure_running()
    multiprocessing.set_forkserver_preload(["tests.helpers.workers"])
    forkserver.ensure_running()
    with shmarray.scoped(1, name=f"t{os.getpid()}-watched"):  # starts the name reaper
        pass
    gc.freeze()  # the collector need not scan the objects of pytest and numpy again in every test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.failed = report.failed
    return report


def _state():
    own = os.getpid()
    return {
        "names": {*raw.names(f"t{own}-"), *raw.names(f"shmarray-{own}-")},
        "descriptors": {(fd, _target(fd)) for fd in os.listdir("/proc/self/fd")},
        "children": processes.children(),
        "threads": set(threading.enumerate()),
        "mappings": set(raw.mapped_ranges()),
    }


def _left(before):
    after = _state()
    left = {kind: after[kind] - before[kind] for kind in after}
    left["descriptors"] = {(fd, target) for fd, target in left["descriptors"] if target != "the listing itself"}
    return {kind: things for kind, things in left.items() if things}


def _target(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return "the listing itself"


@pytest.fixture(autouse=True)
def no_leaks(request, _lasting_helpers):
    """Check that a test leaves no names, descriptors, children, threads or mapped ranges behind."""
    before = _state()
    yield
    if getattr(request.node, "failed", False):
        return  # the traceback keeps the frames' objects alive
    if _left(before):
        gc.collect()  # only when needed: a collection takes longer than most tests
    assert not _left(before)


_count = iter(range(1_000_000))


@pytest.fixture
def shm_name(no_leaks):
    """Return a function that makes unique names; whatever exists under them is removed at the end."""
    given = []

    def new(ending=""):
        given.append(f"t{os.getpid()}-{next(_count)}{ending}")
        return given[-1]

    yield new
    for name in given:
        _remove(raw.path(name))


def _remove(path):
    with suppress(FileNotFoundError):  # usually the test has removed it
        os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


@pytest.fixture
def name(shm_name):
    """A unique name."""
    return shm_name()


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request):
    return request.param


@pytest.fixture(params=["Pool", "Executor"])
def kind(request):
    """The kind of pool: one of the two public interfaces."""
    return request.param


def _native(monkeypatch):
    """The system unchanged."""


def _link_through_proc(monkeypatch):
    """Kernels before 6.10 require a capability for linkat(AT_EMPTY_PATH)."""

    def linkat(*_):
        ctypes.set_errno(errno.ENOENT)
        return -1

    monkeypatch.setattr(libc, "linkat", linkat)


def _no_unnamed_files(monkeypatch):
    """/dev/shm exists, but O_TMPFILE and memfd_create do not."""
    monkeypatch.setattr(files, "UNNAMED_FILES", False)
    monkeypatch.setattr(files, "MEMFD", False)


def _posix_alone(monkeypatch):
    """Only shm_open, ftruncate and mmap, as on macOS and the BSDs."""
    _no_unnamed_files(monkeypatch)
    monkeypatch.setattr(files, "SHM_DIRECTORY", None)


def _all_refused(monkeypatch):
    """The kernel has the calls, but a security policy refuses them."""

    def refused(*_args, **_options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def refused_in_c(*_):
        ctypes.set_errno(errno.EPERM)
        return -1

    for module, call in ((files, "link"), (files, "memfd_create"), (pages, "posix_fallocate")):
        monkeypatch.setattr(module.os, call, refused)
    for call in ("linkat", "fallocate"):
        monkeypatch.setattr(libc, call, refused_in_c)


SYSTEMS = [_native, _link_through_proc, _no_unnamed_files, _all_refused, _posix_alone]


@pytest.fixture(params=SYSTEMS, ids=[system.__name__.lstrip("_") for system in SYSTEMS])
def system(request, monkeypatch):
    """Each way in which the library uses the kernel; forked children inherit it."""
    request.param(monkeypatch)
    return request.param.__name__.lstrip("_")


@pytest.fixture
def portable(monkeypatch):
    """A system that has only what POSIX guarantees."""
    _posix_alone(monkeypatch)
