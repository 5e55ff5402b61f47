"""A pytest plugin for joblib's own tests: our backend replaces loky, joblib's default.

Every test that uses loky, or no particular backend, then tests ours; only those are kept, each with two workers.
"""

import joblib._parallel_backends
import joblib.parallel

import shmarray.joblib

_NO_MEMMAPS = "looks for joblib's memory maps; our backend uses blocks instead"
_ONCE = "takes seconds for new interpreters, and another of its parameters tests the same"

# Not run: the test, or one of its parameters, and the reason.
NOT_RUN = {
    "test_auto_memmap_on_arrays_from_generator": _NO_MEMMAPS,
    "test_memmapping_leaks": _NO_MEMMAPS,
    "test_memmap_with_big_offset": _NO_MEMMAPS,
    "test_parallel_config_no_backend": _NO_MEMMAPS,
    "test_parallel_config_params_explicit_set": _NO_MEMMAPS,
    "test_nested_parallel_warnings": "loky may start processes inside loky; our workers, like the stdlib's, may not",
    "test_parallel_pickling": "loky wraps an error of __reduce__ in a PicklingError; ours, like the stdlib, does not",
    "test_dask_backend_when_dask_not_installed": "tests another backend",
    "test_batching_auto_threading": "tests another backend",
    "test_mutate_input_with_threads": "tests another backend",
    "test_parallel_with_unpicklable_functions_in_args[args": _ONCE,
    "test_parallel_with_unpicklable_functions_in_args[kwargs-def": _ONCE,
    "test_parallel_with_unpicklable_functions_in_args[delayed-def gen": _ONCE,
    "test_parallel_byteorder_corruption[1-": "max_nbytes applies only to joblib's memory maps",
    "test_threadpool_limitation_in_child_override[parallel_config-MKL": _ONCE,
    "test_threadpool_limitation_in_child_override[parallel_config-OMP": _ONCE,
}

_ENOUGH = (2, 11, "parallel_config")  # n_jobs, verbose, context
_BACKENDS = {"backend", "child_backend", "parent_backend", "outer_backend", "inner_backend"}


def pytest_addoption(parser):
    parser.addoption("--part", type=int, help="which of two halves to run, so that they can run in parallel")


def pytest_configure(config):
    for mark in ("thread_unsafe", "no_cover"):
        config.addinivalue_line("markers", f"{mark}: joblib's")
    ours = type("LokyBackend", (shmarray.joblib.ShmarrayBackend,), {})  # the tests look for this name
    joblib.parallel.BACKENDS["loky"] = joblib._parallel_backends.LokyBackend = ours
    del joblib.parallel.BACKENDS["shmarray"]  # otherwise every test would exist twice


def pytest_collection_modifyitems(config, items):
    items[:] = sorted(filter(_is_wanted, items), key=lambda item: item.name)[config.option.part :: 2]
    for item in items:
        if "error" in _parameters(item):
            # loky's calls share one executor, so the end of one call is an error in another.
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
