"""The joblib backend: the contract for arrays, the life of the workers, and scikit-learn."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import shmarray
from shmarray import WorkerDiedError
from shmarray.pool.arrays import pickling
from tests.helpers import processes

pytest.importorskip("joblib", reason="needs joblib")

import joblib
from joblib import Parallel, delayed
from joblib.externals.loky.backend import resource_tracker

from shmarray.joblib import end_idle_workers
from shmarray.pool.arrays.by_value import ByValue
from tests.integrations import joblib_tasks as tasks

BIG = 300_000  # items of 8 bytes: larger than the limit from which joblib uses memory maps


@pytest.fixture(scope="module", autouse=True)
def _tracker():
    resource_tracker.ensure_running()  # loky's tracker, which runs until the end


@pytest.fixture(autouse=True)
def _backend(no_leaks):
    with joblib.parallel_config(backend="shmarray", n_jobs=2):
        yield
    end_idle_workers()


# --- arrays ---


def test_tasks_have_writable_arrays_of_their_own_and_never_old_ones():
    array = np.zeros(BIG)
    with Parallel() as parallel:  # a single set of workers, where joblib would cache arrays
        for number in range(4):
            array[...] = number
            for seen, was_writable in parallel(delayed(tasks.overwrite)(array) for _ in range(4)):
                assert was_writable
                assert seen.flags.writeable
                assert (seen == number).all()
            assert (array == number).all()
    for number in range(3):  # other calls and other arrays at the same address do not see old content either
        again = np.full(BIG, number)
        assert [(seen == number).all() for seen, _ in Parallel()([delayed(tasks.overwrite)(again)] * 3)] == [True] * 3
        del again


def test_calls_that_travel_together_do_not_see_each_others_writes():
    array, numbers = np.asfortranarray(np.zeros((BIG, 2))), []
    mask = np.ma.array(np.arange(BIG), mask=False)
    calls = [delayed(tasks.overwrite)(array, numbers, mask) for _ in range(6)]
    results = Parallel(batch_size=6)(calls)
    assert [(seen.any(), *others) for seen, *others in results] == [(False, True, 0, 3)] * 6
    array = np.zeros(BIG)
    with shmarray.scoped(data=array) as shared:  # here they do see each other's writes
        results = Parallel(batch_size=6)(delayed(tasks.put)(shared, index) for index in range(6))
        assert shared[:7].tolist() == [0, 1, 2, 3, 4, 5, 0]
        assert all(result[5] == 5 for result in results)
    del results, shared


def test_a_view_of_a_file_or_of_a_shared_array_stays_one(tmp_path):
    mapped = np.memmap(tmp_path / "numbers", float, "w+", shape=BIG)
    with shmarray.scoped(BIG) as shared:
        Parallel()(delayed(tasks.put)(array[1:], index) for array in (mapped, shared) for index in range(6))
        for array in (mapped, shared):
            assert array[:8].tolist() == [0, 0, 1, 2, 3, 4, 5, 0]
    del array, mapped


def test_a_map_of_a_replaced_file_is_not_a_map_of_the_new_file(tmp_path):
    mapped = np.memmap(tmp_path / "numbers", float, "w+", shape=BIG)
    (tmp_path / "new").write_bytes(b"short")
    (tmp_path / "new").rename(tmp_path / "numbers")
    Parallel()(delayed(tasks.put)(mapped[1:], index) for index in range(6))
    assert mapped[:8].tolist() == [0, 0, 1, 2, 3, 4, 5, 0]
    assert (tmp_path / "numbers").read_bytes() == b"short"


def test_the_bytes_of_arrays_are_not_pickled():
    local = [1.0]
    array = np.zeros(BIG)
    readonly = array[::2]
    readonly.flags.writeable = False
    batch = [(lambda x: (x, local), (array, {"a": [readonly]}), {"same": array}), (np.sum, (array.astype(">f8"),), {})]
    pickled = pickling.dumps(ByValue(batch))

    assert len(pickled.pickle) < 2000
    assert sorted(buffer.nbytes for buffer in pickled.buffers) == [4 * BIG, 8 * BIG, 8 * BIG]


def test_objects_that_contain_arrays_arrive_unchanged():
    record = np.ones(BIG, [("a", "f8"), ("b", ">i2")])
    carried = {
        "record": record.view(np.recarray),
        "masked": np.ma.array(np.arange(BIG), mask=np.arange(BIG) % 3 == 0),
        "object": np.array([lambda: 1, np.ones(3)], object),
        "empty": np.empty((0, 3)),
        "scalar": np.float64(3),
        "small big-endian": np.arange(3, dtype=">i4"),
    }
    (back,) = Parallel()([delayed(dict)(carried), delayed(dict)()])[:1]
    for name, array in carried.items():
        assert type(back[name]) is type(array)
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
    assert back["record"].tobytes() == record.tobytes()
    assert back["masked"].sum() == carried["masked"].sum()
    assert back["object"][0]() == 1


# --- lambdas and the like ---


def test_lambdas_and_local_classes_go_both_ways():
    class Local:
        def __init__(self, array):
            self.array = array

    class LocalError(Exception):
        pass

    def fail(thing):
        raise LocalError(thing.array.sum())

    thing = Local(np.ones(BIG))
    results = Parallel()([delayed(lambda x, f: Local(f(x.array)))(thing, lambda a: a * 3)] * 4)
    assert [type(result) for result in results] == [Local] * 4
    assert [result.array[0] for result in results] == [3, 3, 3, 3]
    with pytest.raises(LocalError, match=str(BIG)) as caught:
        Parallel()(delayed(fail)(thing) for _ in range(4))
    assert "in fail" in str(caught.value.__cause__)  # the traceback in the worker


def test_an_unsendable_object_is_an_error_of_the_call():
    for task in (delayed(tasks.pid)(threading.Lock()), delayed(threading.Lock)()):
        with pytest.raises(Exception, match="lock"):
            Parallel()([task] * 3)
    assert len(Parallel()([delayed(tasks.pid)()] * 3)) == 3


GUARDLESS = """
import numpy, joblib, shmarray.joblib
class Thing:
    def __init__(self, array): self.array = array
