"""Clusters, and the proof that no copy of an array is left in them."""

import gc
import os
from contextlib import suppress

import pytest

distributed = pytest.importorskip("distributed", reason="needs distributed (the extra dask)")

import dask  # noqa: E402

from shmarray.dask.copies import COPIES  # noqa: E402
from tests.dask import hosts  # noqa: E402
from tests.helpers import processes  # noqa: E402
from tests.helpers.processes import wait_until  # noqa: E402

# A test that waits for longer than this for a worker has found an error.
dask.config.set({"distributed.comm.timeouts.connect": "10s", "distributed.admin.tick.limit": "60s"})

WARNINGS = [
    # Of distributed and of what it uses.
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
    """Copies, their descriptors and mappings, and registers: none is left in this process or in its workers.

    Not sockets and threads: those of Dask come and go as it likes.
    """
    yield
    if getattr(request.node, "failed", False):
        return  # its traceback holds what its frames held
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
    """Those in which a process of this test is, or one that has ended."""
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


# Not for the session: its scheduler opens and closes files all the time, which other tests would take for leaks.
@pytest.fixture(scope="module")
def cluster():
    """Two worker processes on this host."""
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
    """A client whose scheduler is here, and whose workers will be on other hosts."""
    options = {"n_workers": 0, "dashboard_address": ":0", "silence_logs": 50, "protocol": "tcp"}
    with distributed.LocalCluster(host=network.address, **options) as cluster, distributed.Client(cluster) as made:
        yield made
