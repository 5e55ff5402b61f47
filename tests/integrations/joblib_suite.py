"""A plugin for the pytest that runs joblib's own tests: our backend takes the place of loky, joblib's default.

So every test that names loky, or no backend, is a test of ours; only those are kept, each with two workers.
"""

import joblib._parallel_backends
import joblib.parallel

import shmarray.joblib

_NO_MEMMAPS = "looks for joblib's memory maps, in whose place our blocks are"
_ONCE = "seconds for what another of its parameters shows: a new interpreter for each"

# Not run: the test, or one of its parameters, and the reason.
NOT_RUN = {
    "test_auto_memmap_on_arrays_from_generator": _NO_MEMMAPS,
    "test_memmapping_leaks": _NO_MEMMAPS,
    "test_memmap_with_big_offset": _NO_MEMMAPS,
    "test_parallel_config_no_backend": _NO_MEMMAPS,
    "test_parallel_config_params_explicit_set": _NO_MEMMAPS,
    "test_nested_parallel_warnings": "loky in loky has processes; in our workers, as in multiprocessing's, it has not",
    "test_parallel_pickling": "loky puts a PicklingError around the error of a __reduce__; we, as the stdlib, do not",
    "test_dask_backend_when_dask_not_installed": "is about another backend",
    "test_batching_auto_threading": "is about another backend",
    "test_mutate_input_with_threads": "is about another backend",
    "test_parallel_with_unpicklable_functions_in_args[args": _ONCE,
    "test_parallel_with_unpicklable_functions_in_args[kwargs-def": _ONCE,
    "test_parallel_with_unpicklable_functions_in_args[delayed-def gen": _ONCE,
    "test_parallel_byteorder_corruption[1-": "max_nbytes is for joblib's memory maps",
    "test_threadpool_limitation_in_child_override[parallel_config-MKL": _ONCE,
    "test_threadpool_limitation_in_child_override[parallel_config-OMP": _ONCE,
}

_ENOUGH = (2, 11, "parallel_config")  # n_jobs, verbose, context
_BACKENDS = {"backend", "child_backend", "parent_backend", "outer_backend", "inner_backend"}


def pytest_addoption(parser):
    parser.addoption("--part", type=int, help="which of two halves, so that they can run side by side")


def pytest_configure(config):
    for mark in ("thread_unsafe", "no_cover"):
        config.addinivalue_line("markers", f"{mark}: joblib's")
    ours = type("LokyBackend", (shmarray.joblib.ShmarrayBackend,), {})  # they look for its name
    joblib.parallel.BACKENDS["loky"] = joblib._parallel_backends.LokyBackend = ours
    del joblib.parallel.BACKENDS["shmarray"]  # or every test would be there twice


def pytest_collection_modifyitems(config, items):
    items[:] = sorted(filter(_is_wanted, items), key=lambda item: item.name)[config.option.part :: 2]
    for item in items:
        if "error" in _parameters(item):
            # loky's calls share one executor, and the end of one call is an error in another.
            item.callspec.params["error"] = False


def _is_wanted(item):
    if item.name.startswith(tuple(NOT_RUN)):
        return False
    params = _parameters(item)
    context = getattr(params.get("context"), "__name__", "parallel_config")
    backends = {params[name] for name in _BACKENDS & set(params)}
    return backends <= {"loky"} and (params.get("n_jobs", 2), params.get("verbose", 11), context) == _ENOUGH


def _parameters(item):
    return item.callspec.params if hasattr(item, "callspec") else {}
