"""The counters of the kernel's rules, by policy: what the metrics say is what was sent."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py.dataplane import sysctl
from felix_py.dataplane.backend import ToolError
from felix_py.dataplane.counters import read_counters
from felix_py.observe.policy_counters import Accounts, Count, digest
from felix_py.records import Backend
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Family,
    NetworkPolicy,
    Packet,
    PodPeer,
    PolicyKind,
    PolicyRule,
    Port,
    Protocol,
    RuleAction,
    Tier,
)
from policy.selectors import EVERYTHING
from tests.support.isolate import NetworkNamespace, run
from tests.support.policy_node import LiveView, PolicyNode
from tests.support.traffic import attempt, serve

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

UDP = Protocol.UDP
ALLOWED, PASSED, DENIED, OTHER = 53, 54, 55, 56
TRIES = {ALLOWED: 2, PASSED: 3, DENIED: 4, OTHER: 5}
"""Port -> packets that :meth:`Rig.send` sends in each family."""


class Rig(PolicyNode):
    """Two pods, and the accounts of what the kernel counts."""

    def __init__(self, backend: Backend, make: Callable[[str], NetworkNamespace]) -> None:
        sysctl.set_up_host(tuple(Family))
        super().__init__(backend, make)
        for name in ("web", "db"):
            self.add_pod("shop", name, app=name)
        self.accounts = Accounts(self.chain_names, LiveView(self).cluster_policies)

    def read(self) -> None:
        for family in Family:
            self.accounts.take(family, digest(read_counters(family, self.backend)))

    def send(self) -> None:
        """UDP from web to db, which answers what it gets: so that each packet is the first of a connection."""
        pairs = list(zip(self.pods["web"].addresses, self.pods["db"].addresses, strict=True))
        packets = [
            Packet(*pair, UDP, port) for pair in pairs for port, count in TRIES.items() for _ in range(count)
        ]
        with serve([(self.places["db"], address, UDP, port) for _, address in pairs for port in TRIES]):
            attempt([(self.places["web"], packet) for packet in packets])

    def warm_up(self) -> None:
        """Until a packet of each family gets through: a new interface takes a moment."""
        pairs = zip(self.pods["web"].addresses, self.pods["db"].addresses, strict=True)
        tries = [(self.places["web"], Packet(*pair, UDP, 7)) for pair in pairs]
        with serve([(self.places["db"], packet.destination, UDP, 7) for _, packet in tries]):
            while len(attempt(tries, 1)) < len(tries):
                pass


@pytest.fixture(params=list(Backend), ids=str)
def rig(request: pytest.FixtureRequest, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[Rig]:
    rig = Rig(request.param, make_netns)
    yield rig
    rig.kernel.close()


def allowing(*ports: int) -> NetworkPolicy:
    rules = tuple(PolicyRule(None, (Port(UDP, port),)) for port in ports)
    return NetworkPolicy("shop", "db", EVERYTHING, ingress=rules)


PODS = PodPeer(EVERYTHING, None)
GUARD = ClusterPolicy(
    PolicyKind.CLUSTER,
    "guard",
    Tier.ADMIN,
    1,
    PODS,
    ingress=(
        ClusterRule(RuleAction.DENY, (PODS,), (Port(UDP, DENIED),), 'spoof -g FELIX-ALLOW"'),
        ClusterRule(RuleAction.PASS, (PODS,), (Port(UDP, PASSED),)),
    ),
)


def packets(counts: dict[tuple[str, ...], Count]) -> dict[tuple[str, ...], int]:
    return {labels: count.packets for labels, count in counts.items() if count.packets}


def test_counts_are_what_was_sent(rig: Rig) -> None:
    rig.apply()
    rig.warm_up()
    rig.apply_policy(GUARD)
    rig.apply_policy(allowing(ALLOWED))
    rig.read()
    assert packets(rig.accounts.policies) == {}
    rig.send()
    rig.read()
    both = {port: count * len(Family) for port, count in TRIES.items()}
    assert packets(rig.accounts.policies) == {
        ("Admin", "ClusterNetworkPolicy/guard", "ingress", "denied"): both[DENIED],
        ("Admin", "ClusterNetworkPolicy/guard", "ingress", "passed"): both[PASSED],
        ("NetworkPolicy", "NetworkPolicy/shop/db", "ingress", "allowed"): both[ALLOWED],
    }
    # The tail of the class gets what was passed or not spoken of, and nobody allowed.
    ((direction, _),) = rig.accounts.classes
    assert (direction, *rig.accounts.classes.values()) == (
        "ingress",
        Count(both[PASSED] + both[OTHER], size(PASSED, OTHER)),
    )
    assert packets(rig.accounts.denied) == {
        ("ingress", "policy"): both[DENIED],
        ("ingress", "isolated"): both[PASSED] + both[OTHER],
    }


def size(*ports: int) -> int:
    """Bytes of the packets to some ports: IP and UDP headers and one byte."""
    return sum(TRIES[port] * (20 + 8 + 1 + 40 + 8 + 1) for port in ports)


def test_counts_grow_on_over_a_rewrite_of_the_chain(rig: Rig) -> None:
    rig.apply()
    rig.warm_up()
    rig.apply_policy(allowing(ALLOWED))
    rig.read()
    rig.send()
    rig.read()
    labels = ("NetworkPolicy", "NetworkPolicy/shop/db", "ingress", "allowed")
    assert packets(rig.accounts.policies) == {labels: TRIES[ALLOWED] * 2}
    # Other rules, and so counters from zero. More is counted before the next reading than was before.
    rig.apply_policy(allowing(ALLOWED, OTHER))
    rig.send()
    rig.read()
    assert packets(rig.accounts.policies) == {labels: TRIES[ALLOWED] * 4 + TRIES[OTHER] * 2}
    rig.facts.delete(rig.policies.popitem()[1])
    rig.apply()
    rig.read()
    assert rig.accounts.policies == {}
    assert rig.accounts.classes == {}
    assert packets(rig.accounts.denied)["ingress", "isolated"] == sum(
        2 * TRIES[port] for port in (PASSED, PASSED, DENIED, DENIED, OTHER)
    )


def test_zeroed_counters_are_not_counted_twice(rig: Rig) -> None:
    rig.apply()
    rig.warm_up()
    rig.apply_policy(allowing(ALLOWED))
    rig.read()
    rig.send()
    rig.read()
    for tool in ("iptables", "ip6tables"):
        run(f"{tool}-{rig.backend}", "-Z")
    rig.read()
    rig.send()
    rig.read()
    labels = ("NetworkPolicy", "NetworkPolicy/shop/db", "ingress", "allowed")
    assert packets(rig.accounts.policies) == {labels: TRIES[ALLOWED] * 4}


def test_legacy_counters_are_read_while_nobody_writes() -> None:
    """Between two calls of a legacy tool that replaces a table, all counters of the table are zero."""
    run("iptables-legacy", "-t", "filter", "-N", "FELIX-PI-0123456789abcdef")
    run("iptables-legacy", "-t", "filter", "-A", "FELIX-PI-0123456789abcdef", "-j", "DROP")
    run("iptables-legacy", "-t", "raw", "-S")
    with Path("/run/xtables.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ToolError, match="xtables lock"):
            read_counters(Family.V4, Backend.LEGACY)
        timer = threading.Timer(0.1, fcntl.flock, (lock, fcntl.LOCK_UN))
        timer.start()
        (rule,) = read_counters(Family.V4, Backend.LEGACY)
        timer.join()
    assert (rule.chain, rule.target, rule.packets) == ("FELIX-PI-0123456789abcdef", "DROP", 0)
