"""The architecture: which module may import which, what is public, and where things are."""

import ast
import importlib
import pickle
from pathlib import Path

import pytest

import shmarray
from tests.helpers.processes import run_script

PACKAGE = Path(shmarray.__file__).parent

# From top to bottom: a module imports only from rows below its own.
LAYERS = [
    "shmarray.__main__",
    "shmarray.command",
    "shmarray.command.program",
    "shmarray.command.parser",
    "shmarray.command.demo",
    "shmarray.command.doctor",
    "shmarray.command.selftest",
    "shmarray.command.interrupts",
    "shmarray.command.judgements",
    "shmarray.command.facts",
    "shmarray.command.deleting",
    "shmarray.command.inspecting",
    "shmarray.command.listing",
    "shmarray.command.statistics",
    "shmarray.command.selecting",
    "shmarray.command.processes",
    "shmarray.command.files",
    "shmarray.command.table",
    "shmarray.command.wording",
    "shmarray",
    "shmarray.dask",
    "shmarray.dask.executor",
    "shmarray.dask.pool",
    "shmarray.dask.results",
    "shmarray.dask.calls",
    "shmarray.dask.sharing",
    "shmarray.dask.plugin",
    "shmarray.dask.handle",
    "shmarray.dask.site",
    "shmarray.dask.copies",
    "shmarray.dask.hooks",
    "shmarray.joblib",
    "shmarray.joblib.backend",
    "shmarray.joblib.workers",
    "shmarray.joblib.calls",
    "shmarray.pool",
    "shmarray.pool.executor",
    "shmarray.pool.executor_calls",
    "shmarray.pool.pool",
    "shmarray.pool.pool_calls",
    "shmarray.pool.progress",
    "shmarray.pool.buffered",
    "shmarray.pool.engine",
    "shmarray.pool.engine.scheduler",
    "shmarray.pool.engine.collector",
    "shmarray.pool.engine.feeder",
    "shmarray.pool.engine.state",
    "shmarray.pool.engine.placement",
    "shmarray.pool.engine.workers",
    "shmarray.pool.engine.worker_main",
    "shmarray.pool.engine.tasks",
    "shmarray.pool.engine.channel",
    "shmarray.pool.engine.waker",
    "shmarray.pool.engine.exit_status",
    "shmarray.pool.engine.signals",
    "shmarray.pool.engine.frontend",
    "shmarray.pool.creation",
    "shmarray.pool.arrays",
    "shmarray.pool.arrays.run_task",
    "shmarray.pool.arrays.result_memory",
    "shmarray.pool.arrays.lending",
    "shmarray.pool.arrays.argument_memory",
    "shmarray.pool.arrays.allocator",
    "shmarray.pool.arrays.free_list",
    "shmarray.pool.arrays.leased_arrays",
    "shmarray.pool.arrays.blocks",
    "shmarray.pool.arrays.calls",
    "shmarray.pool.arrays.pickling",
    "shmarray.pool.arrays.by_value",
    "shmarray.pool.arrays.by_reference",
    "shmarray.pool.arrays.dedup",
    "shmarray.pool.arrays.messages",
    "shmarray.pool.arrays.buffers",
    "shmarray.pool.scoped",
    "shmarray.pool.name_reaper",
    "shmarray.pool.handle",
    "shmarray.pool.missing",
    "shmarray.pool.forks",
    "shmarray.pool.interrupts",
    "shmarray.pool.main_module",
    "shmarray.pool.threads",
    "shmarray.pool._stdlib",
    "shmarray.core",
    "shmarray.core.mapped_files",
    "shmarray.core.register",
    "shmarray.core.temporary",
    "shmarray.core.references",
    "shmarray.core.locks",
    "shmarray.core.memory",
    "shmarray.core.listing",
    "shmarray.core.arrays",
    "shmarray.core.publishing",
    "shmarray.core.segment",
    "shmarray.core.copying",
    "shmarray.core.mapping",
    "shmarray.core.posix",
    "shmarray.core.posix.sparse",
    "shmarray.core.posix.processes",
    "shmarray.core.posix.packets",
    "shmarray.core.posix.space",
    "shmarray.core.posix.errors",
    "shmarray.core.posix.maps",
    "shmarray.core.posix.dirty",
    "shmarray.core.posix.pages",
    "shmarray.core.posix.files",
    "shmarray.core.posix.libc",
    "shmarray.core.layout",
    "shmarray.core.names",
    "shmarray.errors",
]


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path):
    """Yield every module that a file imports, anywhere in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports must be absolute"
            # "from shmarray.core import names" imports a module if one has that name.
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def own_imports(module):
    return {name for name in imported(MODULES[module]) if name.split(".")[0] == "shmarray"}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_in_the_order(module):
    assert module in LAYERS


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards_only(module):
    allowed = LAYERS[LAYERS.index(module) + 1 :]
    assert own_imports(module) <= set(allowed)


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("shmarray.pool")])
def test_the_pool_layer_knows_the_core_through_its_two_facades_only(module):
    core = {name for name in own_imports(module) if name.startswith("shmarray.core")}
    assert core <= {"shmarray.core", "shmarray.core.posix"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("shmarray.pool.engine")])
def test_the_engine_never_sees_an_array(module):
    assert "numpy" not in {name.split(".")[0] for name in imported(MODULES[module])}
    inside = {name for name in own_imports(module) if name.startswith("shmarray.pool.arrays.")}
    assert inside <= {"shmarray.pool.arrays.messages"}, "only modules that the package exports"


PROCESSES = {"multiprocessing", "concurrent", "subprocess", "signal", "socket", "select", "selectors"}
CALLS_OF_PROCESSES = {"fork", "kill", "killpg", "waitpid", "wait", "_exit", "pidfd_open", "posix_spawn"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("shmarray.pool.arrays")])
def test_arrays_never_see_a_process(module):
    foreign = set(imported(MODULES[module])) - {"multiprocessing.reduction"}  # contains only a pickler
    assert not {name.split(".")[0] for name in foreign} & PROCESSES
    assert not {name for name in own_imports(module) if name.startswith("shmarray.pool.engine")}
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    called = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
    }
    assert not called & CALLS_OF_PROCESSES


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("shmarray.command")])
def test_the_command_line_knows_the_library_through_its_facades_only(module):
    library = {name for name in own_imports(module) if not name.startswith("shmarray.command")}
    assert library <= {"shmarray", "shmarray.core", "shmarray.core.posix", "shmarray.errors"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("shmarray.core")])
def test_the_core_layer_knows_nothing_of_multiprocessing(module):
    foreign = {name.split(".")[0] for name in imported(MODULES[module])}
    assert not foreign & {"multiprocessing", "concurrent"}


@pytest.mark.parametrize("module", ["shmarray.core.layout", "shmarray.core.names"])
def test_pure_modules_do_not_talk_to_the_system(module):
    assert not set(imported(MODULES[module])) & {"ctypes", "fcntl", "mmap", "socket"}
    assert not {name for name in own_imports(module) if name.startswith("shmarray.core.posix")}


def test_errors_import_nothing_local():
    assert not own_imports("shmarray.errors")


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("shmarray.core.posix.")])
def test_only_one_package_asks_for_the_platform(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "platform" not in asked
    assert "platform" not in set(imported(MODULES[module]))


def constants_classes_functions(name):
    return 0 if name.isupper() else 1 if name[0].isupper() else 2, name


@pytest.mark.parametrize(
    "module", ["shmarray", "shmarray.core", "shmarray.core.posix", "shmarray.pool", "shmarray.errors"]
)
def test_all_is_sorted_and_complete(module):
    loaded = importlib.import_module(module)
    submodules = {name.rpartition(".")[2] for name in MODULES if name.startswith(f"{module}.")}
    standard = {
        "errno",
        "annotations",
        "import_module",
        "Any",
        "BrokenProcessPool",
        "PicklingError",
        "ClassVar",
        "TYPE_CHECKING",
    }
    public = {name for name in dir(loaded) if not name.startswith("_")} - submodules - standard

    assert list(loaded.__all__) == sorted(loaded.__all__, key=constants_classes_functions)
    assert set(loaded.__all__) - {"__version__"} == public | (set(loaded.__all__) & submodules)
    assert len(set(loaded.__all__)) == len(loaded.__all__)


@pytest.mark.parametrize("facade", ["shmarray", "shmarray.pool"])
def test_pools_are_imported_at_first_use(facade):
    """Named arrays, scopes, handles and multiprocessing's pickler are available at once without importing pools."""
    code = f"""
import sys, numpy, {facade}
from multiprocessing.reduction import ForkingPickler
assert numpy.ndarray in ForkingPickler._extra_reducers
assert {facade}.SharedHandle
assert not {{"shmarray.pool.pool", "shmarray.pool.executor"}} & set(sys.modules)
assert {{"Pool", "scoped", "__name__"}} <= set(dir({facade}))
from {facade} import Pool
assert Pool is {facade}.Pool is sys.modules["shmarray.pool.pool"].Pool
try:
    {facade}.Pools
except AttributeError as error:
    assert str(error) == "module '{facade}' has no attribute 'Pools'"
else:
    raise SystemExit("the module has every attribute")
"""
    run_script(code)


def test_every_public_name_has_a_docstring():
    undocumented = [
        name
        for name in shmarray.__all__
        if not name.startswith(("MS_", "__")) and not (getattr(shmarray, name).__doc__ or "").strip()
    ]
    assert not undocumented


def test_public_functions_and_classes_have_the_name_that_users_know():
    callables = [name for name in shmarray.__all__ if callable(getattr(shmarray, name))]
    assert {name: getattr(shmarray, name).__qualname__ for name in callables} == {name: name for name in callables}
    assert all(pickle.loads(pickle.dumps(getattr(shmarray, name))) is getattr(shmarray, name) for name in callables)


def test_types_are_declared():
    assert (PACKAGE / "py.typed").exists()
