"""Turn facts about a system into ok, note or will bite, and a remedy.  Pure."""

from typing import Literal, NamedTuple

from shmarray.command import wording
from shmarray.command.facts import Login, Space

Verdict = Literal["ok", "note", "will bite"]

_MIB = 1 << 20
# Docker and Kubernetes give 64 MB by default, which one batch of images fills.
_SMALL = 256 * _MIB
# With less than this free, the next array may not fit.
_NEARLY_FULL = 64 * _MIB
_FEW_FILES = 1000
_USUAL_MAPPINGS = 65530
# Measured with all start methods: a pool uses 4 descriptors, and 6 per worker.
_FILES_WITHOUT_POOL, _FILES_PER_WORKER = 32, 6
# The first UID of regular users: the default of systemd and of every large distribution.
_FIRST_PERSON = 1000


# File systems that keep their files in memory.
_IN_MEMORY = ("tmpfs", "devtmpfs", "ramfs")


class Finding(NamedTuple):
    """What a check found.

    Attributes
    ----------
    verdict : {'ok', 'note', 'will bite'}
        'note': something works, but not as well as it could, or may surprise users.
        'will bite': a program that uses shared arrays will fail or lose them.
    text : str
    remedies : tuple of str
        What to do; one option or command each.
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
    "shmarray list --sort size      show what is there",
    "shmarray delete NAME           delete what is no longer needed",
)


def shared_memory(space: Space | None) -> Finding:
    if space is None:
        return Finding(
            "will bite",
            "there is no /dev/shm: named arrays do not work, nor do multiprocessing's semaphores (Lock, Queue, "
            "ProcessPoolExecutor); Pool and scoped() without a name do",
            ("sudo mkdir /dev/shm && sudo mount -t tmpfs -o size=8g,mode=1777 tmpfs /dev/shm",),
        )
    return _limited(space) if space.total else _without_limit(space)


def _limited(space: Space) -> Finding:
    text = f"{wording.size(space.total)}, {wording.size(space.free)} free"
    if space.kind not in (*_IN_MEMORY, None):
        return Finding("note", f"{text}, but not a tmpfs ({space.kind}): arrays are written to disk", _LARGER[-1:])
    if space.total < _SMALL:
        return Finding("will bite", f"only {text}: a few arrays fill it", _LARGER)
    if space.free < _NEARLY_FULL:
        return Finding("will bite", f"nearly full: {text}", (*_EMPTIER, *_LARGER))
    if space.files_free is not None and space.files_free < _FEW_FILES:
        more = "sudo mount -o remount,nr_inodes=1000000 /dev/shm"
        return Finding("will bite", f"{text}, but room for only {space.files_free} more files", (*_EMPTIER, more))
    return Finding("ok", text)


def _without_limit(space: Space) -> Finding:
    if space.kind == "ramfs":
        return Finding(
            "note",
            "a ramfs: only the machine's memory limits its size; it cannot be swapped out, and when memory is full, "
            "the kernel kills processes",
            ("sudo mount -t tmpfs -o size=8g,mode=1777 tmpfs /dev/shm   (while it is empty)",),
        )
    return Finding("ok", "no limit of its own, only that of memory")


def memory(limits: list[tuple[str, int]]) -> Finding:
    """The size of /dev/shm is not reserved: what is written there takes memory."""
    if not limits:
        return Finding("note", "cannot tell how much memory is left: no /proc/meminfo and no control group")
    where, left = min(limits, key=lambda limit: limit[1])
    text = f"{wording.size(left)} left for arrays, limited by {where}"
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
            f"off ({setting}): with them, Pool and scoped() copy large arrays several times as fast",
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
        "off: with them, create() copies large arrays into /dev/shm several times as fast",
        ("sudo mount -o remount,huge=advise /dev/shm   (permanently: in its line in /etc/fstab)",),
    )


def locked_memory(most: int | None, above: bool) -> Finding:
    if above or most is None:
        return Finding("ok", "mlock() may lock any amount")
    return Finding(
        "note",
        f"mlock() may lock {wording.size(most)}; nothing else in this library needs it",
        ("ulimit -l unlimited   (permanently: memlock in /etc/security/limits.conf; docker run --ulimit memlock=-1)",),
    )


def open_files(most: int | None, workers: int) -> Finding:
    needed = _FILES_WITHOUT_POOL + _FILES_PER_WORKER * workers
    if most is not None and most < needed:
        return Finding(
            "will bite",
            f"at most {most}: a pool of {wording.count(workers, 'worker')} needs about {needed}",
            ("ulimit -n 4096   (docker run --ulimit nofile=4096)",),
        )
    return Finding("ok", f"{'no limit' if most is None else f'at most {most}'}; attached arrays use none")


def mappings(most: int | None) -> Finding:
    if most is None:
        return Finding("note", "cannot read vm.max_map_count")
    text = f"one process can have about {most:,} arrays attached (vm.max_map_count)"
    if most < _USUAL_MAPPINGS:
        return Finding("note", text, ("sudo sysctl vm.max_map_count=262144   (permanently: in /etc/sysctl.d/)",))
    return Finding("ok", text)


def login(login: Login) -> Finding:
    if login.remove_ipc is None:
        return Finding("ok", "systemd is not running")
    if not login.remove_ipc:
        return Finding("ok", "off")
    if login.uid < _FIRST_PERSON:
        return Finding("ok", "on, but system users such as this one are exempt")
    if login.lingers:
        return Finding("ok", "on, but lingering is enabled for this user")
    return Finding(
        "will bite",
        "on: at your last logout, systemd deletes the names of all your arrays, including those in use",
        (
            "loginctl enable-linger         for your user",
            "RemoveIPC=no in the [Login] section of /etc/systemd/logind.conf, then restart systemd-logind",
        ),
    )


def start_method(default: str) -> Finding:
    if default == "fork":
        return Finding("ok", "fork: workers start with everything the program has loaded")
    return Finding("ok", f'{default}: tasks must be importable functions, and scripts need if __name__ == "__main__":')


def proc(there: bool, own: bool, options: str) -> Finding:
    if not there:
        return Finding(
            "note",
            "not mounted: scoped() arrays take names and space in /dev/shm, and writable memory maps cannot be sent",
            ("mount -t proc proc /proc",),
        )
    if not own:
        return Finding(
            "note",
            "closed to other processes (this one is not dumpable): scoped() arrays take names and space in /dev/shm",
        )
    if "hidepid=" in options and not any(f"hidepid={off}" in options.split(",") for off in ("0", "off")):
        return Finding("ok", "visible, except for other users' processes, which list and info do not count")
    return Finding("ok", "visible: anonymous arrays can be attached through it")


def semaphores(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "work: multiprocessing's locks and queues, and ProcessPoolExecutor, need them")
    return Finding(
        "will bite",
        f"refused ({wording.failure(error)}): multiprocessing's locks and queues, and ProcessPoolExecutor, need them",
        ("make /dev/shm writable for this user: mode 1777, not read-only", "or use Pool, which needs none"),
    )


def memory_without_name(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "works: pools take no space in /dev/shm and cannot leave anything behind")
    return Finding(
        "note",
        f"refused ({wording.failure(error)}): pools take their memory from /dev/shm, and scoped() gives arrays names",
        ("allow memfd_create in the container's seccomp profile; set sysctl vm.memfd_noexec to less than 2",),
    )


def name_when_complete(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "works: an array gets its name once complete, and a killed creator leaves nothing behind")
    return Finding(
        "note",
        f"refused ({wording.failure(error)}): the name comes first, and a killed creator leaves an incomplete array",
    )


def reserving(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "works: creating an array that does not fit into memory raises an error")
    return Finding(
        "note",
        f"refused ({wording.failure(error)}): space is reserved page by page, which is many times slower, or not at "
        "all if the system cannot write to shared memory either",
        ("allow fallocate in the container's seccomp profile",),
    )


def giving_back(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "works: an idle pool takes no memory")
    return Finding(
        "note",
        f"refused ({wording.failure(error)}): pools copy results once more, and free memory only when they are "
        "idle, or only when they end if files cannot be truncated either",
        ("allow fallocate and madvise in the container's seccomp profile",),
    )


def packets(there: bool) -> Finding:
    if there:
        return Finding("ok", "works: small tasks queue in the workers' sockets, so workers need not wait for them")
    return Finding("note", "not available: pools send tasks over a stream, one at a time to each worker")


def ends_of_processes(there: bool) -> Finding:
    if there:
        return Finding("ok", "works: pools notice the death of a worker at once")
    return Finding(
        "note",
        "not available: while pools have tasks, they check twenty times a second whether a worker has died",
        ("allow pidfd_open in the container's seccomp profile",),
    )


def killing_with_caller(there: bool) -> Finding:
    if there:
        return Finding("ok", "works: the kernel ends workers when their caller dies")
    return Finding(
        "note",
        "not available: a thread in each worker waits for its caller to end; os.fork() in a task may warn",
    )


def fault_counters(there: bool) -> Finding:
    if there:
        return Finding("ok", "work: an array that many tasks only read stays mapped between them")
    return Finding("note", "not counted: workers map an array that many tasks receive again for each of them")


def locking(error: OSError | None) -> Finding:
    if error is None:
        return Finding("ok", "works: lock() can lock arrays in shared memory")
    return Finding(
        "note",
        f"refused ({wording.failure(error)}): lock() raises an error for arrays in shared memory",
        ("lock a file:// array, or a file of your own, instead",),
    )


def versions(found: dict[str, str]) -> Finding:
    return Finding("ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def self_test(error: str | None) -> Finding:
    return Finding("ok", "works") if error is None else Finding("will bite", f"failed: {error}")
