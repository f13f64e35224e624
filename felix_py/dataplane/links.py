"""Pod interfaces: veth pairs, created in their final namespaces, with addresses and routes of the pod's end.

The pod's end gets its address as /32 (/128), so that nothing is on link, and a default route through a gateway
that exists only as a permanent neighbour entry with the host end's fixed MAC. So outbound packets need no ARP or
neighbour discovery, and forged answers have no effect.

Of several interfaces of a pod one has the default route. What comes by another must be answered by it, since its
host end takes no other source and no other host end takes that one: so another's default route is in a table of
its own, which packets from its address use.

Source: rtnetlink(7), the kernel's include/uapi/linux/{if_link,rtnetlink,neighbour}.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from msgspec import Struct

from felix_py import log
from felix_py.dataplane import host_ends, sysctl
from felix_py.dataplane.link_label import read_label
from felix_py.layout import GATEWAY, LINK_GROUP, ROUTE_PROTOCOL_PODS, is_interface_name
from felix_py.netlink import links as messages
from felix_py.netlink import routes as route_messages
from felix_py.netlink import rules
from felix_py.netlink.connection import Closing, Netlink
from felix_py.netlink.wire import NETLINK_ROUTE
from felix_py.records import Lease
from policy.model import Family

T = TypeVar("T")

_RTN_UNICAST = 1
_OWN = ROUTE_PROTOCOL_PODS
_TABLES = 88_000
"""The table of a pod's interface that has not the default route is this number and its index in the pod."""

_RULE_PRIORITY = 32_000
"""Before the main table's 32766."""

_DELETE_GROUP = 0xFE11C5
"""Link group (``ip link … group``) of interfaces that are being deleted."""


class LinkError(Exception):
    """The kernel refused a pod interface; nothing of it is left."""


class LinkExists(LinkError):
    """An interface of that name exists already, on the host or in the pod."""


class NoNamespace(LinkError):
    """The path is not a pod's network namespace."""


class PodLink(Struct, frozen=True):
    """A pod interface to make.

    ``host`` and ``ifname`` are the names of its two ends, ``netns`` the path of the pod's namespace, ``mac`` the
    MAC of the pod's end; ``mtu`` is in bytes. ``label``: the host end's alias (:mod:`.link_label`).
    ``default_route``: whether the pod's packets leave by it, or only those from its addresses.
    """

    host: str
    netns: str
    ifname: str
    addresses: Mapping[Family, str]
    mac: str
    mtu: int
    label: str = ""
    default_route: bool = True


class HostEnd(Struct, frozen=True):
    """An existing host end. ``lease``: from its label; ``routed``: a route to a pod goes through it.

    ``up``: it is set up, which is done last, with the label.
    """

    index: int
    name: str
    lease: Lease | None
    routed: bool
    up: bool = True


