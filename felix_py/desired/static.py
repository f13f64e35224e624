"""The rules that do not depend on policy: hooks, packet flow between chains, source binding, masquerade.

``docs/DESIGN.md`` draws the packet flow. Both families are built by the same code; the differences are the
``if family`` lines in this module and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from felix_py.config import AgentConfig
from felix_py.desired.deny_log import (
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
from felix_py.desired.features import FROM_NEIGHBOUR, HOST_END, NOT_FROM_HERE, STRAYED, Feature
from felix_py.desired.icmp_errors import PROTOCOL, about_others, all_but_echo
from felix_py.desired.marks import Marks
from felix_py.desired.names import DISPATCH, Fixed, SetNames
from felix_py.desired.render import FROM_POD, TO_POD
from felix_py.records import Hook, SetSpec, SetType
from felix_py.ruleset import model as m
from felix_py.ruleset.model import ACCEPT, DROP, RETURN, Goto, InSet, Jump, Rules, RuleSpec
from policy.model import Direction, Family

_SRC, _DST = ("src",), ("dst",)
_NOT_FROM_POD, _NOT_TO_POD = replace(FROM_POD, negated=True), replace(TO_POD, negated=True)
_ESTABLISHED = m.StateIn(("ESTABLISHED", "RELATED"))
_NOT_ESTABLISHED = replace(_ESTABLISHED, negated=True)
_INVALID = m.StateIn(("INVALID",))
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_MIDSTREAM = (m.ProtocolIs(6), m.TCPFlags(_FIN | _SYN | _RST | _ACK, _SYN, negated=True), m.StateIn(("NEW",)))
"""TCP without a SYN seen by conntrack, which would take the first sender for the client."""

_ICMPV6 = PROTOCOL[Family.V6]
_NEIGHBOUR_DISCOVERY = tuple(m.ICMPType(_ICMPV6.number, kind) for kind in (133, 135, 136))
"""Router solicitation, neighbour solicitation and advertisement (RFC 4861), which pods must be able to send."""
_SOLICITATION = _NEIGHBOUR_DISCOVERY[1]
_SOLICITED_NODE = m.AddressIn(m.DESTINATION, "ff02::1:ff00:0/104")
_LINK_LOCAL = "fe80::/10"
_FROM_LINK_LOCAL = m.AddressIn(m.SOURCE, _LINK_LOCAL)
_ON_LINK = (_LINK_LOCAL, "ff02::/16")
"""Permitted destinations of neighbour discovery: none that the node would forward."""
_TO_GROUPS = RuleSpec((m.AddressIn(m.DESTINATION, "ff00::/8"),), DROP)
"""Not logged: every interface reports its multicast groups (RFC 3810), which is no denied connection."""


@dataclass(frozen=True, slots=True)
class StaticOptions:
    """Configuration and kernel features of the static rules. ``endpoint_to_host`` is an iptables target.

    ``drop_midstream``: TCP unknown to conntrack is dropped where it could undo a denial. ``missing``: features
    that this kernel lacks.
    """

    marks: Marks
    nat_outgoing: bool = True
    endpoint_to_host: str = "RETURN"
    drop_invalid: bool = True
    drop_midstream: bool = True
    deny_log: DenyLog | None = None
    missing: tuple[Feature, ...] = ()

    @classmethod
    def of(cls, config: AgentConfig, deny_log: DenyLog | None, missing: tuple[Feature, ...]) -> StaticOptions:
        """As the settings have them. ValueError: the mark mask is unusable."""
        return cls(
            Marks.from_mask(config.mark_mask),
            nat_outgoing=config.nat_outgoing,
            endpoint_to_host=config.endpoint_to_host.upper(),
            drop_invalid=config.drop_invalid,
            drop_midstream=config.revoke_established,
            deny_log=deny_log,
            missing=missing,
        )


def static_sets(family: Family, options: StaticOptions) -> list[SetSpec]:
    """Every set of :class:`SetNames` with its type."""
    names, marks = SetNames.of(family), options.marks
    specs = [
        SetSpec(names.source, SetType.NET_IFACE, family),
        SetSpec(names.local, SetType.IP, family),
        SetSpec(names.egress, SetType.IP, family, marks.class_mask(Direction.EGRESS)),
        SetSpec(names.ingress, SetType.IP, family, marks.class_mask(Direction.INGRESS)),
    ]
    if options.nat_outgoing:
        specs += [SetSpec(names.pool, SetType.NET, family), SetSpec(names.no_masquerade, SetType.NET, family)]
    return specs


def static_hooks(family: Family, options: StaticOptions) -> list[Hook]:
    """Our rules in the built-in chains."""
    return [
        Hook(family, table, chain, RuleSpec(matches, target), first, rank)
        for rank, (table, chain, matches, target, first) in enumerate(_hooks(family, options))
    ]


def _hooks(
    family: Family, options: StaticOptions
) -> Iterator[tuple[str, str, tuple[m.Match, ...], m.Target, bool]]:
    """Yields (table, chain, matches, target, keep at the top) in chain order."""
    names = SetNames.of(family)
    accept = m.MarkIs(options.marks.accept, options.marks.accept)
    if Feature.DEVGROUP not in options.missing:
        # A renamed pod interface is bound to no address, so all its packets fail the source check. Without the
        # link group, only its packets with a pod's address do (next rule).
        yield "raw", "PREROUTING", (_NOT_FROM_POD, HOST_END), Jump(Fixed.SOURCE), True
    # A pod's address is valid only on its own interface: not on the uplink, nor on a renamed interface.
    yield "raw", "PREROUTING", (_NOT_FROM_POD, InSet(names.local, _SRC)), Jump(Fixed.SOURCE), True
    for matches in _to_check(family, options):
        yield "raw", "PREROUTING", (FROM_POD, *matches), Jump(Fixed.SOURCE), True
    yield "mangle", "FORWARD", (_NOT_ESTABLISHED,), Jump(Fixed.CLASSIFY), True
    yield "mangle", "INPUT", (FROM_POD,), Jump(Fixed.CLASSIFY), True
    yield "filter", "FORWARD", (_NOT_ESTABLISHED,), Jump(Fixed.FORWARD), True
    # Appended, not inserted: foreign rules in between still decide on what policy allows.
    for pod in (FROM_POD, TO_POD):
        yield "filter", "FORWARD", (pod, _ESTABLISHED), ACCEPT, False
        yield "filter", "FORWARD", (pod, accept), ACCEPT, False
    yield "filter", "INPUT", (FROM_POD,), Jump(Fixed.INPUT), True
    # From a pod whose egress is restricted, to elsewhere than a pod of this node (FELIX-OUTPUT checks those).
    from_restricted = (_NOT_TO_POD, _NOT_ESTABLISHED, InSet(names.egress, _SRC))
    yield "filter", "OUTPUT", from_restricted, Jump(Fixed.PROXIED), True
    yield "filter", "OUTPUT", (TO_POD,), Jump(Fixed.OUTPUT), True
    if options.nat_outgoing:
        yield "nat", "POSTROUTING", (), Jump(Fixed.POSTROUTING), True


def _to_check(family: Family, options: StaticOptions) -> Iterator[tuple[m.Match, ...]]:
    """The packets of pods that FELIX-SOURCE checks before conntrack sees them.

    All others pass rpfilter, which costs half as much. Other programs may change routes, so the first packet of
    a connection is checked against the source set all the same (:func:`_begins_with_its_source`).
    """
    if Feature.RPFILTER in options.missing:
        yield ()
        return
    yield (PROTOCOL[family],)  # conntrack does not track neighbour discovery, and trusts errors
    if family is Family.V6:
        yield (_FROM_LINK_LOCAL,)  # passes rpfilter on every link
    yield (STRAYED,)


def closed_hooks(family: Family, options: StaticOptions) -> list[Hook]:
    """The only rules of a family that is switched off: all its packets from pods are dropped."""
    found: list[tuple[m.Match, ...]] = [(FROM_POD,)]
    if Feature.DEVGROUP not in options.missing:
        found.insert(0, (_NOT_FROM_POD, HOST_END))
    return [
        Hook(family, "raw", "PREROUTING", RuleSpec(matches, DROP), first=True, rank=rank)
        for rank, matches in enumerate(found)
    ]


def static_chains(family: Family, options: StaticOptions) -> dict[tuple[str, str], Rules]:
    """Returns (table, chain) -> rules of the chains that do not depend on policy."""
    names, marks = SetNames.of(family), options.marks
    chains: dict[tuple[str, str], Rules] = {
        ("raw", Fixed.SOURCE): tuple(_source(family, names, options)),
        ("raw", Fixed.ERROR): tuple(_error(family, options.deny_log)),
        ("mangle", Fixed.CLASSIFY): (
            RuleSpec((_NOT_FROM_POD, _NOT_TO_POD), RETURN),
            # Foreign mark values in our bits must not choose a class, nor count as accepted.
            RuleSpec((), m.SetMark(0, marks.all)),
            RuleSpec((FROM_POD,), m.MapSet(names.egress, _SRC, ("mark",))),
            RuleSpec((TO_POD,), m.MapSet(names.ingress, _DST, ("mark",))),
        ),
        ("filter", Fixed.ALLOW): (RuleSpec((), m.SetMark(marks.accept, marks.accept)),),
        ("filter", Fixed.PASS): (RuleSpec((), m.SetMark(marks.passed, marks.passed)),),
        ("filter", Fixed.FORWARD): tuple(_forward(names, options)),
        ("filter", Fixed.INPUT): tuple(_input(family, names, options)),
        ("filter", Fixed.OUTPUT): tuple(_output(names, options)),
        ("filter", Fixed.ASTRAY): dropping(options.deny_log, ASTRAY_DROP),
        ("filter", Fixed.PROXIED): dropping(options.deny_log, PROXIED_DROP),
    }
    if family is Family.V6:
        chains["raw", Fixed.NEIGHBOUR] = tuple(_neighbour(names, options))
    if Feature.RPFILTER not in options.missing:
        to_groups = (_TO_GROUPS,) if family is Family.V6 else ()
        chains["filter", Fixed.SPOOFED] = (*to_groups, *dropping(options.deny_log, SOURCE_DROP))
    if options.drop_invalid:
        chains["filter", Fixed.INVALID] = dropping(options.deny_log, INVALID_DROP)
    if options.drop_midstream:
        chains["filter", Fixed.MIDSTREAM] = dropping(options.deny_log, MIDSTREAM_DROP)
    if options.nat_outgoing:
        from_pool = (InSet(names.pool, _SRC), InSet(names.no_masquerade, _DST, negated=True))
        chains["nat", Fixed.POSTROUTING] = (RuleSpec(from_pool, m.Masquerade(("--random-fully",))),)
    return chains


def _source(family: Family, names: SetNames, options: StaticOptions) -> Iterator[RuleSpec]:
    if family is Family.V6:
        yield from _neighbour_discovery(Goto(Fixed.NEIGHBOUR))
    errors = all_but_echo if Feature.BPF in options.missing else about_others
    yield RuleSpec(errors(family), Goto(Fixed.ERROR))
    yield RuleSpec((_bound_source(names),), RETURN)
    if family is Family.V6:
        yield _TO_GROUPS
    yield from dropping(options.deny_log, SOURCE_DROP)


def _error(family: Family, log: DenyLog | None) -> Iterator[RuleSpec]:
    if family is Family.V6:
        yield _TO_GROUPS  # behind a hop-by-hop header
    yield from dropping(log, ERROR_DROP)


def _neighbour(names: SetNames, options: StaticOptions) -> Iterator[RuleSpec]:
    """Neighbour discovery is allowed on the pod's link only, from addresses that are bound to it.

    conntrack does not track it, so elsewhere no policy would judge it. The node creates a neighbour entry for
    each soliciting address: this bounds a pod's entries to its addresses. Messages from the link-local address
    are not needed: the node solicits the pod's own address, and the pod's gateway is a permanent entry.
    """
    # A pod can send any hop limit, so a missing hl match opens nothing new; and the node, where all this ends,
    # ignores other hop limits itself (RFC 4861, section 7.1).
    near = () if Feature.HL in options.missing else (FROM_NEIGHBOUR,)
    # Duplicate address detection has no source yet (RFC 4862, section 5.4.2).
    unspecified = m.AddressIn(m.SOURCE, "::/128")
    yield RuleSpec((unspecified, _SOLICITED_NODE, _ICMPV6, _SOLICITATION, *near), RETURN)
    for destination in _ON_LINK:
        yield RuleSpec((m.AddressIn(m.DESTINATION, destination), *near, _bound_source(names)), RETURN)
    # Not logged: every interface sends such messages.
    yield RuleSpec((_FROM_LINK_LOCAL,), DROP)
    yield from dropping(options.deny_log, SOURCE_DROP)


def _bound_source(names: SetNames) -> InSet:
    return InSet(names.source, ("src", "src"))


def _forward(names: SetNames, options: StaticOptions) -> Iterator[RuleSpec]:
    to_local = InSet(names.local, _DST)
    yield RuleSpec((_NOT_FROM_POD, _NOT_TO_POD, replace(to_local, negated=True)), RETURN)
    yield from _begins_with_its_source(names, options)
    if options.drop_invalid:
        yield RuleSpec((_INVALID,), Goto(Fixed.INVALID))
    # Ingress policy would be skipped: the pod's interface is renamed, or a foreign route leads elsewhere.
    yield RuleSpec((_NOT_TO_POD, to_local), Goto(Fixed.ASTRAY))
    if options.drop_midstream:
        yield RuleSpec((*_MIDSTREAM, FROM_POD, InSet(names.ingress, _SRC)), Goto(Fixed.MIDSTREAM))
        yield _to_restricted_egress(names)
    yield RuleSpec((FROM_POD,), Jump(DISPATCH[Direction.EGRESS]))
    # The accept mark of egress must not count for ingress.
    yield RuleSpec((), m.SetMark(0, options.marks.accept))
    yield RuleSpec((TO_POD,), Jump(DISPATCH[Direction.INGRESS]))
    yield RuleSpec((), Goto(Fixed.ALLOW))


def _begins_with_its_source(names: SetNames, options: StaticOptions) -> Iterator[RuleSpec]:
    """A new connection's source must be bound to the interface, whatever rpfilter made of the routes."""
    if Feature.RPFILTER not in options.missing:
        yield RuleSpec((FROM_POD, replace(_bound_source(names), negated=True)), Goto(Fixed.SPOOFED))


