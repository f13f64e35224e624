"""What of our own prefixes and of the learned routes goes to which peer, and with which attributes.

Learned routes go on only at a route reflector (RFC 4456). It is no transit: what an eBGP peer has told goes to
iBGP peers alone.
"""

from __future__ import annotations

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


def reflected(
    prefix: str, candidate: Candidate, to: Peer, to_router_id: str, us: Identity, interface: str = ""
) -> Announcement | None:
    """A learned route as it goes on to a peer; None: it does not go there.

    ``to_router_id``: the peer's BGP identifier. ``interface``: where the route leads.
    """
    source, path = candidate
    originator = path.originator_id or source.router_id
    if not us.cluster_id or to.address in (source.address, path.next_hop):
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
        if originator == to_router_id:
            return None
        clusters = (us.cluster_id, *path.cluster_list)
        announcement = replace(announcement, originator_id=originator, cluster_list=clusters)
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