class Links(Closing):
    """Pod interfaces of the network namespace it was made in; for one thread, which stays in that namespace."""

    def __init__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._netlink = Netlink(NETLINK_ROUTE)
        except BaseException:
            os.close(self._home)
            raise

    def close(self) -> None:
        self._netlink.close()
        if self._home >= 0:
            os.close(self._home)
            self._home = -1

    def exists(self, host: str) -> bool:
        """Whether the host end exists."""
        return self._index(host) is not None

    def create(self, link: PodLink) -> None:
        """Create the pair, both ends up and configured. Raises as :meth:`make` and :meth:`configure` do."""
        self.make(link)
        self.configure(link)

    def make(self, link: PodLink) -> None:
        """Make the pair, both ends down and without addresses and label: it carries nothing. Its MTU is not yet
        the final one.

        Raises:
            LinkExists, NoNamespace, LinkError: nothing was made.
        """
        namespace = self._open(link.netns)
        try:
            (error,) = self._netlink.request([_new_pair(link, namespace)])
        finally:
            os.close(namespace)
        if error is not None:
            raise _refused(link, error)

    def configure(self, link: PodLink) -> None:
        """Configure a pair that was made, and set both ends up.

        Raises:
            NoNamespace, LinkError: the pair was removed again.
        """
        try:
            namespace = self._open(link.netns)
        except NoNamespace:
            self.delete([link.host])
            raise
        try:
            try:
                index = socket.if_nametoindex(link.host)
                families = link.addresses.keys()
                host_ends.configure(self._netlink, index, link.host, families, link.mtu, link.label)
                self.inside(namespace, lambda: _configure_pod_end(link))
            except OSError as failure:
                self.delete([link.host])
                raise LinkError(f"cannot configure {link.ifname} in {link.netns}: {failure}") from failure
        finally:
            os.close(namespace)

    def delete(self, hosts: Collection[str]) -> None:
        """Delete host ends, and with them the pods' ends. Missing ones are ignored.

        The kernel waits some 16 ms for packets in flight, and as long again if an end has an IPv6 address; once
        for one link or for a whole group.

        Raises:
            LinkError: the kernel refused.
        """
        present = [index for host in hosts if (index := self._index(host)) is not None]
        if not present:
            return
        if len(present) == 1:
            requests = [messages.delete_link(present[0])]
        else:
            group = messages.group_attr(_DELETE_GROUP)
            requests = [*(messages.change(index, group) for index in present), messages.delete_link(0, group)]
        for error in self._netlink.request(requests):
            if error is not None and error.errno != errno.ENODEV:
                raise LinkError(f"cannot delete {', '.join(hosts)}: {error}")

    def host_ends(self) -> list[HostEnd]:
        """All host ends of pods: interfaces named like ours, and those of other names with a label of ours.

        Raises:
            OSError: the kernel does not answer.
        """
        routed = self._routed()
        found = []
        for link in map(messages.read_link, self._netlink.dump(messages.dump_links())):
            lease = read_label(link.alias)
            if lease is not None or is_interface_name(link.name):
                found.append(HostEnd(link.index, link.name, lease, link.index in routed, link.up))
        return found

    def label(self, index: int, text: str) -> None:
        """Set an interface's alias.

        Raises:
            OSError: the kernel refused.
        """
        self._netlink.carry_out([messages.change(index, messages.alias_attr(text))])

    def rename(self, index: int, name: str) -> None:
        """Rename an interface; it goes down for a moment if the kernel requires that.

        Raises:
            OSError: the kernel refused.
        """
        host_ends.rename(self._netlink, index, name)

    def _routed(self) -> set[int]:
        """Indexes of the interfaces that routes to pods go through."""
        routed: set[int] = set()
        for family in Family:
            for answer in self._netlink.dump(route_messages.dump(family, ROUTE_PROTOCOL_PODS)):
                if route_messages.protocol_of(answer) == ROUTE_PROTOCOL_PODS:
                    routed |= route_messages.interfaces(answer)
        return routed

    def check(self, link: PodLink, default_routes: Collection[Family]) -> list[str]:
        """What is missing, in words. More addresses, another MAC or MTU are fine: chained plugins change them."""
        found = _get_link(self._netlink, link.host)
        if found is None:
            return [f"interface {link.host} is missing on the host"]
        problems = [] if found.up else [f"interface {link.host} is down"]
        try:
            namespace = self._open(link.netns)
        except NoNamespace as error:
            return [*problems, str(error)]
        try:
            return problems + self.inside(namespace, lambda: _check_pod_end(link, default_routes))
        except OSError as error:
            return [*problems, f"cannot look into {link.netns}: {error}"]
        finally:
            os.close(namespace)

    def _index(self, name: str) -> int | None:
        found = _get_link(self._netlink, name)
        return found.index if found else None

    def inside(self, namespace: int, function: Callable[[], T]) -> T:
        """Call ``function`` in the network namespace of a file descriptor; the calling thread returns to its own.

        A thread of its own for each call would be safer, and costs as much as all that is done in the namespace.

        Raises:
            OSError: the namespace cannot be entered. Also what ``function`` raises.
        """
        _setns(namespace)
        try:
            return function()
        finally:
            _return(self._home)

    def _open(self, path: str) -> int:
        """Open a network namespace other than our own."""
        try:
            namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except (OSError, ValueError) as error:
            raise NoNamespace(f"cannot open the network namespace {path}: {error}") from None
        try:
            own, its = os.fstat(self._home), os.fstat(namespace)
            if own.st_dev != its.st_dev:
                raise NoNamespace(f"{path} is not a namespace")
            if own.st_ino == its.st_ino:
                raise NoNamespace(f"{path} is the host's network namespace, not a pod's")
        except BaseException:
            os.close(namespace)
            raise
        return namespace


def random_mac() -> str:
    """A random unicast, locally administered MAC."""
    first, *rest = os.urandom(6)
    return ":".join(f"{octet:02x}" for octet in (first & 0xFC | 0x02, *rest))


def _return(home: int) -> None:
    """Enter the thread's own namespace again, however long it takes: elsewhere it could only do harm."""
    while True:
        try:
            return _setns(home)
        except OSError as error:  # lack of memory is all that can be in the way
            log.get("links").error("cannot leave a pod's namespace; trying again", reason=str(error))
            time.sleep(0.1)


_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


