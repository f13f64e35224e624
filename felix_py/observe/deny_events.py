"""Events of denied packets for operators and scripts: the packet's ends, and the policy that denied it."""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from felix_py.dataplane.ip_header import IPHeader
from felix_py.dataplane.nflog import LoggedPacket
from felix_py.desired.deny_log import Drop, DropKind, parse_prefix
from felix_py.desired.names import chain_name
from felix_py.layout import INTERFACE_PREFIX
from felix_py.observe.chain_names import ChainNames
from policy.model import Direction, ObjectKey, PolicyKind, PolicyRef
from policy.oracle.evaluate import View

_NAMED = 3
"""Policies named in a message at most; the event lists all."""


class Reason(enum.StrEnum):
    """Reason of a drop."""

    ISOLATED = "isolated"
    """Policies isolate the pod in this direction, and none allows the packet."""
    UNKNOWN_POD = "unknown-pod"
    """The pod or its namespace has never been seen, so nothing is allowed yet."""
    POLICY = "policy"
    """A Deny rule of a cluster-scoped policy."""
    SOURCE = "source"
    """A pod sent from an address that is not its own, or another host from the address of a pod of this node."""
    INVALID = "invalid"
    """Connection tracking knows no connection that the packet could belong to."""
    MIDSTREAM = "midstream"
    """TCP without its SYN, as after a revocation: conntrack could take it for a connection that policy allows."""
    ASTRAY = "astray"
    """The packet is for a pod of this node, but is routed to an interface that is not the pod's."""
    PROXIED = "proxied"
    """The node sent it with another source (IPVS, a transparent proxy), so that policy was bypassed."""
    ERROR = "error"
    """An ICMP error of a pod about a packet that was not sent to it, which would bypass policy."""
    CLASS = "class"
    """The rules do not know the packet's policy class: a defect, or rules that another program changed."""
    HOST = "host"
    """The node drops what its pods send to it (--endpoint-to-host drop)."""


