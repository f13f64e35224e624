"""The simulator on what is planned and on what a kernel holds, for random clusters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from felix_py.dataplane.iptables_text import render, render_chain
from felix_py.desired.deny_log import DenyLog
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.records import Lease, SetSpec, Update
from felix_py.ruleset.decode_save import decode
from felix_py.ruleset.model import Ruleset, RuleSpec
from felix_py.ruleset.run import Outcome, Path, Result, Sets, Transit, simulate
from felix_py.ruleset.sets import TextSet
from policy.model import ClusterPolicy, Family, LocalEndpoint, Packet
from policy.oracle.evaluate import verdict
from tests.support.builders import lease
from tests.support.clusters import NODE, Cluster
from tests.support.told import ToldFacts

UPLINK = "eth0"
OPTIONS = StaticOptions(Marks.from_mask(0xFFFF0000), deny_log=DenyLog(group=88, rate=10))


def held(endpoint: LocalEndpoint) -> Lease:
    return lease(endpoint, container=f"{endpoint.namespace}-{endpoint.name}")


def planned(cluster: Cluster, options: StaticOptions = OPTIONS) -> Planner:
    """A planner that has heard of the whole cluster, on a node that holds all of its endpoints."""
    facts = ToldFacts("node")
    for namespace in cluster.namespaces.values():
        facts.upsert(namespace)
    for node in cluster.nodes.values():
        facts.upsert(node)
    for policy in cluster.policies.values():
        facts.upsert(policy)
    for pod in cluster.pods.values():
        facts.upsert(pod)
    for endpoint in cluster.endpoints.values():
        facts.attach(held(endpoint))
    planner = Planner(tuple(Family), options, {})
    facts.collect(planner)
    return planner


def as_text(update: Update, family: Family) -> str:
    """What iptables-save would print, more or less, of a kernel that has nothing but this."""
    lines: dict[str, list[str]] = {}
    chains: dict[tuple[str, str], list[RuleSpec]] = {}
    for key, rules in update.chains.items():
        if key.family is family and rules is not None:
            chains[key.table, key.name] = list(rules)
    for hook in sorted(update.hooks, key=lambda hook: hook.rank):
        if hook.family is family:
            chains.setdefault((hook.table, hook.chain), []).append(hook.rule)
    builtin = {(hook.table, hook.chain) for hook in update.hooks}
    for (table, name), specs in chains.items():
        text = lines.setdefault(table, [f"*{table}"])
        text.append(f":{name} {'ACCEPT' if (table, name) in builtin else '-'} [0:0]")
        firsts = {hook.rule for hook in update.hooks if hook.first and (table, name) in builtin}
        ordered = sorted(specs, key=lambda rule: rule not in firsts)
        written = map(render, ordered) if (table, name) in builtin else render_chain(tuple(specs))
        text += [f"-A {name} {rule.text}" for rule in written]
    return "\n".join(line for table in lines.values() for line in (*table, "COMMIT"))


def as_ruleset(update: Update, family: Family) -> Ruleset:
    return decode(family, as_text(update, family))


def as_sets(update: Update) -> Sets:
    found: dict[str, TextSet] = {}
    for name, spec in update.sets.items():
        assert isinstance(spec, SetSpec)
        members = update.members.get(name, {})
        found[name] = TextSet(
            spec.type,
            {
                text: (mark << 32 | spec.mark_mask if spec.mark_mask else 0)
                for text, mark in members.items()
                if mark is not None
            },
        )
    return found.get


class Judge:
    """The oracle beside the simulator, for the node that holds all endpoints of a cluster."""

    def __init__(self, cluster: Cluster, rules: dict[Family, Ruleset], sets: Sets) -> None:
        self._cluster = cluster
        self.rules = rules
        self.sets = sets
        self._snapshot = cluster.snapshot()
        self._interfaces = {
            address: held(endpoint).interface
            for endpoint in cluster.endpoints.values()
            for address in endpoint.addresses
        }

    def concerned(self, packets: Iterable[Packet]) -> list[Packet]:
        """Those with an end on the node and nothing that only the node knows."""
        return [
            packet for packet in packets if self._path(packet) is not None and self._expected(packet) is not None
        ]

    def expected(self, packet: Packet) -> Outcome:
        allowed = self._expected(packet)
        assert allowed is not None
        return Outcome.ACCEPT if allowed else Outcome.DROP

    def _expected(self, packet: Packet) -> bool | None:
        """None: an end of which the oracle does not know that it is a pod."""
        # What comes out of a pod for itself has gone to a service.
        packet = replace(packet, by_service=packet.source == packet.destination)
        node = packet.source in NODE
        truth = verdict(self._snapshot, packet, frozenset(NODE))
        allowed = True
        for address, end in ((packet.source, truth.egress), (packet.destination, truth.ingress)):
            if address not in self._interfaces or (node and address == packet.destination):
                continue
            if end is None:
                return None
            allowed = allowed and end.allowed and not self._undecided(address)
        return allowed

    def _undecided(self, address: str) -> bool:
        """What selects an endpoint is not known as long as its namespace is not; everything is denied then."""
        owner = self._snapshot.pod_at(address)
        tiers = any(isinstance(policy, ClusterPolicy) for policy in self._cluster.policies.values())
        return tiers and owner is not None and owner.namespace not in self._cluster.namespaces

    def _path(self, packet: Packet) -> Path | None:
        source, destination = packet.source in self._interfaces, packet.destination in self._interfaces
        if packet.source in NODE:
            return Path.OUTPUT if destination else None
        if packet.destination in NODE:
            return Path.INPUT if source else None
        return Path.FORWARD if source or destination else None

    def simulated(self, packet: Packet) -> Result:
        path = self._path(packet)
        assert path is not None
        flow = Transit(
            packet,
            "" if path is Path.OUTPUT else self._interfaces.get(packet.source, UPLINK),
            "" if path is Path.INPUT else self._interfaces.get(packet.destination, UPLINK),
        )
        return simulate(self.rules[flow.family], self.sets, flow, path)
