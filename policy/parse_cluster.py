"""Parses the objects of the group policy.networking.k8s.io, as decoded from JSON, into model.ClusterPolicy.

Three kinds become one record: ClusterNetworkPolicy (v1alpha2) as it is; AdminNetworkPolicy (v1alpha1) as a policy
of the Admin tier; BaselineAdminNetworkPolicy (v1alpha1) as the last policy of the Baseline tier.

Malformed rules fail closed, as the API demands: "For 'Accept' rules, 'fail closed' means: 'treat the rule as
matching no traffic'. For 'Deny' and 'Pass' rules, 'fail closed' means: 'treat the rule as a "Deny all" rule'."

- malformed Accept rules match nothing (they keep their place, so that indexes match the object);
- malformed Deny and Pass rules, and those with an unknown action, deny everything.

If the head (tier, priority, subject, the spec's fields, a name that the kind cannot have) is malformed, neither
the accepted traffic nor the precedence is known. Then

- a malformed tier is Admin, and a malformed priority is 0, which is first;
- the subject widens: a malformed requirement is dropped, and a wholly malformed subject is all pods;
- all Accept rules match nothing, and Pass rules deny what they match.

An unknown field is malformed: it might narrow its parent. As in the API, null means absent. Sources:
network-policy-api, apis/v1alpha1 and apis/v1alpha2, and the CRDs made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from policy import parts
from policy.model import (
    ClusterPeer,
    ClusterPolicy,
    ClusterRule,
    Direction,
    IPBlock,
    NodePeer,
    PodPeer,
    PolicyKind,
    Port,
    RuleAction,
    Selector,
    Tier,
)
from policy.parse_cluster_ports import v1alpha1_port, v1alpha2_port
from policy.problems import Problems, metadata_of, name_in, uid_in
from policy.syntax import bad_name, shown

BASELINE_ADMIN_PRIORITY: Final = 1001
"""A BaselineAdminNetworkPolicy has no priority; it comes after all others, which have at most 1000."""

BASELINE_ADMIN_NAME: Final = "default"
"""The only name that a BaselineAdminNetworkPolicy may have."""

_LONGEST_NAME: Final = 100
_MOST_NETWORKS: Final = 25
_FAR_END: Final = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
_POD_PEERS: Final = ("namespaces", "pods")
_ALL_PODS: Final = PodPeer(Selector(), None)
_TIERS: Final = {tier.value: tier for tier in (Tier.ADMIN, Tier.BASELINE)}

_ParsePort = Callable[[Problems, object, str], tuple[Port, ...]]


@dataclass(frozen=True, slots=True)
class _Dialect:
    """Differences between the kinds.

    ``head``: which of tier and priority are fields; ``tier`` and ``priority`` are the values of absent or
    malformed ones. ``most``: entries of each list.
    """

    kind: PolicyKind
    head: tuple[str, ...]
    tier: Tier
    priority: int
    actions: Mapping[str, RuleAction]
    ports: str
    parse_port: _ParsePort
    most: int
    egress_peers: tuple[str, ...]
    needs_namespace_selector: bool


def parse_cluster_policy(obj: object) -> ClusterPolicy:
    """Parse a ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2). Raises Rejected without a valid name."""
    return _parse(obj, _CLUSTER)


def parse_admin_policy(obj: object) -> ClusterPolicy:
    """Parse an AdminNetworkPolicy (policy.networking.k8s.io/v1alpha1). Raises Rejected without a valid name."""
    return _parse(obj, _ADMIN)


def parse_baseline_admin_policy(obj: object) -> ClusterPolicy:
    """Parse a BaselineAdminNetworkPolicy (policy.networking.k8s.io/v1alpha1). Raises Rejected as the others."""
    return _parse(obj, _BASELINE_ADMIN)


# --- the head ------------------------------------------------------------------------------------------------


def _parse(obj: object, dialect: _Dialect) -> ClusterPolicy:
    metadata = metadata_of(obj)
    name = name_in(metadata, "name", bad_name)
    problems = Problems()
    if dialect is _BASELINE_ADMIN and name != BASELINE_ADMIN_NAME:
        problems.note("metadata.name", f"must be {BASELINE_ADMIN_NAME!r}, not {shown(name)}")
    given = obj.get("spec") if isinstance(obj, Mapping) else None
    known = (*dialect.head, "subject", "ingress", "egress")
    # An object without a spec affects no pod; a spec that is no object may have meant anything.
    spec = problems.mapping({} if given is None else given, "spec", known)
    tier, priority, subject = dialect.tier, dialect.priority, _ALL_PODS
    ingress: tuple[ClusterRule, ...] = (_deny_all(),)
    egress = ingress
    if spec is None:
        problems.note("spec", "as nothing of it is understood, everything is denied")
    else:
        tier, priority = _precedence(problems, spec, dialect)
        subject = _subject(problems, spec.get("subject"), dialect)
        broken = bool(problems)
        if broken:
            problems.note("spec", "as its head is not understood, it accepts nothing, and its Pass rules deny")
        ingress = _rules(problems, spec.get("ingress"), Direction.INGRESS, dialect, broken)
        egress = _rules(problems, spec.get("egress"), Direction.EGRESS, dialect, broken)
    uid = uid_in(metadata)
    return ClusterPolicy(dialect.kind, name, tier, priority, subject, ingress, egress, uid, problems.texts())


def _precedence(problems: Problems, spec: Mapping[str, Any], dialect: _Dialect) -> tuple[Tier, int]:
    """Tier and priority, from the kind's fields, or the dialect's if absent or malformed."""
    tier, priority = dialect.tier, dialect.priority
    if "priority" in dialect.head:
        before = len(problems)
        number = problems.number(spec.get("priority"), "spec.priority", _bad_priority)
        if number is not None and len(problems) == before:
            priority = number
    if "tier" in dialect.head:
        text = problems.text(spec.get("tier"), "spec.tier")
        if text is not None and text not in _TIERS:
            problems.note("spec.tier", f"unknown tier {shown(text)}")
        tier = _TIERS.get(text or "", tier)
    return tier, priority


def _bad_priority(priority: int) -> str | None:
    return None if 0 <= priority <= 1000 else f"{shown(priority)} is not between 0 and 1000"


def _subject(problems: Problems, obj: object, dialect: _Dialect) -> PodPeer:
    """The selected pods, or more if a part is malformed."""
    chosen = problems.choice(obj, "spec.subject", _POD_PEERS)
    # Several alternatives together select at most all pods.
    return _ALL_PODS if chosen is None else _pods(problems, chosen, "spec.subject", dialect)


def _pods(problems: Problems, chosen: tuple[str, Any], field: str, dialect: _Dialect) -> PodPeer:
    """``namespaces`` (a selector) or ``pods`` (a NamespacedPod) of a subject or a peer."""
    what, obj = chosen
    field = f"{field}.{what}"
    if what == "namespaces":
        return PodPeer(parts.selector(problems, obj, field), None)
    selectors = problems.mapping(obj, field, ("namespaceSelector", "podSelector"))
    if selectors is None:
        return _ALL_PODS
    namespaces, pods = selectors.get("namespaceSelector"), selectors.get("podSelector")
    if namespaces is None and not dialect.needs_namespace_selector:
        namespaces = {}
    return PodPeer(
        parts.selector(problems, namespaces, f"{field}.namespaceSelector"),
        parts.selector(problems, pods, f"{field}.podSelector"),
    )


# --- rules ---------------------------------------------------------------------------------------------------


def _rules(
    problems: Problems, obj: object, direction: Direction, dialect: _Dialect, broken: bool
) -> tuple[ClusterRule, ...]:
    """The rules of a direction; ``broken``: the head is malformed, so nothing may be accepted or passed."""
    field = f"spec.{direction.lower()}"
    before = len(problems)
    items = problems.list(obj, field)
    if len(problems) > before:
        problems.note(field, "as it is not understood, everything is denied")
        return (_deny_all(),)
    rules: list[ClusterRule] = []
    for number, item in enumerate(items[: dialect.most]):
        rule = _rule(problems, item, f"{field}[{number}]", direction, dialect)
        rules.append(_without_accepting(rule) if broken else rule)
    return tuple(rules + _surplus(problems, items[dialect.most :], field, dialect))


def _surplus(problems: Problems, items: list[Any], field: str, dialect: _Dialect) -> list[ClusterRule]:
    """Replacement of the rules beyond the API's limit, which are not parsed but fail closed."""
    if not items:
        return []
    most = dialect.most
    problems.note(field, f"must have at most {most} entries, not {most + len(items)}: the others accept nothing")
    actions = (item.get("action") if isinstance(item, Mapping) else None for item in items)
    if all(isinstance(name, str) and dialect.actions.get(name) is RuleAction.ACCEPT for name in actions):
        return []
    problems.note(field, f"as there are Deny or Pass rules behind [{most - 1}], everything is denied there")
    return [_deny_all()]


