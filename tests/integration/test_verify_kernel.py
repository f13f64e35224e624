"""``felix-py verify`` names whatever somebody has changed, by policy, pod and rule, on both backends."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from felix_py.dataplane.service_drops import ServiceDrops
from felix_py.desired.names import DenyChain, chain_name
from felix_py.diagnose.difference import Difference, Problem
from felix_py.records import Backend
from felix_py.ruleset.words import split
from policy.model import Direction, Family, NetworkPolicy
from policy.names import policy_chain
from tests.support import kernel_state
from tests.support.builders import lease
from tests.support.isolate import run
from tests.support.small_node import DB, POLICIES, TOOL, WEB, SmallNode

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

GUARD = policy_chain(Direction.INGRESS, POLICIES[2].ref)
PI_DB = chain_name(policy_chain(Direction.INGRESS, POLICIES[1].ref))
PI_GUARD = chain_name(GUARD)
DB_CLASS = "ClusterNetworkPolicy guard, NetworkPolicy shop/db, NetworkPolicy shop/deny-ingress"
WEB_IF, DB_IF = lease(WEB).interface, lease(DB).interface
MISSING, ALTERED, EXTRA, MISPLACED = Problem


@pytest.fixture(params=list(Backend), ids=str)
def node(request: pytest.FixtureRequest) -> SmallNode:
    node = SmallNode(request.param)
    node.apply()
    return node


one_backend = pytest.mark.parametrize("node", [Backend.NFT], indirect=True)
"""For what the iptables backend makes no difference to."""


def tool(node: SmallNode, family: Family) -> str:
    return f"{'iptables' if family is Family.V4 else 'ip6tables'}-{node.backend}"


def one(found: list[Difference]) -> Difference:
    assert len(found) == 1, [str(difference) for difference in found]
    return found[0]


@pytest.mark.started
def test_a_fresh_node_is_as_it_should_be(node: SmallNode) -> None:
    found = node.verify()
    assert [str(difference) for difference in found.differences] == []
    assert found.notes == []
    assert all(number > 0 for number in found.compared.values())
    node.agent_answers = False
    found = node.verify()
    assert found.differences == []
    assert "learned routes were not compared" in found.notes[0]


@one_backend
def test_drops_for_services(node: SmallNode) -> None:
    node.service_drops = ("10.96.0.0/12", "fd00:96::/112")
    drops = ServiceDrops(tuple(Family))
    drops.apply(node.service_drops)
    assert node.verify().differences == []
    assert node.verify().compared["service prefixes"] == 2
    run("ip", "rule", "del", "priority", "32400")
    run("ip", "-6", "route", "del", "blackhole", "fd00:96::/112", "table", "88112")
    run("ip", "route", "add", "blackhole", "10.112.0.0/12", "table", "88012", "proto", "88")
    about = "packets for announced Service addresses that no Service takes: "
    assert [str(one) for one in node.verify().differences] == [
        f"{about}blackhole fd00:96::/112 is missing",
        f"{about}IPv4 rule 32400: iif lo lookup 254 is missing",
        f"{about}nobody asked for blackhole 10.112.0.0/12",
    ]
    drops.apply(node.service_drops)
    assert node.verify().differences == []


# What somebody does -> kind, problem, whom it concerns, and a part of the text. {t} is iptables or ip6tables, {s}
# the family's set prefix, {web} and {db} addresses, {n} the family.
BROKEN: dict[str, tuple[str, str, Problem, str, str]] = {
    "rule deleted": (
        f"{{t}} -D {PI_DB} 1",
        "chain",
        MISSING,
        "NetworkPolicy shop/db, ingress rule 0",
        "--dports 5432,8000:8010",
    ),
    "drop taken out of a chain of denied packets": (
        f"{{t}} -D {chain_name(DenyChain.of(GUARD, 1))} 2",
        "chain",
        MISSING,
        "ClusterNetworkPolicy guard, ingress rule 1",
        "expected -j DROP",
    ),
    "foreign rule in a policy chain": (
        f"{{t}} -I {PI_DB} 1 -j FELIX-ALLOW",
        "chain",
        EXTRA,
        "NetworkPolicy shop/db, ingress",
        "rule 1 of chain",
    ),
    "foreign rule in a chain of all": (
        "{t} -A FELIX-ALLOW -j ACCEPT",
        "chain",
        EXTRA,
        "policy of all pods",
        "rule 4 of chain FELIX-ALLOW",
    ),
    "chain made": ("{t} -N FELIX-STRAY", "chain", EXTRA, "no policy that is known", "FELIX-STRAY"),
    "hook deleted": (
        "{t} -t raw -D PREROUTING 1",
        "hook",
        MISSING,
        "source binding of all pods",
        "chain PREROUTING (raw",
    ),
    "jump moved": (
        "{t} -I FORWARD 1 -i up9 -j ACCEPT",
        "hook",
        MISPLACED,
        "policy of all pods",
        "above it: -i up9 -j ACCEPT",
    ),
    "accept moved": (
        "{t} -A FORWARD -i up8 -j DROP",
        "hook",
        MISPLACED,
        "what policy has allowed",
        "behind it: -i up8 -j DROP",
    ),
    "source binding removed": (
        "ipset del {s}-source {web},{web_if}",
        "member",
        MISSING,
        "pod shop/web-1: source binding",
        "{web},{web_if}",
    ),
    "source binding added": (
        "ipset add {s}-source {web},{db_if}",
        "member",
        EXTRA,
        "pod shop/web-1: source binding",
        "{web},{db_if}",
    ),
    "class mark changed": (
        "ipset -exist add {s}-ingress {db} skbmark 0x7f000000/0x7f000000",
        "member",
        ALTERED,
        f"pod shop/db-0: ingress policy class ({DB_CLASS})",
        "{db} of set {s}-ingress is altered: expected mark 0x2000000/0x7f000000, found mark 0x7f000000",
    ),
    "pod left out of its class": (
        "ipset del {s}-egress {db}",
        "member",
        MISSING,
        "pod shop/db-0: egress policy class (NetworkPolicy shop/db)",
        "{db} of set {s}-egress is missing: expected mark",
    ),
    "set made": (
        "ipset create {s}-alien hash:ip family {inet}",
        "set",
        EXTRA,
        "no policy that is known",
        "{s}-alien",
    ),
    "masquerading": (
        "ipset del {s}-nomasq {pool}",
        "member",
        MISSING,
        "masquerading",
        "{pool}",
    ),
    "route deleted": (
        "ip -{n} route del {web}/{bits}",
        "route",
        MISSING,
        "pod shop/web-1",
        "{web}/{bits} (protocol 88)",
    ),
    "route bent": (
        "ip -{n} route replace {web}/{bits} dev {db_if} proto 88{link}",
        "route",
        ALTERED,
        "pod shop/web-1",
        "{web}/{bits} (protocol 88) is altered: expected dev {web_if}, found dev {db_if}",
    ),
    "route made": (
        "ip -{n} route add {free}/{bits} dev {db_if} proto 88",
        "route",
        EXTRA,
        "no pod that is known",
        "{free}/{bits} (protocol 88): found dev {db_if}",
    ),
    "blackhole deleted": (
        "ip -{n} route del blackhole {own}",
        "route",
        MISSING,
        "this node's pod addresses",
        "{own} (protocol 88) is missing: expected blackhole",
    ),
    "learned route deleted": (
        "ip -{n} route del {far} proto 89",
        "route",
        MISSING,
        "a route to another node's pods",
        "{far}",
    ),
    "learned route twice": (
        "ip -{n} route add blackhole {far} proto 89 metric 7",
        "route",
        EXTRA,
        "a route to another node's pods",
        "{far} (protocol 89): expected",
    ),
    "setting changed": (
        "sysctl -qw {sysctl}=0",
        "sysctl",
        ALTERED,
        "all pods",
        "{sysctl} is altered: expected 1, found 0",
    ),
}


def filled(text: str, node: SmallNode, family: Family) -> str:
    v4 = family is Family.V4
    at = 0 if v4 else 1
    return text.format(
        t=tool(node, family),
        n=int(family),
        s=f"felix{int(family)}",
        inet="inet" if v4 else "inet6",
        bits=family.bits,
        web=WEB.addresses[at],
        db=DB.addresses[at],
        web_if=WEB_IF,
        db_if=DB_IF,
        free=("10.1.0.99", "fd00:1::99")[at],
        own=("10.1.0.0/24", "fd00:1::/64")[at],
        far=("10.2.0.0/24", "fd00:2::/64")[at],
        pool=("10.1.0.0/24", "fd00:1::/64")[at],
        link=" scope link" if v4 else "",
        sysctl="net.ipv4.ip_forward" if v4 else "net.ipv6.conf.all.forwarding",
    )


FIRST = ["rule deleted", "route deleted", "jump moved", "source binding removed", "learned route twice"]
BATCHES = [FIRST, [name for name in BROKEN if name not in FIRST]]
"""What can be broken at the same time without one hiding the other."""


@pytest.mark.parametrize("names", BATCHES, ids=["first", "second"])
def test_what_is_broken_is_named(node: SmallNode, names: list[str]) -> None:
    cases = [(name, family) for name in names for family in Family]
    for name, family in cases:
        run(*filled(BROKEN[name][0], node, family).split())
    left = node.verify().differences
    for name, family in cases:
        _, kind, problem, about, part = BROKEN[name]
        found = [
            difference
            for difference in left
            if (difference.ref.kind, difference.problem, difference.about) == (kind, problem, about)
            and filled(part, node, family) in str(difference)
            and (kind in ("member", "route", "set", "sysctl") or f"IPv{family}" in difference.where)
        ]
        # Of the rules that accept there are two, one a direction.
        assert len(found) == (4 if name == "accept moved" else 1), (name, [str(d) for d in left])
        left = [difference for difference in left if difference not in found]
    assert [str(difference) for difference in left] == []


@pytest.mark.parametrize("family", list(Family), ids=["v4", "v6"])
def test_an_altered_body_is_shown_beside_what_it_should_be(node: SmallNode, family: Family) -> None:
    text = kernel_state.rules(family, node.backend, "filter", PI_DB)[0]
    altered = text.replace("5432,8000:8010", "1:65535")
    assert altered != text
    run(tool(node, family), "-R", PI_DB, "1", *split(altered))
    found = one(node.verify().differences)
    assert (found.ref.kind, found.problem) == ("chain", ALTERED)
    assert found.about == "NetworkPolicy shop/db, ingress rule 0"
    assert "--dports 5432,8000:8010" in found.expected
    assert "--dports 1:65535" in found.found


def test_a_rule_that_was_swapped_with_another(node: SmallNode) -> None:
    first, second = kernel_state.rules(Family.V4, node.backend, "filter", PI_GUARD)[:2]
    iptables = tool(node, Family.V4)
    run(iptables, "-D", PI_GUARD, "1")
    run(iptables, "-I", PI_GUARD, "2", *split(first))
    assert kernel_state.rules(Family.V4, node.backend, "filter", PI_GUARD)[:2] == [second, first]
    found = one(node.verify().differences)
    assert found.problem is MISPLACED
    assert found.about.startswith("ClusterNetworkPolicy guard, ingress rule ")


def test_a_chain_that_is_gone(node: SmallNode) -> None:
    iptables = tool(node, Family.V4)
    run(iptables, "-F", "FELIX-INGRESS")
    run(iptables, "-t", "mangle", "-F")
    run(iptables, "-t", "mangle", "-X", "FELIX-CLASSIFY")
    found = node.verify().differences
    assert {f.about for f in found if "FELIX-CLASSIFY (mangle" in f.where} == {"policy classes of all pods"}
    assert len([f for f in found if f.where == "rule 1 of chain FELIX-INGRESS (filter, IPv4)"]) == 1
    assert all(f.problem is MISSING for f in found)


def test_a_changed_dispatch_rule_is_no_other_class_number(node: SmallNode) -> None:
    """Which number means which class is read from the kernel, but not from what somebody has altered."""
    chain = "FELIX-INGRESS-0"
    rules = kernel_state.rules(Family.V4, node.backend, "filter", chain)
    at = next(number for number, text in enumerate(rules, 1) if "-g FELIX-CI-" in text)
    words = list(split(rules[at - 1]))
    words[words.index("--mark") + 1] = "0x7000000/0x7f000000"
    run(tool(node, Family.V4), "-R", chain, str(at), *words)
    found = one(node.verify().differences)
    assert (found.problem, found.where) == (ALTERED, f"rule {at} of chain {chain} (filter, IPv4)")
    assert "NetworkPolicy" in found.about
    run(tool(node, Family.V4), "-D", chain, str(at))
    found = one(node.verify().differences)
    assert (found.problem, found.where) == (MISSING, f"rule {at} of chain {chain} (filter, IPv4)")


@one_backend
def test_interfaces(node: SmallNode) -> None:
    run("ip", "link", "set", WEB_IF, "down")
    run("ip", "link", "add", "felix0123456789", "type", "veth", "peer", "name", "stray0")
    found = node.verify().differences
    by_where = {f.where: f for f in found}
    assert str(by_where[f"interface {WEB_IF}"]) == (
        f"pod shop/web-1: interface {WEB_IF} is altered: expected up, found down"
    )
    assert by_where["interface felix0123456789"].problem is EXTRA
    assert {f.about for f in found if f.ref.kind == "route"} == {"pod shop/web-1"}  # they went with the interface
    run("ip", "link", "del", DB_IF)
    found = node.verify().differences
    gone = one([f for f in found if "db-0" in f.about])
    assert (gone.ref.kind, gone.problem) == ("link", MISSING)


@one_backend
def test_what_is_put_right_meanwhile_is_no_difference(node: SmallNode) -> None:
    held, address = f"{WEB.addresses[0]},{WEB_IF}", WEB.addresses[0]
    run("ipset", "del", "felix4-source", held)
    run("ip", "route", "del", f"{address}/32")
    found = node.verify(between=[f"ipset add felix4-source {held}", "ipset create felix4-new hash:ip"])
    # Nor is what only the second look has seen.
    assert one(found.differences).ref.kind == "route"


@one_backend
def test_a_policy_that_the_kernel_has_not_heard_of(node: SmallNode) -> None:
    new = replace(cast("NetworkPolicy", POLICIES[0]), name="new", egress=())
    node.cluster.policies.append(new)
    texts = [str(difference) for difference in node.verify().differences]
    assert any(text.startswith("NetworkPolicy shop/new") and "is missing" in text for text in texts)
    assert any(text.startswith("pod shop/web-1: egress policy class (NetworkPolicy shop/new)") for text in texts)
    node.apply()
    assert node.verify().differences == []


@one_backend
def test_a_pod_that_is_gone_from_the_api_only(node: SmallNode) -> None:
    """Deleted by force: the agent goes on enforcing what it remembers, which nobody else can know."""
    node.cluster.pods.remove(TOOL)
    found = node.verify()
    assert found.differences == []
    assert "dev/tool: still on this node, but not in the API any more" in found.notes[0]
    run("ip", "route", "del", f"{WEB.addresses[0]}/32")
    assert one(node.verify().differences).about == "pod shop/web-1"


@one_backend
def test_numbers_that_the_kernel_has_are_the_right_ones(node: SmallNode) -> None:
    """Which number a class has depends on what came before; verify must not mind."""
    node.cluster.policies.insert(0, replace(POLICIES[1], name="another"))
    node.apply()
    node.cluster.policies.pop(0)
    node.apply()
    assert [str(difference) for difference in node.verify().differences] == []
