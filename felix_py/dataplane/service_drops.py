"""Drops packets for announced Service prefixes that no Service has taken: they would go back whence they came.

kube-proxy translates a packet for a Service in nat PREROUTING, before it is routed. What still has a Service
address when it is routed takes the default route, back to the router that sent it here. A blackhole route in the
main table would stop it, but the node's own packets are routed before kube-proxy translates them (nat OUTPUT):
processes on the node would reach no Service any more. So the blackholes are in tables of their own, one for each
prefix length, and rules look into them as if they were in the main table (longest prefix first), for all but the
node's own packets:

    iif lo lookup main                              the node's own packets
    lookup main suppress_prefixlength 31            a route of whomever, at least as long, wins
    lookup 88032                                    else: blackhole for /32
    lookup main suppress_prefixlength 11
    lookup 88012                                    ... and for /12
    (32766: lookup main)

Source: rtnetlink(7), include/uapi/linux/fib_rules.h, net/core/fib_rules.c.
"""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import NamedTuple

from felix_py import log
from felix_py.layout import ROUTE_PROTOCOL_PODS
from felix_py.netlink.connection import Netlink
from felix_py.netlink.routes import (
    RTM_DELROUTE,
    RTM_NEWROUTE,
    TABLE_MAIN,
    Destination,
    destination_text,
    dump_table,
    parse_destination,
    read_destination,
)
from felix_py.netlink.rules import RTM_DELRULE, RTM_NEWRULE, Rule, dump, pack, read
from felix_py.netlink.wire import AF, NETLINK_ROUTE, NLM_F_CREATE, NLM_F_EXCL, attr, attributes, message
from felix_py.refs import RouteRef
from policy.model import Family

TABLES = 88_000
"""The table of blackholes of prefix length N is this number and N."""

PRIORITY = 32_400
"""Of the first of our rules. All are behind the rules of others, which usually have less, and before the main
table's 32766."""

REFRESH = 30.0
"""Seconds after which the kernel is compared without any change of ours."""

_RETRY = 5.0
_MOST_NAMED = 10
_RTA_DST, _RTA_TABLE = 1, 15
_BLACKHOLE, _SCOPE_UNIVERSE, _SCOPE_ANY = 6, 0, 255
_ALL_TABLES, _COMPAT = 0, 252
_OWN = ROUTE_PROTOCOL_PODS
_HEAD = struct.Struct("=BBBBBBBBI")
"""rtmsg."""

_U32 = struct.Struct("=I")


class _Todo(NamedTuple):
    """How the kernel differs from what is wanted."""

    new_routes: list[Destination]
    new_rules: list[Rule]
    old_rules: list[Rule]
    old_routes: list[Destination]

    @property
    def missing(self) -> list[str]:
        return [*_blackholes(self.new_routes), *map(str, self.new_rules)]

    @property
    def surplus(self) -> list[str]:
        return [*map(str, self.old_rules), *_blackholes(self.old_routes)]


class ServiceDrops:
    """Our rules and blackholes of the given families, in the network namespace of the calling thread."""

    def __init__(self, families: Collection[Family]) -> None:
        self._families = tuple(families)

    def apply(self, prefixes: Iterable[str]) -> list[str]:
        """Have exactly these prefixes dropped; those of other families, and /0, are left out.

        Returns what has changed in the kernel, for people.

        Raises:
            OSError: the kernel refuses; the next call goes on.
            ValueError: a text is no CIDR.
        """
        with Netlink(NETLINK_ROUTE) as netlink:
            todo = self._todo(netlink, prefixes)
            # A rule that lets others' routes win comes before the one that drops, and goes after it.
            netlink.carry_out([_route(one, RTM_NEWROUTE) for one in todo.new_routes])
            netlink.carry_out([pack(rule, _OWN, RTM_NEWRULE) for rule in todo.new_rules])
            netlink.carry_out([pack(rule, _OWN, RTM_DELRULE) for rule in todo.old_rules])
            netlink.carry_out([_route(one, RTM_DELROUTE) for one in todo.old_routes])
        return [*(f"added {words}" for words in todo.missing), *(f"removed {words}" for words in todo.surplus)]

    def differences(self, prefixes: Iterable[str]) -> tuple[list[str], list[str]]:
        """What of ours :meth:`apply` would add, and what it would remove, for people. Raises as that does."""
        with Netlink(NETLINK_ROUTE) as netlink:
            todo = self._todo(netlink, prefixes)
        return todo.missing, todo.surplus

    def _todo(self, netlink: Netlink, prefixes: Iterable[str]) -> _Todo:
        parsed = {parse_destination(RouteRef(prefix, _OWN)) for prefix in prefixes}
        wanted = {one for one in parsed if one[0] in self._families and one[2]}
        ordered = _rules(wanted)
        present, routes = self._read(netlink)
        return _Todo(
            sorted(wanted - routes),
            [rule for rule in ordered if rule not in present],
            sorted(present - set(ordered), reverse=True),
            sorted(routes - wanted),
        )

    def owned(self) -> list[str]:
        """What of ours is in the kernel, for people. Raises OSError."""
        with Netlink(NETLINK_ROUTE) as netlink:
            present, routes = self._read(netlink)
        return [*map(str, sorted(present)), *_blackholes(sorted(routes))]

    def _read(self, netlink: Netlink) -> tuple[set[Rule], set[Destination]]:
        found: set[Rule] = set()
        routes: set[Destination] = set()
        for family in self._families:
            try:
                answers = netlink.dump(dump(family))
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    continue  # a kernel without policy routing has none
                raise
            found.update(rule for rule in (read(family, answer, _OWN) for answer in answers) if rule)
            for answer in netlink.dump(dump_table(family, _ALL_TABLES, _OWN)):
                destination, _ = read_destination(answer)
                if _number(answer, _RTA_TABLE) == TABLES + destination[2]:
                    routes.add(destination)
        return found, routes


