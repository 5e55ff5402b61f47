"""scipy, emcee, dask and asyncio with our Pool or executor."""

import asyncio
import multiprocessing
from functools import partial

import numpy as np
import pytest

from shmarray import WorkerDiedError
from tests.integrations import joblib_tasks, pool_tasks
from tests.pool.tasks import make

optional = partial(pytest.importorskip, reason="tests an optional library that works with pools")


@pytest.fixture
def pool():
    with make("Pool", "fork") as pool:
        yield pool
    pool.join()


@pytest.fixture
def executor():
    with make("Executor", "fork") as executor:
        yield executor


# --- scipy: workers= accepts a map function ---


def test_scipy_has_the_serial_answer_from_our_maps(kind):
    optimize = optional("scipy.optimize")
    integrate = optional("scipy.integrate")
    bounds = [(-4, 4), (-4, 4)]
    options = {"seed": 1, "maxiter": 8, "popsize": 5, "updating": "deferred", "polish": False}
    with make(kind, "fork") as pool:
        evolved = optimize.differential_evolution(pool_tasks.bowl, bounds, workers=pool.map, **options)
        best = optimize.brute(pool_tasks.bowl, bounds, Ns=9, workers=pool.map, finish=None)
        if kind == "Pool":  # quad_vec needs the length of the result, which an executor's map does not have
            area, _ = integrate.quad_vec(pool_tasks.bell, -3, 3, workers=pool.map)
            assert np.allclose(area, integrate.quad_vec(pool_tasks.bell, -3, 3)[0])
    if kind == "Pool":
        pool.join()
    assert np.array_equal(evolved.x, optimize.differential_evolution(pool_tasks.bowl, bounds, **options).x)
    assert best.tolist() == [1.0, 2.0]


# --- emcee: pool= accepts an object with a map method ---


def test_emcee_samples_as_without_a_pool(pool):
    emcee = optional("emcee")
    start = np.random.default_rng(5).normal(size=(8, 2))
    weights = np.array([1.0, 0.5])
    chains = []
    for chosen in (None, pool):
        sampler = emcee.EnsembleSampler(8, 2, pool_tasks.log_probability, args=[weights], pool=chosen)
        sampler.random_state = np.random.RandomState(3).get_state()
        sampler.run_mcmc(start, 20)
        chains.append(sampler.get_chain())
    assert np.array_equal(*chains)


# --- dask: pool= accepts an executor or a pool ---


def test_dask_computes_in_our_workers(kind):
    dask = optional("dask")
    da = optional("dask.array")
    table = np.random.default_rng(2).random((600, 400))
    with make(kind, "fork") as pool, dask.config.set(scheduler="processes", pool=pool):
        lazy = da.from_array(table, chunks=(200, 400))
        centred = (lazy - lazy.mean(axis=0)).compute()
        pids = dask.compute(*[dask.delayed(joblib_tasks.pid)(i) for i in range(4)])
        with pytest.raises(ZeroDivisionError):
            dask.delayed(divmod)(1, 0).compute()
    if kind == "Pool":
        pool.join()
    assert np.allclose(centred, table - table.mean(axis=0))
    assert centred.flags.writeable
    assert multiprocessing.current_process().pid not in pids


# --- asyncio: run_in_executor accepts an executor ---


def test_asyncio_awaits_our_executor(executor):
    array = np.zeros(100_000)

    async def gather():
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, pool_tasks.increment, array) for _ in range(4)]
        return await asyncio.gather(*calls)

    results = asyncio.run(gather())
    assert [(result == 1).all() for result in results] == [True] * 4
    assert all(result.flags.writeable for result in results)
    assert not array.any()


def test_a_cancelled_await_cancels_what_has_not_begun_and_harms_nobody(executor, tmp_path):
    ran = tmp_path / "go"

    async def cancel_some():
        loop = asyncio.get_running_loop()
        running = [loop.run_in_executor(executor, pool_tasks.wait_for, str(ran)) for _ in range(2)]
        waiting = [loop.run_in_executor(executor, pool_tasks.increment, np.zeros(100_000)) for _ in range(20)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(running[0]), 0.05)
        for future in waiting[1:]:
            future.cancel()
        ran.touch()
        assert (await waiting[0])[0] == 1
        await asyncio.gather(*running)
        done = await asyncio.gather(*waiting[1:], return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in done)
        return await loop.run_in_executor(executor, pool_tasks.increment, np.ones(100_000))

    assert asyncio.run(cancel_some())[5] == 2


def test_an_awaited_worker_that_dies_is_the_executors_error():
    async def die():
        with make("Executor", "fork") as executor:
            await asyncio.get_running_loop().run_in_executor(executor, joblib_tasks.die, None)

    with pytest.raises(WorkerDiedError, match="exited with status 3"):
        asyncio.run(die())


def test_asyncio_and_a_pool_work_together_through_callbacks(pool):
    """Pool has no futures; its callbacks run in one of its own threads."""

    async def once(array):
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        settle = partial(loop.call_soon_threadsafe, done.set_result)
        pool.apply_async(pool_tasks.increment, (array,), callback=settle)
        return await done

    assert (asyncio.run(once(np.zeros(100_000))) == 1).all()
