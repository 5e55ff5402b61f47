"""The progress bars of map, imap, imap_unordered and starmap, and tqdm around imap."""

import gc
import inspect
import io
import multiprocessing
import multiprocessing.pool
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import shmarray
from shmarray import WorkerDiedError
from tests.helpers import processes
from tests.pool import tasks

tqdm_auto = pytest.importorskip("tqdm.auto", reason="needs tqdm")
tqdm = tqdm_auto.tqdm
tqdm.get_lock()  # created once and kept for ever, so it must not count as a leak of one test

METHODS = ("map", "starmap", "imap", "imap_unordered")


class Record:
    """The final state of a progress bar."""

    def __init__(self, desc=None, total=None, initial=0):
        self.desc, self.total, self.n, self.is_closed = desc, total, initial, False


@pytest.fixture(autouse=True)
def bars(monkeypatch):
    """Records of all bars that were shown, in order."""
    records = []

    class Recorded(tqdm):
        def __init__(self, **options):
            self.record = Record(**options)
            records.append(self.record)
            super().__init__(file=io.StringIO(), **options)

        def update(self, n=1):
            super().update(n)
            self.record.n = self.n

        def close(self):
            super().close()
            self.record.is_closed = True

    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # its thread would outlive the test
    monkeypatch.setattr(tqdm_auto, "tqdm", Recorded)
    return records


@pytest.fixture(scope="module")
def pool():
    with shmarray.Pool(2, context=multiprocessing.get_context("fork")) as pool:
        yield pool
    pool.join()


def negative(x):
    return -x


def fail_at_three(x):
    if x == 3:
        raise LookupError(x)
    return x


def die_at_three(x):
    if x == 3:
        os.kill(os.getpid(), 9)
    return x


def wait_for(path):
    """Wait until the file exists."""
    processes.wait_until(lambda: os.path.exists(path))


def results(pool, method, items, **options):
    arguments = [(item,) for item in items] if method == "starmap" else items
    return sorted(getattr(pool, method)(negative, arguments, **options))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunksize", [1, 4])
def test_every_item_is_counted_and_the_bar_is_closed(pool, bars, method, chunksize):
    assert results(pool, method, range(10), chunksize=chunksize, progress="turning") == list(range(-9, 1))

    (bar,) = bars
    assert (bar.n, bar.total, bar.desc, bar.is_closed) == (10, 10, "turning", True)


@pytest.mark.parametrize("method", METHODS)
def test_without_progress_there_is_no_bar_and_results_are_as_in_the_stdlib(pool, bars, method):
    results(pool, method, range(3))
    results(pool, method, range(3), progress=False)

    assert not bars
    stock = inspect.signature(getattr(multiprocessing.pool.Pool, method))
    ours = inspect.signature(getattr(shmarray.Pool, method))
    common = [p for p in ours.parameters.values() if p.name not in {"progress", "buffersize"}]
    assert [(p.name, p.default) for p in common] == [(p.name, p.default) for p in stock.parameters.values()]
    assert ours.parameters["progress"].kind is inspect.Parameter.KEYWORD_ONLY
    assert type(pool.imap(negative, [1])) is multiprocessing.pool.IMapIterator
    assert type(pool.imap(negative, [1], progress="")) is multiprocessing.pool.IMapIterator


@pytest.mark.parametrize("method", METHODS)
def test_a_bar_for_no_items(pool, bars, method):
    assert results(pool, method, [], progress=True) == []
    assert (bars[0].n, bars[0].total, bars[0].desc, bars[0].is_closed) == (0, 0, None, True)


@pytest.mark.parametrize("method", METHODS)
def test_items_without_a_length(pool, bars, method):
    arguments = ((i,) if method == "starmap" else i for i in range(7))
    assert sorted(getattr(pool, method)(negative, arguments, progress=True)) == list(range(-6, 1))

    assert (bars[0].n, bars[0].is_closed) == (7, True)
    assert bars[0].total == (None if method.startswith("imap") else 7)


class Unsure(list):
    def __len__(self):
        raise TypeError("it depends")


def test_a_length_that_raises_is_treated_as_unknown(pool, bars):
    assert list(pool.imap(negative, Unsure([1, 2]), progress=True)) == [-1, -2]
    assert bars[0].total is None


def test_arrays_arrive_with_a_bar_too():
    arrays = [np.full(20_000, float(i)) for i in range(4)]
    with shmarray.Pool(2, context=multiprocessing.get_context("fork")) as pool:
        for got in (pool.map(tasks.double, arrays, progress=True), pool.imap(tasks.double, arrays, progress=True)):
            for i, array in enumerate(got):
                assert np.array_equal(array, arrays[i] * 2)
                assert array.flags.writeable
    pool.join()


def test_map_moves_while_it_runs(pool, bars, tmp_path):
    """The last task waits until the bar shows the others."""
    paths = [str(tmp_path)] * 5 + [str(tmp_path / "shown")]
    done = threading.Thread(target=pool.map, args=(wait_for, paths, 1), kwargs={"progress": True})
    done.start()
    processes.wait_until(lambda: bars and bars[0].n == 5)
    assert done.is_alive()
    (tmp_path / "shown").touch()
    done.join(30)
    assert (bars[0].n, bars[0].is_closed) == (6, True)


