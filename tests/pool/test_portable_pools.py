"""Pools keep their contract without what a system lacks or refuses: portable_suite.py runs without each call, and all.

What is lacked is gone from Python's modules (helpers/lacking); what is refused, the kernel refuses, by a seccomp
filter (helpers/refusing.py).  Both reach workers under every start method.
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

# What changes how children start or end is tried under spawn as well; all of it, when all is lacking.
FORK_AND_ENDS = "not spawn or dies_fails or end_with_their_caller or lacks_what"

# What is refused takes the same way as what is absent.
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
    """No holes, but files that can be cut off: what a sandbox on Linux may leave."""
    run_suite("hole_punching,madv_remove")


# --- refused by the kernel -----------------------------------------------------------------


def _refuses():
    try:
        in_child(refusing.refuse, ["memfd_create"], errno.EPERM)
    except OSError as error:
        return str(error)
    return ""


needs_filters = pytest.mark.skipif(bool(_refuses()), reason=f"no seccomp filters here ({platform.machine()})")


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
    """EINVAL for SOCK_CLOEXEC, as from kernels that do not know it; Python looks for no other."""
    run_suite(prefix=refused([call], "EINVAL" if call == "sock_cloexec" else "EPERM"), only=ONE_OF_EACH)