def double(thing): return Thing(thing.array * factor)
factor = 2
with joblib.parallel_config(backend="shmarray", n_jobs=2):
    things = joblib.Parallel()(joblib.delayed(double)(Thing(numpy.full(100_000, i))) for i in range(4))
    print([type(thing) is Thing and int(thing.array[0]) for thing in things])
    left = joblib.Parallel(return_as="generator")(joblib.delayed(double)(thing) for thing in things)
    print(int(next(left).array[5]))
"""


def test_a_script_needs_no_guard_and_leaves_nothing(tmp_path):
    (tmp_path / "script.py").write_text(GUARDLESS)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::UserWarning", str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": processes.ROOT},
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 2, 4, 6]\n0\n", "", 0)


# --- workers ---


def pids(**options):
    return set(Parallel(**options)(delayed(tasks.slow)(0.01) for _ in range(10)))


def test_workers_wait_for_the_next_call_and_end_after_a_time():
    first = pids()
    assert first
    assert os.getpid() not in first
    assert pids() == first
    assert pids(n_jobs=3).isdisjoint(first)
    wait_for_end_of(first)
    with joblib.parallel_config(backend="shmarray", n_jobs=2, idle_worker_timeout=0.05):
        short_lived = pids()
    wait_for_end_of(short_lived)
    processes.wait_until(lambda: "shmarray-idle-workers" not in {thread.name for thread in threading.enumerate()})


def wait_for_end_of(ended):
    processes.wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ended))


def test_workers_are_not_reused_for_another_initializer():
    mine = np.zeros(3)
    with joblib.parallel_config(backend="shmarray", n_jobs=2, initializer=tasks.total, initargs=(mine,)):
        first = pids()
        assert pids() == first
        mine[0] = 1  # the same object, but its content is not what the workers began with
        assert pids().isdisjoint(first)


def test_calls_at_the_same_time_do_not_disturb_each_other():
    mine = Parallel(return_as="generator")(delayed(tasks.slow)(0.001) for _ in range(50))
    first = next(mine)
    dropped = Parallel(return_as="generator_unordered")(delayed(tasks.slow)(0.01) for _ in range(500))
    next(dropped)
    with pytest.warns(UserWarning, match="have been"):
        del dropped
    with pytest.raises(ZeroDivisionError):
        Parallel()(delayed(divmod)(1, i) for i in (1, 0, 2))
    gathered = []
    threads = [threading.Thread(target=lambda: gathered.append(_in_a_thread())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert gathered == [[0, 1, 4, 9]] * 2
    assert len({first, *mine}) <= 2


def _in_a_thread():
    return Parallel(n_jobs=2, backend="shmarray")(delayed(pow)(i, 2) for i in range(4))


def test_a_worker_that_dies_fails_the_call_alone_and_the_error_says_what_it_ran():
    with Parallel() as parallel:
        with pytest.raises(WorkerDiedError, match=r"exited with status 3 .*joblib_tasks\.die"):
            parallel(delayed(tasks.die)(i) for i in range(4))
        assert parallel(delayed(abs)(-i) for i in range(4)) == [0, 1, 2, 3]


def test_a_call_that_takes_too_long_ends_with_its_workers():
    before = processes.children()
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.2)(delayed(tasks.slow)(60) for _ in range(3))
    processes.wait_until(lambda: processes.children() == before)


def test_calls_inside_tasks_run_in_threads_and_never_in_daemons_children():
    for backend, own, inner in Parallel()(delayed(tasks.nested)(i) for i in range(3)):
        assert (backend, inner) == ("ThreadingBackend", {own})
    for inner, own in Parallel()(delayed(tasks.nested_processes)(i) for i in range(3)):
        assert inner == {own}


def test_n_jobs_is_as_in_joblib():
    everything = joblib.cpu_count()
    assert joblib.effective_n_jobs(-1) == everything
    assert joblib.effective_n_jobs(-everything - 5) == 1
    assert joblib.effective_n_jobs(7) == 7
    with pytest.raises(ValueError, match="n_jobs == 0"):
        joblib.effective_n_jobs(0)
    assert pids(n_jobs=1) == {os.getpid()}


def test_threads_inside_workers_are_limited():
    default = str(max(joblib.cpu_count() // 2, 1))
    names = [name for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS") if name not in os.environ]
    assert Parallel()(delayed(tasks.variable)(name) for name in names) == [default] * len(names)
    with joblib.parallel_config(backend="shmarray", n_jobs=2, inner_max_num_threads=7):
        assert Parallel()([delayed(tasks.variable)("OMP_NUM_THREADS")] * 2) == ["7", "7"]


def test_a_forked_child_has_workers_of_its_own():
    ours = pids()
    theirs = processes.in_child(_pids_in_child)
    assert theirs.isdisjoint(ours)
    assert pids() == ours


def _pids_in_child():
    found = pids()
    end_idle_workers()
    return found


INTERRUPTED = """
import joblib, shmarray.joblib
from tests.integrations.joblib_tasks import slow
print("begin", flush=True)
try:
    joblib.Parallel(n_jobs=2, backend="shmarray")(joblib.delayed(slow)(30) for _ in range(4))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_the_call_and_its_workers():
    env = os.environ | {"PYTHONPATH": processes.ROOT}
    channels = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], env=env, cwd=processes.ROOT, start_new_session=True, **channels
    ) as program:
        assert program.stdout.readline() == "begin\n"
        processes.wait_until(lambda: _sleeping_workers(program.pid) == 2)
        began = time.monotonic()
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does: the workers receive it too
        told, errors = program.communicate(timeout=30)
    assert (told, errors, program.returncode) == ("interrupted\n", "", 0)
    assert time.monotonic() - began < 15


