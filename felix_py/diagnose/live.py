"""The current kernel state of this node: rules, sets, routes. Nothing is written."""

from __future__ import annotations

import enum
import errno
import socket
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType

from felix_py.dataplane import sysctl
from felix_py.dataplane.backend import ToolError, find_backend, has_legacy_tables, save
from felix_py.dataplane.live_sets import LiveSets
from felix_py.netlink import nft_chains
from felix_py.netlink import routes as route_messages
from felix_py.netlink.connection import Netlink
from felix_py.netlink.wire import NETLINK_NETFILTER, NETLINK_ROUTE
from felix_py.records import Backend
from felix_py.ruleset import legacy
from felix_py.ruleset.decode_save import decode
from felix_py.ruleset.model import Ruleset
from policy.model import Family

_UNICAST, _LOCAL = 1, 2


class Way(enum.Enum):
    """Where the route to an address leads."""

    AWAY = enum.auto()
    HERE = enum.auto()
    NOWHERE = enum.auto()
    REFUSED = enum.auto()
    """There is a route, and the kernel drops such a packet all the same, whatever rules say."""


@dataclass(frozen=True, slots=True)
class Routed:
    """``interface``: the output interface. ``reason``: why there is no way."""

    way: Way
    interface: str = ""
    reason: str = ""


class Live:
    """Reads each object once, when it is first needed. Usable as a context manager."""

    def __init__(self, backend: Backend | None = None) -> None:
        """``backend`` None: this node's.

        Raises:
            ToolError: the backend's commands are not installed.
            OSError: no netlink: not root.
        """
        self.backend = find_backend(backend)
        self.notes: list[str] = []
        self._rules: dict[tuple[Family, Backend], Ruleset] = {}
        self._routes = Netlink(NETLINK_ROUTE)
        try:
            self.sets = LiveSets()
        except BaseException:
            self._routes.close()
            raise

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._routes.close()
        self.sets.close()

    def rules(self, family: Family) -> Ruleset:
        """All rules of a family, the legacy ones as python-iptables decodes them; ToolError: unreadable."""
        return self._cached(family, self.backend)

    def other_rules(self, family: Family) -> Ruleset:
        """The rules of the other backend, which the kernel runs as well; none if they cannot be read."""
        other = Backend.NFT if self.backend is Backend.LEGACY else Backend.LEGACY
        try:
            return self._cached(family, other)
        except ToolError as error:
            self.notes.append(f"rules of the other backend were not looked at: {error}")
            return self._rules.setdefault((family, other), Ruleset(family))

    def _cached(self, family: Family, backend: Backend) -> Ruleset:
        if (family, backend) not in self._rules:
            self._rules[family, backend] = self._read(family, backend)
        return self._rules[family, backend]

    def _read(self, family: Family, backend: Backend) -> Ruleset:
        if backend is Backend.LEGACY:
            if not has_legacy_tables(family):
                return Ruleset(family)
            try:
                return legacy.read(family)
            except legacy.LegacyError as error:
                self.notes.append(f"{error}; iptables-legacy-save was asked instead")
        return decode(family, save(family, backend))

    def unread_chains(self, family: Family, hooks: Collection[str]) -> list[nft_chains.BaseChain]:
        """The chains of nftables at some hooks that are not iptables' and that may drop packets.

        kube-proxy's are left out: they are about packets to Services, which are not explained.
        """
        return [
            chain
            for chain in self._native_chains
            if family in chain.families and chain.hook in hooks and chain.type != "nat"
            if not (chain.idle or chain.of_iptables or chain.table == "kube-proxy")
        ]

    @cached_property
    def _native_chains(self) -> list[nft_chains.BaseChain]:
        with Netlink(NETLINK_NETFILTER) as netlink:
            try:
                return list(filter(None, map(nft_chains.read, netlink.dump(nft_chains.dump()))))
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a kernel without nftables
                    raise
                return []

    def route(self, address: str, source: str = "", arrives: str = "") -> Routed:
        """Look up the node's route to an address, like ``ip route get``.

        ``source`` and ``arrives`` (an interface) are those of the packet: with them policy routing, rp_filter and
        whether packets are forwarded at all count.
        """
        family = Family.V6 if ":" in address else Family.V4
        try:
            index = socket.if_nametoindex(arrives) if arrives else 0
            answer = self._routes.get(route_messages.lookup(address, source, index))
            kind, index = route_messages.looked_up(answer)
        except OSError as error:
            if source and (plain := self.route(address)).way is not Way.NOWHERE:
                return _refused(source, arrives, plain.way is Way.AWAY and not _forwards(family, arrives))
            return Routed(Way.NOWHERE, reason=_no_route(error))
        if kind == _LOCAL:
            return Routed(Way.HERE)
        if kind != _UNICAST or not index:
            return Routed(Way.NOWHERE, reason="no route leads there")
        if arrives and not _forwards(family, arrives):
            return _refused(source, arrives, forwarding_off=True)
        try:
            return Routed(Way.AWAY, socket.if_indextoname(index))
        except OSError:
            return Routed(Way.NOWHERE, reason="its interface has just gone")


def _refused(source: str, arrives: str, forwarding_off: bool) -> Routed:
    """There is a route, but none for a packet with this source and interface."""
    if forwarding_off:
        return Routed(Way.REFUSED, reason=f"nothing is forwarded that comes by {arrives} (sysctl forwarding)")
    way = f" by {arrives}" if arrives else ""
    return Routed(Way.REFUSED, reason=f"the kernel takes nothing for it from {source}{way} (rp_filter, ip rule)")


def _forwards(family: Family, interface: str) -> bool:
    """Whether packets that come by an interface (empty: from this node) go on; IPv6 has one switch for all."""
    if not interface:
        return True
    place = f"ipv4/conf/{interface}" if family is Family.V4 else "ipv6/conf/all"
    return sysctl.read(f"{place}/forwarding") != "0"


def _no_route(error: OSError) -> str:
    match error.errno:
        case errno.EINVAL:
            return "a blackhole route takes it"
        case errno.ENETUNREACH | errno.EHOSTUNREACH:
            return "there is no route to it"
        case errno.EACCES:
            return "a prohibit route takes it"
    return error.strerror or str(error)
