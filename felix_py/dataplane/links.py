"""Pod interfaces: veth pairs, created directly in their final namespaces, with addresses and routes of the pod's end.

The pod's end gets its address as /32 (/128), so that nothing is on link, and a default route through a gateway
that exists only as a permanent neighbour entry with the host end's fixed MAC. So outbound packets need no ARP or
neighbour discovery, and forged answers have no effect.

Source: rtnetlink(7), the kernel's include/uapi/linux/{if_link,rtnetlink,neighbour}.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from felix_py.dataplane import host_ends, route_messages, sysctl
from felix_py.dataplane.link_label import read_label
from felix_py.dataplane.link_messages import (
    IFINFO,
    IFLA_GROUP,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    RTM_DELLINK,
    RTM_NEWLINK,
    RTM_SETLINK,
    U32,
    Link,
    alias_attr,
    dump_addresses,
    dump_links,
    get_link,
    group_attr,
    mac_attr,
    name_attr,
    new_address,
    read_address,
    read_link,
    set_up,
)
from felix_py.dataplane.netlink import (
    AF,
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Closing,
    Netlink,
    attr,
    message,
    nested,
)
from felix_py.layout import GATEWAY, LINK_GROUP, ROUTE_PROTOCOL_PODS, is_interface_name
from felix_py.records import Lease
from policy.model import Family

T = TypeVar("T")

_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTM_NEWNEIGH = 28

_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 1, 2, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RTNH_F_ONLINK = 4
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST = 254, 4, 1

_NEIGH = struct.Struct("=BxHiHBB")
_ROUTE = struct.Struct("=BBBBBBBBI")

_DELETE_GROUP = 0xFE11C5
"""Link group (``ip link … group``) of interfaces that are being deleted."""


class LinkError(Exception):
    """The kernel refused a pod interface; nothing of it is left."""


class LinkExists(LinkError):
    """An interface of that name exists already, on the host or in the pod."""


class NoNamespace(LinkError):
    """The path is not a pod's network namespace."""


@dataclass(frozen=True, slots=True)
class PodLink:
    """A pod interface to make.

    ``host`` and ``ifname`` are the names of its two ends, ``netns`` the path of the pod's namespace, ``mac`` the
    MAC of the pod's end; ``mtu`` is in bytes. ``label``: the host end's alias (:mod:`felix_py.dataplane.link_label`).
    """

    host: str
    netns: str
    ifname: str
    addresses: Mapping[Family, str]
    mac: str
    mtu: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class HostEnd:
    """An existing host end of a pod interface. ``lease``: the one in its label, None without a label.

    ``routed``: a route of ours to a pod goes through it. ``up``: it is set up, which is done last, with the label.
    """

    index: int
    name: str
    lease: Lease | None
    routed: bool
    up: bool = True


class Links(Closing):
    """Creates, checks and deletes pod interfaces of the network namespace it was made in.

    One thread at a time, and one that stays in that namespace.
    """

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_ROUTE)

    def close(self) -> None:
        self._netlink.close()

    def exists(self, host: str) -> bool:
        """Whether the host end exists."""
        return self._index(host) is not None

    def create(self, link: PodLink) -> None:
        """Create the pair, both ends up and configured.

        Raises:
            LinkExists, NoNamespace, LinkError: nothing was created, or it was removed again.
        """
        namespace = _open_namespace(link.netns)
        try:
            (error,) = self._netlink.request([_new_pair(link, namespace)])
            if error is not None:
                raise _refused(link, error)
            try:
                self._configure_host_end(link)
                inside(namespace, lambda: _configure_pod_end(link))
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
            requests = [message(RTM_DELLINK, 0, IFINFO.pack(0, 0, present[0], 0, 0))]
        else:
            group = attr(IFLA_GROUP, U32.pack(_DELETE_GROUP))
            requests = [message(RTM_SETLINK, 0, IFINFO.pack(0, 0, index, 0, 0) + group) for index in present]
            requests.append(message(RTM_DELLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + group))
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
        for link in map(read_link, self._netlink.dump(dump_links())):
            lease = read_label(link.alias)
            if lease is not None or is_interface_name(link.name):
                found.append(HostEnd(link.index, link.name, lease, link.index in routed, link.up))
        return found

    def label(self, index: int, text: str) -> None:
        """Set an interface's alias.

        Raises:
            OSError: the kernel refused.
        """
        self._netlink.carry_out([message(RTM_SETLINK, 0, IFINFO.pack(0, 0, index, 0, 0) + alias_attr(text))])

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
        """Texts about a missing or down end, missing addresses, and missing default routes of ``default_routes``.

        Additional addresses, and another MAC or MTU, are fine: chained plugins change them.
        """
        problems = []
        state = self._state(link.host)
        if state is None:
            return [f"interface {link.host} is missing on the host"]
        if not state:
            problems.append(f"interface {link.host} is down")
        try:
            namespace = _open_namespace(link.netns)
        except NoNamespace as error:
            return [*problems, str(error)]
        try:
            return problems + inside(namespace, lambda: _check_pod_end(link, default_routes))
        except OSError as error:
            return [*problems, f"cannot look into {link.netns}: {error}"]
        finally:
            os.close(namespace)

    def _index(self, name: str) -> int | None:
        found = _get_link(self._netlink, name)
        return found.index if found else None

    def _state(self, name: str) -> bool | None:
        """Whether the interface is up; None if it does not exist."""
        found = _get_link(self._netlink, name)
        return found.up if found else None

    def _configure_host_end(self, link: PodLink) -> None:
        index = self._index(link.host)
        if index is None:
            raise OSError(errno.ENODEV, f"{link.host} vanished")
        host_ends.configure(self._netlink, index, link.host, link.addresses.keys(), link.label)


