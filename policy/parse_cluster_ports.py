"""Ports of the group policy.networking.k8s.io: one entry of a rule's list -> Ports, () if malformed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policy import parts
from policy.model import Port, Protocol
from policy.problems import Problems
from policy.syntax import bad_port_name, bad_port_number


def v1alpha2_port(problems: Problems, item: object, field: str) -> tuple[Port, ...]:
    """One ClusterNetworkPolicyProtocol."""
    known = (*(protocol.lower() for protocol in Protocol), "destinationNamedPort")
    match problems.choice(item, field, known):
        case None:
            return ()
        case ("destinationNamedPort", name):
            return _named(problems, name, f"{field}.destinationNamedPort")
        case (protocol, value):
            return _attributes(problems, value, f"{field}.{protocol}", Protocol(protocol.upper()))


def _attributes(problems: Problems, obj: object, field: str, protocol: Protocol) -> tuple[Port, ...]:
    """A ClusterNetworkPolicyProtocolTCP, …UDP or …SCTP.

    The API demands at least one attribute, and destinationPort is the only known one: if it is missing, there was
    another one, unknown to the API server or to us.
    """
    attributes = problems.choice(obj, field, ("destinationPort",))
    if attributes is None:
        return ()
    path = f"{field}.destinationPort"
    match problems.choice(attributes[1], path, ("number", "range")):
        case None:
            return ()
        case ("number", value):
            number = problems.number(value, f"{path}.number", bad_port_number)
            return () if number is None else (Port(protocol, number),)
        case (_, value):
            bounds = problems.mapping(value, f"{path}.range", ("start", "end"))
            return () if bounds is None else _range(problems, bounds, f"{path}.range", protocol)


def v1alpha1_port(problems: Problems, item: object, field: str) -> tuple[Port, ...]:
    """One AdminNetworkPolicyPort."""
    match problems.choice(item, field, ("portNumber", "portRange", "namedPort")):
        case None:
            return ()
        case ("namedPort", name):
            return _named(problems, name, f"{field}.namedPort")
        case (what, value):
            path = f"{field}.{what}"
    numbers = ("port",) if what == "portNumber" else ("start", "end")
    port = problems.mapping(value, path, ("protocol", *numbers))
    if port is None:
        return ()
    protocol = parts.protocol(problems, port.get("protocol"), f"{path}.protocol")
    if protocol is None:
        return ()
    if what == "portRange":
        return _range(problems, port, path, protocol)
    number = problems.number(port.get("port"), f"{path}.port", bad_port_number)
    return () if number is None else (Port(protocol, number),)


def _range(problems: Problems, bounds: Mapping[str, Any], field: str, protocol: Protocol) -> tuple[Port, ...]:
    before = len(problems)
    start = problems.number(bounds.get("start"), f"{field}.start", bad_port_number)
    end = problems.number(bounds.get("end"), f"{field}.end", bad_port_number)
    if start is None or end is None:
        return ()
    if len(problems) == before and start >= end:
        problems.note(field, f"start {start} is not less than end {end}")
    return (Port(protocol, start, end),)


def _named(problems: Problems, value: object, field: str) -> tuple[Port, ...]:
    """A named port matches by its name alone, whatever its protocol."""
    name = problems.text(value, field, bad_port_name)
    return () if name is None else tuple(Port(protocol, name) for protocol in Protocol)
