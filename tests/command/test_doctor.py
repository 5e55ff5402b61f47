"""``shmarray doctor``: how it judges its findings, and what it reports about this system."""

import errno
import json
import os
import shutil
import sys

import pytest

from shmarray.command import facts, judgements
from shmarray.command.doctor import CHECKS
from shmarray.command.facts import Login, Space
from tests.command.running import run
from tests.core.test_space import UNSHARE, needs_mount
from tests.helpers import raw

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("judgement", "figures", "verdict", "word"),
    [
        ("shared_memory", [None], "will bite", "mount -t tmpfs"),
        ("shared_memory", [Space("tmpfs", 64 * MIB, 64 * MIB, None)], "will bite", "--shm-size=8g"),
        ("shared_memory", [Space("tmpfs", 64 * MIB, 64 * MIB, None)], "will bite", "medium: Memory"),
        ("shared_memory", [Space("tmpfs", 64 * MIB, 64 * MIB, None)], "will bite", "shm_size: 8g"),
        ("shared_memory", [Space("tmpfs", 8 * GIB, 9 * MIB, None)], "will bite", "shmarray list"),
        ("shared_memory", [Space("tmpfs", 8 * GIB, 8 * GIB, 7)], "will bite", "nr_inodes"),
        ("shared_memory", [Space("tmpfs", 8 * GIB, 8 * GIB, None)], "ok", "8.0 GiB free"),
        ("shared_memory", [Space(None, 8 * GIB, 8 * GIB, None)], "ok", "8.0 GiB free"),
        ("shared_memory", [Space("overlay", 8 * GIB, 8 * GIB, 10**6)], "note", "disk"),
        ("shared_memory", [Space("devtmpfs", 8 * GIB, 8 * GIB, 10**6)], "ok", "8.0 GiB free"),
        ("shared_memory", [Space("tmpfs", 0, 0, None)], "ok", "no limit of its own"),
        ("shared_memory", [Space("ramfs", 0, 0, None)], "note", "ramfs"),
        ("shared_memory", [None], "will bite", "ProcessPoolExecutor"),
        ("shared_memory", [Space("ext4", 8 * GIB, 8 * GIB, 10**6)], "note", "disk"),
        ("memory", [[("all", 8 * GIB), ("the group", 10 * MIB)]], "will bite", "the group"),
        ("memory", [[("all", 8 * GIB), ("the group", GIB)]], "ok", "1.0 GiB left for arrays, limited by the group"),
        ("memory", [[]], "note", "cannot tell"),
        ("huge_pages_of_pools", ["never", ""], "note", "shmem_enabled"),
        ("huge_pages_of_pools", ["advise", ""], "ok", "advise"),
        ("huge_pages_of_pools", [None, ""], "note", "kernel has none"),
        ("huge_pages_of_names", ["never", "rw,size=8g"], "note", "remount,huge=advise"),
        ("huge_pages_of_names", ["never", "rw,huge=never"], "note", "remount,huge=advise"),
        ("huge_pages_of_names", ["never", "rw,huge=within_size"], "ok", "within_size"),
        ("huge_pages_of_names", ["deny", "rw,huge=always"], "note", "off"),
        ("huge_pages_of_names", ["force", "rw"], "ok", "force"),
        ("locked_memory", [8 * MIB, False], "note", "ulimit -l"),
        ("locked_memory", [8 * MIB, True], "ok", "any amount"),
        ("locked_memory", [None, False], "ok", "any amount"),
        ("open_files", [256, 4], "ok", "256"),
        ("open_files", [256, 128], "will bite", "ulimit -n"),
        ("open_files", [None, 128], "ok", "no limit"),
        ("mappings", [65530], "ok", "65,530"),
        ("mappings", [1000], "note", "sysctl"),
        ("mappings", [None], "note", "cannot read"),
        ("login", [Login(None, 1000, lingers=False)], "ok", "is not running"),
        ("login", [Login(False, 1000, lingers=False)], "ok", "off"),
        ("login", [Login(True, 999, lingers=False)], "ok", "system users"),
        ("login", [Login(True, 1000, lingers=True)], "ok", "lingering"),
        ("login", [Login(True, 1000, lingers=False)], "will bite", "enable-linger"),
        ("start_method", ["fork"], "ok", "fork"),
        ("start_method", ["forkserver"], "ok", "__main__"),
        ("proc", [True, True, "rw"], "ok", "visible"),
        ("proc", [True, True, "rw,hidepid=invisible"], "ok", "other users"),
        ("proc", [True, False, "rw"], "note", "dumpable"),
        ("proc", [False, False, ""], "note", "not mounted"),
        ("semaphores", [None], "ok", "work"),
        ("semaphores", [PermissionError(13, "Permission denied")], "will bite", "Permission denied"),
        ("memory_without_name", [None], "ok", "works"),
        ("memory_without_name", [PermissionError(13, "Permission denied")], "note", "seccomp"),
        ("name_when_complete", [None], "ok", "works"),
        ("name_when_complete", [OSError(95, "Operation not supported")], "note", "Operation not supported"),
        ("reserving", [None], "ok", "works"),
        ("reserving", [OSError(38, "Function not implemented")], "note", "page by page"),
        ("giving_back", [None], "ok", "works"),
        ("giving_back", [PermissionError(1, "Operation not permitted")], "note", "when they end"),
        ("packets", [True], "ok", "works"),
        ("packets", [False], "note", "one at a time"),
        ("ends_of_processes", [True], "ok", "works"),
        ("ends_of_processes", [False], "note", "pidfd_open"),
        ("killing_with_caller", [True], "ok", "works"),
        ("killing_with_caller", [False], "note", "a thread in each worker"),
        ("fault_counters", [True], "ok", "work"),
        ("fault_counters", [False], "note", "again"),
        ("locking", [None], "ok", "works"),
        ("locking", [OSError(95, "Operation not supported")], "note", "file:// array"),
        ("versions", [{"python": "3.11"}], "ok", "python 3.11"),
        ("self_test", [None], "ok", "works"),
        ("self_test", ["OSError: no"], "will bite", "OSError: no"),
    ],
)
def test_judgements_of_findings(judgement, figures, verdict, word):
    found = getattr(judgements, judgement)(*figures)
    assert found.verdict == verdict
    assert word in "\n".join((found.text, *found.remedies))


