"""The current kernel state of this node: rules, sets, routes. Nothing is written."""

from __future__ import annotations

import enum
import errno
import socket
from dataclasses import dataclass
from types import TracebackType

from felix_py.dataplane.backend import ToolError, find_backend, has_legacy_tables, save
from felix_py.dataplane.live_sets import LiveSets
from felix_py.netlink import routes as route_messages
from felix_py.netlink.connection import Netlink
from felix_py.netlink.wire import NETLINK_ROUTE
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

    def route(self, address: str) -> Routed:
        """Look up the node's route to an address, like ``ip route get``."""
        try:
            kind, index = route_messages.looked_up(self._routes.get(route_messages.lookup(address)))
        except OSError as error:
            return Routed(Way.NOWHERE, reason=_no_route(error))
        if kind == _LOCAL:
            return Routed(Way.HERE)
        if kind != _UNICAST or not index:
            return Routed(Way.NOWHERE, reason="no route leads there")
        try:
            return Routed(Way.AWAY, socket.if_indextoname(index))
        except OSError:
            return Routed(Way.NOWHERE, reason="its interface has just gone")


def _no_route(error: OSError) -> str:
    match error.errno:
        case errno.EINVAL:
            return "a blackhole route takes it"
        case errno.ENETUNREACH | errno.EHOSTUNREACH:
            return "there is no route to it"
    return error.strerror or str(error)
