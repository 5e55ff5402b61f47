"""Simulated hosts: separate namespaces for network, mounts and processes, with their own /dev/shm and boot id.

Everything ends with the processes that hold the namespaces, so nothing has to be removed.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest

from tests.helpers import processes
from tests.helpers.processes import wait_until

TOOLS = ("ip", "unshare", "nsenter")
SHM_SIZE = 64  # MB

_INIT = """
mount -t tmpfs -o size={size}m tmpfs /dev/shm
echo {boot_id} > /dev/shm/boot_id
mount --bind /dev/shm/boot_id /proc/sys/kernel/random/boot_id
rm /dev/shm/boot_id
echo ready
exec sleep 600
"""


def run(*command):
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=20)


class Namespaces:
    """A process that holds namespaces; everything that runs in them dies with it."""

    def __init__(self, kinds, script):
        command = ["unshare", *kinds, "--fork", "--kill-child", "sh", "-c", script]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if self._process.stdout.readline() != "ready\n":
            self.end()
            raise OSError("cannot create namespaces here")
        with open(f"/proc/{self._process.pid}/task/{self._process.pid}/children", encoding="ascii") as children:
            self.pid = int(children.read())

    def within(self, *command):
        return ("nsenter", "-t", str(self.pid), "-a", *map(str, command))

    def end(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class Network:
    """A switch that connects this machine with simulated hosts."""

    def __init__(self):
        self.subnet = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self.address = f"{self.subnet}.1"
        self.hosts = []
        self._switch = Namespaces(["--net"], "echo ready; exec sleep 600")
        try:
            link = f"shm{secrets.token_hex(4)}"
            run("ip", "link", "add", link, "type", "veth", "peer", "name", "up1", "netns", self._switch.pid)
            run("ip", "addr", "add", f"{self.address}/24", "dev", link)
            run("ip", "link", "set", link, "up")
            self._configure("ip link add br0 type bridge && ip link set br0 up")
            self._plug("up1")
        except BaseException:
            self.end()
            raise

    def host(self, *, shm=SHM_SIZE):
        host = Host(self, len(self.hosts) + 2, shm)
        self.hosts.append(host)
        return host

    def connect(self, host):
        port = f"h{host.number}"
        self._configure(f"ip link add {port} type veth peer name eth0 netns {host.namespaces.pid}")
        self._plug(port)
        address = f"{self.subnet}.{host.number}"
        run(*host.namespaces.within("ip", "link", "set", "lo", "up"))
        run(*host.namespaces.within("ip", "addr", "add", f"{address}/24", "dev", "eth0"))
        run(*host.namespaces.within("ip", "link", "set", "eth0", "up"))
        return address

    def _configure(self, script):
        run("nsenter", "-t", self._switch.pid, "-n", "sh", "-c", script)

    def _plug(self, port):
        self._configure(f"ip link set {port} master br0 && ip link set {port} up")

    def end(self):
        for host in self.hosts:
            host.end()
        self._switch.end()


class Host:
    """A simulated host; workers are started in its namespaces."""

    def __init__(self, network, number, shm):
        self.number = number
        kinds = ["--net", "--mount", "--pid", "--ipc", "--mount-proc"]
        self.namespaces = Namespaces(kinds, _INIT.format(size=shm, boot_id=f"host-{secrets.token_hex(8)}"))
        self._workers = []
        try:
            self.address = network.connect(self)
        except BaseException:
            self.end()
            raise

    def limit_rate(self, megabits):
        """Limit the rate at which the host sends."""
        limit = ["tbf", "rate", f"{megabits}mbit", "burst", "1mb", "latency", "100ms"]
        run(*self.namespaces.within("tc", "qdisc", "replace", "dev", "eth0", "root", *limit))

    def start_workers(self, scheduler, count=2, *, nanny=False, prefix=(), options=()):
        """Start worker processes with one thread each."""
        command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--nthreads", 1, "--no-dashboard"]
        command += ["--memory-limit", 0, "--host", self.address, "--nanny" if nanny else "--no-nanny", *options]
        for _ in range(count):
            self._workers.append(
                subprocess.Popen(
                    self.namespaces.within(*prefix, *command),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=os.environ | {"PYTHONPATH": processes.ROOT, "PYTHONWARNINGS": "ignore"},
                    cwd=processes.ROOT,
                )
            )

    def pids(self):
        """Return the host's processes: their pids outside, mapped to their pids on the host."""
        found = {}
        space = os.readlink(f"/proc/{self.namespaces.pid}/ns/pid")
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError, StopIteration):
                if os.readlink(f"/proc/{name}/ns/pid") == space:
                    with open(f"/proc/{name}/status", encoding="utf-8") as status:
                        numbers = next(line for line in status if line.startswith("NSpid:")).split()
                    found[int(name)] = int(numbers[-1])
        return found

    def kill(self, pid):
        """Kill a process by its pid on the host."""
        (number,) = [outer for outer, inner in self.pids().items() if inner == pid]
        os.kill(number, signal.SIGKILL)

    def copies(self):
        """Return the number of distinct blocks of anonymous memory that the host's processes have."""
        return len({inode for pid in self.pids() for inode in anonymous_memory(pid)})

    def registers(self):
        with suppress(FileNotFoundError):
            names = os.listdir(f"/proc/{self.namespaces.pid}/root/dev/shm")
            return [name for name in names if name.startswith("shmarray-cluster-")]
        return []

    def kill_workers(self):
        for worker in self._workers:
            worker.kill()
        for pid, inner in self.pids().items():
            if inner != 1:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for worker in self._workers:
            worker.wait()
        self._workers.clear()
        wait_until(lambda: set(self.pids().values()) <= {1})

    def end(self):
        self.namespaces.end()
        for worker in self._workers:
            worker.kill()
            worker.wait()
        self._workers.clear()


def anonymous_memory(pid):
    """Return the inodes of the library's anonymous memory that a process has mapped or open."""
    found = set()
    with suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
        found = {int(line.split()[4]) for line in lines if "/memfd:shmarray" in line}
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                path = f"/proc/{pid}/fd/{name}"
                if os.readlink(path).startswith("/memfd:shmarray"):
                    found.add(os.stat(path).st_ino)
    return found


def _why_not():
    if os.geteuid() != 0:
        return "only root can create simulated hosts"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"creating simulated hosts needs {', '.join(missing)}"
    with ExitStack() as stack:
        try:
            network = Network()
            stack.callback(network.end)
            network.host()
        except (OSError, subprocess.SubprocessError) as error:
            return f"cannot create simulated hosts here: {error}"
    return ""


_reason = _why_not()
needs_hosts = pytest.mark.skipif(bool(_reason), reason=_reason or "simulated hosts are available")