def _rule(problems: Problems, item: object, field: str, direction: Direction, dialect: _Dialect) -> ClusterRule:
    """One rule, or a rule that fails closed in its place."""
    before = len(problems)
    far_end = _FAR_END[direction]
    given = problems.mapping(item, field, ("name", "action", far_end, dialect.ports))
    rule = given if given is not None else {}
    action: RuleAction | None = None
    peers: tuple[ClusterPeer, ...] = ()
    ports: tuple[Port, ...] | None = None
    if given is not None:
        action = _action(problems, rule.get("action"), f"{field}.action", dialect)
        peers = _peers(problems, rule.get(far_end), f"{field}.{far_end}", direction, dialect)
        ports = _ports(problems, rule.get(dialect.ports), f"{field}.{dialect.ports}", dialect)
        _check_named_ports(problems, peers, ports, f"{field}.{dialect.ports}")
    understood = len(problems) == before
    name = _name(problems, rule.get("name"), f"{field}.name")
    if understood and action is not None:
        return ClusterRule(action, peers, ports, name)
    if action is RuleAction.ACCEPT:
        problems.note(field, "as a part of it is not understood, it accepts nothing")
        return _accept_nothing(name)
    problems.note(field, "as a part of it is not understood, it denies everything")
    return _deny_all(name)


