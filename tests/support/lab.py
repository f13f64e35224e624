"""What end-to-end tests do with a lab: look at its kernels, kill its programs, send packets through it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import yaml

from felix_py.observe import ask
from lab.apiclient import ApiClient
from lab.build import EXAMPLES, Options
from lab.lab import Lab
from lab.matrix import Cell, attempts, measure, observe
from lab.namespaces import NETNS_DIR, inside
from lab.state import Shape
from lab.topology import TOR, machine_netns, nodes
from policy.model import Family, Protocol
from tests.support.asking import get
from tests.support.waiting import eventually

CRDS = sorted((EXAMPLES.parent / "crds").glob("*policies.yaml"))
_SILENCE = 0.15
"""Seconds without an answer, once all others have come."""

_ANSWER = 3.0
"""Seconds for what should be answered."""
_SERVED = {
    **dict.fromkeys(("events", "nodes", "pods"), "/api/v1"),
    "networkpolicies": "/apis/networking.k8s.io/v1",
    **dict.fromkeys(("ipamblocks", "nodenetworkstatuses"), "/apis/felixpy.io/v1alpha1"),
    "clusternetworkpolicies": "/apis/policy.networking.k8s.io/v1alpha2",
    **dict.fromkeys(
        ("adminnetworkpolicies", "baselineadminnetworkpolicies"), "/apis/policy.networking.k8s.io/v1alpha1"
    ),
}
"""Where the API server has what tests read."""

_TABLES = ("raw", "mangle", "nat", "filter")


def example(number: str) -> str:
    """Path of an example manifest by the number at the start of its name."""
    (found,) = EXAMPLES.glob(f"{number}-*.yaml")
    return str(found)


def manifest(*objects: dict[str, Any]) -> str:
    """Objects as kubectl takes them on stdin."""
    return str(yaml.safe_dump_all(objects))


def _probe(kind: str, version: str, name: str, **head: Any) -> dict[str, Any]:
    """A policy of a cluster-scoped kind that selects nobody, and that no agent understands wholly."""
    rule = {"action": "Deny", "to": [{"networks": ["::ffff:192.0.2.0/120"]}]}
    subject = {"namespaces": {"matchLabels": {"nobody": "has-this"}}}
    return {
        "apiVersion": f"policy.networking.k8s.io/{version}",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {**head, "subject": subject, "egress": [rule]},
    }


PROBES = (
    _probe("ClusterNetworkPolicy", "v1alpha2", "probe", tier="Admin", priority=0),
    _probe("AdminNetworkPolicy", "v1alpha1", "probe", priority=0),
    _probe("BaselineAdminNetworkPolicy", "v1alpha1", "default"),
)


one_backend = pytest.mark.parametrize(
    "lab", ["nft", pytest.param("legacy", marks=pytest.mark.heavy)], indirect=True
)
"""For what the iptables backend makes no difference to; at length it is tried on both."""


class LabUnderTest:
    """A lab that is up. Tests of it are no coroutines; what they ask that is one has a loop of its own."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        shape = lab.record().shape
        self.backend = shape.backend
        self.families = shape.address_families
        self.nodes = nodes(shape.nodes, shape.address_families)

    @property
    def node_names(self) -> list[str]:
        return [node.name for node in self.nodes]

    def netns(self, machine: str) -> Path:
        return NETNS_DIR / machine_netns(self.lab.name, machine)

    def sh(self, target: str, *argv: str) -> str:
        """Run a command on the router, on a node or in a pod; its stdout."""
        return self.lab.run(target, *argv).stdout

    # --- Kubernetes ----------------------------------------------------------------------------------

    def kubectl(self, *argv: str, stdin: str | None = None) -> str:
        return self.lab.kubectl(*argv, stdin=stdin).stdout

    def refused(self, *argv: str, stdin: str | None = None) -> str:
        """Run a kubectl command that must fail; its stderr."""
        done = self.lab.kubectl(*argv, stdin=stdin, check=False)
        assert done.returncode, f"kubectl {' '.join(argv)} succeeded: {done.stdout}"
        return done.stderr

    def get(self, resource: str, name: str = "", namespace: str = "", fields: str = "") -> dict[str, Any]:
        """An object or, without a name, a list; ``namespace``: else of all, ``fields``: a field selector.

        Without kubectl, which takes ten times as long, and is not what a test that waits for something is about.
        """
        place = f"namespaces/{namespace}/{resource}" if namespace else resource

        async def read() -> dict[str, Any]:
            async with ApiClient(self.lab.kubeconfig) as api:
                path = f"{_SERVED[resource]}/{place}" + (f"/{name}" if name else "")
                return await api.get(path, {"fieldSelector": fields} if fields else None)

        found = asyncio.run(read())
        for one in found.get("items", [found]):
            one["metadata"].pop("managedFields", None)  # as kubectl shows it
        return found

    def node_status(self, node: str) -> dict[str, Any]:
        """What a node tells of itself (NodeNetworkStatus); nothing before it has told anything."""
        told = self.get("nodenetworkstatuses", fields=f"metadata.name={node}")["items"]
        found: dict[str, Any] = told[0].get("status", {}) if told else {}
        return found

    @contextmanager
    def applied(self, *arguments: str, stdin: str | None = None) -> Iterator[None]:
        """``kubectl apply`` for the time of the context, and ``kubectl delete`` after it."""
        self.kubectl("apply", *arguments, stdin=stdin)
        try:
            yield
        finally:
            self.kubectl("delete", "--ignore-not-found", *arguments, stdin=stdin)

    def addresses(self, namespace: str, pod: str) -> dict[Family, str]:
        entries = self.get("pods", pod, namespace)["status"].get("podIPs", [])
        return {Family.V6 if ":" in entry["ip"] else Family.V4: entry["ip"] for entry in entries}

    def node_of(self, namespace: str, pod: str) -> str:
        return str(self.get("pods", pod, namespace)["spec"]["nodeName"])

    @contextmanager
    def definitions(self) -> Iterator[None]:
        """The CustomResourceDefinitions of the cluster-scoped policies, installed and watched by every agent."""
        with self.applied(*(f"--filename={path}" for path in CRDS)):
            names = [f"crd/{path.stem}.policy.networking.k8s.io" for path in CRDS]
            self.kubectl("wait", "--for=condition=Established", *names)
            # An agent finds them after a while. One that tells of a probe watches them.
            with self.applied("-f", "-", stdin=manifest(*PROBES)):
                for node in self.node_names:
                    eventually(lambda node=node: len(self.problems(node)) == len(PROBES), 40)  # type: ignore[misc]
            for node in self.node_names:
                eventually(lambda node=node: not self.problems(node), 10)  # type: ignore[misc]
            yield

    def problems(self, node: str) -> list[dict[str, str]]:
        """What a node's agent cannot apply as written."""
        status, body = self.agent(node, "/status")
        found: list[dict[str, str]] = json.loads(body)["problems"] if status == 200 else []
        return found

    # --- policy --------------------------------------------------------------------------------------

    def settle(
        self, protocol: Protocol | None = None, port: int | None = None, patience: float = 30.0
    ) -> tuple[list[Cell], float]:
        """Measure until all is as the oracle says: the cells, and the seconds after which that was so."""
        return asyncio.run(self._settle(protocol, port, patience))

    async def _settle(
        self, protocol: Protocol | None, port: int | None, patience: float
    ) -> tuple[list[Cell], float]:
        start = time.monotonic()
        scene = await observe(self.lab)
        tries = attempts(scene.parties, protocol, port)
        right_since = 0.0
        while True:
            cells = await measure(scene, tries, _SILENCE, _ANSWER)
            wrong = [cell for cell in cells if cell.differs]
            if not wrong:
                return cells, right_since
            while wrong:  # only these, because a measurement of all takes long
                right_since = time.monotonic() - start
                assert right_since < patience, f"after {right_since:.1f} s: {[describe(c) for c in wrong[:8]]}"
                again = await measure(scene, [cell.attempt for cell in wrong], _SILENCE, _ANSWER)
                wrong = [cell for cell in again if cell.differs]

    def verified(self) -> None:
        """Wait until every node's kernel is as it should be, also what an earlier test has left to be removed."""
        told = ""

        def holds(node: str) -> bool:
            nonlocal told
            done = self.lab.run(node, "felix-py", "verify", check=False)
            told = done.stdout + done.stderr
            return done.returncode == 0

        for node in self.node_names:
            try:
                eventually(partial(holds, node), 20)
            except AssertionError:
                raise AssertionError(told) from None

    # --- the agent -----------------------------------------------------------------------------------

    def agent(self, node: str, path: str) -> tuple[int, str]:
        """GET from the agent's own socket: (status, body); (0, reason) when nobody answers."""
        place = self.lab.state.machine(node) / "run" / "agent.sock"
        return get(ask.connection(str(place), 10.0), path)

    def metric(self, node: str, name: str) -> float:
        """A metric without labels."""
        status, body = self.agent(node, "/metrics")
        assert status == 200, body
        found = re.search(rf"^{re.escape(name)} (\S+)$", body, re.MULTILINE)
        assert found, f"no metric {name}"
        return float(found[1])

    def kill(self, node: str, program: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a program of a machine and wait until its supervisor has started it again."""
        before = self.lab.programs(node)[program]
        os.kill(before.pid, number)
        eventually(lambda: self.lab.programs(node)[program].pid not in (0, before.pid), 15)

    def wait_ready(self, node: str) -> None:
        """Until the agent is in sync and has written what it had to."""
        eventually(lambda: self.agent(node, "/readyz")[0] == 200, 30)

    def exabgp_pid(self, node: str) -> int:
        """The ExaBGP process below the sidecar."""
        sidecar = self.lab.programs(node)["bgp"].pid

        def child() -> int:
            pids = Path(f"/proc/{sidecar}/task/{sidecar}/children").read_text().split()
            return int(pids[0]) if pids else 0

        return eventually(child, 15)

    # --- kernels -------------------------------------------------------------------------------------

    def rules(self, node: str) -> dict[str, str]:
        """Everything in iptables, without counters and comments of the tool: (tool, table) -> text."""
        found = {}
        for tool in ("iptables", "ip6tables"):
            for table in _TABLES:
                text = self.sh(node, f"{tool}-{self.backend}-save", "-t", table)
                lines = [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if line[:1] != "#"]
                found[f"{tool} {table}"] = "\n".join(lines)
        return found

    def sets(self, node: str) -> list[str]:
        """All IP sets and their members, as lines."""
        return sorted(self.sh(node, "ipset", "save").splitlines())

    def routes(self, machine: str) -> list[str]:
        """All routes of both families, as lines."""
        return sorted(
            line
            for family in ("-4", "-6")
            for line in self.sh(machine, "ip", family, "route", "show").splitlines()
        )

    def kernel(self, node: str) -> dict[str, Any]:
        """All of a node's rules, sets and routes."""
        return {**self.rules(node), "sets": self.sets(node), "routes": self.routes(node)}

    def bird_routes(self) -> dict[str, float]:
        """The router's table: each route with its next hops -> when it came, in seconds of the day.

        A route that was withdrawn and came again, or changed, has another time. BIRD computes these from the time
        since boot, so they drift by some milliseconds as the clock is adjusted.
        """
        found = {}
        for route in re.split(r"\n(?=\S)", self.sh(TOR, "birdc", "show", "route")):
            if times := re.search(r" (\d\d):(\d\d):(\d\d\.\d+)\]", route):
                hours, minutes, seconds = map(float, times.groups())
                found[route.replace(times[0], "]")] = hours * 3600 + minutes * 60 + seconds
        return found


def bring_up(name: str, folder: Path, shape: Shape) -> Iterator[LabUnderTest]:
    """A lab with the example pods, for a fixture's ``yield from``."""
    lab = Lab(name, folder)
    try:
        lab.up(Options(shape))
        yield LabUnderTest(lab)
    finally:
        lab.down()


def describe(cell: Cell) -> str:
    """A cell in a line, for failures."""
    attempt = cell.attempt
    return (
        f"{attempt.source.name} -> {attempt.destination.name} {attempt.port} IPv{int(attempt.family)}: "
        f"reached {cell.reached} ({cell.detail}), expected {cell.verdict.allowed}"
    )


class RouteMonitor:
    """Everything that happens to the routes of a machine's kernel during the context (``ip monitor``)."""

    def __init__(self, lab: LabUnderTest, machine: str) -> None:
        self._argv = [*lab.lab.enter(machine), "ip", "-tshort", "monitor", "route"]
        self.events: list[str] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self.events = self._process.communicate(timeout=10)[0].splitlines()

    @property
    def withdrawn(self) -> list[str]:
        return [event for event in self.events if "] Deleted " in event]


class Requests:
    """UDP requests every 10 ms from one pod to a port of another for the time of the context; ``lost`` after it.

    UDP, because nothing repeats what is lost.
    """

    def __init__(self, netns: Path, address: str, port: int, interval: float = 0.01) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(netns):
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.connect((address, port))
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.name = f"{netns.name} -> {address}:{port}"
        self.sent = 0
        self.answered: set[int] = set()
        self.errors: list[str] = []

    @property
    def lost(self) -> list[int]:
        return sorted(set(range(self.sent)) - self.answered)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._over.is_set():
            try:
                self._socket.send(b"%d" % self.sent)
            except OSError as error:
                self.errors.append(str(error))
            self.sent += 1
            # Whoever is late does not catch up: 300 answers at once are more than a socket's buffer takes.
            due = max(due + self._interval, time.monotonic())
            self._receive_until(due)
        self._receive_until(time.monotonic() + 2, all_of_them=True)

    def _receive_until(self, deadline: float, *, all_of_them: bool = False) -> None:
        """Take what has come, and what comes until then."""
        while not (all_of_them and len(self.answered) == self.sent):
            if not select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return
            try:
                self.answered.add(int(self._socket.recv(2048).partition(b"\n")[2]))
            except OSError as error:
                self.errors.append(str(error))


class Flood:
    """UDP packets from several namespaces to many addresses, as fast as one thread sends, and who answered."""

    def __init__(self, sources: Sequence[Path], addresses: Sequence[str], port: int) -> None:
        self._sockets = []
        for netns in sources:
            for family in {socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses}:
                with inside(netns):
                    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                self._sockets.append((made, [a for a in addresses if (":" in a) == (family == socket.AF_INET6)]))
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sweeps = 0
        self.answers: set[str] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        for made, _ in self._sockets:
            made.close()

    def _run(self) -> None:
        while not self._over.is_set():
            for made, addresses in self._sockets:
                for address in addresses:
                    try:
                        made.sendto(b"flood", (address, self._port))
                    except OSError:
                        continue  # nobody there yet: "no route to host" of the blackhole
            self.sweeps += 1
            self._collect()

    def _collect(self) -> None:
        for made, _ in self._sockets:
            while select.select([made], [], [], 0)[0]:
                try:
                    self.answers.add(made.recvfrom(2048)[1][0])
                except OSError:
                    break  # an ICMP error is no answer
