"""What parts of the agent say of themselves at ``/status``."""

from __future__ import annotations

import itertools
from typing import Any

from felix_py.agent.bgp import Bgp
from felix_py.datastore.cluster import Cluster
from felix_py.reconcile import Reconciler

_MOST_SHOWN = 1000
"""Failures that are listed; ``failedObjects`` counts all."""


def of_reconciler(reconciler: Reconciler) -> dict[str, Any]:
    """What could not be written, when everything was last compared, and what others had changed."""
    last = reconciler.last_drift
    return {
        "failures": [
            {"what": failure.what, "reason": failure.reason, "count": failure.count}
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
