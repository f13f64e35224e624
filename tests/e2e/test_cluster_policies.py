"""The cluster-scoped policies in a lab: definitions that come and go, nodes as peers, restarts.

And what is told of a policy that cannot be applied as written.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lab.matrix import Attempt, Kind, measure, observe
from policy.model import Family
from tests.support.lab import LabUnderTest, example, manifest
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

ACCEPTED = "felixpy.io/Accepted"


def reached(lab: LabUnderTest, patience: float = 10.0) -> list[bool]:
    return [cell.reached for cell in lab.settle(patience=patience)[0]]


def guard(*peers: dict[str, Any], kind: str = "ClusterNetworkPolicy", name: str = "told") -> str:
    """A policy of the shop's pods with one Deny rule for egress."""
    head: dict[str, Any] = {"priority": 5}
    if kind == "ClusterNetworkPolicy":
        head["tier"] = "Admin"
    if kind == "BaselineAdminNetworkPolicy":
        head = {}
    version = "v1alpha2" if kind == "ClusterNetworkPolicy" else "v1alpha1"
    subject = {"namespaces": {"matchLabels": {"team": "shop"}}}
    return manifest(
        {
            "apiVersion": f"policy.networking.k8s.io/{version}",
            "kind": kind,
            "metadata": {"name": name},
            "spec": {**head, "subject": subject, "egress": [{"action": "Deny", "to": list(peers)}]},
        }
    )


# Before all that need the definitions: it starts without.
def test_definitions_come_to_a_running_cluster_and_go_again(lab: LabUnderTest) -> None:
    # kubectl says the latter where it has seen them before, in another test on this lab.
    words = ("the server doesn't have a resource type", "the server could not find the requested resource")
    assert any(text in lab.refused("get", "clusternetworkpolicies") for text in words)
    before = reached(lab)
    with lab.definitions():
        lab.kubectl("apply", "-f", example("70"), "-f", example("71"))
        during = reached(lab)
        assert sum(during) < sum(before)
    # The policies went with their definitions.
    assert reached(lab, patience=60) == before
    for node in lab.node_names:
        assert not [line for line in lab.rules(node)["iptables filter"].splitlines() if "FELIX-T" in line]
        assert lab.agent(node, "/readyz")[0] == 200


@pytest.mark.usefixtures("definitions")
def test_nodes_are_peers_of_egress(lab: LabUnderTest) -> None:
    async def answers() -> dict[tuple[str, Family], bool]:
        """Whether pods of dev and of shop reach the nodes that they are not on."""
        scene = await observe(lab.lab)
        parties = {party.name: party for party in scene.parties}
        tries = [
            Attempt(parties[pod], node, family, ("TCP", 1))
            for pod in ("dev/client-1", "shop/web-1")
            for node in scene.parties
            if node.kind is Kind.NODE and scene.snapshot.pods[tuple(pod.split("/"))].node != node.name  # type: ignore[index]
            for family in lab.families
        ]
        cells = await measure(scene, tries)
        assert not [cell for cell in cells if cell.differs]
        return {(cell.attempt.source.name, cell.attempt.family): cell.reached for cell in cells}

    # On a loop of its own each time, as what `settle` does between them is.
    before = asyncio.run(answers())
    assert all(before.values())
    with lab.applied("-f", example("72")):
        lab.settle()
        during = asyncio.run(answers())
        assert during == {(pod, family): pod != "dev/client-1" for pod, family in before}
    lab.settle()
    assert asyncio.run(answers()) == before


@pytest.mark.usefixtures("definitions")
def test_a_restarted_agent_changes_nothing(lab: LabUnderTest) -> None:
    node = lab.node_names[0]
    with lab.applied("-f", example("70"), "-f", example("71"), "-f", example("72")):
        lab.settle()
        before = (lab.rules(node), lab.sets(node))
        lab.kill(node, "agent")
        lab.wait_ready(node)
        eventually(lambda: (lab.rules(node), lab.sets(node)) == before)
    lab.settle()


