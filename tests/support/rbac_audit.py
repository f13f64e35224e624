"""Rights of a service account, held against what the API server's audit log says was asked for.

The log is one of kube-apiserver (audit.k8s.io/v1), at level Metadata or above, as JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_DECISION = "authorization.k8s.io/decision"
_FORBIDDEN = 403


class Right(NamedTuple):
    """One verb on one kind of object; ``name`` is empty for all of them. ``resource`` has its subresource."""

    group: str
    resource: str
    name: str
    verb: str

    def __str__(self) -> str:
        kind = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {kind}" + (f" {self.name}" if self.name else "")


@dataclass(frozen=True)
class Findings:
    """``unused``: rights that were granted for nothing. ``refused``: requests that were not allowed, in words.

    ``asked`` is the number of requests of the account, so that an empty log is not taken for a good one.
    """

    unused: set[Right] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    asked: int = 0


def granted(*roles: Mapping[str, Any]) -> set[Right]:
    """The rights of ClusterRoles or Roles."""
    return {
        Right(group, resource, name, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule.get("apiGroups", ())
        for resource in rule.get("resources", ())
        for name in rule.get("resourceNames") or ("",)
        for verb in rule["verbs"]
    }


def service_account(namespace: str, name: str) -> str:
    """The user name of a service account."""
    return f"system:serviceaccount:{namespace}:{name}"


def compare(rights: Collection[Right], log: Iterable[str], user: str, rarely: Collection[Right] = ()) -> Findings:
    """Compare rights with what ``user`` has asked for.

    ``rarely``: rights whose use a short run need not see.

    Raises:
        ValueError: a line is no audit event, or ``rarely`` names what is not granted.
    """
    if strange := set(rarely) - set(rights):
        raise ValueError(f"not granted: {', '.join(map(str, strange))}")
    used: set[Right] = set()
    refused: set[str] = set()
    asked = 0
    for event in _events(log):
        if event["user"]["username"] != user:
            continue
        asked += 1
        if _is_refused(event):
            refused.add(_words(event))
        elif right := _right(event):
            # A grant for all names covers one by name; a grant for a name is used by this name only.
            used |= {right, right._replace(name="")}
    return Findings({right for right in rights if right not in used} - set(rarely), refused, asked)


def _events(log: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for line in log:
        if not line.strip():
            continue
        event = json.loads(line)
        if not isinstance(event, dict) or event.get("kind") != "Event" or "verb" not in event:
            raise ValueError(f"not an audit event: {line[:200]}")
        yield event


def _is_refused(event: Mapping[str, Any]) -> bool:
    decision = event.get("annotations", {}).get(_DECISION)
    return decision == "forbid" or (
        decision is None and event.get("responseStatus", {}).get("code") == _FORBIDDEN
    )


def _right(event: Mapping[str, Any]) -> Right | None:
    """None for what is no resource (/version, /apis)."""
    asked = event.get("objectRef")
    if not asked or "resource" not in asked:
        return None
    resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
    return Right(asked.get("apiGroup", ""), resource, asked.get("name", ""), event["verb"])


def _words(event: Mapping[str, Any]) -> str:
    right = _right(event)
    return str(right) if right else f"{event['verb']} {event['requestURI'].partition('?')[0]}"
