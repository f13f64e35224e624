"""What this node announces: its pods' prefixes, Service prefixes and static ones, with their attributes.

It follows the Services while the configuration asks for them, and takes a node that is being drained out of the
routers' choice step by step. Nothing here speaks BGP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Protocol

from bgp.announcement import Announcement
from bgp.prefixes import canonical
from bgp.resources import BGPConfiguration
from bgp.services import Attributes, Drain, Drained, Endpoints, Ranges, Service, ServiceIndex
from felix_py import log
from felix_py.datastore.service_kinds import OnServices
from felix_py.layout import EXCLUDED
from policy.change import Change

GRACE = 30.0
"""Seconds for which routers are asked to use other paths before anything is withdrawn. A router that takes the
community moves at once; those behind it hear of it within 30 s (RFC 4271, section 10,
MinRouteAdvertisementIntervalTimer)."""


class Objects(Protocol):
    """See :class:`felix_py.datastore.service_kinds.ServiceObjects`."""

    def subscribe(self, handler: OnServices, on_listed: Callable[[], None]) -> None: ...

    def want(self, *, endpoints: bool) -> None: ...

    def listed(self) -> bool: ...

    def refused(self) -> bool: ...


class Cancels(Protocol):
    """A timer that is running."""

    def cancel(self) -> None: ...


Later = Callable[[float, Callable[[], None]], Cancels]


def _call_later(seconds: float, call: Callable[[], None]) -> Cancels:
    return asyncio.get_running_loop().call_later(seconds, call)


class ServicePrefixes:
    """The announcements of one node. On the event loop only."""

    def __init__(self, objects: Objects, changed: Callable[[], None], later: Later = _call_later) -> None:
        """``changed`` is called whenever :meth:`announcements` may have changed."""
        self._objects = objects
        self._changed = changed
        self._later = later
        self._log = log.get("services")
        self._index = ServiceIndex()
        self._config: BGPConfiguration | None = None
        self._pools: tuple[str, ...] | None = ()
        self._ranges = Ranges()
        self._attributes = Attributes(BGPConfiguration(name=""))
        self._excluded = False
        self._asked: str | None = None
        self._stage = Drain.NO
        self._timer: Cancels | None = None
        self._wanted = self._known = False
        objects.subscribe(self._fold, self._listed)

    # --- inputs --------------------------------------------------------------------------------------

    def configure(self, config: BGPConfiguration) -> None:
        """Set the configuration that is in force on this node. Raises ValueError for a text that is no CIDR;
        nothing changes then."""
        if config == self._config:
            return
        ranges = self._ranges_of(config)
        for cidr in config.static_prefixes or ():
            canonical(cidr)
        self._config, self._ranges = config, ranges
        self._take()

    def set_pools(self, cidrs: Sequence[str] | None) -> None:
        """Set the pools for load balancers that are announced, like ranges of ``serviceLoadBalancerIPs``; None:
        they are not known yet."""
        given = None if cidrs is None else tuple(cidrs)
        if given == self._pools:
            return
        self._pools = given
        if self._config is not None:
            self._ranges = self._ranges_of(self._config)
            self._take()

    def _ranges_of(self, config: BGPConfiguration) -> Ranges:
        declared = config.service_load_balancer_ips or ()
        return Ranges.of(replace(config, service_load_balancer_ips=(*declared, *(self._pools or ()))))

    def set_node(self, labels: Iterable[tuple[str, str]], drain: str) -> None:
        """Set the Node's labels, and what its annotation or taint says of draining; empty: nothing.

        A node that is being drained when the agent starts has been left long ago: it does not come back for a
        while.
        """
        excluded = EXCLUDED in labels
        if (excluded, drain) == (self._excluded, self._asked):
            return
        first, before = self._asked is None, self._asked
        self._excluded, self._asked = excluded, drain
        if not drain:
            self._set_stage(Drain.NO)
        elif first:
            self._set_stage(Drain.WITHDRAWN)
        elif not before:
            self._log.info("draining: asking routers to use other paths", seconds=GRACE)
            self._set_stage(Drain.GRACEFUL)
            self._timer = self._later(GRACE, self._withdraw)
        self._take()

    # --- results -------------------------------------------------------------------------------------

    @property
    def known(self) -> bool:
        """Whether :meth:`announcements` is complete. Until then, what an earlier agent announced must stay.

        Once true it stays so: what is asked for later has not been announced before.
        """
        if self._config is not None and self._asked is not None and self._pools is not None:
            self._known = self._known or not self._wanted or self._objects.listed()
        return self._known

    @property
    def refused(self) -> bool:
        """Whether the API server does not let us see Services, so that :attr:`known` may never be true."""
        return self._objects.refused()

    def announcements(self, own: Iterable[str]) -> dict[str, Announcement]:
        """All that this node announces, by prefix. ``own``: the prefixes of its pods, which stay announced as
        long as it has them, whatever happens to the node.
        """
        static = self._config.static_prefixes or () if self._config else ()
        if self._stage is Drain.WITHDRAWN:
            static = ()
        prefixes = {*map(canonical, chain(own, static)), *self._index.prefixes()}
        return {prefix: self._attributes.announcement(prefix) for prefix in sorted(prefixes)}

    def service_prefixes(self) -> frozenset[str]:
        """The Service prefixes among the announcements: what comes in for them must not leave by the same way."""
        return self._index.prefixes()

    def ranges(self) -> tuple[str, ...]:
        """All Service ranges of the configuration: nobody's route inside them is learned."""
        return self._ranges.all

    def drained(self) -> Drained:
        """How far the drain is."""
        kept = tuple(sorted(self._index.prefixes())) if self._stage is Drain.WITHDRAWN else ()
        return Drained(self._asked or "", self._stage, kept)

    # --- events --------------------------------------------------------------------------------------

    def _fold(self, changes: Sequence[Change[Service | Endpoints]]) -> None:
        for change in changes:
            if service := change.of(Service):
                self._index.set_service(service.newest.key, service.after)
            elif endpoints := change.of(Endpoints):
                self._index.set_endpoints(endpoints.before, endpoints.after)
        self._want()
        self._changed()

    def _listed(self) -> None:
        self._changed()

    def _withdraw(self) -> None:
        self._log.info("draining: withdrawing what other nodes announce as well")
        self._set_stage(Drain.WITHDRAWN)
        self._take()

    def _set_stage(self, stage: Drain) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stage = stage

    def _take(self) -> None:
        """Have configuration and node take effect."""
        if self._config is None:
            return
        self._index.configure(self._ranges, excluded=self._excluded, drain=self._stage)
        self._attributes = Attributes(self._config, self._stage)
        self._want()
        self._changed()

    def _want(self) -> None:
        """Have Services watched once there is a range, and endpoints once a Service needs them."""
        if self._ranges.all:
            self._wanted = True
            self._objects.want(endpoints=self._index.needs_endpoints)
