"""The host ends of pod interfaces: their wanted state, and keeping them in it.

The wanted host ends follow from the routes: every interface that a route to a pod goes through. An interface is
identified by its index, or by its label if it has one, not by its name. So a renamed host end is found, and
another interface that has got its name is not taken for it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterable
from functools import cached_property

from felix_py.dataplane import sysctl
from felix_py.dataplane.link_label import read_label
from felix_py.dataplane.order import Step
from felix_py.dataplane.part import Part, Sweep
from felix_py.dataplane.protocols import Look
from felix_py.dataplane.sysctl import HostSettings
from felix_py.layout import GATEWAY, HOST_MAC, LINK_GROUP, ROUTE_PROTOCOL_PODS, is_interface_name
from felix_py.netlink import links as messages
from felix_py.netlink.connection import Netlink
from felix_py.netlink.links import Link
from felix_py.netlink.wire import NETLINK_ROUTE, attr, nested
from felix_py.records import Drift, Failure, Report, Route, Update
from felix_py.refs import LinkRef, RouteRef, SysctlRef
from policy.model import Family

MAC = bytes.fromhex(HOST_MAC.replace(":", ""))

LEAST_MTU_OF_V6 = 1280
"""RFC 8200 section 5: with less, an interface has no IPv6."""

_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_MODE_NONE = 8, 1

SYSCTLS = {
    # No source routing: policy judges the destination in the header, so the packet must not name further hops.
    Family.V4: {
        "forwarding": "1",
        "rp_filter": "1",
        "proxy_arp": "0",
        "send_redirects": "0",
        "accept_redirects": "0",
        "accept_source_route": "0",
    },
    # A pod's router advertisements must not configure the node.
    Family.V6: {
        "disable_ipv6": "0",
        "forwarding": "1",
        "accept_ra": "0",
        "autoconf": "0",
        "accept_redirects": "0",
        "accept_source_route": "-1",
        "seg6_enabled": "0",
        "rpl_seg_enabled": "0",
    },
}
_IFLA_INET_CONF = 1
_CONF = {
    "forwarding": 1,
    "proxy_arp": 3,
    "accept_redirects": 4,
    "send_redirects": 6,
    "rp_filter": 8,
    "accept_source_route": 9,
}
"""IPv4's settings as IPV4_DEVCONF_… (include/uapi/linux/ip.h)."""

CONF_OF_V6 = {
    "forwarding": 0,
    "accept_ra": 3,
    "accept_redirects": 4,
    "autoconf": 5,
    "accept_source_route": 24,
    "disable_ipv6": 26,
    "seg6_enabled": 44,
    "rpl_seg_enabled": 51,
}
"""IPv6's as DEVCONF_… (include/uapi/linux/ipv6.h): netlink tells all of them at once, and takes none. The last
two are of Linux 4.10 and 5.7: older kernels lack what they switch off."""


_SETTINGS_OF_V4 = nested(
    socket.AF_INET,
    nested(
        _IFLA_INET_CONF,
        b"".join(attr(_CONF[name], messages.U32.pack(int(value))) for name, value in SYSCTLS[Family.V4].items()),
    ),
)


def configure(
    netlink: Netlink, index: int, name: str, families: Collection[Family], mtu: int, label: str
) -> None:
    """Bring a host end that has our MAC to the state that :class:`HostEnds` keeps it in, and label it.

    Its MTU, in bytes, is at least 1280 if ``families`` has IPv6.

    Raises:
        OSError: the kernel refused a part of it.
    """
    if Family.V6 in families:
        _set_up_v6(netlink, index, name)
    # One message: each one has an event, and as files IPv4's settings would take 20 us each.
    settings = _SETTINGS_OF_V4 if Family.V4 in families else b""
    attrs = messages.mtu_attr(mtu) + (messages.alias_attr(label) if label else b"")
    _set_up(netlink, index, name, families, attrs, settings, with_v6=mtu >= LEAST_MTU_OF_V6)


