"""Whether an address is anywhere twice: what the API server and all nodes' kernels say, event by event."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from felix_py.netlink.wire import attributes, messages
from lab.namespaces import inside
from tests.cluster import assets
from tests.cluster.cluster import Cluster
from tests.cluster.machine import Machine

_POD = "{.type}|{.object.metadata.uid}|{.object.metadata.deletionTimestamp}|{.object.status.phase}|"
_PODS = _POD + '{.object.status.podIPs[*].ip}{"\\n"}'
_SERVICE = "{.type}|{.object.metadata.uid}|{.object.metadata.deletionTimestamp}||"
_SERVICES = _SERVICE + '{.object.status.loadBalancer.ingress[*].ip}{"\\n"}'
_GROUPS = 0x1 | 0x40 | 0x400
"""RTMGRP_LINK, and ROUTE of both families (linux/rtnetlink.h)."""

_RTM_DELLINK, _RTM_NEWROUTE, _RTM_DELROUTE = 17, 24, 25
_RTMSG, _INDEX = struct.Struct("=BBBBBBBBI"), struct.Struct("=i")
_RTA_DST, _RTA_OIF = 1, 4
_PODS_PROTOCOL, _MAIN, _UNICAST = 88, 254, 1
_SO_RCVBUFFORCE = 33
_BUFFER = 1 << 26
"""Bytes of events that may wait: a machine under load comes to them late."""


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

    def kernel_event(self, node: str, kind: int, body: memoryview) -> None:
        """A message of rtnetlink. The end of a link is that of its IPv4 routes."""
        if kind == _RTM_DELLINK and body[0] == socket.AF_UNSPEC:
            self.lose(f"{node}/{_INDEX.unpack_from(body, 4)[0]}")
        elif kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
            family, _, _, _, table, protocol, _, sort, _ = _RTMSG.unpack_from(body)
            found = attributes(body[_RTMSG.size :])
            if (table, protocol, sort) == (_MAIN, _PODS_PROTOCOL, _UNICAST) and _RTA_OIF in found:
                interface = _INDEX.unpack(found[_RTA_OIF])[0]
                address = socket.inet_ntop(family, found[_RTA_DST])
                (self.gain if kind == _RTM_NEWROUTE else self.lose)(f"{node}/{interface}", address)


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
    ending = threading.Event()
    threads: list[threading.Thread] = []
    failed: list[BaseException] = []

    def follow(node: str, events: socket.socket) -> None:
        try:
            with events:
                while not ending.is_set():
                    with suppress(TimeoutError):
                        for kind, body in messages(memoryview(events.recv(1 << 18))):
                            holders.kernel_event(node, kind, body)
        except BaseException as error:  # ENOBUFS: events are lost
            failed.append(error)

    try:
        for node in cluster.nodes:
            events = _listen(node.machine.netns())
            for interface, address in _routes(node.machine):
                holders.gain(f"{node.name}/{interface}", address)
            threads.append(_in_thread(partial(follow, node.name, events)))
        yield holders
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    assert not failed, failed


def _listen(netns: Path) -> socket.socket:
    with inside(netns):
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    events.settimeout(0.2)
    events.bind((0, _GROUPS))
    return events


def _routes(machine: Machine) -> Iterator[tuple[int, str]]:
    """Index of the interface, and address, of all routes to pods."""
    links = {line.split()[1].partition("@")[0]: line for line in machine.net("ip", "-o", "link").splitlines()}
    for family in ("-4", "-6"):
        for line in machine.net("ip", family, "route", "show", "proto", str(_PODS_PROTOCOL)).splitlines():
            words = line.split()
            if "dev" in words:
                yield int(links[words[words.index("dev") + 1]].partition(":")[0]), words[0]


def _inside(machine: Machine, *argv: str) -> subprocess.Popen[str]:
    """A program of outside in the machine's network: without its pids it is the process that is started."""
    enter = ["nsenter", f"--net={machine.netns()}", *argv]
    return subprocess.Popen(enter, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)


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
