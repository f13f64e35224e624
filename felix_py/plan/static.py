"""The rules that do not depend on any policy: hooks, the way a packet takes, source binding, masquerade.

``docs/DESIGN.md`` draws the whole way. All chains of one family are made by the same code; what differs between
the families stands in ``if family`` lines here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from felix_py.layout import INTERFACE_PREFIX, set_prefix
from felix_py.plan.deny_log import (
    ASTRAY_DROP,
    ERROR_DROP,
    HOST_DROP,
    INVALID_DROP,
    MIDSTREAM_DROP,
    PROXIED_DROP,
    SOURCE_DROP,
    DenyLog,
    dropping,
)
from felix_py.plan.features import FROM_NEIGHBOUR, HOST_END, NOT_FROM_HERE, Feature
from felix_py.plan.icmp_errors import about_others, all_but_echo
from felix_py.plan.marks import Marks
from felix_py.plan.names import (
    ALLOW,
    ASTRAY,
    CLASSIFY,
    DISPATCH,
    ERROR,
    FORWARD,
    INPUT,
    INVALID,
    MIDSTREAM,
    NEIGHBOUR,
    OUTPUT,
    PASS,
    POSTROUTING,
    PROXIED,
    SOURCE,
)
from felix_py.plan.render import mark_match, set_mark
from felix_py.records import Hook, SetSpec, SetType, Words
from policy.model import Direction, Family

_PODS = f"{INTERFACE_PREFIX}+"
_ESTABLISHED: Words = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED")
_INVALID: Words = ("-m", "conntrack", "--ctstate", "INVALID")
_MIDSTREAM: Words = (
    *("-p", "tcp", "-m", "tcp", "!", "--tcp-flags", "FIN,SYN,RST,ACK", "SYN"),
    *("-m", "conntrack", "--ctstate", "NEW"),
)
"""TCP of which conntrack has not seen the beginning; it would take whoever sends first for the client."""

_NEIGHBOUR_DISCOVERY = (133, 135, 136)
"""Router and neighbour solicitation and neighbour advertisement (RFC 4861): a pod must be able to send them."""
_SOLICITATION = 135
_SOLICITED_NODE = "ff02::1:ff00:0/104"
_LINK_LOCAL = "fe80::/10"
_ON_LINK = (_LINK_LOCAL, "ff02::/16")
"""Where neighbour discovery may go: nothing that the node would forward."""


@dataclass(frozen=True, slots=True)
class SetNames:
    """The IP sets of one family that do not come from policy."""

    source: str
    local: str
    egress: str
    ingress: str
    pool: str
    no_masquerade: str

    @classmethod
    def of(cls, family: Family) -> SetNames:
        """The names in one family."""
        prefix = set_prefix(family)
        return cls(*(prefix + name for name in ("source", "local", "egress", "ingress", "pool", "nomasq")))

    def class_map(self, direction: Direction) -> str:
        """The set that maps an endpoint's address to its class number."""
        return self.egress if direction is Direction.EGRESS else self.ingress


@dataclass(frozen=True, slots=True)
class StaticOptions:
    """What configuration and kernel decide about the static rules. ``endpoint_to_host`` is an iptables target.

    ``drop_midstream``: TCP that conntrack does not know goes on only where it cannot undo a denial. ``missing``:
    what this kernel has not, so that the rules must do without.
    """

    marks: Marks
    nat_outgoing: bool = True
    endpoint_to_host: str = "RETURN"
    drop_invalid: bool = True
    drop_midstream: bool = True
    deny_log: DenyLog | None = None
    missing: tuple[Feature, ...] = ()


def static_sets(family: Family, options: StaticOptions) -> list[SetSpec]:
    """Every set of :class:`SetNames` with its type."""
    names = SetNames.of(family)
    marks = options.marks
    specs = [
        SetSpec(names.source, SetType.NET_IFACE, family),
        SetSpec(names.local, SetType.IP, family),
        SetSpec(names.egress, SetType.IP, family, marks.class_mask(Direction.EGRESS)),
        SetSpec(names.ingress, SetType.IP, family, marks.class_mask(Direction.INGRESS)),
    ]
    if options.nat_outgoing:
        specs += [
            SetSpec(names.pool, SetType.NET, family),
            SetSpec(names.no_masquerade, SetType.NET, family),
        ]
    return specs


