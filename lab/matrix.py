"""Who reaches whom: real connections between all pods, nodes and the world, beside what the oracle expects.

Sockets are made inside the source's network namespace and then used from here, so one process asks for all
sources at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import aiohttp

from felix_py.datastore import decode, kinds
from lab import topology
from lab.apiclient import ApiClient, ApiError, Obj
from lab.lab import Lab
from lab.namespaces import NETNS_DIR, inside
from lab.podserver import Port
from lab.sandbox import ports
from lab.state import LabError
from lab.topology import TOR, machine_netns, pod_netns
from policy.model import ClusterPolicy, Family, NetworkPolicy, Packet, Protocol
from policy.oracle.evaluate import Snapshot, Verdict, verdict

R = TypeVar("R")

_WORLD_PORT: Port = ("TCP", 80)
_AT_ONCE = 400
"""Attempts at the same time: more would not be served within their timeout, nor have file descriptors."""


class Kind(StrEnum):
    """What a party is."""

    POD = "pod"
    WORLD = "world"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Party:
    """One end of connections: a pod ("namespace/name"), a node, or a host of the world outside."""

    name: str
    kind: Kind
    netns: Path
    addresses: dict[Family, str]
    ports: tuple[Port, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One connection to try."""

    source: Party
    destination: Party
    family: Family
    port: Port


@dataclass(frozen=True, slots=True)
class Cell:
    """An attempt, what came of it, and what policy says. ``detail``: the answer, or why there was none."""

    attempt: Attempt
    reached: bool
    detail: str
    verdict: Verdict

    @property
    def differs(self) -> bool:
        return self.reached is not self.verdict.allowed


@dataclass(frozen=True, slots=True)
class Scene:
    """The lab at one moment: who is there, and what policy says."""

    snapshot: Snapshot
    parties: tuple[Party, ...]

    def expected(self, attempt: Attempt) -> Verdict:
        """The oracle on an attempt: addresses as the packet has them when it leaves its source."""
        protocol, number = attempt.port
        source, destination = attempt.source, attempt.destination
        packet = Packet(
            source.addresses[attempt.family], destination.addresses[attempt.family], Protocol(protocol), number
        )
        return verdict(self.snapshot, packet, self._node_addresses(destination))

    def _node_addresses(self, pod: Party) -> frozenset[str]:
        """Addresses of the node on which a pod runs: it reaches its own pods always."""
        if pod.kind is not Kind.POD:
            return frozenset()
        namespace, _, name = pod.name.partition("/")
        node = self.snapshot.pods[namespace, name].node
        return frozenset(a for party in self.parties if party.name == node for a in party.addresses.values())


async def observe(lab: Lab) -> Scene:
    """Ask the API server.

    Raises:
        LabError: there is no such lab.
        ApiError, aiohttp.ClientError: its API server does not answer.
    """
    record = lab.record()
    async with ApiClient(lab.kubeconfig) as api:
        namespaces = await _listed(api, kinds.NAMESPACES)
        pods = await _listed(api, kinds.PODS)
        policies: list[NetworkPolicy | ClusterPolicy] = [*await _listed(api, kinds.POLICIES)]
        for kind in kinds.CLUSTER_POLICY_KINDS:
            tiers = await _listed(api, kind)
            policies += tiers
        nodes = [node.as_peer() for node in await _listed(api, kinds.NODES)]
        objects = (await api.get("/api/v1/pods"))["items"]
    snapshot = Snapshot(namespaces, pods, policies, nodes)
    families = record.shape.address_families
    found = [_pod(lab.name, obj, families) for obj in objects if _takes_part(obj)]
    return Scene(snapshot, (*found, *_world(lab.name, families), *_nodes(lab.name, record.shape.nodes, families)))


async def _listed(api: ApiClient, kind: decode.Kind[R]) -> list[R]:
    """All objects of a kind; none where its CustomResourceDefinition is not installed."""
    try:
        body = await api.raw(kind.path)
    except ApiError as error:
        if error.code == 404 and kind.optional:
            return []
        raise
    return [one for one in kind.listing(body).found if not isinstance(one, decode.Unusable)]


