"""Runs a command for which, and for whose children, the kernel refuses some system calls.

``python refusing.py ERRNO CALL,CALL,... COMMAND ...`` installs a seccomp filter, as container runtimes do.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

# Numbers on x86-64 and arm64; the index of the argument to check, how, and the value or bits.
CALLS = {
    "seqpacket": [((53, 199), 1, "equal", 5 | 0o2000000)],
    "memfd_create": [((319, 279), None, "any", 0)],
    "o_tmpfile": [((257, 56), 2, "bit", 0o20000000)],
    "linkat": [((265, 37), None, "any", 0)],
    "fallocate": [((285, 47), None, "any", 0)],
    "hole_punching": [((285, 47), 1, "bit", 2)],
    "posix_fallocate": [((285, 47), 1, "equal", 0)],
    "madv_remove": [((28, 233), 2, "equal", 9)],
    "madvise": [((28, 233), None, "any", 0)],
    "pidfd_open": [((434, 434), None, "any", 0)],
    "pidfd_send_signal": [((424, 424), None, "any", 0)],
    "f_setsig": [((72, 25), 1, "equal", 10)],
    "sched_getaffinity": [((204, 123), None, "any", 0)],
    "recvmmsg": [((299, 243), None, "any", 0)],
    "sock_cloexec": [((53, 199), 1, "bit", 0o2000000), ((41, 198), 1, "bit", 0o2000000)],
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _EQUAL, _BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _instruction(code, value, if_true=0, if_false=0):
    return struct.pack("HBBI", code, if_true, if_false, value)


def _filter(calls, code):
    column, architecture = _ARCHITECTURES[platform.machine()]
    yield _instruction(_LOAD, _ARCHITECTURE)
    yield _instruction(_EQUAL, architecture, if_true=1)
    yield _instruction(_RETURN, _ALLOW)
    for numbers, argument, test, value in [rule for call in calls for rule in CALLS[call]]:
        yield _instruction(_LOAD, _NUMBER)
        yield _instruction(_EQUAL, numbers[column], if_false=1 if test == "any" else 3)
        if test != "any":
            yield _instruction(_LOAD, _ARGUMENTS + 8 * argument)
            yield _instruction(_EQUAL if test == "equal" else _BITS, value, if_false=1)
        yield _instruction(_RETURN, _ERRNO | code)
    yield _instruction(_RETURN, _ALLOW)


def refuse(calls, code):
    """Make these calls fail in this process and its future children; raise OSError if that is not supported."""
    if platform.machine() not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, "system call numbers are known only for x86-64 and arm64")
    instructions = b"".join(_filter(calls, code))
    memory = ctypes.create_string_buffer(instructions, len(instructions))
    program = _Program(len(instructions) // 8, ctypes.cast(memory, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filters are not available here")


if __name__ == "__main__":
    refuse(sys.argv[2].split(","), getattr(errno, sys.argv[1]))
    os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606 - runs the given command