def static_hooks(family: Family, options: StaticOptions) -> list[Hook]:
    """Our rules in the built-in chains."""
    accept = mark_match(options.marks.accept, options.marks.accept)
    from_pod = ("-m", "set", "--match-set", SetNames.of(family).local, "src")
    hooks = [
        Hook(family, "raw", "PREROUTING", ("-i", _PODS, "-j", SOURCE), first=True),
        # A pod's packets come by its own interface and no other: not by the uplink, nor by one that was renamed.
        Hook(family, "raw", "PREROUTING", ("!", "-i", _PODS, *from_pod, "-j", SOURCE), first=True),
        Hook(family, "mangle", "FORWARD", ("-j", CLASSIFY), first=True),
        Hook(family, "mangle", "INPUT", ("-i", _PODS, "-j", CLASSIFY), first=True),
        Hook(family, "filter", "FORWARD", ("-j", FORWARD), first=True),
        # Appended, not inserted: whatever others put between still has its say on what policy allows.
        Hook(family, "filter", "FORWARD", ("-i", _PODS, *accept, "-j", "ACCEPT"), first=False),
        Hook(family, "filter", "FORWARD", ("-o", _PODS, *accept, "-j", "ACCEPT"), first=False),
        Hook(family, "filter", "INPUT", ("-i", _PODS, "-j", INPUT), first=True),
        Hook(family, "filter", "OUTPUT", ("-o", _PODS, "-j", OUTPUT), first=True),
        Hook(family, "filter", "OUTPUT", (*_in_a_pods_name(SetNames.of(family)), "-j", PROXIED), first=True),
    ]
    if Feature.DEVGROUP not in options.missing:
        # By its name, a renamed interface is bound to nothing: so nothing passes, whatever source it forges.
        # Without this, what it sends with a pod's address is still dropped.
        hooks.append(Hook(family, "raw", "PREROUTING", ("!", "-i", _PODS, *HOST_END, "-j", SOURCE), first=True))
    if options.nat_outgoing:
        hooks.append(Hook(family, "nat", "POSTROUTING", ("-j", POSTROUTING), first=True))
    return hooks


def closed_hooks(family: Family, options: StaticOptions) -> list[Hook]:
    """All that there is of a family that is switched off: what pods send of it goes nowhere."""
    hooks = [Hook(family, "raw", "PREROUTING", ("-i", _PODS, "-j", "DROP"), first=True)]
    if Feature.DEVGROUP not in options.missing:
        hooks.append(Hook(family, "raw", "PREROUTING", ("!", "-i", _PODS, *HOST_END, "-j", "DROP"), first=True))
    return hooks


def static_chains(family: Family, options: StaticOptions) -> dict[tuple[str, str], tuple[Words, ...]]:
    """(table, chain) -> rules, of everything that policy does not change."""
    names = SetNames.of(family)
    marks = options.marks
    chains: dict[tuple[str, str], tuple[Words, ...]] = {
        ("raw", SOURCE): tuple(_source(family, names, options)),
        ("raw", ERROR): tuple(_error(family, options.deny_log)),
        ("mangle", CLASSIFY): (
            ("!", "-i", _PODS, "!", "-o", _PODS, "-j", "RETURN"),
            (*_ESTABLISHED, "-j", "RETURN"),
            # A mark that somebody else left in our bits must not choose a class, nor count as accepted.
            set_mark(0, marks.all),
            ("-i", _PODS, "-j", "SET", "--map-set", names.egress, "src", "--map-mark"),
            ("-o", _PODS, "-j", "SET", "--map-set", names.ingress, "dst", "--map-mark"),
        ),
        ("filter", ALLOW): (set_mark(marks.accept, marks.accept),),
        ("filter", PASS): (set_mark(marks.passed, marks.passed),),
        ("filter", FORWARD): tuple(_forward(names, options)),
        ("filter", INPUT): tuple(_input(family, options)),
        ("filter", OUTPUT): tuple(_output(names, options)),
        ("filter", ASTRAY): dropping(options.deny_log, ASTRAY_DROP),
        ("filter", PROXIED): dropping(options.deny_log, PROXIED_DROP),
    }
    if family is Family.V6:
        chains["raw", NEIGHBOUR] = tuple(_neighbour(names, options))
    if options.drop_invalid:
        chains["filter", INVALID] = dropping(options.deny_log, INVALID_DROP)
    if options.drop_midstream:
        chains["filter", MIDSTREAM] = dropping(options.deny_log, MIDSTREAM_DROP)
    if options.nat_outgoing:
        chains["nat", POSTROUTING] = (
            (
                *("-m", "set", "--match-set", names.pool, "src"),
                *("-m", "set", "!", "--match-set", names.no_masquerade, "dst"),
                *("-j", "MASQUERADE", "--random-fully"),
            ),
        )
    return chains


def _source(family: Family, names: SetNames, options: StaticOptions) -> Iterator[Words]:
    if family is Family.V6:
        yield from _neighbour_discovery("-g", NEIGHBOUR)
    errors = all_but_echo if Feature.BPF in options.missing else about_others
    yield (*errors(family), "-g", ERROR)
    yield (*_bound_source(names), "-j", "RETURN")
    if family is Family.V6:
        # Not logged: what every interface says with its link-local address (RFC 3810) is no denied connection.
        yield ("-d", "ff00::/8", "-j", "DROP")
    yield from dropping(options.deny_log, SOURCE_DROP)


def _error(family: Family, log: DenyLog | None) -> Iterator[Words]:
    if family is Family.V6:
        # Not logged: every interface says which groups it is in (RFC 3810), behind a hop-by-hop header.
        yield ("-d", "ff00::/8", "-j", "DROP")
    yield from dropping(log, ERROR_DROP)


