"""Removes what other systems lack from every Python that is started with this directory on its path.

``SHMARRAY_TEST_LACKS`` names functions of this module, separated by commas; children inherit it, whatever
their start method.  A feature is either removed before the library is imported, or refused only to the
library.
"""

import builtins
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import select
import selectors
import signal
import socket
import sys

_PROC = "/proc/"


def _absent(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def _for_the_library(module, name, replacement):
    """Replace a function for calls from the library; `replacement` also receives the original function."""
    true = getattr(module, name)

    def call(*args, **options):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("shmarray"):
            return replacement(true, *args, **options)
        return true(*args, **options)

    setattr(module, name, call)


def _refused(code):
    def call(*_args, **_options):
        raise OSError(code, os.strerror(code))

    return call


def seqpacket():
    _absent(socket, "SOCK_SEQPACKET")


def memfd_create():
    _absent(os, "memfd_create")


def o_tmpfile():
    _absent(os, "O_TMPFILE")


def madv_remove():
    """Also remove related advice: the numbers have other meanings on other systems."""
    _absent(mmap, "MADV_REMOVE")


def hole_punching():
    """The library looks the function up by name in libc."""
    _hide_in_libc("fallocate")


_hidden = set()


def _hide_in_libc(name):
    _hidden.add(name)
    true = ctypes.CDLL

    class CDLL(true):
        def __getattr__(self, name):
            if name in _hidden:
                raise AttributeError(name)
            return super().__getattr__(name)

    ctypes.CDLL = CDLL


def pidfd():
    _absent(os, "pidfd_open")
    _absent(signal, "pidfd_send_signal")


def f_setsig():
    _absent(fcntl, "F_SETSIG")


def proc():
    """As if /proc were not mounted."""
    _hide(_PROC)


def pagemap():
    _hide("/proc/self/pagemap")


def _hide(start):
    def hidden(true, path, *args, **options):
        if isinstance(path, str) and path.startswith(start):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return true(path, *args, **options)

    for module, name in ((builtins, "open"), (os, "open"), (os, "link"), (os, "stat"), (os, "readlink")):
        _for_the_library(module, name, hidden)
    for name in ("isdir", "exists"):
        _for_the_library(os.path, name, lambda true, path: not str(path).startswith(start) and true(path))


def msg_nosignal():
    _absent(socket, "MSG_NOSIGNAL")


def msg_dontwait():
    _absent(socket, "MSG_DONTWAIT")


def pydll():
    _for_the_library(ctypes, "PyDLL", lambda *_args, **_options: _refused(errno.ENOSYS)())


def posix_fallocate():
    _absent(os, "posix_fallocate")


def preadv():
    _absent(os, "preadv")


def sched_getaffinity():
    _absent(os, "sched_getaffinity")


def sock_cloexec():
    _absent(socket, "SOCK_CLOEXEC")


def epoll():
    """The selector is then a poll object, as on systems without kqueue."""
    _absent(select, "epoll")
    selectors.DefaultSelector = selectors.PollSelector


def fault_counters():
    """As in gVisor, where the counters are always 0."""
    usage = resource.struct_rusage([0] * 16)
    _for_the_library(resource, "getrusage", lambda _, who: usage)


def shm_directory():
    """Shared memory objects are in no directory, can be sized only once, and support only mmap."""
    _for_the_library(os.path, "isdir", lambda true, path: path != "/dev/shm" and true(path))
    for name in {"pread", "preadv", "pwrite"} & set(dir(os)):
        _for_the_library(os, name, lambda true, fd, *args: _on_file(true, fd, args, errno.ENXIO))
    _for_the_library(os, "ftruncate", _sized_once)


def _is_shared_memory(fd):
    return os.readlink(f"/proc/self/fd/{fd}").startswith("/dev/shm/")


def _on_file(true, fd, args, code):
    if _is_shared_memory(fd):
        raise OSError(code, os.strerror(code))
    return true(fd, *args)


def _sized_once(true, fd, size):
    if _is_shared_memory(fd) and os.fstat(fd).st_size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return true(fd, size)


ALL = [
    seqpacket,
    memfd_create,
    o_tmpfile,
    madv_remove,
    hole_punching,
    pidfd,
    f_setsig,
    proc,
    pagemap,
    msg_nosignal,
    msg_dontwait,
    pydll,
    posix_fallocate,
    preadv,
    sched_getaffinity,
    sock_cloexec,
    epoll,
    fault_counters,
    shm_directory,
]

taken = []
for _name in filter(None, os.environ.get("SHMARRAY_TEST_LACKS", "").split(",")):
    globals()[_name]()
    taken.append(_name)
