"""Semaphores without a name."""

import multiprocessing
import os
import threading

import pytest

import shmarray
from shmarray.pool.tokens import Tokens
from tests.helpers import raw
from tests.pool import tasks


def test_only_so_many_come_in_at_once():
    tokens = Tokens(2)
    assert tokens._semlock._get_value() == 2
    assert tokens.acquire(block=False)
    assert tokens.acquire(timeout=0.01)
    assert tokens._semlock._is_zero()
    assert not tokens.acquire(block=False)
    assert not tokens.acquire(block=True, timeout=0.01)
    tokens.release()
    assert not tokens._semlock._is_zero()
    with tokens:
        assert tokens._semlock._get_value() == 0
    assert tokens._semlock._get_value() == 1


def test_who_waits_comes_in_when_another_leaves():
    lock = Tokens(1)
    lock.acquire()
    inside = threading.Event()
    waiting = threading.Thread(target=lambda: (lock.acquire(), inside.set()))
    waiting.start()
    assert not inside.wait(0.05)
    lock.release()
    waiting.join(10)
    assert inside.is_set()


def _add(lock, path, times):
    for _ in range(times):
        with lock:
            with open(path, encoding="ascii") as file:
                count = int(file.read())
            with open(path, "w", encoding="ascii") as file:
                file.write(str(count + 1))


def test_processes_keep_each_other_out(start_method, tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    lock = Tokens(1)
    context = multiprocessing.get_context(start_method)
    processes = [context.Process(target=_add, args=(lock, path, 50)) for _ in range(3)]
    if start_method == "fork":  # what is not pickled is inherited
        assert all(not os.get_inheritable(fd) for fd in vars(lock).values())
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        process.close()
    assert path.read_text() == "150"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_executor_has_no_semaphores_in_dev_shm(method):
    with tasks.make("Executor", method, 2) as executor:
        before = raw.mapped_inodes()
        assert executor.submit(len, "abc").result(60) == 3
        semaphores = {entry.inode() for entry in os.scandir("/dev/shm") if entry.name.startswith("sem.")}
        ours = before.union(*map(raw.mapped_inodes, executor._processes))
        assert not semaphores & ours


def test_those_of_the_stdlib_would_be_found():
    semaphore = multiprocessing.get_context("spawn").Lock()
    entries = {entry.name: entry.inode() for entry in os.scandir("/dev/shm")}
    assert entries[f"sem.{semaphore._semlock.name.lstrip('/')}"] in raw.mapped_inodes()


def test_without_descriptors_there_is_no_executor_and_nothing_is_left(monkeypatch):
    made = []

    def refuse():
        if len(made) == 3:
            raise OSError(24, "Too many open files")
        made.append(true_pipe())
        return made[-1]

    true_pipe = os.pipe
    context = multiprocessing.get_context("spawn")
    executor = shmarray.ProcessPoolExecutor(1, context)  # imports what it needs
    executor.shutdown()
    monkeypatch.setattr("shmarray.pool.tokens.os.pipe", refuse)
    with pytest.raises(OSError, match="Too many"):
        shmarray.ProcessPoolExecutor(1, context)
