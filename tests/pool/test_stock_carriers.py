"""What multiprocessing itself sends: shared arrays as handles, all others as before."""

import concurrent.futures
import copy
import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

import shmarray
from tests.pool import tasks


@pytest.fixture(params=tasks.START_METHODS)
def context(request):
    return multiprocessing.get_context(request.param)


def test_the_stock_pool_shares_them(context):
    with shmarray.scoped(1000) as array, context.Pool(1) as pool:
        pool.apply(tasks.write_first, (array[10::2],))
        assert array[10] == 99
        pool.apply(tasks.write_first, (np.zeros(5),))


def test_the_stock_executor_shares_them(context):
    with shmarray.scoped(1000) as array, concurrent.futures.ProcessPoolExecutor(1, context) as executor:
        executor.submit(tasks.write_first, array[10::2]).result()
        assert array[10] == 99


def test_arguments_of_a_process_are_shared(context):
    with shmarray.scoped(1000) as array:
        process = context.Process(target=tasks.write_first, args=(array[10::2],))
        process.start()
        process.join()
        process.close()
        assert array[10] == 99


def test_pipes_and_queues_share_them(context):
    with shmarray.scoped(1000) as array:
        one, other = context.Pipe()
        queue = context.SimpleQueue()
        one.send(array[10:])
        queue.put(array[20:])
        other.recv()[0] = 1
        queue.get()[0] = 2
        assert (array[10], array[20]) == (1, 2)
        for end in (one, other, queue):
            end.close()


def test_plain_pickle_and_deepcopy_mean_the_data():
    with shmarray.scoped(1000) as array:
        for copied in (pickle.loads(pickle.dumps(array)), copy.deepcopy(array)):
            copied[0] = 1
        assert array[0] == 0


# --- arrays whose scope has ended ----------------------------------------------------------


@pytest.fixture
def gone(context):
    """Return a function that submits calls to a busy worker, which begins them after their array is deleted."""

    def submit(send, path):
        busy = send(tasks.wait_for_file, str(path))
        with shmarray.scoped(data=np.ones(1000)) as array:
            calls = [send(tasks.total, array[i:]) for i in range(3)]
        path.touch()
        return [busy, *calls]

    return submit


def test_the_stock_pool_reports_an_array_that_no_longer_exists(context, gone, tmp_path):
    with context.Pool(1) as pool:
        pool.apply(abs, (-1,))
        busy, *calls = gone(lambda function, *args: pool.apply_async(function, args), tmp_path / "go")
        busy.get(60)
        for call in calls:
            with pytest.raises(shmarray.ArrayNotFoundError, match="with block that created it has ended"):
                call.get(60)
        assert pool.apply_async(abs, (-2,)).get(60) == 2
        pool.close()
        pool.join()


def test_the_stock_executor_reports_an_array_that_no_longer_exists(context, gone, tmp_path):
    with concurrent.futures.ProcessPoolExecutor(1, context) as executor:
        executor.submit(abs, -1).result(60)
        busy, *calls = gone(executor.submit, tmp_path / "go")
        busy.result(60)
        for call in calls:
            with pytest.raises(shmarray.ArrayNotFoundError, match="with block that created it has ended"):
                call.result(60)
        assert executor.submit(abs, -2).result(60) == 2


def test_the_object_received_in_place_of_it_raises_on_every_use(context):
    one, other = context.Pipe()
    with shmarray.scoped(data=np.ones(1000)) as array:
        one.send(array)
        pickled = other.recv_bytes()
        del array
    missing = ForkingPickler.loads(pickled)
    one.close()
    other.close()
    for use in USES:
        with pytest.raises(shmarray.ArrayNotFoundError):
            use(missing)
    assert not isinstance(missing, np.ndarray)
    assert "with block" in repr(missing)
    again = pickle.loads(pickle.dumps(missing))
    with pytest.raises(shmarray.ArrayNotFoundError):
        again.sum()


USES = [
    np.asarray,
    np.sum,
    np.stack,
    len,
    list,
    bool,
    float,
    int,
    shmarray.SharedHandle,
    lambda x: x.shape,
    lambda x: x[0],
    lambda x: x == 1,
    lambda x: x + 1,
    lambda x: np.ones(3) * x,
    lambda x: np.zeros(3).__setitem__(slice(None), x),
    lambda x: hasattr(x, "sum"),
    lambda x: x.__setitem__(0, 1),
    lambda x: 1 in x,
    lambda x: np.array([x, x]),
    lambda x: shmarray.lock(x).__enter__(),
]


def test_queues_do_not_hang_on_an_array_that_no_longer_exists(context):
    queue = context.Queue()
    process = context.Process(target=tasks.put_scoped, args=(queue,))
    process.start()
    try:
        process.join(60)
        kind, error = tasks.reraise_what_it_is(queue.get(timeout=60))
        assert queue.get(timeout=60) == 3
    finally:
        process.kill()
        process.join()
        process.close()
        queue.close()
        queue.join_thread()
    # The sending thread may run after the end of the block: then it sends the data.
    assert (kind == "ndarray") == (error is None)
    assert error is None or type(error) is shmarray.ArrayNotFoundError


def test_what_a_task_returns_out_of_its_block_is_data(context):
    with context.Pool(1) as pool:
        back = pool.apply_async(tasks.scoped_result).get(60)
        assert back.tolist() == [1, 2]
        back[0] = 3
        pool.close()
        pool.join()
    with concurrent.futures.ProcessPoolExecutor(1, context) as executor:
        assert executor.submit(tasks.scoped_result).result(60).tolist() == [1, 2]
    with shmarray.Pool(1, context=context) as pool:
        assert pool.apply_async(tasks.scoped_result).get(60).tolist() == [1, 2]
    with shmarray.ProcessPoolExecutor(1, context) as executor:
        assert executor.submit(tasks.scoped_result).result(60).tolist() == [1, 2]


def test_a_named_array_that_a_task_returns_out_of_its_block_is_an_error_and_no_hang(context, name):
    with context.Pool(1) as pool:
        back = pool.apply_async(tasks.scoped_result, (name,)).get(60)
        with pytest.raises(shmarray.ArrayNotFoundError, match=name):
            back.sum()
        assert pool.apply_async(abs, (-2,)).get(60) == 2
        pool.close()
        pool.join()


def test_a_deleted_array_does_not_hang_the_stock_pool(context, name):
    array = shmarray.create(name, data=[1.0, 2.0])
    with context.Pool(1) as pool:
        pool.apply(abs, (-1,))
        shmarray.delete(name)
        call = pool.apply_async(tasks.total, (array,))
        if context.get_start_method() == "fork":  # it has inherited the memory
            assert call.get(60) == 3
        else:
            with pytest.raises(shmarray.ArrayNotFoundError, match=name):
                call.get(60)
        pool.close()
        pool.join()
