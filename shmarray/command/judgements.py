"""Figures of a system -> ok, note or will bite, and the remedy.  Pure."""

from typing import Literal, NamedTuple

from shmarray.command import wording
from shmarray.command.facts import Login, Space

Verdict = Literal["ok", "note", "will bite"]

_MIB = 1 << 20
# Docker gives 64 MB and Kubernetes too, which one batch of images fills.
_SMALL = 256 * _MIB
# Less than this free, and the next array of any size is the last.
_NEARLY_FULL = 64 * _MIB
_FEW_FILES = 1000
_USUAL_MAPPINGS = 65530
# Measured under all start methods: a pool takes 4 of its own, and 6 for each worker.
_FILES_WITHOUT_POOL, _FILES_PER_WORKER = 32, 6
# From here on users are people: systemd's default, and that of every large distribution.
_FIRST_PERSON = 1000


# File systems whose files are memory.
_IN_MEMORY = ("tmpfs", "devtmpfs", "ramfs")


class Finding(NamedTuple):
    """What a check found.

    Attributes
    ----------
    verdict : {'ok', 'note', 'will bite'}
        'note': something works, but less well than it could, or others would be surprised.
        'will bite': a program that uses shared arrays will fail, or lose them.
    text : str
    remedies : tuple of str
        What to do, one way or command each.
    """

    verdict: Verdict
    text: str
    remedies: tuple[str, ...] = ()


_LARGER = (
    "docker run --shm-size=8g ...   (or --ipc=host)",
    "compose:    services: {app: {shm_size: 8g}}",
    "Kubernetes: a volume {emptyDir: {medium: Memory, sizeLimit: 8Gi}} mounted at /dev/shm",
    "elsewhere:  sudo mount -o remount,size=8g /dev/shm",
)
_EMPTIER = (
    "shmarray list --sort size      what is there",
    "shmarray delete NAME           what is not needed any more",
)


def shared_memory(space: Space | None) -> Finding:
    if space is None:
        return Finding(
            "will bite",
            "there is no /dev/shm: named arrays have no place, nor have multiprocessing's semaphores (Lock, Queue, "
            "ProcessPoolExecutor); Pool and scoped() without a name work",
            ("sudo mkdir /dev/shm && sudo mount -t tmpfs -o size=8g,mode=1777 tmpfs /dev/shm",),
        )
    return _limited(space) if space.total else _without_limit(space)


def _limited(space: Space) -> Finding:
    text = f"{wording.size(space.total)}, {wording.size(space.free)} free"
    if space.kind not in (*_IN_MEMORY, None):
        return Finding("note", f"{text}, but it is no tmpfs ({space.kind}): arrays are written to a disk", _LARGER[-1:])
    if space.total < _SMALL:
        return Finding("will bite", f"only {text}: a few arrays fill it", _LARGER)
    if space.free < _NEARLY_FULL:
        return Finding("will bite", f"nearly full: {text}", (*_EMPTIER, *_LARGER))
    if space.files_free is not None and space.files_free < _FEW_FILES:
        more = "sudo mount -o remount,nr_inodes=1000000 /dev/shm"
        return Finding("will bite", f"{text}, but only for {space.files_free} more files", (*_EMPTIER, more))
    return Finding("ok", text)


def _without_limit(space: Space) -> Finding:
    if space.kind == "ramfs":
        return Finding(
            "note",
            "a ramfs: nothing limits its size but the memory of the machine, which is not swapped out, and where that "
            "is full the kernel ends processes",
            ("sudo mount -t tmpfs -o size=8g,mode=1777 tmpfs /dev/shm   (as long as it is empty)",),
        )
    return Finding("ok", "it has no limit of its own; memory has")


def memory(limits: list[tuple[str, int]]) -> Finding:
    """The space of /dev/shm is a promise: what is written there takes memory."""
    if not limits:
        return Finding("note", "how much memory is left cannot be known here: no /proc/meminfo, no control group")
    where, left = min(limits, key=lambda limit: limit[1])
    text = f"{wording.size(left)} left for arrays: {where}"
    if left < _NEARLY_FULL:
        return Finding(
            "will bite",
            text,
            ("docker run --memory=16g ..., resources.limits.memory in Kubernetes, --mem in Slurm", *_EMPTIER),
        )
    return Finding("ok", text)


def huge_pages_of_pools(setting: str | None, _: str) -> Finding:
    if setting is None:
        return Finding("note", "this kernel has none for shared memory")
    if setting in ("never", "deny"):
        return Finding(
            "note",
            f"off ({setting}): Pool and scoped() copy large arrays several times as fast with them",
            ("echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled   (on the host)",),
        )
    return Finding("ok", f"on ({setting})")


def huge_pages_of_names(setting: str | None, options: str) -> Finding:
    if setting is None:
        return Finding("note", "this kernel has none for shared memory")
    chosen = [option.removeprefix("huge=") for option in options.split(",") if option.startswith("huge=")]
    if setting == "force" or (chosen and chosen[0] != "never" and setting != "deny"):
        return Finding("ok", f"on (huge={chosen[0]})" if chosen else "on (force)")
    return Finding(
        "note",
        "off: create() copies large arrays into /dev/shm several times as fast with them",
        ("sudo mount -o remount,huge=advise /dev/shm   (lasting: in its line in /etc/fstab)",),
    )


def locked_memory(most: int | None, above: bool) -> Finding:
    if above or most is None:
        return Finding("ok", "mlock() may lock any amount")
    return Finding(
        "note",
        f"mlock() may lock {wording.size(most)}; nothing else of this library needs it",
        ("ulimit -l unlimited   (lasting: memlock in /etc/security/limits.conf; docker run --ulimit memlock=-1)",),
    )


