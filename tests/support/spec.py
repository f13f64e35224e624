"""Statements of a policy API's specification as cases: objects as the API serves them, packets, answers.

Every answer is asked twice: of the oracle and of the compiled program on a node that has all pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from policy.engine.interpret import allowed
from policy.model import (
    ClusterPolicy,
    Family,
    LocalEndpoint,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Node,
    Packet,
    Pod,
    Protocol,
)
from policy.oracle.evaluate import Snapshot, verdict
from tests.support.told import ToldEngine

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP


def pod(namespace: str, name: str, number: int, **more: Any) -> Pod:
    addresses = (f"10.0.0.{number}", f"fd00::{number}")
    return Pod(namespace, name, labels=(("app", name),), addresses=more.pop("addresses", addresses), **more)


WEB = pod("shop", "web", 1, ports=(NamedPort("http", TCP, 80), NamedPort("http", UDP, 81)))
DB = pod("shop", "db", 2, ports=(NamedPort("http", TCP, 8080),))
DEV = pod("dev", "web", 3, ports=(NamedPort("http", TCP, 80),))
HOST = pod("dev", "host", 4, addresses=("192.168.0.1", "fdff::1"), host_network=True)
DONE = pod("dev", "done", 5, active=False)
PODS = {p.addresses[0]: p for p in (WEB, DB, DEV, HOST, DONE)}
NODE = Node("node", (("zone", "z"),), HOST.addresses)
NAMESPACES = [Namespace("shop", (("team", "shop"),)), Namespace("dev", (("team", "dev"),))]
_ENDS = {
    "web": WEB.addresses,
    "db": DB.addresses,
    "dev": DEV.addresses,
    "host": HOST.addresses,
    "done": DONE.addresses,
    "out": ("198.51.100.7", "2001:db8::7"),
}


@dataclass
class Case:
    """``allows`` and ``denies``: "source destination [protocol] [port]", for both families unless ``only``."""

    statement: str
    specs: list[dict[str, Any]]
    allows: list[str] = field(default_factory=list)
    denies: list[str] = field(default_factory=list)
    only: Family | None = None


def ns(team: str) -> dict[str, Any]:
    return {"matchLabels": {"team": team}}


def app(name: str) -> dict[str, Any]:
    return {"matchLabels": {"app": name}}


def check(case: Case, policies: Sequence[NetworkPolicy | ClusterPolicy]) -> None:
    """Hold both the oracle and the compiled program against the case."""
    engine = loaded(policies)
    snapshot = Snapshot(NAMESPACES, PODS.values(), policies, [NODE])
    for texts, wanted in ((case.allows, True), (case.denies, False)):
        for text in texts:
            for packet in packets(text, case.only):
                assert verdict(snapshot, packet).allowed is wanted, packet
                program = engine.program(Family.V6 if ":" in packet.source else Family.V4)
                assert allowed(program, packet) is wanted, packet


def loaded(policies: Iterable[NetworkPolicy | ClusterPolicy]) -> ToldEngine:
    """An engine on a node that has all pods."""
    engine = ToldEngine()
    for namespace in NAMESPACES:
        engine.upsert(namespace)
    engine.upsert(NODE)
    for policy in policies:
        engine.upsert(policy)
    for known in PODS.values():
        engine.upsert(known)
        if known.active and not known.host_network:
            engine.lease(LocalEndpoint(known.namespace, known.name, known.addresses))
    return engine


def packets(text: str, only: Family | None = None) -> list[Packet]:
    """ "web db udp 53" as packets, one for each family."""
    source, destination, *rest = text.split()
    protocol = Protocol(rest[0].upper()) if rest else TCP
    port = int(rest[1]) if rest else 80
    ends = zip(_ENDS[source], _ENDS[destination], strict=True)
    found = [Packet(first, second, protocol, port) for first, second in ends]
    return [p for p in found if only is None or (":" in p.source) is (only is Family.V6)]