class Dropping:
    """Keeps the kernel at what is announced now. On the event loop."""

    def __init__(self, families: Collection[Family], tell: Callable[[str], None]) -> None:
        """``tell`` gets why packets cannot be dropped, or an empty text once they are."""
        self._drops = ServiceDrops(families)
        self._tell = tell
        self._prefixes: frozenset[str] | None = None
        self._due = asyncio.Event()
        self._log = log.get("services")

    def set(self, prefixes: Iterable[str]) -> None:
        """Drop packets for these prefixes, once they have no Service. Before the first call nothing changes."""
        now = frozenset(prefixes)
        if now != self._prefixes:
            self._prefixes = now
            self._due.set()

    @property
    def prefixes(self) -> frozenset[str] | None:
        """What is to be dropped; None: not known yet."""
        return self._prefixes

    async def run(self) -> None:
        """Run until cancelled; the kernel stays as it is."""
        applied: frozenset[str] | None = None
        await self._due.wait()
        while True:
            self._due.clear()
            wanted = self._prefixes
            assert wanted is not None
            try:
                changed = await asyncio.to_thread(self._drops.apply, wanted)
            except (OSError, ValueError) as error:
                self._tell(f"packets for announced Service prefixes without a Service are not dropped: {error}")
                wait = _RETRY
            else:
                self._tell("")
                if changed and applied == wanted:
                    self._log.warning("mended what others changed", what=changed[:_MOST_NAMED])
                applied, wait = wanted, REFRESH
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), wait)


def _rules(prefixes: Iterable[Destination]) -> list[Rule]:
    """The rules for these blackholes, in the order in which they may come one after the other."""
    lengths = {(family, length) for family, _, length in prefixes}
    found: list[Rule] = []
    for family in sorted({family for family, _ in lengths}):
        found.append(Rule(family, PRIORITY, TABLE_MAIN, own_packets=True))
        for length in sorted((number for its, number in lengths if its is family), reverse=True):
            place = PRIORITY + 2 * (Family.V6.bits - length) + 1
            found.append(Rule(family, place, TABLE_MAIN, suppress=length - 1))
            found.append(Rule(family, place + 1, TABLES + length))
    return found


def _route(destination: Destination, kind: int) -> bytes:
    family, packed, length = destination
    new = kind == RTM_NEWROUTE
    scope = _SCOPE_UNIVERSE if new else _SCOPE_ANY
    head = _HEAD.pack(AF[family], length, 0, 0, _COMPAT, _OWN, scope, _BLACKHOLE, 0)
    body = head + attr(_RTA_DST, packed) + attr(_RTA_TABLE, _U32.pack(TABLES + length))
    return message(kind, NLM_F_CREATE | NLM_F_EXCL if new else 0, body)


def _number(answer: memoryview, kind: int, otherwise: int = 0) -> int:
    found = attributes(answer[_HEAD.size :])
    return int(_U32.unpack(found[kind])[0]) if kind in found else otherwise


def _blackholes(destinations: Iterable[Destination]) -> list[str]:
    return [f"blackhole {destination_text(one)}" for one in destinations]
