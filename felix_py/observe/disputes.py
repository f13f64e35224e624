"""Notices of addresses that more than one pod claims."""

from __future__ import annotations

from itertools import islice

from policy.holders import Holders
from policy.model import ObjectKey, Pod

_MOST = 100
"""Addresses with a notice at most. More mean that something is wrong with the cluster as a whole."""


def told(holders: Holders) -> dict[str, str]:
    """Returns address -> its claimants, its holder, and what to do."""
    return {
        address: _told(address, owner, vain, holders.endpoint(address))
        for address, owner, vain in islice(holders.disputes(), _MOST)
    }


def _told(address: str, owner: Pod | None, vain: list[Pod], holder: ObjectKey | None) -> str:
    others = " and ".join(sorted(map(_name, vain)))
    if holder is not None:
        whose = f"{address} is leased on this node to pod {'/'.join(holder)}"
    elif owner is not None:
        whose = f"{address} is taken for pod {_name(owner)}, whose claim is the newest"
    else:
        whose = f"{address} is taken for no pod"
    claim = "claims" if len(vain) == 1 else "claim"
    return (
        f"{whose}; {others} {claim} it as well, in vain: to no policy the address is that pod's. See what keeps "
        "the object (finalizers, a node that is gone), or whether two nodes have the same podCIDR"
    )


def _name(pod: Pod) -> str:
    place = f" on {pod.node}" if pod.node else ""
    return f"{pod.namespace}/{pod.name}{place}{' (being deleted)' if pod.deleted else ''}"
