"""Registers: a lock protects them, is released when its holder dies, and entries of killed processes are removed."""

import os

import pytest

from shmarray.core import Register, sweep_registers
from tests.helpers import raw
from tests.helpers.processes import Child, in_child, wait_until


def opened(name):
    register = Register.try_open(name)
    assert register is not None
    return register


def test_what_is_stored_is_found_by_the_next_process(name):
    with opened(name) as register:
        assert register.entries == []
        register.entries.append(["a path", 1, 2])
        register.store()

    def read():
        with opened(name) as register:
            return register.entries

    assert in_child(read) == [["a path", 1, 2]]


def test_entries_may_become_fewer(name):
    for entries in (["long" * 50, "second"], ["short"]):
        with opened(name) as register:
            register.entries[:] = entries
            register.store()
        with opened(name) as register:
            assert register.entries == entries


def test_without_entries_the_file_is_removed(name):
    with opened(name) as register:
        register.entries.append(1)
        register.store()
    assert raw.names(name) == [name]
    with opened(name) as register:
        register.entries.clear()
        register.store()
    assert raw.names(name) == []


def test_only_one_holds_the_lock_even_within_one_process(name):
    with opened(name) as register:
        assert Register.try_open(name) is None
        register.store()
    with opened(name) as register:
        register.store()


def hold(channel, name):
    with opened(name) as register:
        register.entries.append("mine")
        register.store()
        channel.send("held")
        channel.recv()


def test_a_killed_holder_lets_go(name):
    with Child(hold, name) as child:
        assert child.receive() == "held"
        assert Register.try_open(name) is None
        child.kill()
    with opened(name) as register:
        assert register.entries == ["mine"]


def wait_in_fork(channel):
    channel.send("forked")
    channel.recv()


def test_a_forked_child_does_not_keep_the_lock(name):
    register = opened(name)
    with Child(wait_in_fork) as child:
        assert child.receive() == "forked"
        register.close()
        with opened(name) as again:
            again.store()


@pytest.mark.parametrize("content", [b"", b"[1, 2", b"\xff\xfe", b"{}\n"])
def test_invalid_content_is_ignored(name, content):
    raw.put(name, content)
    with opened(name) as register:
        assert register.entries == []
        register.store()


def test_sweeping_removes_what_nobody_can_use(shm_name):
    prefix = shm_name("-r")
    for ending, entries in (("a", [1]), ("b", [1, 2]), ("c", [2])):
        with opened(prefix + ending) as register:
            register.entries[:] = entries
            register.store()
    with opened(prefix + "a") as locked:
        sweep_registers(prefix, lambda entry: entry == 2)
        locked.store()
    assert raw.names(prefix) == [f"{prefix}a", f"{prefix}b", f"{prefix}c"]
    sweep_registers(prefix, lambda entry: entry == 3)
    assert raw.names(prefix) == []


def test_a_symbolic_link_is_not_followed(name, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    os.symlink(target, raw.path(name))
    # The register is in the directory for temporary files instead.
    with opened(name) as register:
        register.store()
    assert target.read_bytes() == b"precious"


def test_a_waiter_gets_the_lock(name):
    with Child(hold, name) as child:
        child.receive()
        child.tell()
        child.result()
        wait_until(lambda: clear(name))


def clear(name):
    register = Register.try_open(name)
    if register is None:
        return False
    with register:
        register.entries.clear()
        register.store()
    return True