def _sleeping_workers(session):
    """Return the number of workers that sleep in the task; nothing else in them uses this kind of sleep."""
    found = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
            parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
            waits = Path(f"/proc/{entry}/wchan").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        found += parent == str(session) and b"popen_loky_posix" in command and "nanosleep" in waits
    return found


# --- scikit-learn ---


@pytest.fixture(scope="module")
def flowers():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    from sklearn.datasets import make_classification

    return make_classification(4000, 40, n_informative=8, random_state=0)


def test_scikit_learn_gives_the_serial_answer(flowers):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score

    table, kind = flowers
    model = LogisticRegression(max_iter=50)
    grid = {"C": [0.1, 1.0]}
    forest = RandomForestClassifier(6, random_state=0, n_jobs=2)
    scores = cross_val_score(model, table, kind, cv=4, n_jobs=2)
    search = GridSearchCV(model, grid, n_jobs=2, cv=2).fit(table, kind)
    shared_search = None
    with shmarray.scoped(data=table) as shared:
        shared_search = GridSearchCV(model, grid, n_jobs=2, cv=2).fit(shared, kind)
    trees = forest.fit(table, kind).predict_proba(table)

    with joblib.parallel_config(backend="sequential"):
        assert np.array_equal(scores, cross_val_score(model, table, kind, cv=4))
        serial = GridSearchCV(model, grid, cv=2).fit(table, kind)
        assert np.allclose(trees, forest.set_params(n_jobs=1).fit(table, kind).predict_proba(table))
    for found in (search, shared_search):
        assert np.array_equal(found.cv_results_["mean_test_score"], serial.cv_results_["mean_test_score"])
        assert np.allclose(found.best_estimator_.coef_, serial.best_estimator_.coef_)