def _deny_all(name: str = "") -> ClusterRule:
    return ClusterRule(RuleAction.DENY, None, None, name)


def _accept_nothing(name: str) -> ClusterRule:
    return ClusterRule(RuleAction.ACCEPT, (), None, name)


def _without_accepting(rule: ClusterRule) -> ClusterRule:
    if rule.action is RuleAction.ACCEPT:
        return _accept_nothing(rule.name)
    return ClusterRule(RuleAction.DENY, rule.peers, rule.ports, rule.name)


def _action(problems: Problems, value: object, field: str, dialect: _Dialect) -> RuleAction | None:
    text = problems.text(value, field)
    if text is not None and text not in dialect.actions:
        problems.note(field, f"unknown action {shown(text)}, known are {', '.join(dialect.actions)}")
    return dialect.actions.get(text or "")


def _name(problems: Problems, value: object, field: str) -> str:
    """The name of a rule, for people only: a malformed one is left out, and the rule still applies."""
    if value is None:
        return ""
    text = problems.text(value, field) or ""
    if len(text) > _LONGEST_NAME:
        problems.note(field, f"{shown(text)} is longer than {_LONGEST_NAME} characters")
        return ""
    # The API allows any character, but names go to terminals and logs.
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _peers(
    problems: Problems, obj: object, field: str, direction: Direction, dialect: _Dialect
) -> tuple[ClusterPeer, ...]:
    """The peers of a rule; invalid if a problem was noted."""
    before = len(problems)
    items = problems.list(obj, field, dialect.most)
    if not items and len(problems) == before:
        problems.note(field, "must have at least one entry")
    known = dialect.egress_peers if direction is Direction.EGRESS else _POD_PEERS
    peers: list[ClusterPeer] = []
    for number, item in enumerate(items):
        peers += _peer(problems, item, f"{field}[{number}]", known, dialect)
    return tuple(peers)


