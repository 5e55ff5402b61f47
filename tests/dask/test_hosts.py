"""Several hosts: exactly one copy on each, whatever process dies, and none at the end."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import shmarray
from tests.helpers import processes
from tests.helpers.processes import wait_until

pytest.importorskip("distributed", reason="needs distributed (the extra dask)")

from shmarray.dask import Pool, share
from tests.dask import tasks
from tests.dask.hosts import anonymous_memory, needs_hosts

pytestmark = [needs_hosts, pytest.mark.timeout(120)]

MB = 1 << 20


def start(network, client, counts, **options):
    """Start hosts, with the given number of workers on each."""
    found = [network.host() for _ in counts]
    before = len(client.nthreads())
    for host, count in zip(found, counts, strict=True):
        host.start_workers(client.scheduler.address, count, **options)
    client.wait_for_workers(before + sum(counts), timeout=60)
    return found


def on_every_worker(client, handle, place=7):
    """Return what a task on each worker finds in the array."""
    futures = [client.submit(tasks.item, handle, place, workers=[address], pure=False) for address in client.nthreads()]
    return client.gather(futures)


def workers_of(client, host):
    return [address for address in client.nthreads() if f"//{host.address}:" in address]


def pid_of(client, address):
    return client.run(os.getpid, workers=[address])[address]


def add_worker(client, host, **options):
    before = set(client.nthreads())
    host.start_workers(client.scheduler.address, 1, **options)
    wait_until(lambda: set(client.nthreads()) - before, 60)
    (address,) = set(client.nthreads()) - before
    return address


def kill_worker(client, host, address):
    before = len(client.nthreads())
    host.kill(pid_of(client, address))
    wait_until(lambda: len(client.nthreads()) < before)


def owner_of(client, host, registered=0):
    """Return the worker that brought the array to its host."""
    (name,) = host.registers()
    with open(f"/proc/{host.namespaces.pid}/root/dev/shm/{name}", encoding="ascii") as file:
        pid = int(file.read().split("/proc/")[1 + registered].split("/")[0])
    return next(address for address in workers_of(client, host) if pid_of(client, address) == pid)


def test_each_host_has_one_copy_and_none_after_the_end(network, remote):
    hosts = start(network, remote, [2, 2], options=["--preload", "shmarray.dask"])
    with share(remote, tasks.large(40 * MB)) as shared:
        assert on_every_worker(remote, shared.future) == [7.0] * 4
        assert [host.copies() for host in hosts] == [1, 1]
    wait_until(lambda: [host.copies() for host in hosts] == [0, 0])
    assert [host.registers() for host in hosts] == [[], []]


def test_copies_outlive_the_workers_that_fetched_them_and_are_fetched_again(network, remote):
    first, second = start(network, remote, [2, 2])
    with share(remote, tasks.large()) as shared:
        on_every_worker(remote, shared.future)

        kill_worker(remote, first, owner_of(remote, first))  # the worker that fetched it
        add_worker(remote, first)  # attaches to the copy of the other worker
        assert on_every_worker(remote, shared.future) == [7.0] * 4
        assert first.copies() == 1

        second.kill_workers()  # all workers of one host
        wait_until(lambda: len(remote.nthreads()) == 2)
        add_worker(remote, second)
        assert on_every_worker(remote, shared.future) == [7.0] * 3
        assert [first.copies(), second.copies()] == [1, 1]

        first.kill_workers()  # then all workers, so that the client must send it again
        second.kill_workers()
        wait_until(lambda: not remote.nthreads())
        add_worker(remote, first)
        add_worker(remote, second)
        assert on_every_worker(remote, shared.future) == [7.0] * 2
        assert [first.copies(), second.copies()] == [1, 1]


def test_a_late_host_fetches_from_another_host(network, remote):
    start(network, remote, [1])
    with share(remote, tasks.large(), writable=True) as shared:
        on_every_worker(remote, shared.future)
        (late,) = start(network, remote, [2])
        assert on_every_worker(remote, shared.future) == [7.0] * 3
        assert late.copies() == 1


@pytest.mark.parametrize("victim", ["fetching", "source"])
def test_a_death_during_a_fetch_costs_only_time(network, remote, victim):
    source, target = start(network, remote, [1, 2])
    with share(remote, tasks.large()) as small:
        on_every_worker(remote, small.future)
    array = tasks.large(64 * MB)
    source.limit_rate(400)
    with share(remote, array) as shared:
        futures = [
            remote.submit(tasks.item, shared.future, 7, workers=[address], pure=False)
            for address in workers_of(remote, target)
        ]
        wait_until(lambda: target.copies() == 1)
        if victim == "fetching":
            kill_worker(remote, target, owner_in_flight(remote, target))
            address = add_worker(remote, target)
            futures = [remote.submit(tasks.item, shared.future, 7, workers=[address], pure=False)]
        else:
            source.kill_workers()
        assert set(remote.gather(futures)) == {7.0}
        assert target.copies() == 1


def owner_in_flight(client, host):
    """Return the worker in whose memory an array is arriving."""
    (inner,) = [inner for outer, inner in host.pids().items() if anonymous_memory(outer)]
    return next(address for address in workers_of(client, host) if pid_of(client, address) == inner)


def test_many_arrays_wanted_by_all_at_once(network, remote):
    hosts = start(network, remote, [2, 2])
    arrays = [tasks.large() + number for number in range(6)]
    shares = [share(remote, array) for array in arrays]
    futures = [
        remote.submit(tasks.item, shared.future, 1, workers=[address], pure=False)
        for shared in shares
        for address in remote.nthreads()
    ]
    assert remote.gather(futures) == [number + 1.0 for number in range(6) for _ in range(4)]
    assert [host.copies() for host in hosts] == [6, 6]
    for shared in shares:
        shared.close()
    wait_until(lambda: [host.copies() for host in hosts] == [0, 0])


CLIENT = """
import sys, time
from distributed import Client
from shmarray.dask import share
from tests.dask import tasks
client = Client(sys.argv[1])
shared = share(client, tasks.large())
client.gather([client.submit(tasks.item, shared.future, 7, workers=[w], pure=False) for w in client.nthreads()])
print("shared", flush=True)
time.sleep(60)
"""


def test_a_killed_client_leaves_no_copy(network, remote):
    hosts = start(network, remote, [1, 1])
    command = [sys.executable, "-c", CLIENT, remote.scheduler.address]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=processes.ROOT, env=os.environ | {"PYTHONPATH": processes.ROOT}
    )
    try:
        assert child.stdout.readline() == "shared\n"
        assert [host.copies() for host in hosts] == [1, 1]
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    wait_until(lambda: [host.copies() for host in hosts] == [0, 0])
    with share(remote, tasks.large()):  # removes what the killed client left in this host's memory
        pass


def test_the_pool_shares_on_all_hosts(network, remote):
    hosts = start(network, remote, [1, 1])
    table = tasks.large(8 * MB)
    with Pool(remote) as pool:
        result = pool.starmap_async(tasks.take_and_spoil, [(table, place) for place in range(40)], 1)
        wait_until(lambda: [host.copies() for host in hosts] == [1, 1] or result.ready())
        assert result.get() == list(map(float, range(40)))
    assert table[3] == 3.0
    wait_until(lambda: [host.copies() for host in hosts] == [0, 0])


def test_lack_of_memory_is_the_tasks_error_and_nothing_is_left(network, remote):
    (host,) = start(network, remote, [1], prefix=("prlimit", f"--fsize={4 * MB}"))
    with share(remote, tasks.large(8 * MB)) as shared:
        with pytest.raises(shmarray.SharedMemoryFullError, match="ulimit -f"):
            remote.submit(tasks.item, shared.future, 7).result()
        assert host.copies() == 0
    assert host.registers() == []


def test_the_error_for_a_shared_handle_of_another_host_names_the_alternative(network, remote):
    start(network, remote, [1])
    with shmarray.scoped(data=tasks.large()) as array, Pool(remote) as pool:
        with pytest.raises(shmarray.ArrayNotFoundError, match=r"shmarray\.dask\.share"):
            pool.apply(tasks.item_of_shared_handle, (shmarray.SharedHandle(array),))
        assert pool.apply(tasks.item, (array, 3)) == 3.0  # the array itself is sent with its content


@pytest.mark.cluster
def test_another_user_of_the_same_host_has_a_copy_of_its_own(network, remote, tmp_path):
    (host,) = start(network, remote, [1])
    # Only root may be allowed to read the interpreter's directory.
    reading = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reading, "env", "HOME=/tmp")
    add_worker(remote, host, prefix=user, options=["--local-directory", "/tmp/shmarray-test-nobody"])
    with share(remote, tasks.large()) as shared:
        assert on_every_worker(remote, shared.future) == [7.0] * 2
        assert host.copies() == 2
    wait_until(lambda: host.copies() == 0)


@pytest.mark.cluster
def test_idle_copies_stay(network, remote):
    hosts = start(network, remote, [2, 2])
    with share(remote, tasks.large()) as shared:
        on_every_worker(remote, shared.future)
        before = [host.copies() for host in hosts]
        time.sleep(7)  # Dask's memory manager removes extra copies of its own values sooner than that
        assert [host.copies() for host in hosts] == before == [1, 1]
        assert on_every_worker(remote, shared.future) == [7.0] * 4


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_thousand_handles_under_a_low_limit_of_descriptors(network, remote):
    (host,) = start(network, remote, [2], prefix=("prlimit", "--nofile=1024:1024"))
    shares = [share(remote, np.full(1000, number)) for number in range(1000)]
    for address in remote.nthreads():
        futures = [remote.submit(tasks.item, shared, 0, workers=[address], pure=False) for shared in shares]
        assert remote.gather(futures) == list(map(float, range(1000)))
    assert host.copies() == 1000
    for shared in shares:
        shared.close()
    wait_until(lambda: host.copies() == 0, 60)


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_killing_at_random_never_costs_more_than_time(network, remote):
    rng = random.Random(int(os.environ.get("SHMARRAY_SEED", "0")))
    hosts = start(network, remote, [2, 2, 2])
    for _ in range(10):
        with share(remote, tasks.large(16 * MB)) as shared:
            for _ in range(3):
                host = rng.choice(hosts)
                if workers_of(remote, host) and rng.random() < 0.7:
                    kill_worker(remote, host, rng.choice(workers_of(remote, host)))
                else:
                    add_worker(remote, host)
            if not remote.nthreads():
                add_worker(remote, hosts[0])
            assert set(on_every_worker(remote, shared.future)) == {7.0}
            used = [bool(workers_of(remote, host)) for host in hosts]
            assert [host.copies() for host in hosts] == list(map(int, used))
        wait_until(lambda: [host.copies() for host in hosts] == [0, 0, 0])