def _to_restricted_egress(names: SetNames) -> RuleSpec:
    """A midstream packet to a pod with restricted egress must not begin a conntrack entry, since all that the pod
    sends would then pass as replies. (Likewise a midstream packet from a pod with restricted ingress.)"""
    return RuleSpec((*_MIDSTREAM, TO_POD, InSet(names.egress, _DST)), Goto(Fixed.MIDSTREAM))


def _output(names: SetNames, options: StaticOptions) -> Iterator[RuleSpec]:
    """The node's own packets to pods are never denied; proxied packets are not its own.

    kube-proxy in IPVS mode, or a transparent proxy, receives a packet by INPUT and forwards it by OUTPUT, where
    it looks like the node's. It is dropped if policy restricts its source or its destination.
    """
    yield RuleSpec((_ESTABLISHED,), RETURN)
    if options.drop_midstream:
        yield _to_restricted_egress(names)
    yield RuleSpec((InSet(names.egress, _SRC),), Goto(Fixed.PROXIED))
    # Without addrtype the node's own packets cannot be told from proxied ones, and none passes.
    not_own = () if Feature.ADDRTYPE in options.missing else (NOT_FROM_HERE,)
    yield RuleSpec((InSet(names.ingress, _DST), *not_own), Goto(Fixed.PROXIED))


def _input(family: Family, names: SetNames, options: StaticOptions) -> Iterator[RuleSpec]:
    if family is Family.V6:
        # FELIX-NEIGHBOUR has dropped all that is off the pod's link or not from its own source.
        yield from _neighbour_discovery(RETURN)
    yield RuleSpec((_ESTABLISHED,), ACCEPT if options.endpoint_to_host == "ACCEPT" else RETURN)
    yield from _begins_with_its_source(names, options)
    if options.drop_invalid:
        yield RuleSpec((_INVALID,), Goto(Fixed.INVALID))
    yield RuleSpec((), Jump(DISPATCH[Direction.EGRESS]))
    if options.endpoint_to_host == "DROP":
        yield from dropping(options.deny_log, HOST_DROP)
    else:
        yield RuleSpec((), m.Verdict(options.endpoint_to_host))


def _neighbour_discovery(target: m.Target) -> Iterator[RuleSpec]:
    for kind in _NEIGHBOUR_DISCOVERY:
        yield RuleSpec((_ICMPV6, kind), target)