def test_problems_come_with_remedies():
    bites = [
        judgements.shared_memory(None),
        judgements.open_files(8, 8),
        judgements.login(Login(True, 1000, lingers=False)),
    ]
    assert all(finding.verdict == "will bite" and finding.remedies for finding in bites)


def test_refused_calls_are_detected(monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    assert facts.reserving() is facts.giving_back() is facts.locking() is None
    monkeypatch.setattr(facts.os, "posix_fallocate", refused)
    monkeypatch.setattr(facts.fcntl, "flock", refused)
    assert facts.reserving().errno == facts.locking().errno == errno.EPERM
    assert facts.giving_back() is None  # memory is reserved in another way
    monkeypatch.delattr(facts.os, "posix_fallocate")
    assert facts.reserving().errno == errno.ENOSYS
    monkeypatch.setattr(facts.SparseFile, "create", lambda: None)
    assert facts.giving_back().errno == errno.ENOTSUP


# --- this system ---------------------------------------------------------------------


def test_it_runs_and_says_a_line_for_each_check():
    done = run("doctor")
    assert done.stderr == ""
    for check in CHECKS:
        assert f"  {check.title}  " in done.stdout
    assert ("will bite  " in done.stdout) == (done.returncode == 1)
    assert not raw.names("shmarray-doctor-")


def test_for_programs():
    done = run("doctor", "--json")
    found = json.loads(done.stdout)
    verdicts = {check["check"]: check["verdict"] for check in found["checks"]}

    assert list(verdicts) == [check.title for check in CHECKS]
    assert verdicts["test: named array"] == verdicts["test: Pool"] == "ok"
    assert done.returncode == ("will bite" in verdicts.values())
    assert set(found["versions"]) == {"shmarray", "python", "numpy", "kernel"}


@needs_mount
def test_the_shared_memory_of_a_container_bites():
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    done = run("doctor", prefix=(UNSHARE, "-m", "sh", "-c", mount, "sh"))
    line, *remedies = done.stdout.splitlines()

    assert done.returncode == 1
    assert line.split(None, 3)[:3] == ["will", "bite", "/dev/shm"]
    assert "--shm-size" in remedies[0]
    assert "test: Pool         works" in done.stdout


FEW_DEVICES = (
    "mount -t tmpfs tmpfs /mnt && touch /mnt/null && mount --bind /dev/null /mnt/null && mount --move /mnt /dev"
)


@needs_mount
@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        pytest.param("mount -t tmpfs -o size=0 tmpfs /dev/shm", ("ok", "no limit of its own"), id="no limit"),
        pytest.param("mount -t ramfs ramfs /dev/shm", ("note", "ramfs"), id="ramfs"),
        pytest.param("umount -l /dev/shm; umount -l /dev/shm; true", ("ok", "free"), id="a directory of /dev"),
        pytest.param(FEW_DEVICES, ("will bite", "no /dev/shm"), id="none"),
    ],
)
def test_kinds_of_shared_memory(mount, expected):
    done = run("doctor", "--json", prefix=(UNSHARE, "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"))
    assert done.stderr == ""
    checks = {check["check"]: (check["verdict"], check["text"]) for check in json.loads(done.stdout)["checks"]}
    verdict, text = checks["/dev/shm"]
    assert verdict == expected[0]
    assert expected[1] in text
    assert checks["test: Pool"][0] == "ok"
    assert (
        (checks["semaphores"][0] == "will bite")
        == (checks["test: named array"][0] == "will bite")
        == (verdict == "will bite")
    )


