"""One host with two worker processes: what tasks see of a shared array, and how long it exists."""

import asyncio
import os
import pickle

import numpy as np
import pytest

import shmarray
from tests.helpers.processes import wait_until

pytest.importorskip("distributed", reason="needs distributed (the extra dask)")

import distributed

from shmarray.dask import ClusterHandle, Pool, ProcessPoolExecutor, install, share
from tests.dask import hosts, tasks


def worker_pids(client):
    return list(client.run(os.getpid).values())


def copies_of(pids):
    return len({inode for pid in pids for inode in hosts.anonymous_memory(pid)})


def on_every_worker(client, function, *args):
    futures = [client.submit(function, *args, workers=[address], pure=False) for address in client.nthreads()]
    return client.gather(futures)


def test_tasks_of_all_workers_see_one_copy(client):
    with share(client, tasks.large()) as shared:
        assert on_every_worker(client, tasks.item, shared.future, 5) == [5.0, 5.0]
        assert on_every_worker(client, tasks.item, shared, 5) == [5.0, 5.0]
        assert copies_of(worker_pids(client)) == 1
        assert shared.array[5] == 5.0
    wait_until(lambda: copies_of(worker_pids(client)) == 0)


def test_later_changes_to_the_array_are_not_visible(client):
    array = tasks.large()
    with share(client, array) as shared:
        array[:] = -1
        assert on_every_worker(client, tasks.item, shared.future, 5) == [5.0, 5.0]


def test_a_shared_array_cannot_be_written_to(client):
    with share(client, tasks.large()) as shared, pytest.raises(ValueError, match="read-only"):
        client.submit(tasks.write, shared.future).result()


def test_writes_to_a_private_array_stay_with_the_task(client):
    with share(client, tasks.large(), writable=True) as shared:
        futures = client.map(tasks.take_and_spoil_handle, [shared.future] * 40, [7] * 40, pure=False)
        assert client.gather(futures) == [7.0] * 40
        assert shared.array[7] == 7.0


ARRAYS = {
    "column-major": np.asfortranarray(np.arange(60.0).reshape(6, 10)),
    "transposed": np.arange(60).reshape(3, 4, 5).transpose(1, 0, 2),
    "strided": np.arange(100)[::-3],
    "structured": np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "<i2"), ("b", "<f8")]),
    "times": np.array(["2026-01-01", "NaT"], "datetime64[s]"),
    "big-endian": np.arange(5, dtype=">i4"),
    "empty": np.empty((0, 3)),
    "0-d": np.array(7.5),
    "list": [1, 2, 3],
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("writable", [False, True])
def test_every_array_arrives_unchanged(client, array, writable):
    with share(client, array, writable=writable) as shared:
        got = client.submit(np.array, shared.future, copy=True, pure=False).result()
        expected = np.asarray(array)
        np.testing.assert_array_equal(got, expected)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert (shared.shape, shared.dtype, shared.ndim, shared.nbytes) == (
            expected.shape,
            expected.dtype,
            expected.ndim,
            expected.nbytes,
        )


@pytest.mark.parametrize("array", [np.array([object()]), np.ma.masked_array([1, 2], [0, 1])], ids=["objects", "masked"])
def test_what_cannot_be_shared_is_refused(client, array):
    with pytest.raises(TypeError, match="share"):
        share(client, array)


def test_an_asynchronous_client_is_refused(cluster):
    async def try_it():
        async with distributed.Client(cluster.scheduler_address, asynchronous=True) as client:
            install(client)

    with pytest.raises(TypeError, match="not asynchronous"):
        asyncio.run(try_it())


def test_a_result_that_is_a_view_is_a_copy_for_its_receiver(client):
    with share(client, tasks.large()) as shared:
        rows = client.submit(tasks.first_rows, shared.future).result()
    assert rows.tolist() == [0.0, 1.0]


def test_a_task_that_raises_does_not_keep_the_array(client):
    with share(client, tasks.large()) as shared, ProcessPoolExecutor(client) as executor:
        futures = [executor.submit(tasks.fail_with, shared, number) for number in range(4)]
        assert {str(future.exception()) for future in futures} == {"of 2097152 bytes"}
    wait_until(lambda: copies_of(worker_pids(client)) == 0)  # although Dask still has the tracebacks