def _peer(
    problems: Problems, item: object, field: str, known: tuple[str, ...], dialect: _Dialect
) -> list[ClusterPeer]:
    match problems.choice(item, field, known):
        case None:
            return []
        case ("nodes", value):
            return [NodePeer(parts.selector(problems, value, f"{field}.nodes"))]
        case ("networks", value):
            return _networks(problems, value, f"{field}.networks")
        case ("domainNames", _):
            problems.note(f"{field}.domainNames", "felix-py does not watch DNS, so it cannot match domain names")
            return []
        case chosen:
            return [_pods(problems, chosen, field, dialect)]


def _networks(problems: Problems, obj: object, field: str) -> list[ClusterPeer]:
    before = len(problems)
    items = problems.list(obj, field, _MOST_NETWORKS)
    if not items and len(problems) == before:
        problems.note(field, "must have at least one entry")
    found = [parts.cidr(problems, item, f"{field}[{number}]") for number, item in enumerate(items)]
    return [IPBlock(cidr) for cidr in found if cidr is not None]


def _ports(problems: Problems, obj: object, field: str, dialect: _Dialect) -> tuple[Port, ...] | None:
    """The ports of a rule, None: any; invalid if a problem was noted."""
    if obj is None:
        return None
    before = len(problems)
    items = problems.list(obj, field, dialect.most)
    if not items and len(problems) == before:
        problems.note(field, "must have at least one entry, or be left out")
    ports: list[Port] = []
    for number, item in enumerate(items):
        ports += dialect.parse_port(problems, item, f"{field}[{number}]")
    return tuple(ports)


def _check_named_ports(
    problems: Problems, peers: tuple[ClusterPeer, ...], ports: tuple[Port, ...] | None, field: str
) -> None:
    """ "You can't use this in a rule that targets resources without named ports (e.g. Nodes or Networks)." """
    named = any(isinstance(port.port, str) for port in ports or ())
    if named and not all(isinstance(peer, PodPeer) for peer in peers):
        problems.note(field, "named ports are those of pods, and a peer of this rule is not")


# --- the kinds -----------------------------------------------------------------------------------------------

_V1ALPHA1_ACTIONS: Final = {"Allow": RuleAction.ACCEPT, "Deny": RuleAction.DENY, "Pass": RuleAction.PASS}

_CLUSTER: Final = _Dialect(
    PolicyKind.CLUSTER,
    head=("tier", "priority"),
    tier=Tier.ADMIN,
    priority=0,
    actions={action.value: action for action in RuleAction},
    ports="protocols",
    parse_port=v1alpha2_port,
    most=25,
    egress_peers=(*_POD_PEERS, "nodes", "networks", "domainNames"),
    needs_namespace_selector=False,
)
_ADMIN: Final = _Dialect(
    PolicyKind.ADMIN,
    head=("priority",),
    tier=Tier.ADMIN,
    priority=0,
    actions=_V1ALPHA1_ACTIONS,
    ports="ports",
    parse_port=v1alpha1_port,
    most=100,
    egress_peers=(*_POD_PEERS, "nodes", "networks", "domainNames"),
    needs_namespace_selector=True,
)
_BASELINE_ADMIN: Final = replace(
    _ADMIN,
    kind=PolicyKind.BASELINE_ADMIN,
    head=(),
    tier=Tier.BASELINE,
    priority=BASELINE_ADMIN_PRIORITY,
    actions={name: action for name, action in _V1ALPHA1_ACTIONS.items() if action is not RuleAction.PASS},
    egress_peers=(*_POD_PEERS, "nodes", "networks"),
)