def _takes_part(pod: Obj) -> bool:
    """Running pods with a network of their own; to policy a pod on the host network is its node."""
    running = pod.get("status", {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")
    return running and not pod["spec"].get("hostNetwork")


def _pod(lab: str, pod: Obj, families: Sequence[Family]) -> Party:
    metadata = pod["metadata"]
    netns = NETNS_DIR / pod_netns(lab, metadata["namespace"], metadata["name"], metadata["uid"])
    addresses = {Family.V6 if ":" in entry["ip"] else Family.V4: entry["ip"] for entry in pod["status"]["podIPs"]}
    name = f"{metadata['namespace']}/{metadata['name']}"
    return Party(name, Kind.POD, netns, {family: addresses[family] for family in families}, tuple(ports(pod)))


def _world(lab: str, families: Sequence[Family]) -> list[Party]:
    netns = NETNS_DIR / machine_netns(lab, TOR)
    return [
        Party(name, Kind.WORLD, netns, {family: addresses[family] for family in families}, topology.WORLD_PORTS)
        for name, addresses in topology.WORLD.items()
    ]


def _nodes(lab: str, count: int, families: tuple[Family, ...]) -> list[Party]:
    return [
        Party(node.name, Kind.NODE, NETNS_DIR / machine_netns(lab, node.name), node.addresses)
        for node in topology.nodes(count, families)
    ]


def attempts(
    parties: Iterable[Party], protocol: Protocol | None = None, port: int | None = None
) -> list[Attempt]:
    """All pairs of pods, pods to and from the world, and nodes to pods.

    Each to the destination's first container port (of ``protocol``, if given), or to ``port`` (TCP, if no
    protocol is given). Destinations without such a port are left out.
    """
    everyone = list(parties)
    found = []
    for destination in everyone:
        wanted = _port(destination, protocol, port)
        if destination.kind is Kind.NODE or wanted is None:
            continue
        for source in everyone:
            if Kind.POD in (source.kind, destination.kind) and (destination.kind, source.kind) != (
                Kind.WORLD,
                Kind.NODE,
            ):
                found += [Attempt(source, destination, family, wanted) for family in destination.addresses]
    return found


def _port(destination: Party, protocol: Protocol | None, port: int | None) -> Port | None:
    if port is not None:
        return (protocol or Protocol.TCP).value, port
    offered = (_WORLD_PORT, *destination.ports) if destination.kind is Kind.WORLD else destination.ports
    return next((one for one in offered if protocol is None or one[0] == protocol.value), None)


# --- connections -------------------------------------------------------------------------------------


async def measure(
    scene: Scene, tries: Sequence[Attempt], timeout: float = 0.5, patience: float = 0.0
) -> list[Cell]:
    """Try all, many at a time; what should have worked and did not, once more.

    What should be answered has ``timeout`` seconds, or ``patience`` if that is more. What should not has those
    from when all that should be answered is: on a machine under load late answers are no silence.

    Raises:
        LabError: a source's network namespace is gone.
    """
    expected = [scene.expected(attempt) for attempt in tries]
    allowed = [verdict.allowed for verdict in expected]
    results = await _connect_all(tries, allowed, timeout, patience)
    again = [i for i, (reached, _) in enumerate(results) if allowed[i] and not reached]
    better = await _connect_all([tries[i] for i in again], [True] * len(again), timeout, patience)
    for index, result in zip(again, better, strict=True):
        results[index] = result
    return [
        Cell(attempt, reached, detail, verdict)
        for attempt, (reached, detail), verdict in zip(tries, results, expected, strict=True)
    ]


async def _connect_all(
    tries: Sequence[Attempt], allowed: Sequence[bool], timeout: float, patience: float
) -> list[tuple[bool, str]]:
    results: list[tuple[bool, str]] = []
    for start in range(0, len(tries), _AT_ONCE):
        some = tries[start : start + _AT_ONCE]
        sockets = await asyncio.to_thread(_open_all, some)
        work = [asyncio.create_task(_connect(one, attempt)) for one, attempt in zip(sockets, some, strict=True)]
        if answers := [task for task, wanted in zip(work, allowed[start:], strict=False) if wanted]:
            await asyncio.wait(answers, timeout=max(timeout, patience))
        if silent := [task for task in work if not task.done()]:
            await asyncio.wait(silent, timeout=timeout)
        results += [await _outcome(task) for task in work]
    return results


async def _outcome(task: asyncio.Task[tuple[bool, str]]) -> tuple[bool, str]:
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait([task])
    return False, "no answer"


def _open_all(tries: Sequence[Attempt]) -> list[socket.socket]:
    """A socket for each attempt, made in its source's namespace."""
    opened: dict[int, socket.socket] = {}
    by_netns: dict[Path, list[int]] = {}
    for index, attempt in enumerate(tries):
        by_netns.setdefault(attempt.source.netns, []).append(index)
    try:
        for netns, indices in by_netns.items():
            with inside(netns):
                for index in indices:
                    opened[index] = _open(tries[index])
    except OSError as error:
        for one in opened.values():
            one.close()
        raise LabError(f"{netns}: {error.strerror or error}") from error
    return [opened[index] for index in range(len(tries))]


def _open(attempt: Attempt) -> socket.socket:
    family = socket.AF_INET6 if attempt.family is Family.V6 else socket.AF_INET
    kind = socket.SOCK_STREAM if attempt.port[0] == "TCP" else socket.SOCK_DGRAM
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    if attempt.source.kind is Kind.WORLD:
        made.bind((attempt.source.addresses[attempt.family], 0))
    return made


async def _connect(one: socket.socket, attempt: Attempt) -> tuple[bool, str]:
    """(reached, detail). Where nobody listens was reached as well: a policy drops, it does not refuse."""
    loop = asyncio.get_running_loop()
    with contextlib.closing(one):
        try:
            await loop.sock_connect(one, (attempt.destination.addresses[attempt.family], attempt.port[1]))
            await loop.sock_sendall(one, b"?")
            answer = (await loop.sock_recv(one, 512)).partition(b"\n")[0].decode(errors="replace")
        except ConnectionRefusedError:
            return True, "refused"
        except OSError as error:
            return False, error.strerror or str(error)
    if answer != attempt.destination.name:
        return False, f"answered as {answer!r}"
    return True, answer


async def run_matrix(
    lab: Lab, protocol: Protocol | None = None, port: int | None = None, timeout: float = 0.5
) -> list[Cell]:
    """Observe and measure, for the command and for tests.

    Raises:
        LabError: there is no such lab, or it does not answer.
    """
    try:
        scene = await observe(lab)
    except (ApiError, aiohttp.ClientError) as error:
        raise LabError(f"the API server of lab {lab.name!r} does not answer: {error}") from error
    return await measure(scene, attempts(scene.parties, protocol, port), timeout)
