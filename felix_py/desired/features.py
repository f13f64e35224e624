"""Netfilter matches that a kernel may lack, and the effect on the rules.

One rule that the kernel refuses fails its whole transaction. So each match is probed at the start
(:func:`felix_py.dataplane.probe.missing_features`), and missing ones are part of the rules' options. The
fallbacks are in :mod:`felix_py.desired.static`. Packets that a fallback lets through are still judged by policy,
or a pod could have sent them anyway. The exception is the link group, which has no substitute: its rule is left
out.
"""

from __future__ import annotations

import enum

from felix_py.desired.icmp_errors import about_others
from felix_py.layout import LINK_GROUP
from felix_py.ruleset.model import FULL, IN, SOURCE, AddressType, HopLimit, InGroup, Match, ReversePath
from policy.model import Family

HOST_END = InGroup(IN, LINK_GROUP, FULL)
"""From a pod's interface, whatever its name."""
FROM_NEIGHBOUR = HopLimit(255)
"""Not forwarded by any router (RFC 4861, section 3.1)."""
NOT_FROM_HERE = AddressType(SOURCE, ("LOCAL",), negated=True)
"""From an address that is not the node's."""
STRAYED = ReversePath(negated=True)
"""From a source that is routed to another interface, or nowhere (RFC 3704, section 2.2: strict)."""


class Feature(enum.StrEnum):
    """A match by its name in iptables. The module is ``xt_NAME``, but ``ipt_`` and ``ip6t_`` of rpfilter."""

    ADDRTYPE = "addrtype"
    BPF = "bpf"
    DEVGROUP = "devgroup"
    HL = "hl"
    RPFILTER = "rpfilter"


LOST = {
    Feature.ADDRTYPE: "what the node itself begins to pods with restricted ingress is dropped, kubelet's probes "
    "among it, since it cannot be told from what a proxy sends in the name of others",
    Feature.BPF: "of a pod's ICMP only echo passes, so nobody hears its errors (port unreachable; packet too "
    "big, where a pod forwards packets)",
    Feature.DEVGROUP: "an interface of a pod that somebody renames lets IPv6 packets with forged sources through "
    "until it has its name back",
    Feature.HL: "neighbour discovery of pods is taken with any hop limit; the kernel itself ignores all but 255",
    Feature.RPFILTER: "nothing; each packet of a pod is looked up in an IP set, which costs it some 0.2 us more",
}
"""What is lost without a feature, for people."""


def matches(feature: Feature, family: Family) -> tuple[Match, ...]:
    """Returns the matches that the rules use, () if this family's rules use none."""
    match feature:
        case Feature.ADDRTYPE:
            return (NOT_FROM_HERE,)
        case Feature.BPF:
            return about_others(family)
        case Feature.DEVGROUP:
            return (HOST_END,)
        case Feature.HL:
            return (FROM_NEIGHBOUR,) if family is Family.V6 else ()
        case Feature.RPFILTER:
            return (STRAYED,)