def random_mac() -> str:
    """A random unicast, locally administered MAC."""
    first, *rest = os.urandom(6)
    return ":".join(f"{octet:02x}" for octet in (first & 0xFC | 0x02, *rest))


def inside(namespace: int, function: Callable[[], T]) -> T:
    """Call ``function`` in the network namespace of a file descriptor, in a thread that ends afterwards.

    A thread that had to return from the pod's namespace could get stuck there; one that ends cannot.

    Raises:
        OSError: the namespace cannot be entered. Also what ``function`` raises.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            _setns(namespace)
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=enter, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


def _setns(namespace: int) -> None:
    """setns(2) for the calling thread (Python has it from 3.12 on)."""
    if _libc.setns(namespace, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


def _open_namespace(path: str) -> int:
    """Open a network namespace other than our own."""
    try:
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise NoNamespace(f"cannot open the network namespace {path}: {error}") from None
    try:
        own, its = os.stat("/proc/thread-self/ns/net"), os.fstat(namespace)
        if own.st_dev != its.st_dev:
            raise NoNamespace(f"{path} is not a namespace")
        if own.st_ino == its.st_ino:
            raise NoNamespace(f"{path} is the host's network namespace, not a pod's")
    except BaseException:
        os.close(namespace)
        raise
    return namespace


def _new_pair(link: PodLink, namespace: int) -> bytes:
    mtu = attr(IFLA_MTU, U32.pack(link.mtu))
    mac = bytes.fromhex(link.mac.replace(":", ""))
    peer = attr(
        _VETH_INFO_PEER,
        IFINFO.pack(0, 0, 0, 0, 0)
        + name_attr(link.ifname)
        + mac_attr(mac)
        + mtu
        + attr(IFLA_NET_NS_FD, U32.pack(namespace)),
    )
    info = nested(IFLA_LINKINFO, attr(_IFLA_INFO_KIND, b"veth\0"), nested(_IFLA_INFO_DATA, peer))
    head = name_attr(link.host) + mac_attr(host_ends.MAC) + group_attr(LINK_GROUP) + mtu
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, IFINFO.pack(0, 0, 0, 0, 0) + head + info)


def _refused(link: PodLink, error: OSError) -> LinkError:
    if error.errno == errno.EEXIST:
        return LinkExists(f"{link.ifname} in {link.netns} or {link.host} on the host exists already")
    if error.errno == errno.EINVAL:
        return NoNamespace(f"cannot make {link.ifname} in {link.netns}: {error}")
    return LinkError(f"cannot make {link.ifname} in {link.netns}: {error}")


def _get_link(netlink: Netlink, name: str) -> Link | None:
    try:
        return read_link(netlink.get(get_link(name)))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _configure_pod_end(link: PodLink) -> None:
    """Runs in the pod's namespace."""
    if Family.V6 in link.addresses:
        sysctl.write(f"ipv6/conf/{link.ifname}/disable_ipv6", "0")  # some runtimes switch it off
    with Netlink(NETLINK_ROUTE) as netlink:
        found = _get_link(netlink, link.ifname)
        if found is None:
            raise OSError(errno.ENODEV, f"{link.ifname} vanished")
        index = found.index
        requests = [set_up(index)]
        for family, address in link.addresses.items():
            gateway = socket.inet_pton(AF[family], GATEWAY[family])
            neighbour = _NEIGH.pack(AF[family], 0, index, _NUD_PERMANENT, 0, 0)
            neighbour += attr(_NDA_DST, gateway) + attr(_NDA_LLADDR, host_ends.MAC)
            route = _ROUTE.pack(
                AF[family], 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, _RTNH_F_ONLINK
            )
            route += attr(_RTA_GATEWAY, gateway) + attr(_RTA_OIF, U32.pack(index))
            requests += [
                new_address(index, family, address, family.bits),
                message(_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, neighbour),
                message(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, route),
            ]
        try:
            netlink.carry_out(requests)
        except FileExistsError:
            raise OSError(
                errno.EEXIST, "the pod has a default route already, and felix-py makes a pod's only interface"
            ) from None


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
    return problems


def _addresses(netlink: Netlink, family: Family, index: int) -> set[str]:
    answers = netlink.dump(dump_addresses(family, index))
    return {address for _, address in map(read_address, answers) if address}


def _has_default_route(netlink: Netlink, family: Family, index: int) -> bool:
    request = _ROUTE.pack(AF[family], 0, 0, 0, _RT_TABLE_MAIN, 0, 0, 0, 0) + attr(_RTA_OIF, U32.pack(index))
    # Bytes 1 and 7 of struct rtmsg: prefix length and type.
    answers = netlink.dump(message(_RTM_GETROUTE, 0, request))
    return any(answer[1] == 0 and answer[7] == _RTN_UNICAST for answer in answers)
