"""``shmarray delete``."""

import ctypes
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import shmarray
from shmarray.command import deleting, main
from tests.command.running import ENVIRONMENT, held, on_a_terminal, press, read_until, run
from tests.helpers import raw
from tests.helpers.processes import Child, in_child
from tests.helpers.scarcity import mounted, needs_mount


@pytest.fixture
def three(shm_name):
    names = ["b", "a"]
    while names != sorted(names):  # sorted as they are listed; "10" comes before "9"
        names = [shm_name(ending) for ending in ("-a-end", "-b-end", "-c-other")]
    for name in names:
        shmarray.create(name, 1000)
    return names


@pytest.fixture
def pattern(three):
    """Return a pattern that matches the first two."""
    return f"t{os.getpid()}-*-end"


@pytest.fixture
def delete(capsys):
    def call(*arguments):
        status = main(["delete", *arguments])
        return status, *capsys.readouterr()

    return call


def left(names):
    return [name for name in names if os.path.exists(raw.path(name))]


def test_by_name(three, delete):
    status, out, err = delete(three[0], three[2])
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"deleted {three[0]} (8.0 KiB)",
        f"deleted {three[2]} (8.0 KiB)",
        "2 arrays deleted, 16.0 KiB freed",
    ]
    assert left(three) == [three[1]]


def test_by_pattern_without_a_question_on_request(three, pattern, delete):
    status, _, err = delete("--yes", pattern)
    assert (status, err) == (0, "")
    assert left(three) == [three[2]]


@pytest.mark.parametrize("prefix", ["", "shm://", "/"])
def test_a_pattern_for_one_array_asks_nothing(three, delete, prefix):
    assert delete(prefix + three[0].replace("-a-", "-?-").replace("end", "[e]nd").replace("-?-", "-[a]-"))[0] == 0
    assert left(three) == three[1:]


def test_without_a_terminal_to_ask_nothing_is_deleted(three, pattern):
    done = run("delete", pattern)
    assert (done.returncode, done.stdout) == (2, "")
    assert "2 arrays would be deleted" in done.stderr
    assert "--yes" in done.stderr
    assert left(three) == three


def test_a_dry_run_deletes_nothing_and_asks_nothing(three, pattern, delete):
    status, out, err = delete("--dry-run", pattern)
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"would delete {name} (8.0 KiB)" for name in sorted(three[:2])]
    assert left(three) == three


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_missing_array_is_an_error_and_the_others_are_deleted(three, shm_name, delete, dry):
    status, out, err = delete(*dry, shm_name("-none"), three[0], f"{three[0]}x*", three[1])
    assert status == 1
    assert err.count("\n") == 2
    assert f"no array matches '{three[0]}x*'" in err
    assert "there is no shared array" in err
    assert "delete" in out
    assert left(three) == (three if dry else three[2:])


def test_a_pattern_without_a_match_is_reported_once(three, delete):
    status, out, err = delete(f"{three[0]}x*")
    assert (status, out, err.count("\n")) == (1, "", 1)


def test_a_similar_name_is_suggested(three, delete):
    assert f"did you mean '{three[2]}'" in delete(three[2][:-1])[2]


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_other_files_are_not_deleted(name, delete, dry):
    raw.put(name, b"something else")
    status, out, err = delete(*dry, name)
    assert (status, out) == (1, "")
    assert "is not an array" in err
    assert left([name])


def test_patterns_match_only_arrays(name, delete):
    raw.put(name, b"something else")
    assert delete("--yes", f"{name}*")[0] == 1
    assert left([name])


def test_a_name_that_looks_like_a_pattern_means_itself(shm_name, delete):
    odd, other = shm_name("[ab]"), shm_name()
    other = odd.replace("[ab]", "a")
    for name in (odd, other):
        shmarray.create(name, 1)
    assert delete(odd)[0] == 0
    assert left([odd, other]) == [other]
    shmarray.delete(other)


def test_a_repeated_name_is_deleted_once(three, delete):
    status, out, _ = delete(three[0], three[0])
    assert (status, out.splitlines()[-1]) == (0, "1 array deleted, 8.0 KiB freed")


def test_a_name_that_begins_with_a_hyphen(delete):
    name = f"-t{os.getpid()}"
    shmarray.create(name, 1)
    assert delete("--", name)[0] == 0


def test_unreadable_arrays_are_deleted_by_name(name, delete):
    shmarray.create(name, 1, permissions=0o000)
    assert delete("--dry-run", name)[0] == 0
    assert delete(name)[0] == 0
    assert not left([name])


def test_processes_keep_what_they_have_mapped(three, delete):
    with held(three[0], "r") as child:
        status, out, _ = delete(three[0], three[1])
    assert status == 0
    assert f"deleted {three[0]} (8.0 KiB, mapped by 1 process: {child.pid})" in out
    assert "2 arrays deleted, 8.0 KiB freed; another 8.0 KiB will be freed when" in out


def test_a_second_name_keeps_the_memory(three, name, delete):
    os.link(raw.path(three[0]), raw.path(name))
    assert "1 array deleted, 0 B freed" in delete(three[0])[1]


def test_files(tmp_path, delete):
    path = tmp_path / "x[1].npy"
    np.save(path, np.zeros(3))
    assert delete(f"file://{path}")[0] == 0
    assert not path.exists()


# --- unused, and old ---


@pytest.fixture
def own_shared_memory():
    """Return the prefix that runs a command without the arrays of others."""
    return mounted("mount -t tmpfs tmpfs /dev/shm")