def _setns(namespace: int) -> None:
    """setns(2) for the calling thread (Python has it from 3.12 on)."""
    if _libc.setns(namespace, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


def _new_pair(link: PodLink, namespace: int) -> bytes:
    mtu, mac = messages.mtu_attr(link.mtu), messages.mac_attr(bytes.fromhex(link.mac.replace(":", "")))
    peer = messages.name_attr(link.ifname) + mac + mtu + messages.namespace_attr(namespace)
    host = (
        messages.name_attr(link.host) + messages.mac_attr(host_ends.MAC) + messages.group_attr(LINK_GROUP) + mtu
    )
    return messages.new_veth(host, peer)


def _refused(link: PodLink, error: OSError) -> LinkError:
    if error.errno == errno.EEXIST:
        return LinkExists(f"{link.ifname} in {link.netns} or {link.host} on the host exists already")
    if error.errno == errno.EINVAL:
        return NoNamespace(f"cannot make {link.ifname} in {link.netns}: {error}")
    return LinkError(f"cannot make {link.ifname} in {link.netns}: {error}")


def _get_link(netlink: Netlink, name: str) -> messages.Link | None:
    try:
        return messages.read_link(netlink.get(messages.get_link(name)))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _configure_pod_end(link: PodLink) -> None:
    """Runs in the pod's namespace."""
    if Family.V6 in link.addresses:
        sysctl.write(f"ipv6/conf/{link.ifname}/disable_ipv6", "0")  # some runtimes switch it off
    with Netlink(NETLINK_ROUTE) as netlink:
        index = socket.if_nametoindex(link.ifname)
        table = route_messages.TABLE_MAIN if link.default_route else _table(index)
        requests = [messages.set_up(index, messages.mtu_attr(link.mtu))]
        for family, address in link.addresses.items():
            requests += [
                messages.new_address(index, family, address, family.bits),
                messages.new_neighbour(index, family, GATEWAY[family], host_ends.MAC),
                route_messages.new_default(family, GATEWAY[family], index, table),
            ]
            if not link.default_route:
                requests += _stale_rules(netlink, family)
                requests.append(rules.pack(_from(family, address, table), _OWN, rules.RTM_NEWRULE))
        try:
            netlink.carry_out(requests)
        except FileExistsError:
            text = "the pod has a default route already: a network list with isDefaultGateway false needs none"
            raise OSError(errno.EEXIST, text) from None


def _table(index: int) -> int:
    """The routing table of a pod's interface that has not the default route."""
    return _TABLES + index


def _from(family: Family, address: str, table: int) -> rules.Rule:
    return rules.Rule(family, _RULE_PRIORITY, table, source=address)


def _rules(netlink: Netlink, family: Family) -> list[rules.Rule]:
    """The rules of ours in the pod's namespace."""
    found = (rules.read(family, answer, _OWN) for answer in netlink.dump(rules.dump(family)))
    return [rule for rule in found if rule is not None]


def _stale_rules(netlink: Netlink, family: Family) -> list[bytes]:
    """Removals of the rules of interfaces that are gone, with which the kernel removes routes alone."""
    there = {_table(index) for index, _ in socket.if_nameindex()}
    gone = (rule for rule in _rules(netlink, family) if rule.table not in there)
    return [rules.pack(rule, _OWN, rules.RTM_DELRULE) for rule in gone]


def _check_pod_end(link: PodLink, default_routes: Collection[Family]) -> list[str]:
    """Runs in the pod's namespace."""
    with Netlink(NETLINK_ROUTE) as netlink:
        found = _get_link(netlink, link.ifname)
        if found is None:
            return [f"interface {link.ifname} is missing in {link.netns}"]
        problems = [] if found.up else [f"interface {link.ifname} is down"]
        for family, address in link.addresses.items():
            if address not in _addresses(netlink, family, found.index):
                problems.append(f"address {address} is missing on {link.ifname}")
            if family in default_routes and not _has_default_route(netlink, family, found.index):
                problems.append(f"the IPv{int(family)} default route through {link.ifname} is missing")
            if not link.default_route and not _answers(netlink, family, address, found.index):
                problems.append(f"the IPv{int(family)} rule or route for packets from {address} is missing")
    return problems


def _answers(netlink: Netlink, family: Family, address: str, index: int) -> bool:
    """Whether packets from an address leave by its interface, which has not the default route."""
    table = _table(index)
    return _from(family, address, table) in _rules(netlink, family) and _has_default_route(
        netlink, family, index, table
    )


def _addresses(netlink: Netlink, family: Family, index: int) -> set[str]:
    answers = netlink.dump(messages.dump_addresses(family, index))
    return {address for _, address in map(messages.read_address, answers) if address}


def _has_default_route(
    netlink: Netlink, family: Family, index: int, table: int = route_messages.TABLE_MAIN
) -> bool:
    try:
        answers = netlink.dump(route_messages.dump_table(family, table))
    except FileNotFoundError:  # there is no such table
        return False
    through = (answer for answer in answers if index in route_messages.interfaces(answer))
    return any(answer[1] == 0 and answer[7] == _RTN_UNICAST for answer in through)  # rtm_dst_len, rtm_type