def _set_up_v6(netlink: Netlink, index: int, name: str) -> None:
    if not (found := messages.read_ipv6_settings(netlink.get(messages.get_link_at(index)))):
        raise OSError(errno.EAFNOSUPPORT, f"{name} has no IPv6")
    for setting, value in SYSCTLS[Family.V6].items():
        place = CONF_OF_V6[setting]
        if place < len(found) and found[place] != int(value):
            sysctl.put(_sysctl(Family.V6, name, setting), value)


def rename(netlink: Netlink, index: int, name: str) -> None:
    """Rename an interface; it goes down for a moment if the kernel requires that (before Linux 6.2).

    Raises:
        OSError: the kernel refused.
    """
    renaming = messages.change(index, messages.name_attr(name))
    try:
        netlink.carry_out([renaming])
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        netlink.carry_out([messages.set_down(index), renaming, messages.set_up(index)])


def _sysctl(family: Family, name: str, setting: str) -> str:
    return f"ipv{int(family)}/conf/{name}/{setting}"


def _set_up(
    netlink: Netlink,
    index: int,
    name: str,
    families: Collection[Family],
    attrs: bytes,
    settings: bytes = b"",
    *,
    with_v6: bool = True,
) -> None:
    """``settings``: IPv4's, for IFLA_AF_SPEC; ``with_v6``: whether the MTU leaves the interface its IPv6."""
    settings += _no_automatic_address(name) if with_v6 else b""
    spec = nested(messages.IFLA_AF_SPEC, settings) if settings else b""
    requests = [messages.set_up(index, attrs, spec)]
    if Family.V6 in families:
        # Neighbour solicitations for the pod's address need a link-local source.
        requests.append(messages.new_address(index, Family.V6, GATEWAY[Family.V6], 64))
    netlink.carry_out(requests)


def _no_automatic_address(name: str) -> bytes:
    """Setting that keeps the kernel from generating a link-local address for the host end."""
    # With ipv6.disable=1, or an MTU below 1280, the interface has no IPv6, and the setting would be refused.
    if not os.path.isdir(f"/proc/sys/net/ipv6/conf/{name}"):
        return b""
    mode = attr(_IFLA_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_MODE_NONE]))
    return nested(socket.AF_INET6, mode)


class _Found:
    """The interfaces of a look."""

    def __init__(self, links: Iterable[Link] = ()) -> None:
        self._links = tuple(links)
        self.by_name = {link.name: link for link in self._links}
        self.by_index = {link.index: link for link in self._links}

    @cached_property
    def labelled(self) -> dict[str, Link]:
        """Interfaces by the name in their label. Seldom needed, and some 10 us for each interface."""
        found: dict[str, Link] = {}
        for link in self._links:
            # Of two interfaces with one label, the one that also has the name counts.
            lease = read_label(link.alias)
            if lease and (link.name == lease.interface or lease.interface not in found):
                found[lease.interface] = link
        return found


