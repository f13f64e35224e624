"""Interpreter of :mod:`policy.ir` for one packet. Slow; for tests and tools."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from policy.ir import Allow, ChainId, ChainKind, Deny, Jump, Match, Pass, Program, SetKind, SetMatch, Side
from policy.model import Direction, Packet


def allowed(program: Program, packet: Packet) -> bool:
    """Whether the packet leaves its source and enters its destination. A pod always reaches its own address."""
    return all(direction_allowed(program, packet, direction) for direction in Direction)


def direction_allowed(program: Program, packet: Packet, direction: Direction) -> bool:
    """One direction: egress by the class of the source address, ingress by that of the destination.

    Raises:
        KeyError: the program refers to a chain or a set that it does not have.
    """
    if packet.source == packet.destination and not packet.by_service:
        return True
    endpoint = packet.source if direction is Direction.EGRESS else packet.destination
    chain = program.classes[direction].get(endpoint)
    # Without a class, and behind a class chain that says nothing, nothing restricts the direction.
    return chain is None or _verdict(program, chain, packet) is not False


def _verdict(program: Program, chain: ChainId, packet: Packet) -> bool | None:
    """None: the chain ends without a verdict."""
    try:
        return _walk(program, chain, packet)
    except _PassedOver:
        # A Pass leaves the calling chain, too, so a tier's chain must have jumped here.
        raise AssertionError(f"{chain} passes, but no chain of a tier jumped to it") from None


class _PassedOver(Exception):
    """A rule passes: the chain it is in ends, and the chain of the tier that jumped there."""


def _walk(program: Program, chain: ChainId, packet: Packet) -> bool | None:
    for rule in program.chains[chain].rules:
        if not _matches(program, rule.match, packet):
            continue
        match rule.action:
            case Allow():
                return True
            case Deny():
                return False
            case Pass():
                raise _PassedOver
            case Jump(target):
                try:
                    verdict = _walk(program, target, packet)
                except _PassedOver:
                    if chain.kind is not ChainKind.TIER:
                        raise
                    return None
                if verdict is not None:
                    return verdict
    return None


def _matches(program: Program, match: Match, packet: Packet) -> bool:
    return (
        (not match.itself or packet.source == packet.destination)
        and match.protocol in (None, packet.protocol)
        and (not match.ports or any(ports.first <= packet.port <= ports.last for ports in match.ports))
        and all(_in_set(program, part, packet) for part in match.sets)
    )


def _in_set(program: Program, part: SetMatch, packet: Packet) -> bool:
    members = program.members[part.id]
    address = packet.source if part.side is Side.SOURCE else packet.destination
    match program.sets[part.id]:
        case SetKind.ADDRESSES:
            return address in members
        case SetKind.ADDRESS_PORTS:
            return f"{address},{packet.protocol.lower()}:{packet.port}" in members
        case SetKind.NETWORKS:
            ip = ipaddress.ip_address(address)
            return any(ip in _network(member) for member in members)


@lru_cache(maxsize=4096)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)
