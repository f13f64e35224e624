"""The impact of changed policies, for people (lines) and for programs (JSON)."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from felix_py.cli.plan_words import Names, count, ports_text, turn_text
from policy.impact.answers import Decision
from policy.impact.cohorts import Party, World
from policy.impact.compare import Denial, Effect, Extent, Group, Impact, Turn
from policy.model import Node, Pod, PolicyRef

_TITLES = {Effect.DENIED: "Newly denied", Effect.ALLOWED: "Newly allowed"}
_ARROWS = {Effect.DENIED: "allowed -> DENIED", Effect.ALLOWED: "denied -> ALLOWED"}


class Action(enum.StrEnum):
    """The effect of a file on a policy. Absent: there is nothing to delete."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    DELETED = "deleted"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one policy. ``problems``: its parts that are not understood, and so allow nothing."""

    ref: PolicyRef
    action: Action
    where: str
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class Flows:
    """Flows seen lately. ``agents``: those that answered; ``silent``: the others, with the reason."""

    agents: list[str] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)
    seen: int = 0
    denied: list[Denial] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole answer. ``flows`` None: not asked for."""

    changes: list[Change]
    impact: Impact
    flows: Flows | None
    notes: list[str]


# --- for people -----------------------------------------------------------------------------------------------


def lines(plan: Plan, limit: int) -> Iterator[str]:
    """The plan as text. ``limit``: greatest number of entries of a list; 0: all."""
    names = Names(plan.impact.parties)
    for change in plan.changes[: limit or None]:
        yield f"{change.ref}: {change.action} ({change.where})"
    yield from _more(len(plan.changes), limit)
    for effect in Effect:
        groups = [group for group in plan.impact.groups if group.effect is effect]
        if groups:
            yield from ("", _TITLES[effect])
            for group in groups[: limit or None]:
                yield from _group_lines(group, names)
            yield from _more(len(groups), limit)
    if plan.flows is not None and plan.flows.agents:
        yield from ("", *_flow_lines(plan.flows, names, limit))
    yield from ("", summary(plan.impact))


def _group_lines(group: Group, names: Names) -> Iterator[str]:
    family = f"  IPv{int(group.family)} only" if group.family else ""
    ends = f"{names.side(group.sources)} -> {names.side(group.destinations)}"
    yield f"  {ends}  {ports_text(group.ports)}{family}  {_ARROWS[group.effect]}"
    for turn in group.turns:
        yield f"      {turn_text(turn)}"


def _flow_lines(flows: Flows, names: Names, limit: int) -> Iterator[str]:
    yield f"Of {count(flows.seen, 'flow')} seen lately by {', '.join(flows.agents)}, these would be denied"
    found: dict[str, None] = {}
    for denial in flows.denied:
        packet = denial.packet
        ends = f"{names.at(packet.source)} -> {names.at(packet.destination)}"
        why = "; ".join(turn_text(turn).partition("; before")[0] for turn in denial.turns)
        found[f"  {ends}  {packet.port}/{packet.protocol}  {why}"] = None
    if not found:
        yield "  none"
    yield from islice(sorted(found), limit or None)
    yield from _more(len(found), limit)


def _more(number: int, limit: int) -> Iterator[str]:
    if limit and number > limit:
        yield f"  and {number - limit:,} more; --all shows them"


def summary(impact: Impact) -> str:
    """The extent of the change in one line."""
    verbs = {Effect.DENIED: "lose", Effect.ALLOWED: "gain"}
    clauses = [
        f"{_extent_text(extent)} {verbs[effect]} {_ports_in_short(impact, effect)}"
        for effect, extent in impact.extents.items()
        if extent
    ]
    return f"{'; '.join(clauses)}; nothing else changes" if clauses else "Nothing would change"


def _extent_text(extent: Extent) -> str:
    parts = [
        count(extent.pod_pairs, "pod pair") if extent.pod_pairs else "",
        count(extent.node_pairs, "node/pod pair") if extent.node_pairs else "",
        f"{count(extent.world_pods, 'pod')} with the world" if extent.world_pods else "",
    ]
    *first, last = [part for part in parts if part]
    return f"{', '.join(first)} and {last}" if first else last


def _ports_in_short(impact: Impact, effect: Effect) -> str:
    every = {group.ports for group in impact.groups if group.effect is effect}
    return ports_text(next(iter(every))) if len(every) == 1 else "ports"


# --- for programs ---------------------------------------------------------------------------------------------


def as_json(plan: Plan) -> dict[str, Any]:
    """The whole plan. Pods are ``namespace/name``; ``family`` null: in every family that both ends have."""
    impact = plan.impact
    return {
        "changes": [
            {**_policy_json(c.ref), "change": c.action.value, "file": c.where, "problems": list(c.problems)}
            for c in plan.changes
        ],
        "groups": [_group_json(group) for group in impact.groups],
        "summary": {
            effect.value: {
                "podPairs": extent.pod_pairs,
                "nodePairs": extent.node_pairs,
                "podsWithWorld": extent.world_pods,
            }
            for effect, extent in impact.extents.items()
        },
        "flows": None if plan.flows is None else _flows_json(plan.flows, Names(impact.parties)),
        "notes": plan.notes,
    }


def _policy_json(ref: PolicyRef) -> dict[str, Any]:
    return {"kind": ref.kind.value, "namespace": ref.namespace, "name": ref.name}


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "effect": group.effect.value,
        "sources": _side_json(group.sources),
        "destinations": _side_json(group.destinations),
        "ports": [{"protocol": p.protocol.value, "first": p.first, "last": p.last} for p in group.ports],
        "family": None if group.family is None else int(group.family),
        "decided": [_turn_json(turn) for turn in group.turns],
    }


def _side_json(parties: Iterable[Party]) -> dict[str, Any]:
    pods: dict[str, None] = {}
    nodes: dict[str, None] = {}
    world: list[dict[str, Any]] = []
    for party in parties:
        match party.what:
            case Pod(namespace, name):
                pods[f"{namespace}/{name}"] = None
            case Node(name):
                nodes[name] = None
            case World(regions):
                world += [{"cidr": region.cidr, "except": list(region.holes)} for region in regions]
    return {"pods": list(pods), "nodes": list(nodes), "world": world}


def _turn_json(turn: Turn) -> dict[str, Any]:
    return {
        "direction": turn.direction.value,
        "before": _decision_json(turn.before),
        "after": _decision_json(turn.after),
    }


def _decision_json(found: Decision) -> dict[str, Any]:
    rule = found.rule
    return {
        "allowed": found.allowed,
        "tier": found.tier.value if found.tier else None,
        "rule": {"policy": _policy_json(rule.policy), "index": rule.index, "name": rule.name} if rule else None,
        "isolatedBy": [_policy_json(ref) for ref in found.isolated_by],
    }


def _flows_json(flows: Flows, names: Names) -> dict[str, Any]:
    return {
        "agents": flows.agents,
        "silent": flows.silent,
        "seen": flows.seen,
        "denied": [
            {
                "source": denial.packet.source,
                "sourceName": names.at(denial.packet.source),
                "destination": denial.packet.destination,
                "destinationName": names.at(denial.packet.destination),
                "protocol": denial.packet.protocol.value,
                "port": denial.packet.port,
                "decided": [_turn_json(turn) for turn in denial.turns],
            }
            for denial in flows.denied
        ],
    }
