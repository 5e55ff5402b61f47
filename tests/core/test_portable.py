"""Systems on which the name comes first: attach waits, and unfinished arrays are recognized."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import shmarray
from shmarray.core import arrays, publishing
from shmarray.core.posix import files
from tests.helpers import raw
from tests.helpers.processes import Child, run_script, wait_until

UNFINISHED = b"\x93shmarray: being made\n"
HALF_MADE = {"empty": b"", "zeros": b"\0" * 500, "marked": UNFINISHED + b"\0" * 500}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(arrays, "_PATIENCE", 0.1)


@pytest.mark.usefixtures("portable", "impatient")
@pytest.mark.parametrize("content", HALF_MADE.values(), ids=HALF_MADE)
def test_attach_waits_for_an_unfinished_array_then_refuses_it_and_delete_removes_it(name, content):
    raw.put(name, content)
    start = time.monotonic()
    with pytest.raises(shmarray.ArrayFormatError, match="still being created"):
        shmarray.attach(name)
    assert 0.1 <= time.monotonic() - start < 5
    with pytest.raises(shmarray.ArrayFormatError):
        shmarray.require(name, 3)
    with pytest.raises(shmarray.ArrayExistsError):
        shmarray.create(name, 3)
    shmarray.delete(name)
    assert not raw.names(name)


@pytest.mark.usefixtures("impatient")
def test_a_mark_left_in_shared_memory_is_understood_on_every_system(name):
    raw.put(name, HALF_MADE["marked"])
    with pytest.raises(shmarray.ArrayFormatError, match="still being created"):
        shmarray.attach(name)
    shmarray.delete(name)


@pytest.mark.usefixtures("portable")
@pytest.mark.parametrize("content", HALF_MADE.values(), ids=HALF_MADE)
def test_attach_waits_for_the_maker(name, content):
    raw.put(name, content)
    complete = raw.saved(np.arange(3))

    def finish():
        with open(raw.path(name), "r+b") as file:
            file.truncate(len(complete))
            file.seek(8)
            file.write(complete[8:])
            file.flush()
            file.seek(0)
            file.write(complete[:8])

    finisher = threading.Timer(0.05, finish)
    finisher.start()
    try:
        assert shmarray.attach(name).tolist() == [0, 1, 2]
    finally:
        finisher.join()


@pytest.mark.usefixtures("portable")
def test_attach_never_sees_a_partial_array(name):
    def make(channel):
        for _ in range(60):
            channel.recv()
            shmarray.create(name, data=np.full(200_000, 7, "u1"))
            channel.send("made")

    with Child(make) as child:
        for _ in range(60):
            child.tell()
            array = None
            while array is None:
                try:
                    array = shmarray.attach(name)
                except shmarray.ArrayNotFoundError:
                    continue
            assert array.shape == (200_000,)
            assert (array == 7).all()
            child.receive()
            shmarray.delete(name)
        child.result()


@pytest.mark.usefixtures("portable")
def test_a_maker_that_is_killed_leaves_what_delete_removes(name):
    def make(_):
        shmarray.create(name, 256 << 20, "u1")

    with Child(make) as child:
        wait_until(lambda: os.path.exists(raw.path(name)))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    shmarray.delete(name)
    assert not raw.names(name)


@pytest.mark.usefixtures("portable")
def test_an_interrupted_maker_leaves_nothing(name):
    """An interrupted maker, unlike a killed one, cleans up."""

    def make(channel):
        signal.signal(signal.SIGUSR1, interrupt)
        channel.send("ready")
        try:
            shmarray.create(name, data=np.ones(64 << 20, "u1")[::2])
        except KeyboardInterrupt:
            return "interrupted"
        return "made"

    def interrupt(*_):
        raise KeyboardInterrupt

    with Child(make) as child:
        child.receive()
        wait_until(lambda: os.path.exists(raw.path(name)))
        os.kill(child.pid, signal.SIGUSR1)
        outcome = child.result()
    assert outcome == "interrupted" or raw.names(name)
    if raw.names(name):  # the interrupt came after the array was complete
        assert shmarray.attach(name).shape == (32 << 20,)


@pytest.mark.usefixtures("portable")
@pytest.mark.parametrize("make", [shmarray.create, lambda name, *args: shmarray.scoped(*args, name=name).__enter__()])
def test_an_interrupt_that_came_while_the_name_was_made_leaves_nothing(name, make, monkeypatch):
    """It is raised where the next function begins."""
    true_of = publishing.Removal.of
    true_fill = publishing.segment.filled_in_place
    interrupts = iter([KeyboardInterrupt])

    def interrupted(function):
        def call(*args):
            for interrupt in interrupts:
                raise interrupt
            return function(*args)

        return call

    monkeypatch.setattr(publishing.Removal, "of", interrupted(true_of))
    monkeypatch.setattr(publishing.segment, "filled_in_place", interrupted(true_fill))
    with pytest.raises(KeyboardInterrupt):
        make(name, 10)
    assert not raw.names(name)


def test_attach_waits_for_a_maker_whose_calls_are_refused(name, shm_name):
    """The maker's file is empty for a moment, although other programs on this system make unnamed files."""
    raw.put(name, b"")
    complete = raw.saved(np.arange(3))
    finished = shm_name()
    raw.put(finished, complete)
    finisher = threading.Timer(0.05, os.replace, (raw.path(finished), raw.path(name)))
    finisher.start()
    try:
        assert shmarray.attach(name).tolist() == [0, 1, 2]
    finally:
        finisher.join()


