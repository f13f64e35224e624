"""The intended kernel state of a node, computed anew from the cluster, the leases and the settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from felix_py.agent.announced import Announced
from felix_py.agent.facts import Facts
from felix_py.agent.held import HeldLeases
from felix_py.agent.pooled import Pooled
from felix_py.agent.view import ClusterView
from felix_py.dataplane.iptables_text import render
from felix_py.datastore.fetch import Fetched
from felix_py.desired.marks import OVERFLOW, Marks
from felix_py.desired.names import DISPATCH, SetNames
from felix_py.desired.planner import Planner
from felix_py.desired.render import class_number, class_rule
from felix_py.desired.static import StaticOptions
from felix_py.ipam.parse import Bad, Declared, parse_pool, without_overlaps
from felix_py.records import Lease, SetSpec, Update, endpoint_of
from felix_py.ruleset.model import Rule, Ruleset
from felix_py.ruleset.run import Sets
from felix_py.ruleset.seal import digest_of
from policy.change import Change
from policy.engine.compile import Engine
from policy.ir import ChainId
from policy.model import Direction, Family, Pod


@dataclass(frozen=True, slots=True)
class Settings:
    """The agent's settings that decide, beside the cluster, the intended kernel state."""

    node_name: str
    families: tuple[Family, ...]
    cluster_cidrs: tuple[str, ...]
    options: StaticOptions
    closed: tuple[Family, ...] = ()
    announced: bool = False
    """Whether addresses that annotations claim are believed."""


@dataclass(frozen=True, slots=True)
class Intended:
    """The desired state: ``update`` has all objects that must exist, and no removals.

    ``leases``: those that stand for their pods. ``complete`` is false where the kernel may rightly hold more,
    because a pod has an interface but no API object any more: the agent remembers the pod.
    """

    update: Update
    facts: Facts
    leases: tuple[Lease, ...]
    complete: bool = True


def intended(
    settings: Settings,
    cluster: Fetched,
    leases: Collection[Lease],
    learned: Mapping[str, tuple[str, ...]],
    metrics: Mapping[str, int],
    rules: Callable[[Family], Ruleset],
    sets: Sets,
) -> Intended:
    """Run the agent's own engine and planner over everything at once.

    ``learned``: prefix -> gateways; ``metrics``: prefix -> metric, where it is not the default. ``rules`` and
    ``sets`` are the kernel's: class numbers do not follow from the cluster, so they are taken from there.
    """
    pods, nodes = {pod.key: pod for pod in cluster.pods}, {("", node.name): node for node in cluster.nodes}
    engine, view = Engine(settings.families), ClusterView()
    facts = Facts(settings.node_name, pods, nodes, HeldLeases(), engine, view, settings.cluster_cidrs)
    pooled = pooled_of(cluster, settings.node_name)
    facts.set_pooled(pooled)
    peers = with_announced(cluster, pooled, settings.node_name) if settings.announced else cluster.pods
    for record in (*cluster.nodes, *cluster.namespaces, *cluster.policies, *peers):
        facts.fold(Change(None, record))
    attached = known(leases, cluster)
    complete = len(attached) == len(leases)
    for lease in attached:
        facts.attach(lease)
    facts.learned(learned, metric_of=lambda prefix: metrics.get(prefix, 0))
    held = {
        (family, direction): _held(family, direction, settings.options.marks, rules(family), sets, facts)
        for family in settings.families
        for direction in Direction
    }
    planner = Planner(settings.families, settings.options, held, closed=settings.closed)
    while facts.collect(planner):
        pass
    update = planner.take()
    if complete:
        update.merge(planner.confirm())
    newest = tuple(lease for lease in attached if facts.held.stands(lease))
    return Intended(_present(update), facts, newest, complete)


def pooled_of(cluster: Fetched, node_name: str = "") -> Pooled:
    """Pools, and whose their blocks are, as a node sees them; or as one that has none."""
    declared = []
    for record in cluster.pools:
        with suppress(Bad):
            declared.append(Declared(parse_pool(record.name, record.spec), record.created))
    return Pooled.of(node_name, without_overlaps(declared)[0], cluster.blocks)


def with_announced(cluster: Fetched, pooled: Pooled, node_name: str = "") -> list[Pod]:
    """The cluster's pods as agents have them that believe annotations: ``node_name``'s, whose own pods' it does
    not need; or any. ``pooled``: as that node sees pools."""
    nodes = {("", node.name): node for node in cluster.nodes}
    announced = Announced(node_name, nodes)
    return [pod for one in cluster.pods if (pod := announced.believe(Change(None, one), pooled).after)]


def known(leases: Iterable[Lease], cluster: Fetched) -> tuple[Lease, ...]:
    """The leases whose pod the API server has, the same and not another one of its name; and those without."""
    pods = {pod.key: pod for pod in cluster.pods}
    ends = [(lease, pods.get(lease.owner)) for lease in leases]
    return tuple(
        lease for lease, pod in ends if not lease.pod or (pod is not None and endpoint_of(lease).stands_for(pod))
    )


def _present(update: Update) -> Update:
    """``update`` without removals."""
    sets: dict[str, SetSpec | None] = {name: spec for name, spec in update.sets.items() if spec is not None}
    return Update(
        sets=sets,
        members={
            name: {text: mark for text, mark in update.members.get(name, {}).items() if mark is not None}
            for name in sets
        },
        chains={key: rules for key, rules in update.chains.items() if rules is not None},
        hooks={hook: True for hook, wanted in update.hooks.items() if wanted},
        routes={key: route for key, route in update.routes.items() if route is not None},
    )


def _held(
    family: Family, direction: Direction, marks: Marks, rules: Ruleset, sets: Sets, facts: Facts
) -> dict[ChainId, int]:
    """Returns class chain -> number from the dispatch rules, else from the marks of the class's endpoints."""
    table = rules.tables.get("filter")
    found: dict[ChainId, int] = {}
    for chain in table.chains.values() if table else ():
        if not chain.name.startswith(DISPATCH[direction]):
            continue
        for rule in chain.rules:
            if numbered := _number(family, direction, marks, rule):
                found.setdefault(*numbered)
    mapped = sets(SetNames.of(family).class_map(direction))
    for address, of in facts.engine.program(family).classes[direction].items():
        value = mapped.get(address) if mapped and of not in found else None
        number = (value or 0) >> 32 >> marks.shift(direction)
        if number and (number == OVERFLOW or number not in found.values()):
            found[of] = number
    return found


def _number(family: Family, direction: Direction, marks: Marks, rule: Rule) -> tuple[ChainId, int] | None:
    """Returns the class of a dispatch rule and its number: the originally written one, if the hash tells."""
    found = class_number(rule.body, direction, marks)
    if found is None:
        return None
    chain, number = found
    # The number that it matches now is tried first.
    for meant in (*filter(None, (number,)), *range(1, OVERFLOW + 1)) if rule.hash else ():
        spec = class_rule(family, direction, marks, chain, meant)
        if rule.hash in (digest_of(spec), render(spec).hash):
            return chain, meant
    return found if number and not rule.hash else None