def open_files(most: int | None, workers: int) -> Finding:
    needed = _FILES_WITHOUT_POOL + _FILES_PER_WORKER * workers
    if most is not None and most < needed:
        return Finding(
            "will bite",
            f"{most} at a time: a pool of {wording.count(workers, 'worker')} needs about {needed}",
            ("ulimit -n 4096   (docker run --ulimit nofile=4096)",),
        )
    return Finding("ok", f"{'any number' if most is None else most} at a time; attached arrays take none")


def mappings(most: int | None) -> Finding:
    if most is None:
        return Finding("note", "vm.max_map_count cannot be read here")
    text = f"one process can have about {most:,} arrays attached (vm.max_map_count)"
    if most < _USUAL_MAPPINGS:
        return Finding("note", text, ("sudo sysctl vm.max_map_count=262144   (lasting: in /etc/sysctl.d/)",))
    return Finding("ok", text)


def login(login: Login) -> Finding:
    if login.remove_ipc is None:
        return Finding("ok", "systemd does not run here")
    if not login.remove_ipc:
        return Finding("ok", "off")
    if login.uid < _FIRST_PERSON:
        return Finding("ok", "on, but it spares system users such as this one")
    if login.lingers:
        return Finding("ok", "on, but this user lingers")
    return Finding(
        "will bite",
        "on: at your last logout systemd deletes the names of all your arrays, also of those in use",
        (
            "loginctl enable-linger         for you",
            "RemoveIPC=no in the section [Login] of /etc/systemd/logind.conf, then restart systemd-logind",
        ),
    )


def start_method(default: str) -> Finding:
    if default == "fork":
        return Finding("ok", "fork: workers begin with all that the program has loaded")
    return Finding(
        "ok", f'{default}: tasks are functions that can be imported, and scripts need if __name__ == "__main__":'
    )


def proc(there: bool, own: bool, options: str) -> Finding:
    if not there:
        return Finding(
            "note",
            "not mounted: arrays of scoped() take names and space in /dev/shm, and writable memory maps cannot be sent",
            ("mount -t proc proc /proc",),
        )
    if not own:
        return Finding(
            "note",
            "closed to other processes (this one is not dumpable): arrays of scoped() take names and space in /dev/shm",
        )
    if "hidepid=" in options and not any(f"hidepid={off}" in options.split(",") for off in ("0", "off")):
        return Finding("ok", "visible, but for other users' processes: list and info do not count those")
    return Finding("ok", "visible: arrays without a name can be reached through it")


def semaphores(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "work: multiprocessing's locks and queues, and ProcessPoolExecutor, need them")
    return Finding(
        "will bite",
        f"refused ({wording.failure(error)}): multiprocessing's locks and queues, and ProcessPoolExecutor, need them",
        ("a /dev/shm that this user may write to: mode 1777, not read-only", "or use Pool, which needs none"),
    )


def memory_without_name(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "works: pools take no space in /dev/shm, and nothing of theirs can be left behind")
    return Finding(
        "note",
        f"refused ({wording.failure(error)}): pools take their memory from /dev/shm, and scoped() gives arrays names",
        ("allow memfd_create in the container's seccomp profile; set sysctl vm.memfd_noexec below 2",),
    )


def name_when_complete(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "works: an array has its name when it is complete, and a killed maker leaves nothing")
    return Finding(
        "note",
        f"refused ({wording.failure(error)}): the name comes first, and a maker that is killed leaves half an array",
    )


def reserving(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "works: what does not fit into memory is an error when an array is made")
    return Finding(
        "note",
        f"refused ({wording.failure(error)}): space is reserved page by page, many times as slowly, or, where the "
        "system cannot write to shared memory either, not at all",
        ("allow fallocate in the container's seccomp profile",),
    )


def giving_back(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "works: a pool that has nothing to do takes no memory")
    return Finding(
        "note",
        f"refused ({wording.failure(error)}): pools copy results once more, and give memory back only when "
        "they are idle, or, where a file cannot be cut off either, when they end",
        ("allow fallocate and madvise in the container's seccomp profile",),
    )


def packets(there: bool) -> Finding:
    if there:
        return Finding("ok", "works: tiny tasks wait in the workers' sockets, and nobody waits for them")
    return Finding("note", "refused or not there: pools send tasks on a stream, one at a time to each worker")


def ends_of_processes(there: bool) -> Finding:
    if there:
        return Finding("ok", "works: the death of a worker is noticed at once")
    return Finding(
        "note",
        "refused or not there: pools ask twenty times a second whether a worker has died, while they have tasks",
        ("allow pidfd_open in the container's seccomp profile",),
    )


def killing_with_caller(there: bool) -> Finding:
    if there:
        return Finding("ok", "works: the kernel ends workers when their caller dies")
    return Finding(
        "note",
        "refused or not there: a thread in each worker waits for the end of its caller; os.fork() in a task may warn",
    )


def fault_counters(there: bool) -> Finding:
    if there:
        return Finding("ok", "work: an array that many tasks only read stays mapped between them")
    return Finding("note", "not counted: workers map an array that many tasks have anew for each of them")


def locking(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "works: lock() is there for arrays in shared memory")
    return Finding(
        "note",
        f"refused ({wording.failure(error)}): lock() is an error for arrays in shared memory",
        ("lock a file:// array, or a file of your own, in their place",),
    )


def versions(found: dict[str, str]) -> Finding:
    return Finding("ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def self_test(error: str | None) -> Finding:
    return Finding("ok", "works") if error is None else Finding("will bite", f"failed: {error}")
