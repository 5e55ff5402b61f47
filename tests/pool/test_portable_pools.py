"""Pools keep their contract without what a system lacks or refuses: portable_suite.py runs without each call.

Missing features are removed from Python's modules (helpers/lacking); a seccomp filter makes the kernel refuse
calls (helpers/refusing.py).  Both affect workers under every start method.
"""

import errno
import importlib.util
import os
import platform
import subprocess
import sys

import pytest

from tests.helpers import refusing
from tests.helpers.processes import ROOT, in_child

LACKING = f"{ROOT}/tests/helpers/lacking"
LIMIT = 400  # seconds

# These tests also run under spawn, because they depend on how children start or end; if everything is missing, all do.
FORK_AND_ENDS = "not spawn or dies_fails or end_with_their_caller or lacks_what"

# A refused call is handled like a missing one, so a few tests are enough.
ONE_OF_EACH = "(tables or dies or comes_back or look or end_with_their_caller) and not spawn"


def _all_that_can_be_lacking():
    spec = importlib.util.spec_from_file_location("lacking", f"{LACKING}/sitecustomize.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [function.__name__ for function in module.ALL]


LACKS = _all_that_can_be_lacking()
REFUSED = [name for name in refusing.CALLS if name != "sock_cloexec"]


def run_suite(lacks="", prefix=(), only=FORK_AND_ENDS):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": f"{LACKING}{os.pathsep}{ROOT}", "SHMARRAY_TEST_LACKS": lacks}
    done = subprocess.run(
        [*prefix, *command, "-k", only, "tests/pool/portable_suite.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "sitecustomize" not in done.stderr


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("lack", LACKS)
def test_pools_do_without(lack):
    run_suite(lack)


@pytest.mark.timeout(LIMIT)
def test_pools_do_without_all_of_it():
    run_suite(",".join(LACKS), only="")


@pytest.mark.timeout(LIMIT)
def test_pools_do_without_memory_that_comes_back():
    """Holes cannot be punched, but files can be truncated, as in some sandboxes on Linux."""
    run_suite("hole_punching,madv_remove")


# --- refused by the kernel -----------------------------------------------------------------


def _refuses():
    try:
        in_child(refusing.refuse, ["memfd_create"], errno.EPERM)
    except OSError as error:
        return str(error)
    return ""


needs_filters = pytest.mark.skipif(bool(_refuses()), reason=f"no seccomp filters ({platform.machine()})")


def refused(calls, code):
    return [sys.executable, refusing.__file__, code, ",".join(calls)]


@needs_filters
@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("code", ["EPERM", "EACCES", "ENOSYS", "EINVAL", "EOPNOTSUPP"])
def test_pools_do_what_they_can_when_all_is_refused(code):
    run_suite(prefix=refused(REFUSED, code))


@needs_filters
@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("call", refusing.CALLS)
def test_pools_do_without_a_call_that_is_refused(call):
    """SOCK_CLOEXEC fails with EINVAL, as on kernels that do not know it; Python expects no other error."""
    run_suite(prefix=refused([call], "EINVAL" if call == "sock_cloexec" else "EPERM"), only=ONE_OF_EACH)