class _Record(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class PolicyName(_Record, frozen=True):
    """A policy object. ``namespace`` is empty for cluster-scoped kinds."""

    kind: str
    name: str
    namespace: str = ""


class Decider(_Record, frozen=True):
    """The rule that denied. ``rule`` counts from 0 in the policy's list of the direction; -1: not known."""

    policy: PolicyName
    rule: int = -1
    rule_name: str = ""
    tier: str = ""


class End(_Record, frozen=True):
    """One end of a packet. ``pod`` (NAMESPACE/NAME) or ``node`` names the address's owner, if known.

    ``port`` of a source is that of the first packet counted.
    """

    address: str
    pod: str = ""
    node: str = ""
    port: int | None = None


class DenyEvent(_Record, frozen=True):
    """Equal packets that were denied within a short time.

    ``id`` grows, also over restarts of the agent. ``time`` and ``until`` are those of the first and the last
    packet (RFC 3339). ``count`` is of logged packets, which are fewer than dropped ones at high rates.
    ``direction`` is empty if the rule is for both. ``endpoint``: the pod of this node whose policy or address it
    was, as NAMESPACE/NAME.
    """

    id: int
    time: str
    until: str
    count: int
    node: str
    reason: Reason
    message: str
    source: End
    destination: End
    protocol: str
    direction: str = ""
    endpoint: str = ""
    icmp_type: int | None = None
    icmp_code: int | None = None
    policies: tuple[PolicyName, ...] = ()
    decided_by: Decider | None = None
    hook: str = ""
    in_interface: str = ""
    out_interface: str = ""


def timestamp(seconds: float) -> str:
    """Returns seconds since the epoch as RFC 3339 text."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def pair_of(event: DenyEvent) -> tuple[str, str]:
    """Returns the ends for people: pod, node or address, and the destination's port and protocol."""
    ends = (event.source, event.destination)
    source, destination = (end.pod or (f"node/{end.node}" if end.node else end.address) for end in ends)
    port = "" if event.destination.port is None else f":{event.destination.port}"
    return source, f"{destination}{port}/{event.protocol}"


EventKey = tuple[Any, ...]


def drop_of(packet: LoggedPacket) -> tuple[Drop, IPHeader] | None:
    """Returns a logged packet's drop and IP header, or None if the rule is not ours or it is no IP packet."""
    drop = parse_prefix(packet.prefix)
    return None if drop is None or packet.header is None else (drop, packet.header)


def event_key(drop: Drop, header: IPHeader) -> EventKey:
    """Returns the key of a packet's event: its drop, addresses, protocol and port."""
    return (drop, header.source, header.destination, header.protocol, header.port, header.icmp)


class Describer:
    """Makes an event of a packet from the agent's current state."""

    def __init__(
        self,
        node: str,
        view: View,
        chains: ChainNames,
        endpoint_at: Callable[[str], ObjectKey | None],
        interface_name: Callable[[int], str] = socket.if_indextoname,
    ) -> None:
        """``endpoint_at``: the pod of a local interface. ``interface_name`` raises OSError for an unknown one."""
        self._node = node
        self._view = view
        self._chains = chains
        self._endpoint_at = endpoint_at
        self._interface_name = interface_name

    def event(self, number: int, packet: LoggedPacket, drop: Drop, header: IPHeader) -> DenyEvent:
        """Returns the event of one packet."""
        indev, outdev = self._interface(packet.indev), self._interface(packet.outdev)
        source = self._end(header.source, header.source_port)
        destination = self._end(header.destination, header.port)
        if drop.kind is DropKind.SOURCE:
            # The source address is spoofed; the interface identifies the pod.
            owner = self._endpoint_at(indev)
            source = End(header.source, "/".join(owner) if owner else "", "", header.source_port)
        ends = {Direction.EGRESS: source.pod, Direction.INGRESS: destination.pod}
        endpoint = ends[drop.direction] if drop.direction else ""
        policies = self._chains.policies(drop.chain) if drop.chain else ()
        reason = _reason(drop, policies)
        decider = self._decider(drop, policies) if reason is Reason.POLICY and policies else None
        now = timestamp(packet.time)
        return DenyEvent(
            id=number,
            time=now,
            until=now,
            count=1,
            node=self._node,
            reason=reason,
            message=_message(reason, drop, policies, decider, source, indev, outdev),
            source=source,
            destination=destination,
            protocol=header.protocol_name,
            direction=drop.direction.lower() if drop.direction else "",
            endpoint=endpoint,
            icmp_type=header.icmp[0] if header.icmp else None,
            icmp_code=header.icmp[1] if header.icmp else None,
            policies=tuple(map(_name, policies or ())),
            decided_by=decider,
            hook=packet.hook,
            in_interface=indev,
            out_interface=outdev,
        )

    def pods_of(self, header: IPHeader) -> tuple[ObjectKey | None, ObjectKey | None]:
        """Returns the pods that have a packet's addresses now."""
        source, destination = self._view.pod_at(header.source), self._view.pod_at(header.destination)
        return source.key if source else None, destination.key if destination else None

    def _interface(self, index: int) -> str:
        try:
            return self._interface_name(index) if index else ""
        except (OSError, OverflowError):
            return ""

    def _end(self, address: str, port: int | None) -> End:
        if pod := self._view.pod_at(address):
            return End(address, f"{pod.namespace}/{pod.name}", "", port)
        node = next((node.name for node in self._view.nodes() if address in node.addresses), "")
        return End(address, "", node, port)

    def _decider(self, drop: Drop, policies: Sequence[PolicyRef]) -> Decider:
        ref = policies[0]
        policy = next((p for p in self._view.cluster_policies() if p.ref == ref), None)
        if policy is None or drop.direction is None:
            return Decider(_name(ref), drop.rule)
        rules = policy.rules(drop.direction)
        name = rules[drop.rule].name if 0 <= drop.rule < len(rules) else ""
        return Decider(_name(ref), drop.rule, name, policy.tier.value)


def _name(ref: PolicyRef) -> PolicyName:
    return PolicyName(ref.kind.value, ref.name, ref.namespace)


def _reason(drop: Drop, policies: Sequence[PolicyRef] | None) -> Reason:
    if drop.kind is DropKind.ISOLATED and policies is not None and not policies:
        return Reason.UNKNOWN_POD
    return Reason(drop.kind.value)


def _message(
    reason: Reason,
    drop: Drop,
    policies: Sequence[PolicyRef] | None,
    decider: Decider | None,
    source: End,
    indev: str,
    outdev: str,
) -> str:
    direction = drop.direction.lower() if drop.direction else ""
    chain = chain_name(drop.chain) if drop.chain else ""
    match reason:
        case Reason.ISOLATED:
            return _isolated(direction, policies, chain)
        case Reason.UNKNOWN_POD:
            return f"the pod or its namespace is not known yet, so that nothing is allowed ({direction})"
        case Reason.POLICY:
            return _denied(direction, decider, chain)
        case Reason.SOURCE if indev and not indev.startswith(INTERFACE_PREFIX):
            return f"{source.address} is the address of a pod of this node, whose interface is not {indev}"
        case Reason.ASTRAY:
            return f"its pod is on this node, but {outdev or 'the way there'} is not the pod's interface"
        case Reason.SOURCE:
            return f"{source.pod or 'the pod'} sent from {source.address}, which is not its address"
        case Reason.INVALID:
            return "connection tracking calls it INVALID: it belongs to no known connection"
        case Reason.MIDSTREAM:
            return "a TCP connection that was revoked, or of which its beginning was not seen"
        case Reason.PROXIED:
            return "the node sent it in another's name (IPVS, a transparent proxy), where no policy is asked"
        case Reason.ERROR:
            return f"an ICMP error of {source.pod or 'the pod'} about a packet that was not sent to it"
        case Reason.CLASS:
            return f"the rules do not know the policy class of its pod ({direction})"
        case Reason.HOST:
            return "the node takes nothing from its pods (--endpoint-to-host drop)"


def _isolated(direction: str, policies: Sequence[PolicyRef] | None, chain: str) -> str:
    if policies is None:
        return f"isolated by a policy class that is gone ({direction}, {chain})"
    isolating = [f"{p.namespace}/{p.name}" for p in policies if p.kind is PolicyKind.NETWORK]
    if len(isolating) == 1:
        return f"isolated by NetworkPolicy {isolating[0]} ({direction}); none of its rules allows it"
    more = len(isolating) - _NAMED
    named = ", ".join(isolating[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"isolated by NetworkPolicies {named} ({direction}); none of their rules allows it"


def _denied(direction: str, decider: Decider | None, chain: str) -> str:
    if decider is None:
        return f"denied by a policy that is gone ({direction}, {chain})"
    policy = PolicyRef(PolicyKind(decider.policy.kind), decider.policy.namespace, decider.policy.name)
    rule = (
        policy.rule(direction, decider.rule, decider.rule_name) if decider.rule >= 0 else f"{policy} {direction}"
    )
    return f"denied by {rule}" + (f" ({decider.tier} tier)" if decider.tier else "")
