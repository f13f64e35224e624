"""Whether an address is anywhere twice: what the API server and all nodes' kernels say, event by event."""

from __future__ import annotations

import re
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.cluster import assets
from tests.cluster.cluster import Cluster
from tests.cluster.machine import Machine, wait_for

_POD = "{.type}|{.object.metadata.uid}|{.object.metadata.deletionTimestamp}|{.object.status.phase}|"
_PODS = _POD + '{.object.status.podIPs[*].ip}{"\\n"}'
_SERVICE = "{.type}|{.object.metadata.uid}|{.object.metadata.deletionTimestamp}||"
_SERVICES = _SERVICE + '{.object.status.loadBalancer.ingress[*].ip}{"\\n"}'
_ROUTE = re.compile(r"^\[ROUTE\](Deleted )?(\S+) dev (felix\S+) proto 88\b")
_LINK = re.compile(r"^\[LINK\]Deleted \d+: (felix[^@:]+)")


class Holders:
    """Who has which addresses. ``twice`` has a sentence for each moment in which two had the same."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.twice: list[str] = []
        self._has: dict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()

    def gain(self, holder: str, address: str) -> None:
        """From now on it has this address, too."""
        with self._lock:
            others = [one for one, had in self._has.items() if address in had and one != holder]
            self.twice += [f"{self.where}: {address} of {other} is given to {holder}" for other in others]
            self._has[holder].add(address)

    def lose(self, holder: str, address: str = "") -> None:
        """It has this address no more; without one: none at all."""
        with self._lock:
            if address:
                self._has[holder].discard(address)
            else:
                self._has.pop(holder, None)

    def lose_all(self) -> None:
        """Nothing is known any more."""
        with self._lock:
            self._has.clear()

    def addresses(self) -> set[str]:
        """All that somebody has now."""
        with self._lock:
            return set().union(*self._has.values())

    def object_line(self, line: str) -> None:
        """A line of :data:`_PODS` or :data:`_SERVICES`.

        What is being deleted has none: its address may be another's before the object is gone.
        """
        kind, uid, deleted, phase, addresses = line.split("|")
        if kind == "DELETED" or deleted or phase in ("Succeeded", "Failed"):
            self.lose(uid)
            return
        for address in self._has[uid] - set(addresses.split()):
            self.lose(uid, address)
        for address in addresses.split():
            self.gain(uid, address)

    def kernel_line(self, node: str, line: str) -> None:
        """A line of ``ip -o monitor link route label``. The end of a link is that of its IPv4 routes."""
        if found := _LINK.match(line):
            self.lose(f"{node}/{found[1]}")
        elif found := _ROUTE.match(line):
            (self.lose if found[1] else self.gain)(f"{node}/{found[3]}", found[2])


@contextmanager
def watching_pods(cluster: Cluster, namespace: str) -> Iterator[Holders]:
    """Follow the addresses of a namespace's pods."""
    holders = Holders("pods of the API server")
    with _watching(cluster, holders, "-n", namespace, "get", "pods", "-o", f"jsonpath={_PODS}"):
        yield holders


@contextmanager
def watching_services(cluster: Cluster, namespace: str) -> Iterator[Holders]:
    """Follow the addresses of a namespace's load balancers."""
    holders = Holders("Services of the API server")
    with _watching(cluster, holders, "-n", namespace, "get", "services", "-o", f"jsonpath={_SERVICES}"):
        yield holders


@contextmanager
def watching_kernels(cluster: Cluster) -> Iterator[Holders]:
    """Follow the routes to pods in all nodes' kernels; nothing may happen at its beginning."""
    holders = Holders("routes of the kernels")
    monitors: list[subprocess.Popen[str]] = []
    try:
        for node in cluster.nodes:
            monitor = _inside(
                node.machine, "ip", "-rcvbuf", "16777216", "-o", "monitor", "link", "route", "label"
            )
            monitors.append(monitor)
            wait_for(f"{node.name}'s monitor", partial(_listens, monitor.pid), 60)
            for line in _routes(node.machine):
                holders.kernel_line(node.name, f"[ROUTE]{line}")
            _in_thread(partial(_read, monitor, partial(holders.kernel_line, node.name)))
        yield holders
        assert all(monitor.poll() is None for monitor in monitors), "a monitor has ended: events may be lost"
    finally:
        for monitor in monitors:
            monitor.kill()
            monitor.wait()


def _inside(machine: Machine, *argv: str) -> subprocess.Popen[str]:
    """A tool of outside in the machine's network: without its pids it is the process that is started."""
    enter = ["nsenter", f"--net={machine.netns()}", *argv]
    return subprocess.Popen(enter, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)


def _routes(machine: Machine) -> list[str]:
    return [line for family in ("-4", "-6") for line in machine.net("ip", family, "route", "show").splitlines()]


def _listens(pid: int) -> bool:
    """Whether a process has joined groups of netlink; its sockets have its number."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/netlink").read_text().splitlines()]
    return any(row[2] == str(pid) and row[3].strip("0") for row in rows)


def _read(program: subprocess.Popen[str], take: Callable[[str], None]) -> None:
    assert program.stdout
    with program.stdout:
        for line in program.stdout:
            take(line.rstrip("\n"))


def _in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@contextmanager
def _watching(cluster: Cluster, holders: Holders, *argv: str) -> Iterator[None]:
    """``kubectl get --watch``, anew whenever the server ends it."""
    machine = cluster.control_plane.machine
    credentials = f"--kubeconfig={machine.path('/etc/kubernetes/admin.kubeconfig')}"
    command = [str(assets.program("kubectl")), credentials, *argv, "--watch", "--output-watch-events"]
    ending = threading.Event()
    running: list[subprocess.Popen[str]] = []

    def work() -> None:
        while not ending.wait(0.2):
            holders.lose_all()
            running[:] = [_inside(machine, *command)]
            if ending.is_set():
                running[0].kill()
            _read(running[0], holders.object_line)
            running[0].wait()

    thread = _in_thread(work)
    try:
        yield
        assert thread.is_alive(), "the watch has broken down"
    finally:
        ending.set()
        for found in running:
            found.kill()
        thread.join()
