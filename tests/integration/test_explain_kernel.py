"""``felix-py explain`` asks the kernel, and notices when it does not do what policy says: on both backends."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from felix_py.dataplane.backend import ToolError
from felix_py.desired.names import chain_name
from felix_py.diagnose import live
from felix_py.diagnose.ends import find
from felix_py.diagnose.explain import Connection
from felix_py.diagnose.explain_report import Explained, as_json, text
from felix_py.diagnose.live import Live
from felix_py.diagnose.packets import Agreement
from felix_py.records import Backend
from felix_py.ruleset.run import Outcome
from policy.model import Direction, Family, Protocol
from policy.names import policy_chain
from tests.support.builders import lease
from tests.support.isolate import run
from tests.support.small_node import FAR, POLICIES, TOOL, WEB, SmallNode

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

TCP, UDP = Protocol.TCP, Protocol.UDP
PORTS = [(TCP, 22), (TCP, 80), (TCP, 5432), (UDP, 53)]
AGREES, DISAGREES, UNKNOWN, ELSEWHERE = Agreement
ENDS = ["shop/web-1", "shop/db-0", "dev/tool", "shop/web-2", "node/node1", "node/node2", "198.51.100.77"]


@pytest.fixture(params=list(Backend), ids=str)
def node(request: pytest.FixtureRequest) -> SmallNode:
    node = SmallNode(request.param)
    node.apply()
    run("ip", "route", "add", "default", "via", "192.0.2.9")
    run("ip", "-6", "route", "add", "default", "via", "2001:db8::9")
    return node


def explained(node: SmallNode, kernel: Live, source: str, destination: str) -> list[Explained]:
    ends = [find(end, "default", node.cluster) for end in (source, destination)]
    return Connection(node.cluster, ends[0], ends[1], PORTS, list(Family)).explained("node1", kernel)


def ask(node: SmallNode, source: str, destination: str, port: tuple[Protocol, int]) -> Explained:
    """One IPv4 packet, with a kernel read anew."""
    with Live(node.backend) as kernel:
        ends = [find(end, "default", node.cluster) for end in (source, destination)]
        (one,) = Connection(node.cluster, ends[0], ends[1], [port], [Family.V4]).explained("node1", kernel)
        return one


def test_a_kernel_that_is_as_it_should_be_agrees_with_everything(node: SmallNode) -> None:
    outcomes = set()
    with Live(node.backend) as kernel:
        for source in ENDS:
            for destination in ENDS:
                if source == destination or not {source, destination} & {"shop/web-1", "shop/db-0", "dev/tool"}:
                    continue
                with_v6 = "198.51.100.77" not in (source, destination)
                found = explained(node, kernel, source, destination)
                assert len(found) == len(PORTS) * (2 if with_v6 else 1)
                for one in found:
                    for view in one.nodes:
                        if view.node == "node1":
                            assert view.agreement is AGREES, text(one)
                            outcomes.add((view.outcome, one.explanation.allowed))
                        else:
                            assert view.agreement is ELSEWHERE
    # Also: this node lets pass what the other end's node will drop.
    assert outcomes == {(Outcome.ACCEPT, True), (Outcome.DROP, False), (Outcome.ACCEPT, False)}


def test_explained_and_enforced_by_who_has_the_address_now(node: SmallNode) -> None:
    """Objects of pods that have given their addresses up would allow what is denied, and deny what is allowed."""
    for holder, labels in ((WEB, TOOL.labels), (TOOL, WEB.labels), (FAR, TOOL.labels)):
        stale = replace(holder, name=f"was-{holder.name}", uid="s", labels=labels, deleted=True)
        # Newer or older: what is leased here is known; elsewhere the newest counts.
        node.cluster.pods.append(replace(stale, since="" if holder is FAR else "2026-01-01T00:00:00Z"))
    node.apply()
    with Live(node.backend) as kernel:
        for source, destination in permutations(
            ("shop/web-1", "shop/db-0", "dev/tool", "shop/web-2", "10.1.0.4"), 2
        ):
            for one in explained(node, kernel, source, destination):
                wanted = [view.agreement for view in one.nodes if view.node == "node1"]
                assert set(wanted) <= {AGREES}, text(one)
    assert ask(node, "shop/web-1", "shop/db-0", (TCP, 5432)).explanation.allowed
    assert not ask(node, "dev/tool", "shop/db-0", (TCP, 5432)).explanation.allowed
    assert not node.verify().differences


def test_a_hole_is_seen_and_the_rules_that_make_it_named(node: SmallNode) -> None:
    before = ask(node, "dev/tool", "shop/db-0", (TCP, 22))
    assert not before.explanation.allowed
    assert not before.disagrees
    guard = chain_name(policy_chain(Direction.INGRESS, POLICIES[2].ref))
    run(f"iptables-{node.backend}", "-I", guard, "1", "-s", "10.1.0.0/24", "-g", "FELIX-ALLOW")
    after = ask(node, "dev/tool", "shop/db-0", (TCP, 22))
    (view,) = after.nodes
    assert (view.agreement, view.outcome) == (DISAGREES, Outcome.ACCEPT)
    shown = text(after)
    assert "node1 LETS IT PASS, BUT POLICY DENIES IT" in shown
    headline = shown.splitlines()[0]
    assert headline.startswith("MISMATCH dev/tool ")
    assert headline.endswith(" 22/TCP: policy denies it, but node1 lets it pass")
    assert f"filter {guard} rule 1: -s 10.1.0.0/24 -g FELIX-ALLOW (not a rule of ours)" in shown


def test_a_foreign_drop_is_named(node: SmallNode) -> None:
    run(f"iptables-{node.backend}", "-I", "FORWARD", "2", "-p", "tcp", "--dport", "5432", "-j", "REJECT")
    found = ask(node, "shop/web-1", "shop/db-0", (TCP, 5432))
    assert found.explanation.allowed
    assert found.disagrees
    assert "node1 DROPS IT, BUT POLICY ALLOWS IT" in text(found)
    assert text(found).splitlines()[0].endswith(" 5432/TCP: policy allows it, but node1 drops it")
    (view,) = found.nodes
    assert view.result is not None
    assert view.result.decided_by is not None
    assert (view.result.decided_by.chain, view.result.decided_by.number) == ("FORWARD", 2)
    assert not ask(node, "shop/web-1", "shop/db-0", (TCP, 8000)).disagrees


def test_rules_of_the_other_backend_count_as_well(node: SmallNode) -> None:
    other = Backend.NFT if node.backend is Backend.LEGACY else Backend.LEGACY
    run(f"iptables-{other}", "-A", "FORWARD", "-p", "tcp", "--dport", "5432", "-j", "DROP")
    found = ask(node, "shop/web-1", "shop/db-0", (TCP, 5432))
    assert found.disagrees
    shown = text(found)
    assert "by rules of the other iptables backend" in shown
    assert "filter FORWARD rule 1: -p tcp" in shown
    assert not ask(node, "shop/web-1", "shop/db-0", (TCP, 8000)).disagrees


@pytest.mark.parametrize("node", [Backend.LEGACY], indirect=True)
def test_tools_of_the_other_backend_need_not_be_there(node: SmallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "save", lambda *_: (_ for _ in ()).throw(ToolError("it is not installed")))
    with Live(node.backend) as kernel:
        found = explained(node, kernel, "shop/web-1", "shop/db-0")
        assert not any(one.disagrees for one in found)
        notes = {"rules of the other backend were not looked at: it is not installed"}
        assert set(kernel.notes) == notes


def test_a_lost_source_binding_shows(node: SmallNode) -> None:
    web = lease(node.cluster.pods[0])
    run("ipset", "del", "felix4-source", f"{web.addresses[Family.V4]},{web.interface}")
    found = ask(node, "shop/web-1", "shop/web-2", (TCP, 80))
    assert found.disagrees
    assert "filter FELIX-SPOOFED rule 2: -j DROP" in text(found)


def test_rules_that_are_not_understood(node: SmallNode) -> None:
    odd = ("-m", "statistic", "--mode", "nth", "--every", "2", "--packet", "0")
    run(f"iptables-{node.backend}", "-I", "FORWARD", "2", *odd, "-j", "DROP")
    found = ask(node, "shop/web-1", "shop/db-0", (TCP, 5432))
    assert [view.agreement for view in found.nodes] == [UNKNOWN]
    assert not found.disagrees
    assert "filter FORWARD rule 2: -m statistic" in text(found)
    assert text(found).startswith("UNKNOWN shop/web-1 ")
    # Where the packet is dropped before, it does not matter.
    assert [view.agreement for view in ask(node, "dev/tool", "shop/db-0", (TCP, 22)).nodes] == [AGREES]


def test_a_pod_without_its_route(node: SmallNode) -> None:
    run("ip", "route", "del", "10.1.0.3/32")
    found = ask(node, "shop/web-1", "shop/db-0", (TCP, 5432))
    assert found.disagrees
    assert "10.1.0.3 of shop/db-0 has no route to an interface of a pod here" in text(found)


def test_a_learned_route_that_is_missing(node: SmallNode) -> None:
    run("ip", "route", "del", "10.2.0.0/24")
    run("ip", "route", "del", "default")
    found = ask(node, "dev/tool", "shop/web-2", (TCP, 80))
    assert found.disagrees
    assert "10.2.0.2: there is no route to it" in text(found)
    # That the world cannot be reached is not for this node to mend.
    found = ask(node, "dev/tool", "198.51.100.77", (TCP, 80))
    assert not found.disagrees
    assert "198.51.100.77: there is no route to it" in text(found)


def test_json_has_all_of_it(node: SmallNode) -> None:
    found = as_json(ask(node, "dev/tool", "shop/db-0", (TCP, 22)))
    assert found["allowed"] is False
    assert found["ingress"]["decidedBy"] == {"policy": "ClusterNetworkPolicy guard", "rule": 1, "name": ""}
    assert found["ingress"]["tier"] == "Admin"
    assert found["ingress"]["notAsked"] == ["NetworkPolicy shop/db", "NetworkPolicy shop/deny-ingress"]
    (view,) = found["nodes"]
    assert (view["node"], view["agreement"], view["outcome"]) == ("node1", "agrees", "drop")
    assert view["trace"][-1]["text"].endswith("-j DROP")
    assert (view["in"], view["out"]) == (
        lease(node.cluster.pods[2]).interface,
        lease(node.cluster.pods[1]).interface,
    )