class HostEnds(Part):
    """The host ends that routes to pods go through, in the network namespace where this was made."""

    looks = Look.LINKS

    def __init__(self, settings: HostSettings) -> None:
        """``settings`` must be loaded first: a host end must forward the families that the host forwards."""
        self.steps = {Step.MEND_LINKS: self.mend}
        self._host = settings
        self._netlink = Netlink(NETLINK_ROUTE)
        self._through: dict[RouteRef, str] = {}
        self._new: set[str] = set()
        self._index: dict[str, int] = {}
        self._grouped: set[str] = set()
        self._displaced: dict[str, int] = {}
        self._renamed: dict[str, int] = {}
        self._broken: dict[str, tuple[int, tuple[Family, ...]]] = {}
        self.gone: frozenset[str] = frozenset()
        """Host ends that the last load did not find. Any thread may read this."""
        self._settings: dict[str, dict[str, str]] = {}
        self._drifted: dict[str, list[Drift]] = {}

    def close(self) -> None:
        self._netlink.close()

    def update(self, update: Update) -> None:
        """Host ends follow from routes: without a route, an interface is not looked after."""
        for key, route in update.routes.items():
            self._route(key, route)

    def _route(self, key: RouteRef, route: Route | None) -> None:
        name = self._through.pop(key, "")
        if route is not None and key.protocol == ROUTE_PROTOCOL_PODS:
            for hop in route.next_hops:
                self._through[key] = hop.interface
                self._new.add(hop.interface)
                self.gone -= {hop.interface}  # a pod's interface is made before its route is wanted
        if name and name not in self._through.values():
            self._forget(name)

    def _forget(self, name: str) -> None:
        self.gone -= {name}
        self._new.discard(name)
        self._grouped.discard(name)
        for known in (self._index, self._displaced, self._renamed, self._broken, self._settings, self._drifted):
            known.pop(name, None)

    def release(self) -> None:
        """Want no host ends; the interface of each name is remembered."""
        self.gone = frozenset()
        for noted in (self._through, self._new, self._displaced, self._renamed, self._broken, self._settings):
            noted.clear()
        self._drifted.clear()

    # --- looking -------------------------------------------------------------------------------------

    def is_gone(self, name: str) -> bool:
        """Whether the last load did not find a wanted host end. Any thread may ask."""
        return name in self.gone

    def owned(self) -> list[str]:
        return [str(LinkRef(name)) for name in pod_interfaces()]

    def load(self) -> None:
        wanted = self._wanted()
        found = self._links() if wanted else _Found()
        need_gateway = any(Family.V6 in families for families in wanted.values())
        with_gateway = self._with_gateway() if need_gateway else set()
        for name, families in wanted.items():
            link, holder = self._own(name, found), found.by_name.get(name)
            self._note_holder(name, link, holder)
            if link is None:
                self._note_gone(name)
                continue
            self.gone -= {name}
            self._index[name] = link.index
            self._note_name(name, link)
            self._note_link(name, link, families, with_gateway)
            if link is holder:
                self._note_settings(name, families)

    def _wanted(self) -> dict[str, tuple[Family, ...]]:
        wanted: dict[str, set[Family]] = {}
        for key, name in self._through.items():
            wanted.setdefault(name, set()).add(Family.V6 if ":" in key.destination else Family.V4)
        return {name: tuple(sorted(families)) for name, families in wanted.items()}

    def _links(self) -> _Found:
        return _Found(map(messages.read_link, self._netlink.dump(messages.dump_links())))

    def _with_gateway(self) -> set[int]:
        """Indexes of the interfaces that have the pods' IPv6 gateway address."""
        found = map(messages.read_address, self._netlink.dump(messages.dump_addresses(Family.V6)))
        return {index for index, address in found if address == GATEWAY[Family.V6]}

    def _own(self, name: str, found: _Found) -> Link | None:
        """The interface that must have this name, by index, else label, else name if none was known."""
        if known := found.by_index.get(self._index.get(name, 0)) or found.labelled.get(name):
            return known
        return None if name in self._index else found.by_name.get(name)

    def _note_holder(self, name: str, own: Link | None, holder: Link | None) -> None:
        """Note an interface that has another's name: rules and source binding would take it for the pod's."""
        if holder is None or holder is own:
            self._displaced.pop(name, None)
        elif self._displaced.get(name) != holder.index:
            self._displaced[name] = holder.index
            self._say(name, f"another interface has that name now (index {holder.index})")

    def _note_name(self, name: str, link: Link) -> None:
        if link.name == name:
            self._renamed.pop(name, None)
        elif self._renamed.get(name) != link.index:
            self._renamed[name] = link.index
            self._say(name, f"called {link.name} now")

    def _note_gone(self, name: str) -> None:
        self._broken.pop(name, None)
        self._renamed.pop(name, None)
        if name not in self.gone:
            self.gone |= {name}
            self._say(name, "gone, and only its pod's runtime can make it anew: delete the pod")

    def _say(self, name: str, how: str) -> None:
        self._drifted.setdefault(name, []).append(Drift(LinkRef(name), how))

    def _note_link(self, name: str, link: Link, families: tuple[Family, ...], with_gateway: set[int]) -> None:
        problems = [] if link.up else ["down"]
        if link.mac != MAC:
            problems.append(f"its MAC is {link.mac.hex(':')}")
        if link.master:
            problems.append(f"a port of the interface with index {link.master}")
        if link.group == LINK_GROUP:
            self._grouped.add(name)
        elif link.group or name in self._grouped:
            problems.append(f"in link group {link.group}")
        if Family.V6 in families and link.index not in with_gateway:
            problems.append(f"without {GATEWAY[Family.V6]}")
        if not problems and link.group == LINK_GROUP:
            self._broken.pop(name, None)
            return
        # A host end without a group was made by an older version: no drift.
        if problems and name not in self._broken:
            self._say(name, ", ".join(problems))
        self._broken[name] = (link.index, families)

    def _note_settings(self, name: str, families: tuple[Family, ...]) -> None:
        known = self._settings.pop(name, {})
        wrong: dict[str, str] = {}
        for family in families:
            for setting, value in SYSCTLS[family].items():
                path = _sysctl(family, name, setting)
                if setting == "forwarding" and family not in self._host.forwarding:
                    continue  # it follows the host's own setting, which is mended first
                actual = sysctl.read(path)
                if actual is None or actual == value:
                    continue
                wrong[path] = value
                if path not in known:
                    drift = Drift(SysctlRef(path), f"{actual} instead of {value}")
                    self._drifted.setdefault(name, []).append(drift)
        if wrong:
            self._settings[name] = wrong

    def take_drift(self) -> list[Drift]:
        """Drift since the last call, without that of interfaces that are not wanted any more."""
        taken, self._drifted = self._drifted, {}
        return [drift for found in taken.values() for drift in found]

    # --- mending -------------------------------------------------------------------------------------

    def mend(self, _sweep: Sweep = Sweep.NOTHING) -> Report:
        """Mend what the last load found. A host end that is gone cannot be mended here."""
        self._learn()
        report = self._put_names_right()
        settings, self._settings = self._settings, {}
        for name, wrong in settings.items():
            failures = [failure for path, value in wrong.items() if (failure := sysctl.ensure(path, value))]
            if failures:
                self._settings[name] = wrong
            report += Report(writes=len(wrong) - len(failures), failures=tuple(failures))
        for name, (index, families) in list(self._broken.items()):
            report += self._mend(name, index, families)
        return report

    def _learn(self) -> None:
        """Remember the indexes of the interfaces that new routes go through."""
        for name in self._new:
            try:
                index = socket.if_nametoindex(name)
            except OSError:
                continue
            known = self._index.setdefault(name, index)
            if known != index and not _exists(known):
                self._index[name] = index
        self._new.clear()

    def _put_names_right(self) -> Report:
        report = Report()
        for name, index in list(self._displaced.items()):
            # The other interface is set down and renamed; its owner has to look after it.
            done = self._named(name, index, f"stray{index}", messages.set_down(index))
            if not done.failures:
                del self._displaced[name]
            report += done
        for name, index in list(self._renamed.items()):
            if name not in self._displaced:
                done = self._named(name, index, name)
                if not done.failures:
                    del self._renamed[name]
                report += done
        return report

    def _named(self, what: str, index: int, name: str, *before: bytes) -> Report:
        try:
            self._netlink.carry_out(before)
            rename(self._netlink, index, name)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return Report()  # the next load finds it gone
            return Report(failures=(Failure(LinkRef(what), f"cannot be renamed: {error.strerror or error}"),))
        return Report(writes=1)

    def _mend(self, name: str, index: int, families: tuple[Family, ...]) -> Report:
        right = messages.mac_attr(MAC) + messages.group_attr(LINK_GROUP) + messages.no_master()
        try:
            _set_up(self._netlink, index, name, families, right)
        except OSError as error:
            if error.errno != errno.ENODEV:
                return Report(failures=(Failure(LinkRef(name), error.strerror or str(error)),))
            del self._broken[name]  # the next load finds it gone
            return Report()
        self._grouped.add(name)
        del self._broken[name]
        return Report(writes=1)


def pod_interfaces() -> list[str]:
    """Names of the interfaces that are named like our host ends."""
    return sorted(name for _, name in socket.if_nameindex() if is_interface_name(name))


def _exists(index: int) -> bool:
    try:
        socket.if_indextoname(index)
    except OSError:
        return False
    return True
