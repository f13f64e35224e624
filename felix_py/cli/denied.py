"""The text formats of ``felix-py denies``: a table by pair of ends, short lines, wide lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from felix_py.cli.tables import columns

Event = Mapping[str, Any]
"""A :class:`felix_py.observe.deny_events.DenyEvent` as JSON."""

_SHORT = {
    "unknown-pod": "pod not known yet",
    "source": "not the pod's own address",
    "astray": "not by the pod's interface",
    "proxied": "by IPVS or a proxy, past policy",
    "error": "ICMP error about others' packets",
    "invalid": "INVALID (conntrack)",
    "midstream": "TCP without a beginning",
    "class": "unknown policy class: run felix-py verify",
    "host": "--endpoint-to-host drop",
}
_HEADER = ("LAST", "PACKETS", "FROM", "TO", "PORT", "WHY")
_ENDS = (2, 3)
"""Columns that are shortened first if a line is too long."""


def by_pair(events: Iterable[Event], width: int | None = None) -> list[str]:
    """A table with header of ends, ports, packet counts and reasons, latest last; empty without events.

    ``width``: greatest length of a line; None: unlimited.
    """
    rows: dict[tuple[str, ...], tuple[str, int]] = {}
    for event in events:
        key = (end(event.get("source")), end(event.get("destination")), service(event), why(event))
        last, packets = rows.get(key, ("", 0))
        rows[key] = (max(last, str(event.get("until", ""))), packets + count(event))
    latest_last = sorted(rows.items(), key=lambda row: row[1][0])
    table = [(clock(last), str(packets), *key) for key, (last, packets) in latest_last]
    return columns([_HEADER, *table], width, _ENDS) if table else []


def line(event: Event) -> str:
    """One event, short enough for most terminals."""
    return _line(event, end, why(event))


def wide(event: Event) -> str:
    """One event with its addresses and the agent's message."""
    return _line(event, _with_address, event.get("message", ""))


def _line(event: Event, name: Callable[[object], str], about: str) -> str:
    direction = f" {event['direction']}" if event.get("direction") else ""
    ends = f"{name(event.get('source'))} -> {name(event.get('destination'))} {service(event)}"
    times = f" x{count(event)}" if count(event) != 1 else ""
    return clean(f"{clock(str(event.get('time', '')))} DENIED{direction} {ends}{times}: {about}")


def count(event: Event) -> int:
    """Number of packets of an event."""
    found = event.get("count", 1)
    return found if isinstance(found, int) else 1


def end(found: object) -> str:
    """The pod or node of an end, or the address of one outside the cluster."""
    if not isinstance(found, dict):
        return "?"
    owner = found.get("pod") or (f"node/{found['node']}" if found.get("node") else found.get("address", "?"))
    return clean(str(owner))


def _with_address(found: object) -> str:
    if not isinstance(found, dict):
        return "?"
    owner = found.get("pod") or (f"node/{found['node']}" if found.get("node") else "world")
    return f"{owner} {found.get('address', '?')}"


def service(event: Event) -> str:
    """Port and protocol, or ICMP's type."""
    protocol = event.get("protocol", "?")
    destination = event.get("destination")
    port = destination.get("port") if isinstance(destination, dict) else None
    if port is not None:
        return clean(f"{port}/{protocol}")
    return clean(f"{protocol} type {event['icmpType']}" if "icmpType" in event else f"{protocol}")


def why(event: Event) -> str:
    """The reason in short, with the deciding rule or policy."""
    reason, direction = str(event.get("reason", "")), str(event.get("direction", ""))
    if reason == "isolated":
        names = [_name(policy) for policy in event.get("policies", ()) if policy.get("kind") == "NetworkPolicy"]
        by = f" by {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "") if names else ""
        return clean(f"{direction} isolated{by}")
    if reason == "policy" and isinstance(decider := event.get("decidedBy"), dict):
        index = decider.get("rule", -1)
        rule = f" {direction}[{index}]" if isinstance(index, int) and index >= 0 else ""
        policy = decider.get("policy", {})
        return clean(f"{policy.get('kind', '?')} {_name(policy)}{rule}")
    return clean(_SHORT.get(reason, reason))


def _name(policy: Mapping[str, Any]) -> str:
    name, namespace = policy.get("name", "?"), policy.get("namespace")
    return f"{namespace}/{name}" if namespace else str(name)


def clock(text: str) -> str:
    """Local time, with the date unless it is today."""
    when = moment(text)
    if when is None:
        return clean(text)
    local = when.astimezone()
    today = local.date() == datetime.now().astimezone().date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def moment(text: str) -> datetime | None:
    """An RFC 3339 time, or None if the text is not one or has no time zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None


def clean(text: str) -> str:
    """The text with all control characters replaced."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
