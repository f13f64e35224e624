"""Parsers that the policy APIs share: labels, label selectors, protocols, CIDRs.

Each function notes malformed parts and returns the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from policy.model import Labels, Operator, Protocol, Requirement, Selector
from policy.problems import Problems
from policy.syntax import bad_label_key, bad_label_value, canonical_cidr, shown

_OPERATORS: Final = frozenset(operator.value for operator in Operator)
_PROTOCOLS: Final = frozenset(protocol.value for protocol in Protocol)


def labels(problems: Problems, obj: object, field: str) -> Labels:
    """The well-formed labels, sorted by key. None: no labels."""
    if obj is None:
        return ()
    if not isinstance(obj, Mapping):
        problems.note(field, f"must be an object, not {shown(obj)}")
        return ()
    found: list[tuple[str, str]] = []
    for key, value in obj.items():
        before = len(problems)
        if problems.text(key, field, bad_label_key) is not None:
            text = problems.text(value, f"{field}[{shown(key)}]", bad_label_value)
            if text is not None and len(problems) == before:
                found.append((key, text))
    return tuple(sorted(found))


def selector(problems: Problems, obj: object, field: str) -> Selector:
    """A LabelSelector (API: meta/v1) with its well-formed requirements; without others it selects too much."""
    found = problems.mapping(obj, field, ("matchLabels", "matchExpressions"))
    if found is None:
        return Selector()
    pairs = labels(problems, found.get("matchLabels"), f"{field}.matchLabels")
    requirements = {Requirement(key, Operator.IN, (value,)) for key, value in pairs}
    path = f"{field}.matchExpressions"
    for number, item in enumerate(problems.list(found.get("matchExpressions"), path)):
        before = len(problems)
        requirement = _requirement(problems, item, f"{path}[{number}]")
        if requirement is not None and len(problems) == before:
            requirements.add(requirement)
    return Selector(tuple(sorted(requirements, key=lambda r: (r.key, r.operator, r.values))))


def _requirement(problems: Problems, item: object, field: str) -> Requirement | None:
    """Invalid if a problem was noted."""
    requirement = problems.mapping(item, field, ("key", "operator", "values"))
    if requirement is None:
        return None
    key = problems.text(requirement.get("key"), f"{field}.key", bad_label_key)
    path = f"{field}.values"
    listed = problems.list(requirement.get("values"), path)
    values = {problems.text(v, f"{path}[{n}]", bad_label_value) or "" for n, v in enumerate(listed)}
    operator = _operator(problems, requirement.get("operator"), f"{field}.operator")
    if key is None or operator is None:
        return None
    if operator in (Operator.IN, Operator.NOT_IN):
        if not listed:
            problems.note(path, f"must not be empty with {operator}")
    elif listed:
        problems.note(path, f"must be empty with {operator}")
    return Requirement(key, operator, tuple(sorted(values)))


def _operator(problems: Problems, value: object, field: str) -> Operator | None:
    text = problems.text(value, field)
    if text in _OPERATORS:
        return Operator(text)
    if text is not None:
        problems.note(field, f"unknown operator {shown(text)}")
    return None


def protocol(problems: Problems, value: object, field: str) -> Protocol | None:
    """A core/v1 Protocol. Null: TCP, the default of all these APIs."""
    if value is None:
        return Protocol.TCP
    text = problems.text(value, field)
    if text in _PROTOCOLS:
        return Protocol(text)
    if text is not None:
        problems.note(field, f"unknown protocol {shown(text)}")
    return None


def cidr(problems: Problems, value: object, field: str) -> str | None:
    """A CIDR in canonical form."""
    text = problems.text(value, field)
    try:
        return canonical_cidr(text) if text is not None else None
    except ValueError as error:
        problems.note(field, str(error))
        return None