def test_a_block_of_zeros_is_no_unfinished_array(name):
    """It is the shared memory of another program: attach does not wait for it, and delete does not remove it."""
    raw.put(name, b"\0" * 500)
    with pytest.raises(shmarray.ArrayFormatError, match="does not begin"):
        shmarray.attach(name)
    with pytest.raises(shmarray.ArrayFormatError, match="not deleted"):
        shmarray.delete(name)
    assert raw.names(name)


@pytest.mark.parametrize("system_is", ["native", "portable"])
def test_a_header_without_its_first_word_is_an_unfinished_array(name, system_is, request, monkeypatch):
    """The first word is written last, so readers see this while the header is being written."""
    if system_is == "portable":
        request.getfixturevalue("portable")
    monkeypatch.setattr(arrays, "_PATIENCE", 0.1)
    raw.put(name, UNFINISHED[:8] + raw.saved(np.arange(3))[8:])
    with pytest.raises(shmarray.ArrayFormatError, match="still being created"):
        shmarray.attach(name)


def test_files_on_a_system_without_unnamed_files(tmp_path, monkeypatch):
    """A file system may refuse O_TMPFILE although the kernel supports it."""
    true_open = os.open

    def open_(path, flags, *args, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return true_open(path, flags, *args, **options)

    monkeypatch.setattr(files.os, "open", open_)
    array = shmarray.create(f"file://{tmp_path}/a.npy", data=[1, 2])
    assert np.load(tmp_path / "a.npy").tolist() == [1, 2]
    with pytest.raises(shmarray.ArrayExistsError):
        shmarray.create(f"file://{tmp_path}/a.npy", 3)
    assert array.tolist() == [1, 2]


def test_an_anonymous_scope_without_memfd_takes_a_name_and_gives_it_back(portable):
    prefix = f"shmarray-{os.getpid()}-"
    with shmarray.scoped(3) as array:
        assert len(raw.names(prefix)) == 1
        assert np.shares_memory(shmarray.attach(raw.names(prefix)[0]), array)
    assert not raw.names(prefix)


def test_the_detected_features_match_this_system():
    code = """
import os
from shmarray.core.posix import files
assert files.SHM_DIRECTORY == ("/dev/shm" if os.path.isdir("/dev/shm") else None)
assert files.UNNAMED_FILES == hasattr(os, "O_TMPFILE")
assert files.MEMFD == hasattr(os, "memfd_create")
"""
    run_script(code)