def _neighbour(names: SetNames, options: StaticOptions) -> Iterator[Words]:
    """Neighbour discovery that is on the pod's link, and of addresses that are bound to it.

    Anywhere else it would be a message that no policy expects: conntrack does not track it. The node makes a
    neighbour entry for whoever solicits: of a pod there can be no more than it has addresses. What it says with
    its link-local address nobody needs: the node asks for the pod's own, and its gateway is a permanent entry.
    """
    # A pod sets the hop limit as it likes, so where the check is missing nothing is open to it that was not. It
    # all ends at the node, whose kernel ignores what has another one (RFC 4861, section 7.1).
    near = () if Feature.HL in options.missing else FROM_NEIGHBOUR
    # Duplicate address detection has no source yet (RFC 4862, section 5.4.2).
    solicitation = ("-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type", str(_SOLICITATION))
    yield ("-s", "::/128", "-d", _SOLICITED_NODE, *solicitation, *near, "-j", "RETURN")
    for destination in _ON_LINK:
        yield ("-d", destination, *near, *_bound_source(names), "-j", "RETURN")
    # Not logged: every interface does so.
    yield ("-s", _LINK_LOCAL, "-j", "DROP")
    yield from dropping(options.deny_log, SOURCE_DROP)


def _bound_source(names: SetNames) -> Words:
    return ("-m", "set", "--match-set", names.source, "src,src")


def _forward(names: SetNames, options: StaticOptions) -> Iterator[Words]:
    accept = options.marks.accept
    to_pod = ("--match-set", names.local, "dst")
    yield ("!", "-i", _PODS, "!", "-o", _PODS, "-m", "set", "!", *to_pod, "-j", "RETURN")
    yield (*_ESTABLISHED, "-g", ALLOW)
    if options.drop_invalid:
        yield (*_INVALID, "-g", INVALID)
    # No ingress policy would be asked: the pod's interface has another name than ours, or its route is another's.
    yield ("!", "-o", _PODS, "-m", "set", *to_pod, "-g", ASTRAY)
    if options.drop_midstream:
        yield (*_MIDSTREAM, "-i", _PODS, "-m", "set", "--match-set", names.ingress, "src", "-g", MIDSTREAM)
        yield _to_restricted_egress(names)
    yield ("-i", _PODS, "-j", DISPATCH[Direction.EGRESS])
    # What egress allowed says nothing about ingress.
    yield set_mark(0, accept)
    yield ("-o", _PODS, "-j", DISPATCH[Direction.INGRESS])
    yield ("-g", ALLOW)


def _to_restricted_egress(names: SetNames) -> Words:
    """What comes to a pod whose egress is restricted, and may be a reply, must not pass for somebody's beginning:
    all that the pod sends would then pass as replies. (What a pod of restricted ingress sends: likewise.)"""
    return (*_MIDSTREAM, "-o", _PODS, "-m", "set", "--match-set", names.egress, "dst", "-g", MIDSTREAM)


def _output(names: SetNames, options: StaticOptions) -> Iterator[Words]:
    """What the node sends to pods is never denied; what it sends in the name of others is not its own.

    kube-proxy in IPVS mode, or a transparent proxy, takes a packet in by INPUT and sends it on by OUTPUT, where
    it would pass for the node's. So it does not pass if policy would have a say on it.
    """
    yield (*_ESTABLISHED, "-j", "RETURN")
    if options.drop_midstream:
        yield _to_restricted_egress(names)
    yield ("-m", "set", "--match-set", names.egress, "src", "-g", PROXIED)
    to_restricted = ("-m", "set", "--match-set", names.ingress, "dst")
    # Where nothing tells the node's own packets, none of them passes.
    not_own = () if Feature.ADDRTYPE in options.missing else NOT_FROM_HERE
    yield (*to_restricted, *not_own, "-g", PROXIED)


def _in_a_pods_name(names: SetNames) -> Words:
    """From a pod whose egress is restricted, to elsewhere than a pod of this node (asked in FELIX-OUTPUT)."""
    new = ("-m", "conntrack", "!", "--ctstate", "RELATED,ESTABLISHED")
    return ("!", "-o", _PODS, *new, "-m", "set", "--match-set", names.egress, "src")


def _input(family: Family, options: StaticOptions) -> Iterator[Words]:
    if family is Family.V6:
        # On the pod's link and with its own source, or it would have been dropped in FELIX-NEIGHBOUR.
        yield from _neighbour_discovery("-j", "RETURN")
    replies = "ACCEPT" if options.endpoint_to_host == "ACCEPT" else "RETURN"
    yield (*_ESTABLISHED, "-j", replies)
    if options.drop_invalid:
        yield (*_INVALID, "-g", INVALID)
    yield ("-j", DISPATCH[Direction.EGRESS])
    if options.endpoint_to_host == "DROP":
        yield from dropping(options.deny_log, HOST_DROP)
    else:
        yield ("-j", options.endpoint_to_host)


def _neighbour_discovery(*target: str) -> Iterator[Words]:
    for kind in _NEIGHBOUR_DISCOVERY:
        yield ("-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type", str(kind), *target)
