"""Memory exists as long as anything refers to it; nothing crashes or prints, even at interpreter exit."""

import errno
import gc
import operator
import os
import resource
import sys
import threading
import weakref

import numpy as np
import pytest

import shmarray
from shmarray.core import owner
from shmarray.core.posix import maps, pages
from tests.helpers import raw
from tests.helpers.processes import Child, in_child, run_script


def is_mapped(path):
    """Return whether this process has the file mapped, according to the kernel."""
    inode = str(os.stat(path).st_ino)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return any(line.split()[4] == inode for line in maps)


@pytest.mark.usefixtures("system")
def test_a_lost_reference_unmaps(name):
    array = shmarray.create(name, 3)
    assert is_mapped(raw.path(name))
    del array
    assert not is_mapped(raw.path(name))


VIEWS = {
    "slice": lambda a: a[3:7],
    "view of a view": lambda a: a[2:][1:][::2],
    "reversed": lambda a: a[::-1],
    "reshaped": lambda a: a.reshape(2, 5),
    "transposed": lambda a: a.reshape(2, 5).T,
    "bytes": lambda a: a.view("u1"),
    "broadcast": lambda a: np.broadcast_to(a, (3, 10)),
    "as_strided": lambda a: np.lib.stride_tricks.as_strided(a, (3,), (16,)),
    "window": lambda a: np.lib.stride_tricks.sliding_window_view(a, 3),
    "memoryview": memoryview,
    "array of a memoryview": lambda a: np.asarray(memoryview(a)),
    "frombuffer": np.frombuffer,
    "flat": operator.attrgetter("flat"),
    "nditer": np.nditer,
    "subclass": lambda a: a.view(np.recarray),
    "dlpack": np.from_dlpack,
}


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_a_view_keeps_the_memory(name, make):
    array = shmarray.create(name, 10)
    view = make(array)
    del array
    gc.collect()
    assert is_mapped(raw.path(name))
    del view
    gc.collect()
    assert not is_mapped(raw.path(name))


def test_arrays_are_plain_and_can_be_resized_to_nothing_else(name):
    array = shmarray.create(name, 10)
    assert type(array) is np.ndarray
    with pytest.raises(ValueError, match="resize"):
        array.resize(20)


@pytest.mark.parametrize("mode", ["r+", "r"])
def test_attaching_again_costs_no_further_mapping(name, mode):
    shmarray.create(name, 3)
    before = len(list(raw.mapped_ranges()))
    arrays = [shmarray.attach(name, mode) for _ in range(50)]
    assert len(list(raw.mapped_ranges())) == before + 1
    assert all(np.shares_memory(arrays[0], other) for other in arrays)


def test_an_attachment_costs_no_descriptor(shm_name):
    before = len(os.listdir("/proc/self/fd"))
    arrays = [shmarray.create(shm_name(), 3) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    del arrays


def test_twenty_thousand_arrays_fit_under_256_descriptors(shm_name):
    prefix = shm_name("-")
    code = """
import resource, sys, shmarray
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
prefix, count = sys.argv[1], 20_000
try:
    for number in range(count):
        shmarray.create(f"{prefix}{number}", data=[number])
    arrays = [shmarray.attach(f"{prefix}{number}") for number in range(count)]
    with open("/proc/self/maps") as maps:
        assert sum("/dev/shm/" in line for line in maps) >= count
    assert all(array[0] == number for number, array in enumerate(arrays))
finally:
    for number in range(count):
        shmarray.delete(f"{prefix}{number}")
"""
    run_script(code, prefix)
    assert not raw.names(prefix)


def test_the_error_names_the_limit_on_mappings(name):
    shmarray.create(name, 3)
    code = """
import errno, sys, shmarray
with open("/proc/sys/vm/max_map_count") as file:
    limit = int(file.read())
arrays = []
try:
    for _ in range(limit + 10):
        arrays.append(shmarray.attach(sys.argv[1], "c"))
except OSError as error:
    message, code = str(error), error.errno
else:
    raise SystemExit("no limit was reached")
count = len(arrays)
arrays.clear()
assert code == errno.ENOMEM, code
assert "vm.max_map_count" in message and str(limit) in message, message
assert count > limit - 5000, count
assert shmarray.attach(sys.argv[1]).shape == (3,)
"""
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as limit:
        if int(limit.read()) > 300_000:
            pytest.skip("vm.max_map_count is too high to be reached in a second")
    run_script(code, name)


@pytest.mark.usefixtures("system")
def test_a_failed_attach_leaves_the_name_and_a_failed_create_leaves_none(shm_name):
    name, other = shm_name(), shm_name()
    array = shmarray.create(name, 64 << 20, "u1")

    def limited():
        array_size = 16 << 20
        with open("/proc/self/statm", encoding="ascii") as statm:
            used = int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + array_size, used + array_size))
        errors = []
        for call in (lambda: shmarray.attach(name, "c"), lambda: shmarray.create(other, 64 << 20, "u1")):
            try:
                call()
            except OSError as error:
                errors.append((error.errno, str(error)))
        return errors

    (attach, create) = in_child(limited)
    assert attach[0] == create[0] == errno.ENOMEM
    assert "address space" in attach[1]
    assert raw.names(name) == [name]
    assert not raw.names(other)
    assert shmarray.attach(name).shape == array.shape


