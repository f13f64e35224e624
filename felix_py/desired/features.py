"""Netfilter matches that a kernel may lack, and what becomes of the rules without them.

A rule that the kernel does not take would keep all others of its transaction out. So each match is tried at the
start (:func:`felix_py.dataplane.probe.missing_features`), and what is missing is a part of the rules' options.
The fallbacks stand where the rules are made (:mod:`felix_py.desired.static`). What one of them lets through,
policy judges as ever, or a pod could have sent it anyway. The one exception is the link group, which nothing else
can tell: without it, its rule is left out.
"""

from __future__ import annotations

import enum

from felix_py.desired.icmp_errors import about_others
from felix_py.layout import LINK_GROUP
from felix_py.ruleset.model import FULL, IN, SOURCE, AddressType, HopLimit, InGroup, Match, ReversePath
from policy.model import Family

HOST_END = InGroup(IN, LINK_GROUP, FULL)
"""By the interface of a pod, whatever it is called."""
FROM_NEIGHBOUR = HopLimit(255)
"""What no router has passed on (RFC 4861, section 3.1)."""
NOT_FROM_HERE = AddressType(SOURCE, ("LOCAL",), negated=True)
"""From an address that is not the node's."""


STRAYED = ReversePath(negated=True)
"""From a source that is routed to another interface, or nowhere (RFC 3704, section 2.2: strict)."""


class Feature(enum.StrEnum):
    """A match by its name in iptables. The module is ``xt_`` and that, of rpfilter ``ipt_`` and ``ip6t_``."""

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
"""What is not as it should be without a feature."""


def matches(feature: Feature, family: Family) -> tuple[Match, ...]:
    """The matches as the rules have them; () where this family's rules have none."""
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
