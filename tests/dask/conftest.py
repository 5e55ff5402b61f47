"""Clusters, and a check that no copies of arrays remain in them."""

import gc
import os
from contextlib import suppress

import pytest

from tests.dask import hosts
from tests.helpers import processes
from tests.helpers.processes import wait_until

try:
    import dask
    import distributed

    from shmarray.dask.copies import COPIES
except ModuleNotFoundError:
    # The modules that need it are then skipped with a message.
    COPIES = {}
else:
    # If a test waits for a worker longer than this, something is wrong.
    dask.config.set({"distributed.comm.timeouts.connect": "10s", "distributed.admin.tick.limit": "60s"})

WARNINGS = [
    # Warnings of distributed and of the libraries that it uses.
    "ignore::DeprecationWarning",
    "ignore::PendingDeprecationWarning",
    "ignore::FutureWarning",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/dask" in str(item.path):
            for warning in WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(autouse=True)
def no_leaks(request, _lasting_helpers):
    """Check that no copies, their descriptors and mappings, or registers remain in this process or in its workers.

    Sockets and threads are not checked, because Dask creates and closes them at any time.
    """
    yield
    if getattr(request.node, "failed", False):
        return  # the traceback keeps the frames' objects alive
    gc.collect()
    with suppress(AssertionError):
        wait_until(lambda: not _left(), 10)
    assert _left() == {}


def _left():
    left = {"here": len(COPIES), "registers": _registers()}
    for pid in {os.getpid(), *_descendants()}:
        left[pid] = hosts.anonymous_memory(pid)
    return {what: things for what, things in left.items() if things}


def _registers():
    """Return the registers that contain a process of this test, including one that has ended."""
    found = []
    own = {str(os.getpid()), *map(str, _descendants())}
    for name in os.listdir("/dev/shm"):
        if name.startswith("shmarray-cluster-"):
            try:
                with open(f"/dev/shm/{name}", encoding="utf-8") as file:
                    text = file.read()
            except FileNotFoundError:
                continue
            if any(f"/proc/{pid}/" in text for pid in own):
                found.append(name)
    return found


def _descendants():
    found = list(processes.children())
    for pid in found:
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                    found += map(int, file.read().split())
        except FileNotFoundError:
            continue
    return found


# Not for the session: the scheduler opens and closes files at any time, which other tests would consider leaks.
@pytest.fixture(scope="module")
def cluster():
    """A cluster of two worker processes on this host."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": 0}
    with distributed.LocalCluster(processes=True, silence_logs=50, **options) as made:
        yield made


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as made:
        made.wait_for_workers(2)
        yield made


@pytest.fixture
def network():
    network = hosts.Network()
    yield network
    network.end()


@pytest.fixture
def remote(network):
    """A client whose scheduler is on this host, and whose workers will be on other hosts."""
    options = {"n_workers": 0, "dashboard_address": ":0", "silence_logs": 50, "protocol": "tcp"}
    with distributed.LocalCluster(host=network.address, **options) as cluster, distributed.Client(cluster) as made:
        yield made