def test_deleted_arrays_and_dropped_scopes_raise_nothing(name):
    array = shmarray.create(name, 3)
    other = shmarray.attach(name)
    shmarray.delete(name)
    with pytest.raises(shmarray.ArrayNotFoundError):
        shmarray.delete(name)
    del array
    other[0] = 1
    del other


def test_garbage_in_cycles_is_unmapped(name):
    cycle = [shmarray.create(name, 3)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert not is_mapped(raw.path(name))


def test_a_weak_reference_sees_the_array_go(name):
    array = shmarray.create(name, 3)
    gone = weakref.ref(array)
    del array
    assert gone() is None
    assert shmarray.attach(name).shape == (3,)


def test_many_threads_attach_use_and_drop_the_same_array(name):
    """A mapping that is being unmapped must not be given to another thread."""
    shmarray.create(name, data=np.arange(100))
    wrong = []

    def work():
        for _ in range(300):
            array = shmarray.attach(name)
            if array[99] != 99:
                wrong.append(array[99])
            del array

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not is_mapped(raw.path(name))


def test_a_forked_child_has_its_parents_arrays_and_takes_none_with_it(name):
    array = shmarray.create(name, data=[1, 2])
    private = shmarray.attach(name, "c")

    def child(_):
        nonlocal array, private
        array[0] = 10
        private[1] = 20
        del array, private
        gc.collect()

    with Child(child) as running:
        running.result()
    assert array.tolist() == [10, 2]
    assert private[1] == 2
    assert raw.names(name) == [name]


PLACES = {
    "a global": "x = make()",
    "a global and a view": "x = make(); y = x[1:]; z = memoryview(x)",
    "builtins": "import builtins; builtins.x = make()",
    "an attribute of numpy": "import numpy; numpy.x = make()",
    "an attribute of sys": "import sys; sys.x = make()",
    "an attribute of the library": """
shmarray.x = make()
shmarray.core.mapping.x = make()
shmarray.core.posix.x = make()""",
    "a cycle": "x = [make()]; x.append(x)",
    "a cycle with a finalizer": """
class Node:
    def __init__(self):
        self.array, self.me = make(), self
    def __del__(self):
        self.array[0] = 1
Node(); keep = Node()""",
    "a class": "class K:\n    x = make()\n    y = x[::-1]",
    "a default argument": "def f(x=make()): return x",
    "a generator": "def g():\n    x = make()\n    yield x\nrunning = g(); next(running)",
    "a with-block left open": "block = shmarray.scoped(3); x = block.__enter__()",
    "a held lock": "x = make(); block = shmarray.lock(x); block.__enter__()",
    "a daemon thread": """
import threading
started = threading.Event()
def work(x):
    started.set()
    while True:
        x[0] += 1
        shmarray.attach(name)
threading.Thread(target=work, args=(make(),), daemon=True).start()
started.wait()""",
    "a thread that is waited for": """
import threading
def work(x):
    threading.main_thread().join()
    x[0] = 1
threading.Thread(target=work, args=(make(),)).start()""",
    "atexit": "import atexit; x = make(); atexit.register(lambda: (x.sum(), make(), shmarray.attach(name)))",
    "a weak finalizer": "import weakref; x = make(); weakref.finalize(x, print, 'gone')",
    "a handle": "x = shmarray.SharedHandle(make())",
    "thread-local": "import threading; local = threading.local(); local.x = make()",
    "a context variable": "import contextvars; v = contextvars.ContextVar('v'); v.set(make())",
    "an exception": "try:\n    x = make(); 1 / 0\nexcept ZeroDivisionError as error:\n    kept = error",
    "gc turned off": "import gc; gc.disable(); x = [make()]; x.append(x); del x",
    "modules taken away": """
import sys
x = make()
for key in [key for key in sys.modules if 'shmarray' in key]: del sys.modules[key]""",
    "modules taken away and collected": """
import sys, gc
x = make()
for key in [key for key in sys.modules if 'shmarray' in key]: del sys.modules[key]
del shmarray
gc.collect()
x[0] = 1
del x, make
gc.collect()""",
    "sys.exit": "import sys; x = make(); sys.exit(0)",
}
PREAMBLE = """
import sys
import shmarray
name = sys.argv[1]
def make():
    return shmarray.require(name, 1000)
first = make()
"""


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_interpreter_exit_is_silent_wherever_an_array_is_kept(name, place):
    run_script(PREAMBLE + place, name)
    assert raw.names(name) == [name]  # a name outlives the process that made it


def test_sys_exit_with_a_status_keeps_it(name):
    run_script(PREAMBLE + "sys.exit(3)", name, status=3)


@pytest.mark.usefixtures("system")
def test_memory_calls_take_arrays_and_views(name, tmp_path):
    array = shmarray.create(name, 3000)
    for part in (array, array[5:7], shmarray.attach(name, "r")):
        shmarray.mlock(part)
        shmarray.munlock(part)
        shmarray.msync(part)
    on_disk = shmarray.create(f"file://{tmp_path}/a.npy", data=[1, 2])
    on_disk[0] = 5
    shmarray.msync(on_disk[1:])
    shmarray.msync(on_disk, shmarray.MS_ASYNC)
    shmarray.msync(on_disk, shmarray.MS_SYNC | shmarray.MS_INVALIDATE)
    assert np.load(tmp_path / "a.npy").tolist() == [5, 2]


def test_mlock_holds_the_pages_and_munlock_lets_go(name):
    array = shmarray.create(name, 1 << 20, "u1")

    def locked_kb():
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmLck"))

    before = locked_kb()
    shmarray.mlock(array)
    assert locked_kb() - before >= 1024
    shmarray.munlock(array)
    assert locked_kb() == before


@pytest.mark.parametrize("call", [shmarray.msync, shmarray.mlock, shmarray.munlock])
@pytest.mark.parametrize("thing", [np.zeros(3), [1, 2], None, "name"], ids=repr)
def test_memory_calls_refuse_what_is_not_shared(call, thing):
    with pytest.raises(TypeError, match="not in shared memory"):
        call(thing)


def test_msync_with_unknown_flags_is_the_kernels_einval(name):
    array = shmarray.create(name, 3)
    with pytest.raises(OSError, match="Invalid") as caught:
        shmarray.msync(array, 1 << 20)
    assert caught.value.errno == errno.EINVAL


def test_mlock_beyond_the_limit_says_how_to_raise_it(name):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user, to whom the limit applies")
    array = shmarray.create(name, 1 << 20, "u1")

    def limited():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
        os.setuid(65534)
        shmarray.mlock(array)

    with pytest.raises(OSError, match="ulimit -l"):
        in_child(limited)


def test_an_interrupt_while_an_array_is_freed_is_not_lost(name):
    """Freeing runs no Python code, where the exception would be reported and dropped."""
    code = """
import signal, sys, shmarray
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
caught = 0
for number in range(200):
    array = shmarray.create(sys.argv[1], 500_000)
    shmarray.delete(sys.argv[1])
    try:
        signal.setitimer(signal.ITIMER_REAL, (1 + number) * 1e-6)
        del array
        while True:
            pass
    except KeyboardInterrupt:
        caught += 1
assert caught == 200
"""
    run_script(code, name)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="mmap.mmap, which is used since Python 3.13, checks the size")
def test_a_file_cut_off_before_it_is_mapped_is_an_error_and_no_bus_error(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(b"x" * 10)
    with path.open("rb") as file, pytest.raises(OSError, match="truncated"):
        maps.Range.of_file(file.fileno(), 10_000, writable=False, private=False)


def test_a_private_mapping_shows_its_file_again(name):
    with shmarray.scoped(data=np.arange(100_000.0), name=name):
        private = shmarray.attach(name, "c")
        mapping = owner(private)
        private.sum()
        mapping.discard_writes()  # there are no writes to discard
        private[[0, 99_999]] = -1
        mapping.discard_writes()
        assert private[[0, 99_999]].tolist() == [0.0, 99_999.0]


def test_writes_are_discarded_even_if_the_kernel_does_not_report_them(name, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(pages, "page_entries", refuse)
    with shmarray.scoped(data=np.arange(10.0), name=name):
        private = shmarray.attach(name, "c")
        private[0] = -1
        owner(private).discard_writes()
        assert private[0] == 0.0
