"""Malformed policies of all four kinds, as bytes from the API server: clear texts, nothing raised or widened."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from felix_py.datastore.decode import Kind, Unusable
from felix_py.datastore.kinds import ADMIN_POLICIES, BASELINE_ADMIN_POLICIES, CLUSTER_POLICIES, POLICIES
from policy.model import ClusterPolicy, Namespace, NetworkPolicy, Node, Packet, Pod, Protocol
from policy.oracle.evaluate import Snapshot, verdict

LONG = ".".join(["n" * 63, "a" * 63, "m" * 63, "e" * 61])
"""A name of 253 characters."""

HUGE = "a number beyond all bounds"
ALL: dict[str, Any] = {"namespaces": {}}


@dataclass
class Case:
    """``problems``: what the texts say, in order. ``open``: which of the packets below it still allows."""

    about: str
    kind: Kind[Any]
    spec: Any
    problems: list[str]
    open: str = ""
    name: str = "p"
    more: dict[str, Any] = field(default_factory=dict)


def tiered(**spec: Any) -> dict[str, Any]:
    return {"tier": "Admin", "priority": 1, "subject": ALL, **spec}


def old(**spec: Any) -> dict[str, Any]:
    return {"subject": ALL, **spec}


def into(*rules: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"from": [ALL], **rule} for rule in rules]


PODS = [
    Pod("shop", "web", labels=(("app", "web"),), addresses=("10.0.0.1",)),
    Pod("shop", "db", labels=(("app", "db"),), addresses=("10.0.0.2",)),
]
PACKETS = {
    "in": Packet("10.0.0.2", "10.0.0.1", Protocol.TCP, 80),
    "world": Packet("198.51.100.1", "10.0.0.1", Protocol.TCP, 80),
    "out": Packet("10.0.0.1", "198.51.100.1", Protocol.TCP, 80),
}
"""Into the pod ``web`` from the other pod (so also out of that) and from outside; and out of it."""

CLOSED = "as a part of it is not understood, it denies everything"
LEFT_OUT = "as a part of it is not understood, it accepts nothing"
HEADLESS = "spec: as its head is not understood"

CASES = [
    # --- NetworkPolicy
    Case("spec of the wrong type", POLICIES, ["podSelector"], ["spec: must be an object, not a list"]),
    Case(
        "control characters in labels",
        POLICIES,
        {"podSelector": {"matchLabels": {"a\x1b[2J": "b\r\nc"}}, "ingress": [{}]},
        ["spec.podSelector.matchLabels: 'a\\x1b[2J' is not a label key"],
        "out",
    ),
    Case(
        "thousands of bad ports",
        POLICIES,
        {"podSelector": {}, "ingress": [{"ports": [{"port": 70000 + n} for n in range(5000)]}]},
        ["spec.ingress[0].ports[0].port: 70000 is not between 1 and 65535"],
        "out",
    ),
    Case(
        "a contradictory range of ports",
        POLICIES,
        {"podSelector": {}, "ingress": [{"ports": [{"port": 90, "endPort": 80}]}]},
        ["spec.ingress[0].ports[0].endPort: 80 is less than port 90"],
        "out",
    ),
    Case(
        "a name of 253 characters, and an except outside its block",
        POLICIES,
        {"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}}]}]},
        ["spec.egress[0].to[0].ipBlock.except[0]: '11.0.0.0/8' is not strictly inside 10.0.0.0/8"],
        name=LONG,
    ),
    Case(
        "contradictory policyTypes",
        POLICIES,
        {"podSelector": {}, "policyTypes": ["Ingress", "None"], "ingress": [{}]},
        ["spec.policyTypes[1]: unknown policy type 'None'"],
        "world",
    ),
    Case(
        "a huge number",
        POLICIES,
        {"podSelector": {}, "ingress": [{"ports": [{"port": HUGE}]}]},
        ["spec: cannot be read: Number out of range"],
    ),
    Case(
        "labels of the policy itself of the wrong type",
        POLICIES,
        {"podSelector": {}, "ingress": []},
        [],
        "out",
        more={"labels": {"a": 1}, "annotations": [1]},
    ),
    Case("a field that narrows", POLICIES, {"podSelector": {}, "ingress": [{"from": [], "when": "night"}]},
         ["spec.ingress[0]: unknown field 'when'"], "out"),
    # --- ClusterNetworkPolicy
    Case("an empty spec", CLUSTER_POLICIES, {}, ["spec.priority: ", "spec.tier: "], "in world out"),
    Case("spec of the wrong type", CLUSTER_POLICIES, "deny", ["spec: must be an object, not 'deny'"]),
    Case(
        "an unknown tier",
        CLUSTER_POLICIES,
        tiered(tier="Platform", ingress=into({"action": "Accept"}, {"action": "Pass"})),
        ["spec.tier: unknown tier 'Platform'", HEADLESS],
        "world out",
    ),
    Case(
        "a priority too large",
        CLUSTER_POLICIES,
        tiered(priority=10**12, ingress=into({"action": "Deny"})),
        ["spec.priority: 1000000000000 is not between 0 and 1000", HEADLESS],
        "world out",
    ),
    Case(
        "a subject that contradicts itself",
        CLUSTER_POLICIES,
        tiered(subject={**ALL, "pods": {"podSelector": {}}}, ingress=into({"action": "Deny"})),
        ["spec.subject: must have exactly one of namespaces, pods, not namespaces and pods", HEADLESS],
        "world out",
    ),
    Case(
        "a contradictory range of ports",
        CLUSTER_POLICIES,
        tiered(ingress=into({
            "action": "Deny",
            "protocols": [{"tcp": {"destinationPort": {"range": {"start": 100, "end": 1}}}}],
        })),
        ["spec.ingress[0].protocols[0].tcp.destinationPort.range: start 100 is not less than end 1", CLOSED],
        "out",
    ),
    Case(
        "thousands of ports",
        CLUSTER_POLICIES,
        tiered(ingress=into({
            "action": "Accept",
            "protocols": [{"tcp": {"destinationPort": {"number": n}}} for n in range(1, 6000)],
        }, {"action": "Deny"})),
        ["spec.ingress[0].protocols: must have at most 25 entries, not 5999", LEFT_OUT],
        "world out",
    ),
    Case(
        "a thousand rules",
        CLUSTER_POLICIES,
        tiered(ingress=into(*[{"action": "Accept"}] * 999, {"action": "Deny"})),
        ["spec.ingress: must have at most 25 entries, not 1000", "spec.ingress: as there are Deny or Pass rules"],
        "in out",
    ),
    Case(
        "a name of 253 characters, and domain names",
        CLUSTER_POLICIES,
        tiered(egress=[{"action": "Deny", "to": [{"domainNames": ["a.example"]}]}]),
        ["spec.egress[0].to[0].domainNames: felix-py does not watch DNS", CLOSED],
        "world",
        name=LONG,
    ),
    Case(
        "control characters in labels and a huge name of a rule",
        CLUSTER_POLICIES,
        tiered(ingress=[{
            "name": "\x07" * 100_000,
            "action": "Deny",
            "from": [{"namespaces": {"matchLabels": {"a": "\x00"}}}],
        }]),
        ["spec.ingress[0].from[0].namespaces.matchLabels['a']: '\\x00' is not a label value", "", CLOSED],
        "out",
    ),
    Case(
        "what is no network",
        CLUSTER_POLICIES,
        tiered(egress=[
            {"action": "Accept", "to": [{"networks": ["198.51.100.1/33"]}]},
            {"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]},
        ]),
        ["spec.egress[0].to[0].networks[0]: '198.51.100.1/33' is not a CIDR", LEFT_OUT],
        "world",
    ),
    # --- AdminNetworkPolicy
    Case(
        "a port of the wrong type",
        ADMIN_POLICIES,
        old(priority=1, ingress=into({"action": "Pass", "ports": [{"portNumber": {"port": "http"}}]})),
        ["spec.ingress[0].ports[0].portNumber.port: must be a number, not 'http'", CLOSED],
        "out",
    ),
    Case(
        "a hundred and one peers, and an empty one",
        ADMIN_POLICIES,
        old(priority=1, ingress=[
            {"action": "Allow", "from": [ALL] * 101},
            {"action": "Allow", "from": [{}]},
            {"action": "Deny", "from": [ALL]},
        ]),
        ["spec.ingress[0].from: must have at most 100 entries, not 101", LEFT_OUT,
         "spec.ingress[1].from[0]: must have exactly one of namespaces, pods, not none", LEFT_OUT],
        "world out",
    ),
    Case(
        "actions of the later API",
        ADMIN_POLICIES,
        old(priority=1, ingress=into({"action": "Accept"})),
        ["spec.ingress[0].action: unknown action 'Accept', known are Allow, Deny, Pass", CLOSED],
        "out",
    ),
    # --- BaselineAdminNetworkPolicy
    Case(
        "a name that it cannot have",
        BASELINE_ADMIN_POLICIES,
        old(ingress=into({"action": "Allow"}, {"action": "Deny"})),
        ["metadata.name: must be 'default', not 'p'", HEADLESS],
        "world out",
    ),
    Case(
        "an action that it cannot have",
        BASELINE_ADMIN_POLICIES,
        old(ingress=into({"action": "Pass"})),
        ["spec.ingress[0].action: unknown action 'Pass', known are Allow, Deny", CLOSED],
        "out",
        name="default",
    ),
    Case(
        "an empty list of ports",
        BASELINE_ADMIN_POLICIES,
        old(ingress=into({"action": "Allow", "ports": []}, {"action": "Deny"})),
        ["spec.ingress[0].ports: must have at least one entry, or be left out", LEFT_OUT],
        "world out",
        name="default",
    ),
]  # fmt: skip


def parsed(case: Case) -> NetworkPolicy | ClusterPolicy:
    """The record, by way of a watch and of a list."""
    metadata = {"name": case.name, "uid": "u", "resourceVersion": "5", **case.more}
    if case.kind is POLICIES:
        metadata["namespace"] = "shop"
    obj = {"metadata": metadata, "spec": case.spec}
    text = json.dumps(obj).replace(f'"{HUGE}"', "1e999")
    watched = case.kind.change(f'{{"type": "ADDED", "object": {text}}}'.encode()).what
    listed = case.kind.listing(f'{{"metadata": {{"resourceVersion": "5"}}, "items": [{text}]}}'.encode()).found
    assert [watched] == listed
    assert isinstance(watched, NetworkPolicy | ClusterPolicy)
    return watched


def test_there_are_enough() -> None:
    assert len(CASES) >= 25
    assert {case.kind.name for case in CASES} == {
        "NetworkPolicy",
        "ClusterNetworkPolicy",
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind.name}: {case.about}")
def test_malformed(case: Case) -> None:
    policy = parsed(case)
    assert policy.name == case.name
    for number, expected in enumerate(case.problems):
        assert expected in policy.problems[number]
    assert bool(policy.problems) is bool(case.problems)
    assert len(policy.problems) <= 51
    for problem in policy.problems:
        assert problem.isprintable()
        assert len(problem) <= 400
    namespaces = [Namespace("shop", (("team", "a"),))]
    view = Snapshot(namespaces, PODS, [policy], [Node("n", (), ("192.0.2.1",))])
    found = [name for name, packet in PACKETS.items() if verdict(view, packet).allowed]
    assert found == case.open.split()


@pytest.mark.parametrize("kind", [POLICIES, CLUSTER_POLICIES, ADMIN_POLICIES, BASELINE_ADMIN_POLICIES])
@pytest.mark.parametrize("name", ["n" * 254, "a/b", "a\nb", "", "ä", "../x", "-a"])
def test_a_name_that_is_none(kind: Kind[Any], name: str) -> None:
    obj = {"metadata": {"name": name, "namespace": "shop", "uid": "u"}, "spec": {}}
    found = kind.change(json.dumps({"type": "ADDED", "object": obj}).encode()).what
    assert isinstance(found, Unusable)
    assert found.reason.startswith("metadata.name: ")
    assert found.reason.isprintable()
    assert len(found.reason) <= 200
