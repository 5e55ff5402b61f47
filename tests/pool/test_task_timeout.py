"""A task's time begins when its worker gets it, whatever the collecting thread is waiting for then."""

import signal

import pytest

import shmarray
from tests.helpers.processes import FORK_WARNING
from tests.pool.tasks import call, double, make, wait_until

pytestmark = pytest.mark.filterwarnings(FORK_WARNING)


@pytest.mark.parametrize("kind", ["Pool", "Executor"])
def test_the_time_of_a_task_begins_while_the_collecting_thread_waits_for_ever(kind):
    options = {"replace_workers": True} if kind == "Executor" else {}
    with make(kind, "fork", task_timeout=0.3, **options) as pool:
        assert call(pool, double, 2) == 4
        collector = pool._scheduler._collector
        wait_until(lambda: collector._patience() is None)
        with pytest.raises(shmarray.TaskTimeoutError, match="took longer than its limit"):
            call(pool, signal.pause)
        assert call(pool, double, 2) == 4
        if kind == "Pool":
            pool.close()
            pool.join()
