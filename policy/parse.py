"""Parses Kubernetes objects, as decoded from JSON, into the records of :mod:`policy.model`.

The API server validates its objects, but an older or a broken one may serve anything, and a malformed part must
never widen a policy. So everything is checked again; each malformed part is reported in ``problems`` and allows
nothing. An unknown field is malformed: it might narrow its parent. As in the API, null means absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from policy import parts
from policy.model import IPBlock, Labels, NetworkPolicy, Peer, PodPeer, PolicyRule, Port, Selector
from policy.problems import Invalid, Problems, Rejected, metadata_of, name_in, uid_in
from policy.syntax import (
    bad_name,
    bad_namespace,
    bad_port_name,
    bad_port_number,
    canonical_address,
    shown,
    strictly_inside,
)

__all__ = ["Invalid", "Rejected", "canonical_address", "parse_labels", "parse_network_policy", "parse_selector"]

# --- labels and selectors ------------------------------------------------------------------------------------


def parse_labels(obj: object, field: str = "metadata.labels") -> Labels:
    """Labels, sorted by key. None: no labels. Raises Invalid if ``obj`` is no object of label keys and values."""
    problems = Problems()
    labels = parts.labels(problems, obj, field)
    if problems:
        raise Invalid("; ".join(problems))
    return labels


def parse_selector(obj: object, field: str) -> Selector:
    """A LabelSelector (API: meta/v1) at path ``field`` in canonical form. Raises Invalid if it is malformed."""
    problems = Problems()
    selector = parts.selector(problems, obj, field)
    if problems:
        raise Invalid("; ".join(problems))
    return selector


# --- NetworkPolicy -------------------------------------------------------------------------------------------

_Rules = tuple[PolicyRule, ...]
_TYPES: Final = ("Ingress", "Egress")


def parse_network_policy(obj: object) -> NetworkPolicy:
    """Parse a NetworkPolicy (API: networking.k8s.io/v1); malformed parts allow nothing.

    Raises:
        Rejected: metadata.name or metadata.namespace is missing or malformed.
    """
    metadata = metadata_of(obj)
    namespace, name = name_in(metadata, "namespace", bad_namespace), name_in(metadata, "name", bad_name)
    problems = Problems()
    spec = obj.get("spec") if isinstance(obj, Mapping) else None
    selector, ingress, egress = _spec(problems, {} if spec is None else spec)
    return NetworkPolicy(namespace, name, selector, ingress, egress, uid_in(metadata), problems.texts())


def _spec(problems: Problems, obj: object) -> tuple[Selector, _Rules | None, _Rules | None]:
    """The selector and the rules of both directions; () denies all of a direction."""
    spec = problems.mapping(obj, "spec", ("podSelector", "ingress", "egress", "policyTypes"))
    if spec is None:
        return Selector(), (), ()
    selector = Selector()
    before = len(problems)
    if spec.get("podSelector") is not None:
        selector = parts.selector(problems, spec["podSelector"], "spec.podSelector")
    if len(problems) > before:
        selector = Selector()
    # With a malformed selector or an unknown field the policy's meaning is unknown, so it allows nothing.
    broken = bool(problems)
    ingress = _rules(problems, spec.get("ingress"), "spec.ingress", "from")
    egress = _rules(problems, spec.get("egress"), "spec.egress", "to")
    listed, unclear = _policy_types(problems, spec)
    found: list[_Rules | None] = []
    for direction, rules in zip(_TYPES, (ingress, egress), strict=True):
        if direction in listed:
            found.append(() if broken else rules)
        else:
            found.append(() if unclear else None)
    return selector, found[0], found[1]


def _policy_types(problems: Problems, spec: Mapping[str, Any]) -> tuple[set[str], bool]:
    """The directions that the policy certainly has, and whether malformed types may mean the other, too."""
    field = "spec.policyTypes"
    before = len(problems)
    types = problems.list(spec.get("policyTypes"), field)
    listed: set[str] = set()
    for number, item in enumerate(types):
        text = problems.text(item, f"{field}[{number}]")
        if text in _TYPES:
            listed.add(text)
        elif text is not None:
            problems.note(f"{field}[{number}]", f"unknown policy type {shown(text)}")
    unclear = len(problems) > before
    if not types and not unclear:
        # "If no policyTypes are specified, Ingress is always set, and Egress if there are egress rules."
        # Egress rules that are no list count as rules.
        listed.update(_TYPES if spec.get("egress") else ("Ingress",))
    return listed, unclear


def _rules(problems: Problems, obj: object, field: str, far_end: str) -> _Rules:
    """The rules; malformed ones allow nothing, but keep their place, so that indexes match the object."""
    rules: list[PolicyRule] = []
    for number, item in enumerate(problems.list(obj, field)):
        path = f"{field}[{number}]"
        before = len(problems)
        rule = problems.mapping(item, path, (far_end, "ports"))
        understood = rule is not None and len(problems) == before
        if rule is not None:
            peers = _entries(problems, rule.get(far_end), f"{path}.{far_end}", _peer)
            ports = _entries(problems, rule.get("ports"), f"{path}.ports", _port)
        rules.append(PolicyRule(peers, ports) if understood else PolicyRule(()))
    return tuple(rules)


def _entries(
    problems: Problems, obj: object, field: str, parse: Callable[[Problems, object, str], Any]
) -> tuple[Any, ...] | None:
    """The well-formed entries of a list. None (anything) only where the list is absent or empty."""
    before = len(problems)
    items = problems.list(obj, field)
    if not items and len(problems) == before:
        return None
    found = []
    for number, item in enumerate(items):
        before = len(problems)
        entry = parse(problems, item, f"{field}[{number}]")
        if len(problems) == before:
            found.append(entry)
    return tuple(found)


def _port(problems: Problems, item: object, field: str) -> Port | None:
    """One NetworkPolicyPort; invalid if a problem was noted."""
    entry = problems.mapping(item, field, ("protocol", "port", "endPort"))
    if entry is None:
        return None
    protocol = parts.protocol(problems, entry.get("protocol"), f"{field}.protocol")
    port = _port_number_or_name(problems, entry.get("port"), f"{field}.port")
    end = entry.get("endPort")
    if end is not None:
        _check_end_port(problems, port, end, f"{field}.endPort")
    return Port(protocol, port, end) if protocol is not None else None


def _port_number_or_name(problems: Problems, value: object, field: str) -> int | str | None:
    match value:
        case None:
            return None
        case str():
            problems.check(field, bad_port_name(value))
            return value
        case int() if not isinstance(value, bool):
            problems.check(field, bad_port_number(value))
            return value
    problems.note(field, f"must be a number or a name, not {shown(value)}")
    return None


def _check_end_port(problems: Problems, port: int | str | None, end: object, field: str) -> None:
    before = len(problems)
    number = problems.number(end, field)
    if number is None:
        return
    if not isinstance(port, int):
        problems.note(field, "needs a numeric port")
        return
    problems.check(field, bad_port_number(number))
    if len(problems) == before and number < port:
        problems.note(field, f"{end} is less than port {port}")


def _peer(problems: Problems, item: object, field: str) -> Peer | None:
    """One NetworkPolicyPeer; invalid if a problem was noted."""
    peer = problems.mapping(item, field, ("podSelector", "namespaceSelector", "ipBlock"))
    if peer is None:
        return None
    pods, namespaces, block = peer.get("podSelector"), peer.get("namespaceSelector"), peer.get("ipBlock")
    if pods is None and namespaces is None and block is None:
        problems.note(field, "must have a podSelector, a namespaceSelector or an ipBlock")
        return None
    if block is not None:
        if pods is not None or namespaces is not None:
            problems.note(field, "must not have an ipBlock beside a selector")
        return _ip_block(problems, block, f"{field}.ipBlock")
    # An empty selector means everything; only an absent one is None.
    return PodPeer(
        None if namespaces is None else parts.selector(problems, namespaces, f"{field}.namespaceSelector"),
        None if pods is None else parts.selector(problems, pods, f"{field}.podSelector"),
    )


def _ip_block(problems: Problems, obj: object, field: str) -> IPBlock | None:
    """One ipBlock; the caller drops it if an except is malformed, since it would allow more without it."""
    block = problems.mapping(obj, field, ("cidr", "except"))
    if block is None:
        return None
    cidr = parts.cidr(problems, block.get("cidr"), f"{field}.cidr")
    excepts: list[str] = []
    for number, item in enumerate(problems.list(block.get("except"), f"{field}.except")):
        path = f"{field}.except[{number}]"
        hole = parts.cidr(problems, item, path)
        if hole is not None and cidr is not None:
            if not strictly_inside(hole, cidr):
                problems.note(path, f"{shown(item)} is not strictly inside {cidr}")
            excepts.append(hole)
    return IPBlock(cidr, tuple(excepts)) if cidr is not None else None
