"""The agent's readiness, ``/status``, and the metrics that are computed at a scrape."""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Sized
from importlib.metadata import version
from typing import Any, Protocol

from msgspec import Struct, field

from bgp.services import Drained
from bgp.session import PeerStatus
from felix_py import log
from felix_py.cni.network import Network
from felix_py.config import SETTINGS, AgentConfig, as_json
from felix_py.datastore.cluster import Cluster
from felix_py.metrics import Metrics
from felix_py.notices import Notices
from felix_py.observe.deny_log import DenyLogging
from felix_py.observe.policy_counters import PolicyCounters
from felix_py.reconcile import Reconciler

_MOST_SHOWN = 1000
"""Failures listed at most; ``failedObjects`` counts all."""


class Configured(Protocol):
    """See :class:`felix_py.agent.configured.Configured`."""

    @property
    def config(self) -> AgentConfig: ...

    @property
    def sources(self) -> Mapping[str, str]: ...

    @property
    def restart_due(self) -> tuple[str, ...]: ...


class Facts(Protocol):
    """See :class:`felix_py.agent.facts.Facts`."""

    @property
    def held(self) -> Sized: ...

    @property
    def pod_cidrs(self) -> tuple[str, ...]: ...

    @property
    def address_cidrs(self) -> tuple[str, ...]: ...

    @property
    def pooled(self) -> Pooled: ...

    @property
    def remote(self) -> RemoteRoutes: ...


class Pooled(Protocol):
    """See :class:`felix_py.agent.pooled.Pooled`."""

    @property
    def blocks(self) -> tuple[str, ...]: ...

    @property
    def borrowed(self) -> tuple[str, ...]: ...

    @property
    def lent(self) -> tuple[str, ...]: ...


class RemoteRoutes(Protocol):
    """See :class:`felix_py.agent.remote_routes.RemoteRoutes`."""

    @property
    def number(self) -> int: ...

    def gateways(self) -> Mapping[str, tuple[str, ...]]: ...

    def metrics(self) -> Mapping[str, int]: ...


class Pods(Protocol):
    """See :class:`felix_py.agent.pods.Pods`."""

    def no_addresses(self, cidrs: Sequence[str]) -> str | None: ...

    def usage(self, cidrs: Sequence[str]) -> Mapping[str, tuple[int, int]]: ...

    def resting(self, cidrs: Sequence[str]) -> Mapping[str, int]: ...


class Bgp(Protocol):
    """See :class:`felix_py.agent.bgp.Bgp`."""

    def peers(self) -> list[PeerStatus]: ...

    def drained(self) -> Drained: ...

    def dropped(self) -> Collection[str] | None: ...

    def refresh_metrics(self) -> None: ...