def test_imap_with_a_bar_is_lazy_and_has_next_with_a_timeout(pool, bars, tmp_path):
    given = []

    def paths():
        for number in range(1000):
            given.append(number)
            yield str(tmp_path / "go") if number else str(tmp_path)

    iterator = pool.imap(wait_for, paths(), progress=True)
    assert iter(iterator) is iterator
    assert iterator.next(30) is None
    with pytest.raises(multiprocessing.TimeoutError):
        iterator.next(timeout=0.01)
    assert len(given) < 1000
    assert bars[0].n == 1
    assert not bars[0].is_closed
    (tmp_path / "go").touch()
    assert list(iterator) == [None] * 999
    assert (bars[0].n, bars[0].is_closed) == (1000, True)


def test_chunks_give_a_generator_which_has_no_next_as_in_the_stdlib(pool):
    with pytest.raises(AttributeError, match="'generator' object has no attribute 'next'"):
        pool.imap(negative, range(4), 2, progress=True).next()


@pytest.mark.parametrize("method", ["map", "starmap"])
def test_the_bar_of_a_map_that_fails_is_closed(pool, bars, method):
    items = [(i,) for i in range(5)] if method == "starmap" else range(5)
    with pytest.raises(LookupError):
        getattr(pool, method)(fail_at_three, items, 1, progress=True)
    assert bars[0].is_closed


def test_a_bar_stands_where_it_was_when_a_worker_died(bars):
    with shmarray.Pool(1, context=multiprocessing.get_context("fork")) as pool:
        with pytest.raises(WorkerDiedError):
            pool.map(die_at_three, range(100), 1, progress=True)
        assert pool.map(negative, range(3), progress=True) == [0, -1, -2]
    pool.join()
    assert bars[0].is_closed
    assert bars[0].n < 100
    assert bars[1].n == 3


def test_an_error_closes_the_bar_of_an_imap_and_the_next_item_reopens_it(pool, bars):
    iterator = pool.imap(fail_at_three, range(6), progress="on")
    assert [next(iterator) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError):
        next(iterator)
    assert (bars[0].n, bars[0].is_closed) == (4, True)
    assert list(iterator) == [4, 5]
    assert (bars[1].n, bars[1].total, bars[1].desc, bars[1].is_closed) == (6, 6, "on", True)
    assert len(bars) == 2


def test_a_bar_goes_with_its_iterator(pool, bars):
    for _ in pool.imap(negative, range(5), progress=True):
        break
    gc.collect()
    assert bars[0].is_closed


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_the_end_of_the_pool_closes_its_bars(bars, method):
    with shmarray.Pool(1, context=multiprocessing.get_context("fork")) as pool:
        iterator = getattr(pool, method)(negative, range(5), progress=True)
        next(iterator)
    assert bars[0].is_closed
    pool.join()


def test_several_threads_have_bars_of_their_own(pool, bars):
    threads = [
        threading.Thread(target=results, args=(pool, method, range(40)), kwargs={"progress": method})
        for method in METHODS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted((bar.desc, bar.n, bar.is_closed) for bar in bars) == sorted((m, 40, True) for m in METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [3, {"desc": "x"}, [True]])
def test_progress_is_a_flag_or_a_label(pool, method, wrong):
    with pytest.raises(TypeError, match="True, False or a label"):
        getattr(pool, method)(negative, [1], progress=wrong)


def test_a_closed_pool_shows_no_bar(bars):
    with shmarray.Pool(1, context=multiprocessing.get_context("fork")) as pool:
        pass
    pool.join()
    for method in METHODS:
        with pytest.raises(ValueError, match="Pool not running"):
            results(pool, method, [1], progress=True)
    assert not bars


def test_tqdm_around_an_imap_of_ours(pool):
    stream = io.StringIO()
    around = tqdm(pool.imap(negative, range(20)), total=20, file=stream, desc="around")
    assert list(around) == list(range(0, -20, -1))
    assert "around: 100%" in stream.getvalue()
    assert "20/20" in stream.getvalue()


def test_the_bar_is_on_stderr_and_leaves_nothing_behind():
    code = """
import shmarray
from tests.pool.tasks import identity
with shmarray.Pool(1) as pool:
    print(pool.map(identity, range(3), progress="turning"))
    left = pool.imap(identity, range(3), progress="left")
    print(next(left))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        timeout=60,
        cwd=processes.ROOT,
        check=True,
    )
    assert done.stdout == b"[0, 1, 2]\n0\n"
    turning, left, after = done.stderr.decode().split("\n")
    assert "turning: 100%" in turning
    assert "left:  33%" in left
    assert not after


def test_without_tqdm_the_error_comes_before_anything_runs_and_says_what_to_do():
    code = """
import sys
sys.modules["tqdm"] = None
import shmarray
def items():
    print("never")
    yield 1
with shmarray.Pool(1) as pool:
    for method in (pool.map, pool.starmap, pool.imap, pool.imap_unordered):
        try:
            method(print, items(), progress=True)
        except ModuleNotFoundError as error:
            print(error)
    print(pool.map(abs, [-1]))
"""
    told = "progress bars require tqdm, which is not installed: pip install tqdm\n"
    assert processes.run_script(code) == 4 * told + "[1]\n"
