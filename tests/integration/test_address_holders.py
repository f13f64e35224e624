"""A pod that still stands in the API but has given its address up: packets go by who has the address now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest

from felix_py.dataplane import sysctl
from felix_py.notices import NoticeKind
from felix_py.records import Backend
from policy.model import (
    Family,
    LocalEndpoint,
    NamedPort,
    NetworkPolicy,
    Packet,
    Pod,
    PodPeer,
    PolicyRule,
    Protocol,
)
from policy.oracle.evaluate import Snapshot, verdict
from tests.support.builders import labelled
from tests.support.isolate import NetworkNamespace
from tests.support.policy_node import WORLD, PolicyNode
from tests.support.traffic import attempt, serve

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
TO_WEB = NetworkPolicy(
    "shop",
    "from-clients",
    labelled(app="web"),
    ingress=(PolicyRule((PodPeer(None, labelled(role="client")),)),),
)


@pytest.fixture(params=list(Backend), ids=str)
def node(request: pytest.FixtureRequest, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[PolicyNode]:
    sysctl.set_up_host(tuple(Family))
    node = PolicyNode(request.param, make_netns)
    node.add_pod("shop", "web", app="web")
    node.add_pod("shop", "client", role="client")
    node.add_pod("shop", "other", role="other")
    node.apply_policy(TO_WEB)
    yield node
    node.kernel.close()


def let_in(node: PolicyNode, name: str) -> set[Family]:
    """The families in which one (a pod, or the world as a pod of another node) reaches web. The oracle agrees."""
    place = node.places.get(name, node.world)
    sources = node.pods[name].addresses if name in node.places else tuple(WORLD.values())
    web = node.pods["web"].addresses
    packets = [Packet(*ends, Protocol.TCP, 80) for ends in zip(sources, web, strict=True)]
    with serve([(node.places["web"], address, Protocol.TCP, 80) for address in web]):
        answered = attempt([(place, packet) for packet in packets])
        # Nothing says that a packet was dropped; what was answered was let through.
        answered |= attempt([(place, packet) for packet in packets if packet not in answered], 2)
    endpoints = [
        LocalEndpoint(pod.namespace, pod.name, pod.addresses, pod.uid)
        for pod in node.pods.values()
        if pod.name in node.places
    ]
    snapshot = Snapshot(node.namespaces, node.pods.values(), [TO_WEB], (), endpoints)
    assert {packet for packet in packets if verdict(snapshot, packet).allowed} == answered
    return {Family.V6 if ":" in packet.source else Family.V4 for packet in answered}


def stale(on: PolicyNode, name: str, addresses: tuple[str, ...], since: str, role: str, **more: object) -> Pod:
    """The object of a pod that goes on listing addresses."""
    pod = Pod("shop", name, name, labels=(("role", role),), addresses=addresses, since=since, deleted=True)
    on.pods[name] = replace(pod, **more)  # type: ignore[arg-type]
    on.facts.upsert(on.pods[name])
    on.apply()
    return on.pods[name]


def test_an_address_that_is_leased_here_is_its_lease_s(node: PolicyNode) -> None:
    def told() -> Mapping[str, str]:
        return [now for kind, now in node.told if kind is NoticeKind.ADDRESS_CLAIMED_TWICE][-1]

    both = set(Family)
    assert let_in(node, "client") == both
    assert let_in(node, "other") == set()
    # Newer than the other pod's claim or not: who holds the lease here is known.
    for since in (OLD, NEW):
        gone = stale(node, "gone", node.pods["other"].addresses, since, "client", node="node")
        assert let_in(node, "other") == set()
        assert told().keys() == set(gone.addresses)
        assert "leased on this node to pod shop/other" in told()[gone.addresses[0]]
        assert "shop/gone on node (being deleted) claims it as well" in told()[gone.addresses[0]]
    stale(node, "also-gone", node.pods["client"].addresses, NEW, "other")
    assert let_in(node, "client") == both
    for name in ("gone", "also-gone"):
        node.facts.delete(node.pods.pop(name))
    node.apply()
    assert told() == {}
    assert let_in(node, "client") == both


def test_elsewhere_the_newest_claim_counts(node: PolicyNode) -> None:
    addresses = tuple(WORLD.values())
    stale(node, "old", addresses, OLD, "client", node="n2")
    assert let_in(node, "world") == set(Family)
    stale(node, "new", addresses, NEW, "other", node="n3", deleted=False)
    assert let_in(node, "world") == set()
    # What comes again of the old one does not change that.
    stale(node, "old", addresses, OLD, "client", node="n2", ports=(NamedPort("http", Protocol.TCP, 80),))
    assert let_in(node, "world") == set()
    # Its containers end, or its object goes: nothing to decide any more.
    stale(node, "old", addresses, OLD, "client", node="n2", active=False)
    assert let_in(node, "world") == set()
    stale(node, "new", addresses, NEW, "client", node="n3", deleted=False)
    assert let_in(node, "world") == set(Family)


def test_a_pod_of_the_same_name_does_not_inherit_the_interface_of_an_earlier_one(node: PolicyNode) -> None:
    """As when a pod is deleted by force and made anew elsewhere: its old sandbox may stand for a while."""
    successor = replace(node.pods["other"], uid="u2", node="n2", labels=(("role", "client"),), addresses=())
    node.facts.upsert(successor)
    node.apply()
    assert attempt_from(node, "other") == set()
    # Nor does the old sandbox of a client keep what only the new one may.
    successor = replace(node.pods["client"], uid="u2", node="n2", addresses=tuple(WORLD.values()))
    node.facts.upsert(successor)
    node.apply()
    assert attempt_from(node, "client") == set()


def attempt_from(node: PolicyNode, name: str) -> set[Packet]:
    web = node.pods["web"].addresses
    with serve([(node.places["web"], address, Protocol.TCP, 80) for address in web]):
        ends = zip(node.pods[name].addresses, web, strict=True)
        return attempt([(node.places[name], Packet(*pair, Protocol.TCP, 80)) for pair in ends], 2)