@needs_mount
def test_a_read_only_shared_memory_bites():
    mount = 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"'
    done = run("doctor", "--json", prefix=(UNSHARE, "-m", "sh", "-c", mount, "sh"))
    checks = {check["check"]: check["verdict"] for check in json.loads(done.stdout)["checks"]}
    assert checks["semaphores"] == checks["test: named array"] == "will bite"


def test_a_parent_that_ignores_the_end_of_its_children_does_not_matter():
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    checks = json.loads(run("doctor", "--json", prefix=(sys.executable, "-c", ignoring)).stdout)["checks"]
    assert [check["verdict"] for check in checks if check["check"].startswith("test:")] == ["ok", "ok"]


@needs_mount
def test_enabled_huge_pages_are_detected():
    mount = 'mount -t tmpfs -o size=1g,huge=advise tmpfs /dev/shm && exec "$@"'
    done = run("doctor", "--json", prefix=(UNSHARE, "-m", "sh", "-c", mount, "sh"))
    checks = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["huge pages, names"]["text"] == "on (huge=advise)"


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit(1)")
def test_few_open_files_bite():
    done = run("doctor", "--json", prefix=("prlimit", "--nofile=36"))
    checks = {check["check"]: check["verdict"] for check in json.loads(done.stdout)["checks"]}
    assert (done.returncode, checks["open files"]) == (1, "will bite")


def test_the_last_setting_of_logind_counts(tmp_path, monkeypatch):
    etc, lib = tmp_path / "etc", tmp_path / "lib"
    for directory in (etc, lib):
        (directory / "logind.conf.d").mkdir(parents=True)
    monkeypatch.setattr(facts, "_SETTINGS", (str(etc), str(lib)))
    assert facts._remove_ipc()

    (lib / "logind.conf").write_text("[Login]\nRemoveIPC=no\n")
    assert not facts._remove_ipc()
    (etc / "logind.conf").write_text("[Login]\n#RemoveIPC=no\n")
    assert facts._remove_ipc()
    (lib / "logind.conf.d" / "50.conf").write_text("[Login]\nRemoveIPC = no\n")
    (lib / "logind.conf.d" / "10.conf").write_text("[Login]\nRemoveIPC = yes\n")
    assert not facts._remove_ipc()
    (etc / "logind.conf.d" / "50.conf").write_text("")
    assert facts._remove_ipc()


def test_mounts_are_read():
    assert facts.mounted("/proc")[0] == "proc"
    assert facts.mounted("/no such place") == ("", "")
    assert facts.shared_memory().total == os.statvfs(raw.SHM).f_blocks * os.statvfs(raw.SHM).f_frsize