def test_only_unused_arrays(three, delete):
    with held(three[0], "r") as child:
        status, out, err = delete("--unused", *three)
        assert (status, err) == (0, "")
        assert f"kept {three[0]} (8.0 KiB, mapped by 1 process: {child.pid}): it is in use" in out
        assert left(three) == three[:1]
    assert delete("--unused", *three[:1])[0] == 0
    assert not left(three)


def test_only_unused_arrays_that_match_a_pattern(three, pattern, delete):
    with held(three[0], "c"):
        status, out, _ = delete("--yes", "--unused", pattern)
        assert (status, out.splitlines()[-1]) == (0, "1 array deleted, 8.0 KiB freed")
        assert delete("--yes", "--unused", pattern)[:2] == (0, "nothing to delete\n")
    assert left(three) == [three[0], three[2]]


def test_only_old_arrays(three, delete, monkeypatch):
    for age in ("1h", "2min", "0.5d", "86400s"):
        status, out, err = delete("--older-than", age, *three)
        assert (status, err, out.count("kept")) == (0, "", 3)
    assert left(three) == three
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert delete("--older-than", "59min", three[0])[0] == 0
    monkeypatch.setattr(time, "time", lambda: now - 3600)  # as if the clock had been set back
    assert "kept" in delete("--older-than", "0s", three[1])[1]
    assert left(three) == three[1:]


@pytest.mark.parametrize("age", ["", "1", "h", "-1h", "1 h", "1y", "1e3s", "nan s"])
def test_invalid_ages(three, age, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["delete", f"--older-than={age}", *three])
    assert "invalid age" in capsys.readouterr().err
    assert left(three) == three


@needs_mount
def test_without_names_all_arrays_are_meant_and_deletion_is_confirmed(own_shared_memory):
    script = """
"$0" -c 'import shmarray; shmarray.create("a", 3)'
"$0" -m shmarray delete --unused; echo $?
"$0" -m shmarray delete --dry-run --unused
"$0" -m shmarray delete --yes --older-than 1h
"$0" -m shmarray delete --yes --unused --older-than 0s
ls /dev/shm
"""
    command = [*own_shared_memory, "sh", "-c", script, sys.executable]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, env=ENVIRONMENT, timeout=60
    )
    assert done.stdout.splitlines() == [
        "2",
        "would delete a (4.0 KiB)",
        "nothing to delete",
        "deleted a (4.0 KiB)",
        "1 array deleted, 4.0 KiB freed",
    ]
    assert "1 array would be deleted, and there is no terminal to ask" in done.stderr


@needs_mount
def test_without_proc_nothing_is_known_to_be_unused(name):
    shmarray.create(name, 3)
    done = run("delete", "--unused", "--yes", name, prefix=mounted("mount -t tmpfs tmpfs /proc"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "/proc is not mounted" in done.stderr
    assert left([name])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_arrays_that_others_may_have_mapped_are_not_unused(shm_name):
    """A user may not inspect processes of other users, nor non-dumpable processes, for example after setuid."""
    private, shared = shm_name("-private"), shm_name("-shared")

    def as_nobody(channel):
        os.setuid(65534)
        shmarray.create(private, 3)
        shmarray.create(shared, 3, permissions=0o644)
        channel.send("made")
        channel.recv()  # this process is not dumpable, but belongs to the same user

    def delete_as_nobody():
        os.setuid(65534)
        libc.prctl(4, 1)  # PR_SET_DUMPABLE
        return [main(["delete", "--unused", name]) for name in (private, shared)], left([private, shared])

    libc = ctypes.CDLL(None)
    with Child(as_nobody) as child:
        child.receive()
        assert in_child(delete_as_nobody) == ([0, 0], [private, shared])
        child.tell()
        child.result()
    assert in_child(delete_as_nobody) == ([0, 0], [shared])
    assert main(["delete", "--unused", shared]) == 0


def test_an_array_that_was_replaced_meanwhile_remains(name, monkeypatch, capsys):
    shmarray.create(name, 3)
    ask = deleting._is_meant

    def replaced(target, arguments):
        shmarray.delete(name)
        shmarray.create(name, 4)
        return ask(target, arguments)

    monkeypatch.setattr(deleting, "_is_meant", replaced)
    assert main(["delete", "--unused", name]) == 1
    assert "another array replaced it" in capsys.readouterr().err
    assert left([name])


# --- the question --------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "gone"), [("y", True), ("YES", True), ("n", False), ("", False), ("what", False)])
def test_the_question(three, pattern, answer, gone):
    with on_a_terminal("delete", pattern) as (process, terminal):
        shown = read_until(terminal, "[y/N] ")
        assert f"  {three[0]} (8.0 KiB)\r\n  {three[1]} (8.0 KiB)\r\nDelete 2 arrays? [y/N] " in shown
        os.write(terminal, f"{answer}\n".encode())
        said = read_until(terminal, "no such text")
        assert process.wait(30) == (0 if gone else 1)
    assert ("2 arrays deleted" in said) == gone
    assert ("nothing was deleted" in said) != gone
    assert left(three) == (three[2:] if gone else three)


@pytest.mark.parametrize(("key", "status"), [(b"\x04", 1), (b"\x03", 130)], ids=["ctrl-d", "ctrl-c"])
def test_no_answer_deletes_nothing(three, pattern, key, status):
    with on_a_terminal("delete", pattern) as (process, terminal):
        read_until(terminal, "[y/N] ")
        assert press(key, process, terminal) == status
        said = read_until(terminal, "no such text")
    assert "Traceback" not in said
    assert left(three) == three


def test_full_names_need_no_confirmation(three):
    with on_a_terminal("delete", *three) as (process, terminal):
        assert "[y/N]" not in read_until(terminal, "no such text")
        assert process.wait(30) == 0
    assert not left(three)