def test_the_future_keeps_the_array_until_its_tasks_are_done(client, tmp_path):
    path = str(tmp_path / "go")
    shared = share(client, tasks.large())
    waiting = [client.submit(tasks.wait_for_file, path, workers=[address], pure=False) for address in client.nthreads()]
    results = [
        client.submit(tasks.item_after, shared.future, 3, wait, workers=[address], pure=False)
        for wait, address in zip(waiting, client.nthreads(), strict=True)
    ]
    shared.close()
    (tmp_path / "go").touch()
    assert client.gather(results) == [3.0, 3.0]
    wait_until(lambda: copies_of(worker_pids(client)) == 0)  # although the results still exist


def test_a_closed_share_says_so(client):
    shared = share(client, tasks.large())
    handle = pickle.loads(pickle.dumps(shared))
    shared.close()
    shared.close()
    assert type(handle) is ClusterHandle
    wait_until(lambda: copies_of(worker_pids(client)) == 0)
    with pytest.raises(shmarray.ArrayNotFoundError, match="closed"):
        np.asarray(handle)
    with pytest.raises(shmarray.ArrayNotFoundError, match="closed"):
        client.submit(tasks.item, handle, 3).result()


def test_a_share_is_closed_when_it_is_garbage(client):
    share(client, tasks.large())
    wait_until(lambda: copies_of(worker_pids(client)) == 0)


def test_a_forked_child_of_a_task_has_the_array(client):
    with share(client, tasks.large()) as shared:
        assert client.submit(tasks.in_child_process, shared).result() == 1.0


def test_dask_array_takes_a_handle(client):
    array = pytest.importorskip("dask.array")
    with share(client, tasks.large().reshape(512, 512)) as shared:
        lazy = array.from_array(shared, chunks=(128, 512))
        assert lazy.sum().compute() == np.arange(512.0 * 512).sum()


def test_workers_in_threads_of_the_client():
    options = {"dashboard_address": ":0", "silence_logs": 50}
    with distributed.Client(n_workers=2, threads_per_worker=1, processes=False, **options) as client:
        with share(client, tasks.large(), writable=True) as shared:
            futures = client.map(tasks.take_and_spoil_handle, [shared.future] * 20, [7] * 20, pure=False)
            assert client.gather(futures) == [7.0] * 20
        with Pool(client) as pool:
            array = tasks.large()
            assert pool.map(tasks.double, [array])[0][3] == 6.0
            assert array[3] == 3.0


def test_a_restart_closes_shares_and_new_ones_work(cluster):
    with distributed.Client(cluster) as client:
        client.wait_for_workers(2)
        old = share(client, tasks.large())
        on_every_worker(client, tasks.item, old.future, 3)
        client.restart()
        assert client.run(tasks.number_of_copies) == dict.fromkeys(client.nthreads(), 0)
        assert old.future.cancelled()
        with share(client, tasks.large()) as new:
            assert on_every_worker(client, tasks.item, new.future, 3) == [3.0, 3.0]
        old.close()


def test_a_task_whose_worker_dies_is_run_again(client, tmp_path):
    with share(client, tasks.large()) as shared:
        future = client.submit(tasks.kill_oneself_once, str(tmp_path / "died"), shared.future)
        assert future.result().shape == (1 << 18,)
        client.wait_for_workers(2)
        assert on_every_worker(client, tasks.item, shared.future, 3) == [3.0, 3.0]
        del future


def test_under_tls():
    pytest.importorskip("cryptography", reason="distributed needs it to make certificates")
    security = distributed.Security.temporary()
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with (
        distributed.LocalCluster(security=security, protocol="tls", memory_limit=0, **options) as cluster,
        distributed.Client(cluster, security=security) as client,
        share(client, tasks.large()) as shared,
    ):
        assert client.submit(tasks.item, shared.future, 3).result() == 3.0


def test_installing_twice_is_the_same_as_once(client):
    install(client)
    with share(client, tasks.large()) as shared:
        on_every_worker(client, tasks.item, shared.future, 3)
        with distributed.Client(client.scheduler.address) as other:
            install(other)  # replacing the plugin would close the workers' copies
        assert set(client.run(tasks.number_of_copies).values()) == {1}


def test_shared_memory_does_not_count_against_the_limit_of_a_worker():
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(memory_limit="350MB", **options) as cluster, distributed.Client(cluster) as client:
        (pid,) = worker_pids(client)
        with share(client, np.ones(30 << 20)) as shared:
            for _ in range(5):  # the monitors check every 0.1 and 0.2 seconds
                assert client.submit(tasks.total_after, shared.future, 0.2, pure=False).result() == 30 << 20
        assert worker_pids(client) == [pid]
