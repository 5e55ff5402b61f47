"""User objects that raise when they are named, inspected, hashed or sent: no thread ends, and no call hangs."""

import threading

import pytest

import shmarray
from tests.faults import hostile
from tests.faults.errors import KINDS
from tests.pool import tasks
from tests.pool.tasks import START_METHODS, call, make, start, terminate

LIMIT = 20


def options(kind):
    return {} if kind == "Pool" else {"replace_workers": True}


@pytest.mark.parametrize("method", START_METHODS)
def test_a_worker_that_dies_in_an_unnameable_function(kind, method):
    pool = make(kind, method, **options(kind))
    for name in KINDS:
        for func in (hostile.KILLERS[name](), hostile.nameless(name), hostile.OddlyNamed(name)):
            with pytest.raises(shmarray.WorkerDiedError, match=r"SIGKILL.* while it ran "):
                start(pool, func)(LIMIT)
            assert call(pool, abs, -1) == 1
            with pytest.raises(shmarray.WorkerDiedError):
                list(pool.map(func, [1, 2], chunksize=2))
        assert call(pool, hostile.ANSWERERS[name]()) == 7
    terminate(pool)


def test_an_executor_that_an_unnameable_function_breaks(kind):
    for name in KINDS:
        pool = make(kind, "fork")
        with pytest.raises(shmarray.WorkerDiedError):
            start(pool, hostile.nameless(name))(LIMIT)
        terminate(pool)


def test_a_stuck_task_that_cannot_be_named(kind):
    pool = make(kind, "fork", task_timeout=0.2)
    for name in KINDS:
        with pytest.raises(shmarray.TaskTimeoutError):
            start(pool, Sleeper(name))(LIMIT)
        assert call(pool, abs, -1) == 1
    terminate(pool)


class Unhashable(type):
    """A metaclass whose classes cannot be keys of a dictionary."""

    def __eq__(cls, other):
        return cls is other

    __hash__ = None


class OfAnUnhashableClass(metaclass=Unhashable):
    def __call__(self):
        raise AssertionError("pickle cannot send it")


def test_a_function_whose_class_cannot_be_hashed_fails_its_own_call_only(kind, tmp_path):
    pool = make(kind, "fork")
    other = start(pool, tasks.wait_for_file, str(tmp_path / "go"))
    with pytest.raises(TypeError, match="unhashable"):
        start(pool, OfAnUnhashableClass())(LIMIT)
    (tmp_path / "go").touch()
    other(LIMIT)
    terminate(pool)


class Sleeper:
    def __init__(self, kind):
        self.kind = kind

    def __getattr__(self, name):
        if name in {"__qualname__", "__name__"}:
            raise KINDS[self.__dict__["kind"]](name)
        raise AttributeError(name)

    def __call__(self):
        threading.Event().wait(60)


@pytest.mark.parametrize("method", START_METHODS)
def test_arguments_and_results_that_cannot_be_inspected(kind, method):
    pool = make(kind, method)
    for name, thing in hostile.THINGS.items():
        assert type(start(pool, hostile.give, thing())(LIMIT)) is thing
        assert type(start(pool, hostile.give_new, name)(LIMIT)) is thing
        assert [type(given) for given in pool.map(hostile.give, [thing(), thing()])] == [thing, thing]
    terminate(pool)


@pytest.mark.parametrize("method", START_METHODS)
def test_errors_that_cannot_be_inspected(kind, method):
    pool = make(kind, method)
    for name in KINDS:
        for func, error in ((hostile.raise_hostile, hostile.HostileError), (hostile.raise_hostile_base, BaseException)):
            caught = None
            try:
                start(pool, func, name)(LIMIT)
            except BaseException as raised:  # noqa: BLE001 - pytest.raises would inspect it
                caught = type(raised)
            assert caught is not None
            assert issubclass(caught, (error, KINDS[name])), caught
        assert call(pool, abs, -1) == 1
    terminate(pool)


@pytest.mark.parametrize("method", START_METHODS)
def test_an_error_that_does_not_unpickle_keeps_its_text(kind, method):
    pool = make(kind, method)
    for name in KINDS:
        with pytest.raises(KINDS[name], match="of its state") as caught:
            start(pool, hostile.raise_stateful, name)(LIMIT)
        text = str(caught.value.__cause__)
        assert "what the task says" in text
        assert "StatefulError" in text
        assert "in raise_stateful" in text
    terminate(pool)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("step", ["len", "hint", "iter", "next"])
def test_iterables_that_raise_at_every_step(step, name):
    with make("Pool", "fork") as pool, make("Executor", "fork") as executor:
        calls = [
            lambda it: pool.map(abs, it),
            lambda it: list(pool.imap(abs, it)),
            lambda it: list(pool.imap(abs, it, 2)),
            lambda it: list(pool.imap_unordered(abs, it)),
            lambda it: list(pool.imap(abs, it, buffersize=1)),
            lambda it: list(pool.imap_unordered(abs, it, 2, buffersize=3)),
            lambda it: list(executor.map(abs, it)),
            lambda it: list(executor.map(abs, it, chunksize=2)),
        ]
        for place, begin in enumerate(calls):
            try:
                assert sorted(begin(hostile.HostileIterable(step, name))) == [1, 2]
            except KINDS[name] as error:
                assert "told to in" in str(error)  # noqa: PT017 - an error is optional
            assert pool.apply_async(abs, (-1,)).get(LIMIT) == 1, place
            assert executor.submit(abs, -1).result(LIMIT) == 1, place
    pool.join()


@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
@pytest.mark.parametrize("name", KINDS)
def test_an_iterable_that_raises_fails_its_own_call_alone(method, name, tmp_path):
    with make("Pool", "fork", 2) as pool:
        other = start(pool, tasks.wait_for_file, str(tmp_path / "go"))
        with pytest.raises(KINDS[name]):
            list(getattr(pool, method)(abs, hostile.HostileIterable("next", name)))
        (tmp_path / "go").touch()
        assert other(LIMIT) is None
    pool.join()


@pytest.mark.parametrize("chunksize", [1, 2, None])
@pytest.mark.parametrize(("count", "what"), [(5, "fewer items"), (10, "more items"), (15, "more items")])
def test_an_iterable_with_fewer_or_more_items_than_it_says(chunksize, count, what):
    class Other:
        def __len__(self):
            return 9

        def __iter__(self):
            return iter(range(count))

    with make("Pool", "fork") as pool:
        result = pool.map_async(abs, Other(), chunksize)
        with pytest.raises(ValueError, match=what):
            result.get(LIMIT)
        assert pool.map(abs, [-1], chunksize) == [1]
    pool.join()


class Callback:
    """Raises when it is called and when it is named."""

    def __init__(self, kind):
        self.kind = kind
        self.was_called = threading.Event()

    def __call__(self, _):
        self.was_called.set()
        raise hostile.HostileError(self.kind)

    def __repr__(self):
        raise KINDS[self.kind]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", KINDS)
def test_callbacks_that_raise_unprintable_errors(name, monkeypatch):
    """Even the hook that reports them may raise."""

    def hook(_):
        raise KINDS[name]("of the hook")

    monkeypatch.setattr(threading, "excepthook", hook)
    with make("Pool", "fork") as pool:
        callback = Callback(name)
        pool.apply_async(abs, (-1,), callback=callback)
        assert callback.was_called.wait(LIMIT)
        error_callback = Callback(name)
        pool.apply_async(int, ("x",), error_callback=error_callback)
        assert error_callback.was_called.wait(LIMIT)
        assert pool.apply_async(abs, (-2,)).get(LIMIT) == 2
    pool.join()
