"""What of our own prefixes and of the learned routes goes to which peer, and with which attributes.

Learned routes go on only at a route reflector (RFC 4456). It is no transit: what an eBGP peer has told goes to
iBGP peers alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from bgp.announcement import Announcement
from bgp.decision import DEFAULT_LOCAL_PREF, Candidate, Identity
from bgp.filters import Route, changed_announcement, decide
from bgp.model import Peer
from bgp.prefixes import version
from bgp.resources import NextHopMode

NO_EXPORT, NO_ADVERTISE, NO_EXPORT_SUBCONFED = "65535:65281", "65535:65282", "65535:65283"
"""RFC 1997."""


def own(announcement: Announcement, to: Peer) -> Announcement | None:
    """One of our own prefixes as it goes to a peer; None: its filters reject it."""
    return _filtered(announcement, to, learned=False)


def group(to: Peer) -> Hashable:
    """Peers of one group get the same of learned routes, but for :func:`goes_back`."""
    modes = to.next_hop_mode, to.keep_original_next_hop, to.extended_next_hop
    return to.external, bool(to.cluster_id), modes, to.filters


def goes_back(candidate: Candidate, to: Peer, to_router_id: str) -> bool:
    """Whether a peer, with its BGP identifier, is where a learned route comes from, or leads to."""
    source, path = candidate
    if source.address == to.key or path.next_hop == to.address:
        return True
    return not source.external and (path.originator_id or source.router_id) == to_router_id


def reflected(
    prefix: str, candidate: Candidate, to: Peer, us: Identity, interface: str = ""
) -> Announcement | None:
    """A learned route as it goes on to peers of a :func:`group`; None: it does not.

    ``interface``: where the route leads.
    """
    source, path = candidate
    if not us.cluster_id:
        return None
    goes = not to.external if source.external else to.external or source.client or to.cluster_id
    if not goes:
        return None
    if NO_ADVERTISE in path.communities:
        return None
    if to.external and {NO_EXPORT, NO_EXPORT_SUBCONFED} & set(path.communities):
        return None
    announcement = Announcement(
        prefix,
        next_hop=path.next_hop if _keeps_next_hop(to, prefix, path.next_hop) else "self",
        as_path=path.as_path,
        origin=path.origin,
        communities=path.communities,
        large_communities=path.large_communities,
    )
    if not to.external:
        # RFC 4271, 5.1.4 and 5.1.5: MED and LOCAL_PREF stay inside the AS.
        local_pref = None if path.local_pref == DEFAULT_LOCAL_PREF else path.local_pref
        announcement = replace(announcement, med=path.med or None, local_preference=local_pref)
    if not (to.external or source.external):
        announcement = replace(
            announcement,
            originator_id=path.originator_id or source.router_id,
            cluster_list=(us.cluster_id, *path.cluster_list),
        )
    return _filtered(announcement, to, learned=True, interface=interface, priority=path.priority)


def _keeps_next_hop(to: Peer, prefix: str, next_hop: str) -> bool:
    if "%" in next_hop or (version(next_hop) != version(prefix) and not to.extended_next_hop):
        return False  # a link-local address means nothing elsewhere, nor one of a family that the session has not
    if to.next_hop_mode is NextHopMode.AUTO:
        return to.keep_original_next_hop or not to.external
    return to.next_hop_mode is NextHopMode.KEEP


def _filtered(
    announcement: Announcement, to: Peer, *, learned: bool, interface: str = "", priority: int | None = None
) -> Announcement | None:
    if to.filters:
        route = Route(
            announcement.prefix,
            to.external,
            learned=learned,
            interface=interface,
            communities=announcement.communities,
            large_communities=announcement.large_communities,
            as_path=announcement.as_path,
            priority=priority,
        )
        decided = decide(to.filters, route, imported=False)
        if decided and not decided.rule.accept:
            return None
        if decided:
            announcement = changed_announcement(announcement, decided.rule.operations)
    if to.external and announcement.local_preference is not None:
        announcement = replace(announcement, local_preference=None)
    return announcement
