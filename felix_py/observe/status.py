"""What the agent says of itself: readiness, ``/status``, and the metrics that are worked out when asked for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence, Sized
from typing import Any, Protocol

from bgp.session import PeerStatus
from felix_py import log
from felix_py.cni.network import Network
from felix_py.datastore.cluster import Cluster
from felix_py.metrics import Metrics
from felix_py.notices import Notices
from felix_py.observe.deny_log import DenyLogging
from felix_py.observe.policy_counters import PolicyCounters
from felix_py.reconcile import Reconciler

_MOST_SHOWN = 1000
"""Failures that are listed; ``failedObjects`` counts all."""


class Facts(Protocol):
    """See :class:`felix_py.agent.facts.Facts`."""

    @property
    def held(self) -> Sized: ...

    @property
    def pod_cidrs(self) -> tuple[str, ...]: ...


class Pods(Protocol):
    """See :class:`felix_py.agent.pods.Pods`."""

    def no_addresses(self, cidrs: Sequence[str]) -> str | None: ...


class Bgp(Protocol):
    """See :class:`felix_py.agent.bgp.Bgp`."""

    def peers(self) -> list[PeerStatus]: ...

    def routes(self) -> Mapping[str, tuple[str, ...]]: ...

    def refresh_metrics(self) -> None: ...


class Status:
    """Asks the parts. On the event loop only."""

    def __init__(
        self,
        running: Mapping[str, Any],
        facts: Facts,
        network: Network,
        pods: Pods,
        reconciler: Reconciler,
        cluster: Cluster,
        bgp: Bgp,
        deny_log: DenyLogging,
        notices: Notices,
        counters: PolicyCounters,
        metrics: Metrics,
    ) -> None:
        """``running``: what does not change while the agent runs."""
        self._running = running
        self._facts = facts
        self._network = network
        self._pods = pods
        self._reconciler = reconciler
        self._cluster = cluster
        self._bgp = bgp
        self._deny_log = deny_log
        self._notices = notices
        self._counters = counters
        self._metrics = metrics
        self._born = time.monotonic()
        self._lines_lost: dict[str, int] = {}

    def unready(self) -> str | None:
        """Why no pod can be connected, or what keeps policy from being wholly in force; None if nothing does."""
        if reason := self._network.unready() or self._pods.no_addresses(self._facts.pod_cidrs):
            return reason
        if failure := self._reconciler.unenforced:
            return f"policy is not wholly in force: {failure}"
        return f"the kernel cannot be read back: {unread}" if (unread := self._reconciler.unread) else None

    def state(self) -> dict[str, Any]:
        """For ``/status``."""
        return {
            **self._running,
            "uptimeSeconds": round(time.monotonic() - self._born, 1),
            "unready": self.unready(),
            "podCIDRs": list(self._facts.pod_cidrs),
            "endpoints": len(self._facts.held),
            "denyLog": self._deny_log.state(),
            "notices": [notice._asdict() for notice in self._notices.all()],
            **of_reconciler(self._reconciler),
            **of_cluster(self._cluster),
            **of_bgp(self._bgp),
        }

    async def refresh_metrics(self) -> None:
        """Before they are read."""
        await self._counters.refresh()
        lost = log.lost()
        for reason, lines in lost.items():
            self._metrics.log_lost.labels(reason).inc(lines - self._lines_lost.get(reason, 0))
        self._lines_lost = lost
        self._metrics.endpoints.set(len(self._facts.held))
        self._metrics.compared_age.set(self._reconciler.compared_age)
        for kind, age in self._cluster.ages().items():
            self._metrics.watch_age.labels(kind).set(age)
        self._bgp.refresh_metrics()


def of_reconciler(reconciler: Reconciler) -> dict[str, Any]:
    """What could not be written, when everything was last compared, and what others had changed."""
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
    """When each kind was last heard of, and which objects are not understood."""
    return {
        "watchAgeSeconds": {kind: round(age, 1) for kind, age in cluster.ages().items()},
        "problems": [
            {"kind": p.kind, "namespace": p.key[0], "name": p.key[1], "reason": p.reason}
            for p in cluster.store.problems
        ],
    }


def of_bgp(bgp: Bgp) -> dict[str, Any]:
    """Peers and learned routes."""
    return {
        "peers": [
            {
                "address": peer.address,
                "asNumber": peer.asn,
                "established": peer.established,
                "reason": peer.error,
                "prefixesReceived": peer.received,
            }
            for peer in bgp.peers()
        ],
        "routes": {prefix: list(hops) for prefix, hops in sorted(bgp.routes().items())},
    }