class Status(Struct):
    """The state of the parts, on the event loop only. ``running``: values that do not change in a run."""

    running: Mapping[str, Any]
    configured: Configured
    facts: Facts
    network: Network
    pods: Pods
    reconciler: Reconciler
    cluster: Cluster
    bgp: Bgp
    deny_log: DenyLogging
    notices: Notices
    counters: PolicyCounters
    metrics: Metrics
    _born: float = field(default_factory=time.monotonic)
    _lines_lost: dict[str, int] = field(default_factory=dict)
    _build_told: bool = False

    def unready(self) -> str | None:
        """Why no pod can be connected or policy is not wholly in force, or None."""
        return next(filter(None, self.parts().values()), None)

    def parts(self) -> dict[str, str | None]:
        """The parts of ``/readyz``: name -> why it is not well, or None.

        ``sync``: the whole cluster was seen, and is in the kernel; ``addresses``: pods can get one; ``policy``:
        the last apply wrote all that policy rests on; ``kernel``: what is in force can be read back.
        """
        failure, unread = self.reconciler.unenforced, self.reconciler.unread
        return {
            "sync": self.network.unready(),
            "addresses": self.pods.no_addresses(self.facts.address_cidrs),
            "policy": f"policy is not wholly in force: {failure}" if failure else None,
            "kernel": f"the kernel cannot be read back: {unread}" if unread else None,
        }

    def state(self) -> dict[str, Any]:
        """The body of ``/status``."""
        return {
            **self.running,
            "configuration": {**self.running["configuration"], **of_configured(self.configured)},
            "uptimeSeconds": round(time.monotonic() - self._born, 1),
            "unready": self.unready(),
            "readiness": self.parts(),
            "podCIDRs": list(self.facts.pod_cidrs),
            "blocks": [*self.facts.pooled.blocks, *self.facts.pooled.borrowed],
            "endpoints": len(self.facts.held),
            "denyLog": self.deny_log.state(),
            "notices": [notice._asdict() for notice in self.notices.all()],
            **of_reconciler(self.reconciler),
            **of_cluster(self.cluster),
            **of_bgp(self.bgp, self.facts.remote),
        }

    async def refresh_metrics(self) -> None:
        """Set the metrics, before they are read."""
        await self.counters.refresh()
        lost = log.lost()
        for reason, lines in lost.items():
            self.metrics.log_lost.labels(reason).inc(lines - self._lines_lost.get(reason, 0))
        self._lines_lost = lost
        self.metrics.endpoints.set(len(self.facts.held))
        for part, why in self.parts().items():
            self.metrics.ready.labels(part).set(0 if why else 1)
        for kind, number in self.reconciler.sizes().items():
            self.metrics.objects.labels(kind).set(number)
        self._set_addresses()
        self.metrics.misunderstood.clear()
        for kind, number in Counter(problem.kind for problem in self.cluster.store.problems).items():
            self.metrics.misunderstood.labels(kind).set(number)
        self._tell_build()
        self.metrics.compared_age.set(self.reconciler.compared_age)
        for kind, age in self.cluster.ages().items():
            self.metrics.watch_age.labels(kind).set(age)
        self.bgp.refresh_metrics()

    def _tell_build(self) -> None:
        if not self._build_told:
            backend = self.running["configuration"]["backend"]
            kernel, python = os.uname().release, platform.python_version()
            self.metrics.build.labels(version("felix-py"), python, kernel, backend).set(1)
            self._build_told = True

    def _set_addresses(self) -> None:
        used, free = self.metrics.addresses_used, self.metrics.addresses_free
        used.clear()
        free.clear()
        for cidr, (taken, left) in self.pods.usage(self.facts.address_cidrs).items():
            used.labels(cidr).set(taken)
            free.labels(cidr).set(left)
        self.metrics.addresses_borrowed.set(len(self.facts.pooled.borrowed))
        self.metrics.addresses_lent.set(len(self.facts.pooled.lent))
        self.metrics.addresses_resting.clear()
        for cidr, number in self.pods.resting(self.facts.address_cidrs).items():
            self.metrics.addresses_resting.labels(cidr).set(number)


def of_configured(configured: Configured) -> dict[str, Any]:
    """All settings in force, which of them are from a FelixConfiguration, and those whose change needs a
    restart.
    """
    return {
        "settings": as_json(configured.config),
        "sources": {SETTINGS[name].json_name: source for name, source in configured.sources.items()},
        "restartRequired": list(configured.restart_due),
    }


def of_reconciler(reconciler: Reconciler) -> dict[str, Any]:
    """Failures, the age of the last comparison, and the last drift."""
    last = reconciler.last_drift
    return {
        "failures": [
            {"what": str(failure.ref), "reason": failure.reason, "count": failure.count}
            for failure in itertools.islice(reconciler.failures, _MOST_SHOWN)
        ],
        "failedObjects": reconciler.failures.objects,
        "comparedAgeSeconds": round(reconciler.compared_age, 1),
        "lastDrift": None if last is None else {"secondsAgo": round(last[0], 1), "found": last[1]},
    }


def of_cluster(cluster: Cluster) -> dict[str, Any]:
    """The age of each kind's watch, and the objects that could not be decoded."""
    return {
        "watchAgeSeconds": {kind: round(age, 1) for kind, age in cluster.ages().items()},
        "problems": [
            {"kind": p.kind, "namespace": p.key[0], "name": p.key[1], "reason": p.reason}
            for p in cluster.store.problems
        ],
    }


def of_bgp(bgp: Bgp, remote: RemoteRoutes) -> dict[str, Any]:
    """Peers, and routes to other nodes' pods."""
    dropped = bgp.dropped()
    return {
        "serviceDrops": None if dropped is None else sorted(dropped),
        "peers": [described(peer) for peer in bgp.peers()],
        "routes": {prefix: list(hops) for prefix, hops in sorted(remote.gateways().items())},
        "routeMetrics": dict(sorted(remote.metrics().items())),
    }


def described(peer: PeerStatus) -> dict[str, Any]:
    """One BGP peer."""
    return {
        "name": peer.name,
        "address": peer.address,
        "asNumber": peer.asn,
        "established": peer.established,
        "reason": peer.error,
        "bfd": peer.bfd,
        "prefixesReceived": peer.received,
        "prefixLimitState": peer.limit_state,
        "prefixesAnnounced": peer.announced,
        "prefixesRefused": peer.refused,
        "refusal": peer.refusal,
    }
