"""The CNI commands and the order of their steps.

A pod is connected in the order lease, interface, policy; it is disconnected in the order interface, policy,
lease. So no packet passes before its policy is in force or after its removal (an interface without source binding
and route carries nothing), and an address is released only once nothing in the kernel refers to it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

from felix_py import log
from felix_py.cni.addresses import NO_CIDR, Addresses
from felix_py.cni.conflist import NETWORK
from felix_py.cni.delegate import delegate
from felix_py.cni.errors import CNIError, Code
from felix_py.cni.fullness import Fullness
from felix_py.cni.lease_book import LeaseBook
from felix_py.cni.network import Network, NetworkError
from felix_py.cni.network_list import absent_plugins
from felix_py.cni.recovery import about
from felix_py.cni.result import DNS, Interface, IPConfig, Result, RouteConfig
from felix_py.cni.types import Before, Command, PodName, Request
from felix_py.cni.workers import Interfaces, Leases, Making
from felix_py.dataplane.host_ends import LEAST_MTU_OF_V6
from felix_py.dataplane.link_label import link_label
from felix_py.dataplane.links import LinkError, LinkExists, NoNamespace, PodLink, random_mac
from felix_py.ipam.asked import Asked
from felix_py.ipam.resources import Choice
from felix_py.ipam.store import AddressStore, AddressUnavailable, Claim, LeaseKey, PoolExhausted
from felix_py.layout import FIRST_INTERFACE, GATEWAY, HOST_MAC, interface_name
from felix_py.notices import NoticeKind, Notices
from felix_py.records import Elsewhere, Lease
from policy.model import Family

GRACE = 300.0
"""Seconds until the lease of a lost sandbox is released: longer than any ADD takes."""

LEAST_MTU = {Family.V4: 68, Family.V6: LEAST_MTU_OF_V6}

_EXPECTED = (CNIError, NetworkError, LinkError, OSError, sqlite3.Error)
_DEFAULT = {Family.V4: "0.0.0.0/0", Family.V6: "::/0"}


class Plugin:
    """Executes calls on one event loop, serialized per interface and otherwise concurrent."""

    def __init__(
        self,
        leases: Leases,
        interfaces: Interfaces,
        network: Network,
        notices: Notices,
        *,
        timeout: float = 10.0,
        chained: Sequence[str] = (),
        tell: Callable[[str, str], None] = lambda _reason, _text: None,
        forget: Callable[[Lease], Awaitable[None]] | None = None,
        containers: bool = False,
    ) -> None:
        """``timeout``: seconds that an ADD may wait for the agent's start, for its pod to be known, and for its
        policy: each anew.

        ``chained``: plugins after ours in our own network list. ``tell``: see :class:`Fullness`.
        ``forget``: see :func:`felix_py.cni.delegate.forget`. ``containers``: connect also what is no pod's.
        """
        self._leases = leases
        self._interfaces = interfaces
        self._network = network
        self._notices = notices
        self._addresses = Addresses(network, notices)
        self.timeout = timeout
        """Seconds; it may change at any time."""
        self._chained = tuple(chained)
        self._fullness = Fullness(notices, tell)
        self._growing: Callable[[], frozenset[Family]] = lambda: frozenset(Family)
        """Families of which this node can get more CIDRs; before the first look, nothing is said of any."""
        self._forget_delegated = forget
        self._containers = containers
        self._book = LeaseBook(leases, notices, self._alone)
        self._missing: dict[LeaseKey, float] = {}
        """Leases without interface: first seen so, by time.monotonic()."""
        self._gone: dict[LeaseKey, float] = {}
        """Leases with an interface whose pod is not on this node: first seen so."""
        self._elsewhere: dict[str, Elsewhere] = {}
        self._locks: WeakValueDictionary[LeaseKey, asyncio.Lock] = WeakValueDictionary()
        self._commands: dict[Command, Callable[[Request], Awaitable[Result | None]]] = {
            Command.ADD: self._add,
            Command.DEL: self._del,
            Command.CHECK: self._check,
            Command.GC: self._gc,
            Command.STATUS: self._status,
        }
        self._log = log.get("cni")

    async def run(self, request: Request) -> Result | None:
        """Execute a request; returns the result of an ADD, None for all else.

        Raises:
            CNIError: it failed; a failed ADD has been undone.
        """
        try:
            return await self._commands[request.command](request)
        except NetworkError as error:
            raise CNIError(Code.TRY_AGAIN, str(error)) from error
        except LinkError as error:
            raise CNIError(_link_code(error), str(error)) from error
        except AddressUnavailable as error:
            raise CNIError(Code.ADDRESS_UNAVAILABLE, str(error)) from error
        except PoolExhausted as error:
            raise CNIError(Code.POOL_EXHAUSTED, str(error)) from error
        except (OSError, sqlite3.Error) as error:
            raise CNIError(Code.IO, f"{type(error).__name__}: {error}") from error

    # --- ADD -----------------------------------------------------------------------------------------

    async def _add(self, request: Request) -> Result:
        pod, wanted = self._pod(request), request.requested_addresses()
        mac = request.requested_mac()
        async with self._alone(request.container, request.ifname):
            if reason := self._network.unready():
                # A runtime that is told to try again does so after seconds; the rest of a start takes less.
                await self._bounded(self._network.ready(), lambda: self._network.unready() or reason)
            attachment = (request.container, request.ifname, request.config.name)
            claim = Claim(*attachment, pod.namespace, pod.name, pod.uid)
            await self._take_over(claim)
            if pod.name:
                await self._bounded(
                    self._network.wait_for_pod(pod.namespace, pod.name, pod.uid),
                    lambda: self._network.why_unknown(pod.namespace, pod.name, pod.uid),
                )
            asked = self._addresses.asked(request, pod)
            mac = mac or asked.mac or random_mac()
            pair = PodLink(interface_name(*claim.key), request.netns, request.ifname, {}, mac, self._mtu(Family))
            making = self._interfaces.begin(pair)

            # All is done while the disk still writes the lease: if the agent is killed, the lease is there all
            # the same, and if the machine loses its power, nothing is there. The answer waits for the disk.
            leasing = asyncio.create_task(
                self._lease(
                    claim, wanted, asked, request, lambda new: making.complete(self._link(request, new, mac), new)
                )
            )
            leasing.add_done_callback(making.follow)
            try:
                lease = await making.done()
                self._book.used_again(claim.key)
                await self._bounded(
                    self._network.enforce(lease),
                    lambda: f"policy of {lease.owner_text} is not in force yet",
                )
                dns = await leasing
            except BaseException:
                await self._undo(request, making, leasing)
                raise
        return _result(request, making.link, dns)

    def _pod(self, request: Request) -> PodName:
        """The pod to connect, if it is one's; CNIError if there must be none, or no such interface of it."""
        pod = request.pod()
        if not pod.name and not self._containers:
            text = "felix-py connects Kubernetes pods only, unless connect-containers is set: CNI_ARGS has no "
            raise CNIError(Code.INVALID_CONFIG, f"{text}K8S_POD_NAMESPACE and K8S_POD_NAME")
        if pod.name and not request.first and (reason := self._network.only_first()):
            text = f"pod {pod.namespace}/{pod.name} can have {FIRST_INTERFACE} alone, and no {request.ifname}"
            raise CNIError(Code.FURTHER_INTERFACE, f"{text}: {reason}")
        return pod

    async def _take_over(self, claim: Claim) -> None:
        """Refuse a repeated ADD, but clean up after an ADD that a crash interrupted."""
        if (lease := self._leases.get(*claim.key)) is None:
            return
        if await self._interfaces.exists(lease.interface):
            raise CNIError(Code.ALREADY_ATTACHED, f"container {claim.container} already has {claim.ifname}")
        await self._forget(lease)
        if self._book.owes(claim.key):
            raise CNIError(Code.IO, self._book.unwritten)

    async def _lease(
        self, claim: Claim, wanted: list[str], asked: Asked, request: Request, committed: Callable[[Lease], None]
    ) -> DNS:
        """Lease addresses from our store, or from the IPAM plugin that the configuration names.

        ``committed``: see :meth:`Leases.use`.
        """
        if not request.config.delegate:

            def allocate(choice: Choice) -> Awaitable[Lease]:
                return self._book.write(
                    lambda store: store.allocate(claim, choice.cidrs, choice.requested), committed
                )

            try:
                await self._addresses.lease(request, wanted, asked, allocate)
                return DNS()
            finally:
                for found in self._leases.take_skipped():
                    self._elsewhere[found.what] = found
                    self._notices.say(NoticeKind.ADDRESS_IN_USE, found.what, _withheld(found))
                self._fullness.look(self._leases.usage(self._network.pod_cidrs()), self._growing)
        given = await delegate(request, Command.ADD)
        addresses = [entry.address.partition("/")[0] for entry in given.ips]
        if not addresses:
            raise CNIError(Code.DELEGATE, f"IPAM plugin {request.config.delegate} gave no address")
        try:
            await self._book.write(lambda store: store.record(claim, addresses), committed)
        except ValueError as error:
            raise CNIError(Code.DELEGATE, f"IPAM plugin {request.config.delegate}: {error}") from error
        return given.dns

    def _link(self, request: Request, lease: Lease, mac: str = "") -> PodLink:
        mtu, label = self._mtu(lease.addresses), link_label(lease)
        place = lease.interface, request.netns, request.ifname
        return PodLink(*place, lease.addresses, mac, mtu, label, default_route=request.default_route)

    def _mtu(self, families: Iterable[Family]) -> int:
        # With an MTU below a family's minimum the interface loses the family (RFC 791, RFC 8200 section 5).
        return max(self._network.mtu(), *(LEAST_MTU[family] for family in families))

    async def _undo(self, request: Request, making: Making, leasing: asyncio.Task[DNS]) -> None:
        """Undo a failed ADD.

        If a step fails, the rest is left to the runtime's DEL: an interface that stays keeps its address. Nothing
        is raised, so that the ADD's own error is reported.
        """
        if making.lease is None:
            leasing.cancel()
        await asyncio.wait((leasing,))  # else the disk still writes what is to be released
        lease = making.lease or self._leases.get(request.container, request.ifname)
        try:
            if lease is not None:
                self._network.leaving(lease)
            await making.abandon()
            if lease is not None:
                await self._forget(lease)
            if request.config.delegate:
                await delegate(request, Command.DEL)
        except _EXPECTED as error:
            self._log.error("cannot undo all of a failed ADD", reason=str(error))

    async def _bounded(self, work: Awaitable[None], late: Callable[[], str]) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                await work
        except TimeoutError:
            raise CNIError(Code.TRY_AGAIN, f"{late()} (waited {self.timeout:g} seconds)") from None

    # --- DEL and GC ----------------------------------------------------------------------------------

    async def _del(self, request: Request) -> None:
        async with self._alone(request.container, request.ifname):
            if self._is_newer((request.container, request.ifname), request.before):
                return  # the id was used again
            await self._detach(request.container, request.ifname)
            if request.config.delegate:
                await delegate(request, Command.DEL)

    def present(self) -> Before:
        """The leases of now, for calls that are found in the spool."""
        found = ((key, self._leases.get(*key)) for key in self._leases.keys())  # noqa: SIM118 - no mapping
        return {key: lease for key, lease in found if lease is not None}

    def expect_del(self, container: str, ifname: str, before: Before) -> None:
        """A spooled DEL is about to be executed: the interface may go by itself before."""
        if (lease := self._leases.get(container, ifname)) and not self._is_newer((container, ifname), before):
            self._network.leaving(lease)

    def _is_newer(self, key: LeaseKey, before: Before | None) -> bool:
        """Whether an interface has a lease that it did not have ``before``; None: that does not matter."""
        return before is not None and self._leases.get(*key) not in (None, before.get(key))

    async def _detach(self, container: str, ifname: str) -> None:
        """Remove an attachment, also an incomplete one."""
        if (lease := self._leases.get(container, ifname)) is None:
            await self._interfaces.delete(interface_name(container, ifname))
            return
        await self._delete_interface(lease)
        await self._forget(lease)

    async def _delete_interface(self, lease: Lease) -> None:
        self._network.leaving(lease)
        await self._interfaces.delete(lease.interface)

    async def _forget(self, lease: Lease) -> None:
        """Remove a lease from the kernel, then release it: the address must not be given out before."""
        await self._network.release(lease)
        await self._book.give_back(lease)

    async def _gc(self, request: Request) -> None:
        """Detach attachments that the runtime does not list; a failure does not stop the rest."""
        if request.config.valid_attachments is None:
            raise CNIError(Code.INVALID_CONFIG, "GC needs cni.dev/valid-attachments")
        valid = {(attachment.container, attachment.ifname) for attachment in request.config.valid_attachments}
        busy = set(self._locks)  # being added or deleted: the runtime's list does not know the outcome
        failures = []
        for lease in await self._leases.use(AddressStore.all):
            key = (lease.container, lease.ifname)
            if lease.network != request.config.name or key in valid or key in busy:
                continue
            if self._is_newer(key, request.before):
                continue  # added after the list was made
            try:
                async with self._alone(*key):
                    await self._detach(*key)
                self._log.info("collected a stale attachment", **about(lease))
            except _EXPECTED as error:
                failures.append(f"{lease.container} {lease.ifname}: {error}")
        if request.config.delegate:
            await delegate(request, Command.GC)
        if failures:
            text = f"{len(failures)} attachments could not be removed"
            raise CNIError(Code.TRY_AGAIN, text, "; ".join(failures))

    # --- CHECK and STATUS ----------------------------------------------------------------------------

    async def _check(self, request: Request) -> None:
        if (previous := request.config.prev_result) is None:
            raise CNIError(Code.INVALID_CONFIG, "CHECK needs prevResult")
        async with self._alone(request.container, request.ifname):
            if (lease := self._leases.get(request.container, request.ifname)) is None:
                text = f"container {request.container} has no {request.ifname} of ours"
                raise CNIError(Code.UNKNOWN_CONTAINER, text)
            expected = {entry.address.partition("/")[0] for entry in previous.ips}
            unlisted = [address for address in lease.addresses.values() if address not in expected]
            problems = [f"prevResult does not list the leased address {address}" for address in unlisted]
            routes = {entry.dst for entry in previous.routes}
            default_routes = [family for family in lease.addresses if _DEFAULT[family] in routes]
            problems += await self._interfaces.check(self._link(request, lease), default_routes)
            problems += await self._network.problems(lease)
            if problems:
                raise CNIError(Code.CHECK_FAILED, problems[0], "; ".join(problems))
            if request.config.delegate:
                await delegate(request, Command.CHECK)

    async def _status(self, request: Request) -> None:
        if reason := self._network.unready():
            raise CNIError(Code.NOT_AVAILABLE, reason)
        if reason := await self._book.catch_up():
            raise CNIError(Code.NOT_AVAILABLE, reason)
        if request.config.name == NETWORK:
            self._check_chained(request)
        if request.config.delegate:
            await delegate(request, Command.STATUS)
            return
        if not (cidrs := self._network.pod_cidrs()):
            raise CNIError(Code.NOT_AVAILABLE, NO_CIDR)
        if hidden := self._network.why_none():
            raise CNIError(Code.NOT_AVAILABLE, hidden)
        if full := await self._leases.use(lambda store: store.full(cidrs)):
            families = " and ".join(f"IPv{int(family)}" for family in full)
            raise CNIError(Code.NOT_AVAILABLE, f"no {families} address is left in {', '.join(cidrs)}")

    def _check_chained(self, request: Request) -> None:
        folders = [Path(folder) for folder in request.call.environment["CNI_PATH"].split(os.pathsep) if folder]
        if absent := absent_plugins(self._chained, folders):
            text = f"the chained plugin {absent[0]} is not in {', '.join(map(str, folders))}: install it there, "
            text += "or start the agent with --chained-plugin for those that there are"
            raise CNIError(Code.NOT_AVAILABLE, text)

    # --- without a call ------------------------------------------------------------------------------

    async def look(self, now: float | None = None) -> None:
        """Find lost sandboxes and changes by others; call it every minute or so.

        A lease is released if its interface has been missing for :data:`GRACE` and its pod has left this node (or
        has a newer interface): no DEL will come. While the interface exists, a notice is given instead: something
        may still run behind it. ``now``: time.monotonic() by default.
        """
        now = time.monotonic() if now is None else now
        await self._book.catch_up()
        leases = {(lease.container, lease.ifname): lease for lease in await self._leases.use(AddressStore.all)}
        ends = {end.lease.interface if end.lease else end.name: end for end in await self._interfaces.host_ends()}
        lost = {}
        for key, lease in leases.items():
            end = ends.get(lease.interface)
            if end is not None and end.lease is None and (label := link_label(lease)):
                with suppress(OSError):  # removed meanwhile
                    await self._interfaces.label(end.index, label)
            departed = self._network.departed(lease)
            lost_for_long = self._since(self._missing, key, end is None, now) and (departed or not lease.pod)
            if lost_for_long and key not in self._locks:
                await self._release_lost(key, lease)
            elif self._since(self._gone, key, end is not None and departed, now):
                lost[lease.interface] = (
                    f"{lease.owner_text} is not on this node any more, but its interface "
                    f"{lease.interface} is: has the runtime forgotten it? (crictl pods; then ip link del)"
                )
        for times in (self._missing, self._gone):
            for key in times.keys() - leases.keys():
                del times[key]
        self._notices.replace(NoticeKind.LOST_SANDBOX, lost)
        present = ends.keys() | {end.name for end in ends.values()}
        for notice in self._notices.all():
            if notice.kind is NoticeKind.STRAY_INTERFACE and notice.subject not in present:
                self._notices.clear(notice.kind, notice.subject)
        self._growing = self._network.growing
        self._fullness.look(self._leases.usage(self._network.pod_cidrs()), self._growing)
        self._addresses.look()
        await self._look_elsewhere(leases.values(), ends.keys())

    @staticmethod
    def _since(times: dict[LeaseKey, float], key: LeaseKey, holds: bool, now: float) -> bool:
        """Whether a condition has held for :data:`GRACE`."""
        if not holds:
            times.pop(key, None)
            return False
        return now - times.setdefault(key, now) >= GRACE

    async def _release_lost(self, key: LeaseKey, lease: Lease) -> None:
        async with self._alone(*key):
            if self._leases.get(*key) != lease or await self._interfaces.exists(lease.interface):
                return
            try:
                await self._forget(lease)
            except _EXPECTED as error:
                self._log.warning("cannot release a lost sandbox yet", reason=str(error), **about(lease))
            else:
                self._log.warning("released the lease of a sandbox that is lost", **about(lease))
                await self._at_the_ipam_plugin(lease)

    def is_busy(self, key: LeaseKey) -> bool:
        """Whether a call for this interface is under way."""
        return key in self._locks

    async def free(self, lease: Lease, *, force: bool = False) -> None:
        """Release a lease for which no DEL will come. ``force``: and remove its interface, if it exists.

        Raises:
            CNIError: the lease stays: its interface exists, or the store cannot be written.
            NetworkError, LinkError, OSError: something may be left in the kernel; the lease stays.
        """
        key = (lease.container, lease.ifname)
        async with self._alone(*key):
            if self._leases.get(*key) != lease:
                return
            if not force and await self._interfaces.exists(lease.interface):
                text = f"{lease.owner_text} has it, and its interface {lease.interface} exists"
                raise CNIError(Code.ALREADY_ATTACHED, text)
            await self._detach(*key)
            if self._book.owes(key):
                raise CNIError(Code.IO, self._book.unwritten)
            await self._at_the_ipam_plugin(lease)

    async def _at_the_ipam_plugin(self, lease: Lease) -> None:
        """Have the IPAM plugin, if there is one, release a lease for which no DEL comes."""
        try:
            if self._forget_delegated:
                await self._forget_delegated(lease)
        except _EXPECTED as error:
            self._log.warning("an IPAM plugin keeps a lost address", reason=str(error), **about(lease))

    async def _look_elsewhere(self, leases: Iterable[Lease], interfaces: Container[str]) -> None:
        """Give notice of addresses in use elsewhere: those passed over, and those that pods hold."""
        asked = list(self._elsewhere.values())
        for found in await self._leases.use(lambda store: store.no_longer(asked)):
            self._elsewhere.pop(found.what, None)
        now = {found.what: _withheld(found) for found in self._elsewhere.values()}
        held = {a: lease for lease in leases if lease.interface in interfaces for a in lease.addresses.values()}
        for address, found in (await self._leases.use(lambda store: store.used_elsewhere(held))).items():
            now[address] = f"{address} is {held[address].owner_text}'s, but {found.what} is {found.how}"
        self._notices.replace(NoticeKind.ADDRESS_IN_USE, now)

    @asynccontextmanager
    async def _alone(self, container: str, ifname: str) -> AsyncIterator[None]:
        """Serialize calls for one interface: a DEL waits for an ADD whose client has timed out."""
        async with self._locks.setdefault((container, ifname), asyncio.Lock()):
            yield


def _withheld(found: Elsewhere) -> str:
    return f"{found.what} is not given to pods: it is {found.how}"


def _link_code(error: LinkError) -> Code:
    if isinstance(error, LinkExists):
        return Code.ALREADY_ATTACHED
    return Code.ENVIRONMENT if isinstance(error, NoNamespace) else Code.INTERFACE


def _result(request: Request, link: PodLink, dns: DNS) -> Result:
    """Our result, appended to that of previous plugins."""
    result = request.config.prev_result or Result()
    result.interfaces += [
        Interface(name=link.host, mac=HOST_MAC, mtu=link.mtu),
        Interface(name=link.ifname, mac=link.mac, mtu=link.mtu, sandbox=link.netns),
    ]
    pod_side = len(result.interfaces) - 1
    for family, address in link.addresses.items():
        result.ips.append(IPConfig(f"{address}/{family.bits}", GATEWAY[family], pod_side))
        if link.default_route:
            result.routes.append(RouteConfig(_DEFAULT[family], GATEWAY[family]))
    given = (one for one in (request.config.dns, dns) if one is not None and one != DNS())
    result.dns = next(given, result.dns)
    return result
