"""NetworkPolicy v1, a statement of its specification at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policy.engine.interpret import allowed
from policy.model import Family, LocalEndpoint, Namespace, NetworkPolicy, Packet
from policy.oracle.evaluate import Snapshot, verdict
from policy.parse import parse_network_policy
from tests.support.spec import DEV, HOST, TCP, WEB, Case, app, check, loaded, ns, packets
from tests.support.told import ToldEngine


def ingress(*rules: Any, **more: Any) -> dict[str, Any]:
    return {"podSelector": {}, "ingress": list(rules), "policyTypes": ["Ingress"], **more}


def egress(*rules: Any, **more: Any) -> dict[str, Any]:
    return {"podSelector": {}, "egress": list(rules), "policyTypes": ["Egress"], **more}


def expression(operator: str, *values: str) -> dict[str, Any]:
    expressions = [{"key": "app", "operator": operator, **({"values": list(values)} if values else {})}]
    return {"podSelector": {"matchExpressions": expressions}}


BLOCK = {"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.2/32"]}}
ZEROS = {"ipBlock": {"cidr": "010.000.00.0/024", "except": ["010.0.0.002/032"]}}
BLOCK6 = {"ipBlock": {"cidr": "fd00::/64", "except": ["fd00::2/128"]}}

CASES = [
    Case("no policy: everything", [], ["dev web", "web dev", "out web", "web out"]),
    Case("empty podSelector: all pods of the namespace", [ingress()], ["web dev"], ["dev web", "dev db"]),
    Case("a podSelector selects", [ingress(podSelector=app("web"))], ["web db", "dev db"], ["db web"]),
    Case("policyTypes absent: Ingress", [{"podSelector": {}}], ["web dev"], ["dev web"]),
    Case("and Egress with egress rules", [{"podSelector": {}, "egress": [{}]}], ["web dev"], ["dev web"]),
    Case("a type listed without rules denies", [egress()], ["dev web"], ["web dev", "web db", "web out"]),
    Case("[{}] allows all", [ingress({})], ["dev web", "out web"]),
    Case("empty from and ports mean any", [ingress({"from": [], "ports": []})], ["dev web", "out web udp 9"]),
    Case(
        "ports AND peers",
        [ingress({"from": [{"podSelector": {}}], "ports": [{"port": 80}]})],
        ["db web"],
        ["db web tcp 81", "dev web", "out web"],
    ),
    Case(
        "items OR",
        [ingress({"from": [{"podSelector": app("db")}, {"namespaceSelector": ns("dev")}]})],
        ["db web", "dev web"],
        ["out web"],
    ),
    Case(
        "policies add up",
        [ingress({"ports": [{"port": 80}]}), ingress({"ports": [{"port": 81}]})],
        ["dev web tcp 80", "dev web tcp 81"],
        ["dev web tcp 82"],
    ),
    Case(
        "protocol defaults to TCP",
        [ingress({"ports": [{"port": 80}]})],
        ["dev web tcp 80"],
        ["dev web udp 80", "dev web sctp 80"],
    ),
    Case("also without a port", [ingress({"ports": [{}]})], ["dev web tcp 9"], ["dev web udp 9"]),
    Case("SCTP", [ingress({"ports": [{"protocol": "SCTP"}]})], ["dev web sctp 9"], ["dev web tcp 9"]),
    Case(
        "endPort is inclusive",
        [ingress({"ports": [{"port": 80, "endPort": 82}]})],
        ["dev web tcp 80", "dev web tcp 82"],
        ["dev web tcp 79", "dev web tcp 83"],
    ),
    Case(
        "endPort needs a numeric port",
        [ingress({"ports": [{"port": "http", "endPort": 90}]})],
        [],
        ["dev web tcp 80", "dev web tcp 90"],
    ),
    Case(
        "a named port resolves on the destination, each pod by itself (ingress)",
        [ingress({"ports": [{"port": "http"}]})],
        ["dev web tcp 80", "dev db tcp 8080"],
        ["dev web tcp 8080", "dev db tcp 80", "dev web udp 81"],
    ),
    Case(
        "by name and protocol",
        [ingress({"ports": [{"port": "http", "protocol": "UDP"}]})],
        ["dev web udp 81"],
        ["dev web tcp 80", "dev web udp 80", "dev db tcp 8080"],
    ),
    Case(
        "a named port in egress, with to",
        [egress({"to": [{"podSelector": {}}], "ports": [{"port": "http"}]})],
        ["web db tcp 8080", "db web tcp 80"],
        ["web db tcp 80", "web dev tcp 80"],
    ),
    Case(
        "a named port in egress without to still binds to each destination's own port",
        [egress({"ports": [{"port": "http"}]})],
        ["web db tcp 8080", "web dev tcp 80"],
        ["web db tcp 80", "web dev tcp 8080", "web out tcp 80"],
    ),
    Case(
        "a named port in egress, to a block",
        [egress({"to": [BLOCK, BLOCK6], "ports": [{"port": "http"}]})],
        ["web dev tcp 80"],
        ["web dev tcp 81", "web db tcp 8080"],
    ),
    Case(
        "podSelector alone: the policy's namespace",
        [ingress({"from": [{"podSelector": app("web")}]})],
        ["web db"],
        ["dev db"],
    ),
    Case(
        "namespaceSelector alone: all its pods",
        [ingress({"from": [{"namespaceSelector": ns("dev")}]})],
        ["dev db"],
        ["web db", "out db"],
    ),
    Case(
        "both: AND",
        [ingress({"from": [{"namespaceSelector": {}, "podSelector": app("db")}]})],
        ["db web"],
        ["dev web"],
    ),
    Case(
        "{} is not absent",
        [ingress({"from": [{"namespaceSelector": {}}]})],
        ["dev web", "db web"],
        ["out web", "host web"],
    ),
    Case("ipBlock with except", [egress({"to": [BLOCK, BLOCK6]})], ["web dev"], ["web db", "web out"]),
    Case(
        "leading zeros in it are nothing: decimal, not octal",
        [egress({"to": [ZEROS, {"ipBlock": {"cidr": "fd00:00::/064", "except": ["fd00::0002/128"]}}]})],
        ["web dev"],
        ["web db", "web out"],
    ),
    Case(
        "another rule may allow again what one excepts",
        [egress({"to": [BLOCK, BLOCK6]}, {"to": [{"podSelector": app("db")}]})],
        ["web dev", "web db"],
        ["web out"],
    ),
    Case(
        "another block may, too",
        [egress({"to": [BLOCK, {"ipBlock": {"cidr": "10.0.0.2/32"}}]})],
        ["web dev", "web db"],
        ["web out"],
        Family.V4,
    ),
    Case("0.0.0.0/0", [egress({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]})], ["web out"], [], Family.V4),
    Case(
        "0.0.0.0/0 is no IPv6", [egress({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]})], [], ["web out"], Family.V6
    ),
    Case("::/0", [ingress({"from": [{"ipBlock": {"cidr": "::/0"}}]})], ["out web"], [], Family.V6),
    Case("::/0 is no IPv4", [ingress({"from": [{"ipBlock": {"cidr": "::/0"}}]})], [], ["out web"], Family.V4),
    Case(
        "hostNetwork pods are no pod peers",
        [egress({"to": [{"namespaceSelector": {}}]})],
        ["web dev"],
        ["web host"],
    ),
    Case(
        "finished pods leave all sets", [egress({"to": [{"namespaceSelector": {}}]})], ["web dev"], ["web done"]
    ),
    Case("a pod reaches itself", [ingress(), egress()], ["web web"], ["web db"]),
    Case("In", [ingress({"from": [expression("In", "db", "x")]})], ["db web"], ["web db"]),
    Case("NotIn", [ingress({"from": [expression("NotIn", "web", "x")]})], ["db web"], ["web db"]),
    Case("Exists", [ingress({"from": [expression("Exists")]})], ["db web"], ["dev web"]),
    Case("DoesNotExist", [ingress({"from": [expression("DoesNotExist")]})], [], ["db web"]),
    Case(
        "both ends must allow",
        [egress({}, podSelector=app("web")), ingress(podSelector=app("db"))],
        [],
        ["web db"],
    ),
]


def parsed(*specs: dict[str, Any]) -> list[NetworkPolicy]:
    return [
        parse_network_policy({"metadata": {"name": f"p{n}", "namespace": "shop"}, "spec": spec})
        for n, spec in enumerate(specs)
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.statement)
def test_specification(case: Case) -> None:
    check(case, parsed(*case.specs))


def test_a_host_network_pod_is_no_subject() -> None:
    engine = ToldEngine()
    policy = {"metadata": {"name": "p", "namespace": "dev"}, "spec": ingress()}
    engine.upsert(parse_network_policy(policy))
    engine.upsert(HOST)
    engine.lease(LocalEndpoint("dev", "host", HOST.addresses))
    assert engine.program(Family.V4).classes == {"Ingress": {}, "Egress": {}}


def test_a_node_reaches_its_own_pods() -> None:
    snapshot = Snapshot([], [WEB], parsed(ingress()))
    packet = Packet("192.168.0.1", "10.0.0.1", TCP, 80)
    assert not verdict(snapshot, packet).allowed
    assert verdict(snapshot, packet, frozenset({"192.168.0.1"})).allowed


def reached(engine: ToldEngine, text: str) -> set[bool]:
    return {
        allowed(engine.program(Family.V6 if ":" in packet.source else Family.V4), packet)
        for packet in packets(text)
    }


def test_label_updates_on_pods_take_effect_at_once() -> None:
    engine = loaded(parsed(ingress({"from": [{"namespaceSelector": ns("dev"), "podSelector": app("web")}]})))
    assert reached(engine, "dev web") == {True}
    engine.upsert(replace(DEV, labels=(("app", "other"),)))
    assert reached(engine, "dev web") == {False}
    engine.upsert(DEV)
    assert reached(engine, "dev web") == {True}


def test_label_updates_on_namespaces_take_effect_at_once() -> None:
    engine = loaded(parsed(ingress({"from": [{"namespaceSelector": ns("dev")}]})))
    engine.upsert(Namespace("dev", (("team", "other"),)))
    assert reached(engine, "dev web") == {False}
    engine.upsert(Namespace("dev", (("team", "dev"),)))
    assert reached(engine, "dev web") == {True}


def test_label_updates_move_a_subject_at_once() -> None:
    engine = loaded(parsed(ingress(podSelector=app("web"))))
    assert reached(engine, "dev web") == {False}
    engine.upsert(replace(WEB, labels=(("app", "free"),)))
    assert reached(engine, "dev web") == {True}
