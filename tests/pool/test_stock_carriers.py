"""What multiprocessing itself carries: shared arrays by handle, all others as they always went."""

import concurrent.futures
import copy
import multiprocessing
import pickle

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