def told(lab: LabUnderTest, kind: str, namespace: str = "default") -> list[dict[str, Any]]:
    """The Events on objects of a kind; those on cluster-scoped ones are in ``default``."""
    return [
        one for one in lab.get("events", namespace=namespace)["items"] if one["involvedObject"]["kind"] == kind
    ]


def condition(lab: LabUnderTest, kind: str, name: str) -> dict[str, Any]:
    status = lab.get(f"{kind.lower()[:-1]}ies", name).get("status", {})
    return next((one for one in status.get("conditions", []) if one["type"] == ACCEPTED), {})


@pytest.mark.usefixtures("definitions")
def test_what_cannot_be_applied_as_written_is_told_on_the_object_until_it_is_mended(lab: LabUnderTest) -> None:
    kind = "ClusterNetworkPolicy"
    names = {"domainNames": ["example.org"]}
    with lab.applied("-f", "-", stdin=guard(names)):
        for node in lab.node_names:
            (problem,) = eventually(lambda node=node: lab.problems(node))  # type: ignore[misc]
            assert (problem["kind"], problem["name"]) == (kind, "told")
            assert problem["reason"].startswith("spec.egress[0].to[0].domainNames: felix-py does not watch DNS")
        cells, _ = lab.settle()
        pairs = [(c.attempt.source.name, c.attempt.destination.name) for c in cells if c.reached]
        assert not [one for one in pairs if one[0].startswith("shop/") and one[0] != one[1]], "it denies all"
        event = eventually(lambda: [one for one in told(lab, kind) if one["involvedObject"]["name"] == "told"])[0]
        assert (event["type"], event["reason"]) == ("Warning", "InvalidClusterNetworkPolicy")
        assert "domainNames" in lab.kubectl("describe", kind, "told").partition("Events:")[2]
        eventually(lambda: condition(lab, kind, "told"), 20)
        found = condition(lab, kind, "told")
        assert (found["status"], found["reason"]) == ("False", "NotAppliedAsWritten")
        assert found["observedGeneration"] == 1
        assert lab.kubectl("get", kind, "told").splitlines()[1].split()[:4] == ["told", "Admin", "5", "False"]
        lab.kubectl("apply", "-f", "-", stdin=guard({"networks": ["203.0.113.0/24"]}))
        eventually(lambda: condition(lab, kind, "told")["status"] == "True", 20)
        assert condition(lab, kind, "told")["observedGeneration"] == 2
        assert not [problem for node in lab.node_names for problem in lab.problems(node)]
        lab.settle()
        # Two agents had the same to say, and said it once.
        assert len([one for one in told(lab, kind) if one["involvedObject"]["name"] == "told"]) == 1
    lab.settle()


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize("kind", ["AdminNetworkPolicy", "BaselineAdminNetworkPolicy"])
def test_the_older_kinds_are_told_of_as_well(lab: LabUnderTest, kind: str) -> None:
    name = "default" if kind.startswith("Baseline") else "old"
    mapped = {"networks": ["::ffff:192.0.2.0/120"]}
    with lab.applied("-f", "-", stdin=guard(mapped, kind=kind, name=name)):
        event = eventually(lambda: told(lab, kind))[-1]
        assert event["reason"] == f"Invalid{kind}"
        assert "spec.egress[0].to[0].networks[0]: '::ffff:192.0.2.0/120' is an IPv4-mapped" in event["message"]
        eventually(lambda: condition(lab, kind, name), 20)
        lab.settle()
    lab.settle()


def test_a_networkpolicy_is_told_of_in_its_own_namespace(lab: LabUnderTest) -> None:
    """The API server takes this block; no packet has such an address."""
    rules = [{"from": [{"ipBlock": {"cidr": "::ffff:192.0.2.0/120"}}]}]
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "mapped"},
        "spec": {"podSelector": {}, "ingress": rules},
    }
    with lab.applied("-f", "-", stdin=manifest(policy)):
        event = eventually(lambda: told(lab, "NetworkPolicy", "shop"))[-1]
        assert event["reason"] == "InvalidNetworkPolicy"
        assert (
            "spec.ingress[0].from[0].ipBlock.cidr: '::ffff:192.0.2.0/120' is an IPv4-mapped" in event["message"]
        )
        lab.settle()
    lab.settle()
