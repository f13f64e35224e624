"""ClusterNetworkPolicy v1alpha2 and the two kinds before it, a statement of their specification at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from policy.engine.interpret import allowed
from policy.model import ClusterPolicy, Family, LocalEndpoint, Namespace, NetworkPolicy
from policy.parse import parse_network_policy
from policy.parse_cluster import parse_admin_policy, parse_baseline_admin_policy, parse_cluster_policy
from tests.support.spec import DEV, NAMESPACES, WEB, Case, app, check, ns, packets
from tests.support.told import ToldEngine

ALL: dict[str, Any] = {"namespaces": {}}
SHOP, DEVS = {"namespaces": ns("shop")}, {"namespaces": ns("dev")}
DB = {"pods": {"namespaceSelector": ns("shop"), "podSelector": app("db")}}
_PARSERS: dict[str, Callable[[Any], NetworkPolicy | ClusterPolicy]] = {
    "NetworkPolicy": parse_network_policy,
    "ClusterNetworkPolicy": parse_cluster_policy,
    "AdminNetworkPolicy": parse_admin_policy,
    "BaselineAdminNetworkPolicy": parse_baseline_admin_policy,
}


def rule(action: str, *peers: Any, far: str = "from", **more: Any) -> dict[str, Any]:
    return {"action": action, far: list(peers or [ALL]), **more}


def out(action: str, *peers: Any, **more: Any) -> dict[str, Any]:
    return rule(action, *peers, far="to", **more)


def tier(name: str, priority: int, *ingress: Any, subject: Any = SHOP, egress: Any = ()) -> dict[str, Any]:
    spec = {
        "tier": name,
        "priority": priority,
        "subject": subject,
        "ingress": list(ingress),
        "egress": list(egress),
    }
    return {"kind": "ClusterNetworkPolicy", "spec": spec}


def admin(*ingress: Any, priority: int = 10, **more: Any) -> dict[str, Any]:
    return tier("Admin", priority, *ingress, **more)


def baseline(*ingress: Any, priority: int = 10, **more: Any) -> dict[str, Any]:
    return tier("Baseline", priority, *ingress, **more)


def old_admin(*ingress: Any, priority: int = 10) -> dict[str, Any]:
    spec = {"priority": priority, "subject": SHOP, "ingress": list(ingress)}
    return {"kind": "AdminNetworkPolicy", "spec": spec}


def old_baseline(*ingress: Any) -> dict[str, Any]:
    return {"kind": "BaselineAdminNetworkPolicy", "spec": {"subject": SHOP, "ingress": list(ingress)}}


def namespaced(**spec: Any) -> dict[str, Any]:
    return {"kind": "NetworkPolicy", "spec": {"podSelector": {}, **spec}}


def tcp(**port: Any) -> dict[str, Any]:
    return {"tcp": {"destinationPort": port}}


DENY_ALL, ALLOW_ALL = namespaced(), namespaced(ingress=[{}])
NODES = {"nodes": {"matchLabels": {"zone": "z"}}}
BLOCKS = {"networks": ["198.51.100.0/24", "2001:db8::/32"]}

CASES = [
    Case("Admin comes before NetworkPolicy: Accept", [admin(rule("Accept")), DENY_ALL], ["dev web", "web db"]),
    Case("Admin comes before NetworkPolicy: Deny", [admin(rule("Deny")), ALLOW_ALL], ["out web"], ["dev web"]),
    Case("NetworkPolicy comes before Baseline: it denies", [DENY_ALL, baseline(rule("Accept"))], [], ["dev web"]),
    Case("NetworkPolicy comes before Baseline: it allows", [ALLOW_ALL, baseline(rule("Deny"))], ["dev web"]),
    Case("Baseline comes before allow", [baseline(rule("Deny", DEVS))], ["web db"], ["dev web"]),
    Case("what no tier decides is allowed", [admin(rule("Deny", DB)), baseline(rule("Deny", DB))], ["dev web"]),
    Case(
        "lower priority numbers first",
        [admin(rule("Deny"), priority=5), admin(rule("Accept"), priority=1)],
        ["dev web"],
    ),
    Case(
        "priority 0 and 1000",
        [admin(rule("Deny"), priority=1000), admin(rule("Accept"), priority=0)],
        ["dev web"],
    ),
    Case("rules in order: Deny first", [admin(rule("Deny", DEVS), rule("Accept"))], ["web db"], ["dev web"]),
    Case("rules in order: Accept first", [admin(rule("Accept", DEVS), rule("Deny"))], ["dev web"], ["web db"]),
    Case(
        "Pass skips the rest of its policy",
        [admin(rule("Pass", DEVS), rule("Deny"))],
        ["dev web"],
        ["web db"],
    ),
    Case(
        "Pass skips the rest of its tier",
        [admin(rule("Pass", DEVS), priority=1), admin(rule("Deny"), priority=2)],
        ["dev web"],
        ["web db"],
    ),
    Case("Pass goes on to NetworkPolicy", [admin(rule("Pass"), rule("Accept")), DENY_ALL], [], ["dev web"]),
    Case(
        "Pass goes on to Baseline", [admin(rule("Pass")), baseline(rule("Deny", DEVS))], ["web db"], ["dev web"]
    ),
    Case(
        "Pass in Baseline ends in allow",
        [baseline(rule("Pass", DEVS), rule("Deny"))],
        ["dev web"],
        ["web db"],
    ),
    Case(
        "what Admin passed, Baseline can pass again",
        [admin(rule("Pass")), baseline(rule("Pass", DEVS), rule("Deny"))],
        ["dev web"],
        ["web db"],
    ),
    Case(
        "Accept ends that direction only: egress",
        [admin(egress=[out("Accept")]), admin(rule("Deny"), subject=DEVS, priority=20)],
        ["web db"],
        ["web dev"],
    ),
    Case(
        "Accept ends that direction only: ingress",
        [admin(rule("Accept")), admin(egress=[out("Deny")], subject=DEVS, priority=0)],
        ["web db", "out web"],
        ["dev web"],
    ),
    Case(
        "a pod selected by any NetworkPolicy in a direction ends there (no Baseline)",
        [namespaced(podSelector=app("web"), ingress=[{"ports": [{"port": 80}]}]), baseline(rule("Deny", DEVS))],
        ["dev web"],
        ["dev db", "dev web tcp 81"],
    ),
    Case(
        "in that direction only",
        [DENY_ALL, baseline(egress=[out("Deny", DEVS)])],
        ["web out"],
        ["web dev", "dev web"],
    ),
    Case("subjects: namespaces", [admin(rule("Deny"), subject=DEVS)], ["dev web"], ["web dev"]),
    Case("subjects: pods", [admin(rule("Deny"), subject=DB)], ["dev web"], ["dev db"]),
    Case(
        "subjects: empty selectors are all pods",
        [admin(rule("Deny"), subject=ALL)],
        ["out dev"],
        ["web dev", "dev web"],
    ),
    Case("ingress peers: namespaces", [admin(rule("Deny", DEVS))], ["web db", "out db"], ["dev db"]),
    Case("ingress peers: pods", [admin(rule("Deny", DB))], ["dev web"], ["db web"]),
    Case("peers OR", [admin(rule("Deny", DB, DEVS))], ["web db", "out web"], ["db web", "dev web"]),
    Case(
        "egress: namespaces and pods", [admin(egress=[out("Deny", DEVS, DB)])], ["web out"], ["web dev", "web db"]
    ),
    Case("egress adds networks", [admin(egress=[out("Deny", BLOCKS)])], ["web dev"], ["web out"]),
    Case(
        "networks mean pods, too",
        [admin(egress=[out("Deny", {"networks": ["10.0.0.0/8", "fd00::/8"]})])],
        ["web out", "dev web"],
        ["web dev"],
    ),
    Case(
        "0.0.0.0/0 and ::/0 in networks",
        [admin(egress=[out("Deny", {"networks": ["0.0.0.0/0", "::/0"]})])],
        ["dev web"],
        ["web out", "web dev", "web host"],
    ),
    Case("egress adds nodes", [admin(egress=[out("Deny", NODES)])], ["web dev", "web out"], ["web host"]),
    Case(
        "nodes by their labels",
        [admin(egress=[out("Deny", {"nodes": {"matchLabels": {"zone": "y"}}})])],
        ["web host"],
    ),
    Case(
        "an empty nodes selector: all nodes",
        [admin(egress=[out("Deny", {"nodes": {}})])],
        ["web out"],
        ["web host"],
    ),
    Case(
        "hostNetwork pods are no pod peers",
        [admin(egress=[out("Deny", ALL)])],
        ["web host"],
        ["web dev"],
    ),
    Case("finished pods are no peers", [admin(egress=[out("Deny", ALL)])], ["web done"]),
    Case(
        "protocols: a port number",
        [admin(rule("Deny", protocols=[tcp(number=80)]))],
        ["dev web tcp 81", "dev web udp 80"],
        ["dev web tcp 80"],
    ),
    Case(
        "protocols: a range, inclusive",
        [admin(rule("Deny", protocols=[tcp(range={"start": 80, "end": 82})]))],
        ["dev web tcp 79", "dev web tcp 83"],
        ["dev web tcp 80", "dev web tcp 82"],
    ),
    Case(
        "protocols: items OR",
        [admin(rule("Deny", protocols=[tcp(number=80), {"udp": {"destinationPort": {"number": 53}}}]))],
        ["dev web udp 80", "dev web sctp 80"],
        ["dev web tcp 80", "dev web udp 53"],
    ),
    Case(
        "protocols absent: every protocol and port",
        [admin(rule("Deny"))],
        [],
        ["dev web tcp 9", "dev web udp 9", "dev web sctp 9"],
    ),
    Case(
        "named ports, of every protocol, on the destination",
        [admin(rule("Deny", protocols=[{"destinationNamedPort": "http"}]))],
        ["dev web tcp 81", "dev db tcp 80"],
        ["dev web tcp 80", "dev web udp 81", "dev db tcp 8080"],
    ),
    Case(
        "named ports in egress",
        [admin(egress=[out("Deny", protocols=[{"destinationNamedPort": "http"}])])],
        ["web db tcp 80", "web out"],
        ["web db tcp 8080", "web dev tcp 80"],
    ),
    Case(
        "a peer that is not understood fails closed: Accept matches nothing",
        [admin(rule("Accept", {"stars": {}}, DEVS)), DENY_ALL],
        [],
        ["dev web", "web db"],
    ),
    Case(
        "a peer that is not understood fails closed: Deny denies all",
        [admin(rule("Deny", {"stars": {}}, DB))],
        ["web dev"],
        ["dev web", "out web", "dev web udp 9"],
    ),
    Case(
        "a peer that is not understood fails closed: Pass denies all", [admin(rule("Pass", {}))], [], ["dev web"]
    ),
    Case(
        "domainNames fail closed",
        [admin(egress=[out("Accept", {"domainNames": ["example.com"]}), out("Deny", BLOCKS)])],
        ["web dev"],
        ["web out"],
    ),
    Case("no ingress rules: ingress is not affected", [admin(egress=[out("Deny")])], ["dev web"], ["web dev"]),
    Case("a pod reaches itself", [admin(rule("Deny"), egress=[out("Deny")])], ["web web"], ["web db"]),
    Case("AdminNetworkPolicy: Allow", [old_admin(rule("Allow", DEVS)), DENY_ALL], ["dev web"], ["web db"]),
    Case(
        "AdminNetworkPolicy: Deny and Pass",
        [old_admin(rule("Pass", DEVS), rule("Deny"))],
        ["dev web"],
        ["web db"],
    ),
    Case(
        "AdminNetworkPolicy: ports",
        [
            old_admin(
                rule(
                    "Deny",
                    ports=[
                        {"portNumber": {"protocol": "TCP", "port": 80}},
                        {"portRange": {"protocol": "UDP", "start": 50, "end": 60}},
                        {"namedPort": "http"},
                    ],
                )
            )
        ],
        ["dev web udp 80", "dev db tcp 81", "dev web udp 61"],
        ["dev web tcp 80", "dev web udp 53", "dev db tcp 8080", "dev web udp 81"],
    ),
    Case(
        "AdminNetworkPolicy and ClusterNetworkPolicy stand in one order of priorities",
        [
            old_admin(rule("Deny"), priority=7),
            admin(rule("Accept", DEVS), priority=6),
            admin(rule("Accept"), priority=8),
        ],
        ["dev web"],
        ["web db"],
    ),
    Case("BaselineAdminNetworkPolicy: Deny", [old_baseline(rule("Deny", DEVS))], ["web db"], ["dev web"]),
    Case(
        "BaselineAdminNetworkPolicy comes after NetworkPolicy",
        [old_baseline(rule("Deny")), ALLOW_ALL],
        ["dev web"],
    ),
    Case(
        "BaselineAdminNetworkPolicy comes last in its tier",
        [old_baseline(rule("Deny")), baseline(rule("Accept", DEVS), priority=1000)],
        ["dev web"],
        ["web db"],
    ),
]


def parsed(documents: list[dict[str, Any]]) -> list[NetworkPolicy | ClusterPolicy]:
    found: list[NetworkPolicy | ClusterPolicy] = []
    for number, document in enumerate(documents):
        kind = document["kind"]
        name = "default" if kind == "BaselineAdminNetworkPolicy" else f"p{number}"
        found.append(_PARSERS[kind]({**document, "metadata": {"name": name, "namespace": "shop"}}))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.statement)
def test_specification(case: Case) -> None:
    check(case, parsed(case.specs))


def test_equal_priorities_are_in_order_of_names_on_every_node() -> None:
    one, two = parsed([admin(rule("Accept")), admin(rule("Deny"))])
    check(Case("", [], ["dev web"]), [one, two])
    check(Case("", [], ["dev web"]), [two, one])


def test_a_pod_is_denied_while_cluster_policies_may_select_its_unknown_namespace() -> None:
    engine = ToldEngine()
    (policy,) = parsed([admin(rule("Deny", DEVS))])
    for known in (WEB, DEV):
        engine.upsert(known)
        engine.lease(LocalEndpoint(known.namespace, known.name, known.addresses))

    def answers(text: str) -> set[bool]:
        return {allowed(engine.program(Family.V6 if ":" in p.source else Family.V4), p) for p in packets(text)}

    assert answers("web dev") == {True}
    engine.upsert(policy)
    assert answers("web dev") == {False}
    for namespace in NAMESPACES:
        engine.upsert(namespace)
    assert answers("web dev") == {True}
    assert answers("dev web") == {False}
    engine.told.remove(Namespace, "dev")
    assert answers("dev out") == {False}
    engine.told.remove(NetworkPolicy, policy.ref)
    assert answers("dev web") == {True}


def test_namespace_labels_move_subjects_at_once() -> None:
    engine = ToldEngine()
    (policy,) = parsed([admin(rule("Deny"))])
    engine.upsert(policy)
    for namespace in NAMESPACES:
        engine.upsert(namespace)
    engine.upsert(WEB)
    engine.lease(LocalEndpoint(WEB.namespace, WEB.name, WEB.addresses))
    engine.upsert(DEV)
    (packet,) = packets("dev web", Family.V4)
    assert not allowed(engine.program(Family.V4), packet)
    engine.upsert(replace(NAMESPACES[0], labels=(("team", "other"),)))
    assert allowed(engine.program(Family.V4), packet)
    engine.upsert(Namespace("shop", (("team", "shop"),)))
    assert not allowed(engine.program(Family.V4), packet)
