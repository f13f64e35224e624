"""Records of rules: planned ones (:class:`RuleSpec`), and those of a kernel (:class:`Rule`).

A rule's :class:`Body` is its normal form: equal bodies mean the same. All spellings of the tools (hexadecimal or
not, ``--syn`` or ``--tcp-flags``, one port by ``-m multiport`` or by ``--dport``, the order of matches) give the
same records. Unknown parts are kept as :class:`OpaqueMatch` or :class:`OpaqueTarget`, in the words of the tool.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from policy.ir import Origin
from policy.model import Family

FULL = 0xFFFFFFFF
"""The mask of all bits of a mark or a link group."""

IN, OUT = "in", "out"
SOURCE, DESTINATION, EITHER = "src", "dst", "either"


class InterfaceIs(Struct, frozen=True):
    """``-i``, ``-o``: ``side`` is IN or OUT. ``prefix``: every interface whose name begins so (``felix+``)."""

    side: str
    name: str
    prefix: bool = False
    negated: bool = False


class AddressIn(Struct, frozen=True):
    """``-s``, ``-d``: ``network`` is a canonical CIDR."""

    side: str
    network: str
    negated: bool = False


class ProtocolIs(Struct, frozen=True):
    """``-p``, as a number (IANA Protocol Numbers)."""

    number: int
    negated: bool = False


class PortIn(Struct, frozen=True):
    """A port is in one of the ranges (first, last), which are sorted and do not touch."""

    side: str
    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


class TCPFlags(Struct, frozen=True):
    """``--tcp-flags``: of the bits in ``mask``, exactly those in ``set`` are set (RFC 9293, section 3.1)."""

    mask: int
    set: int
    negated: bool = False


class InSet(Struct, frozen=True):
    """``-m set --match-set NAME FLAGS``: one flag, src or dst, for each dimension of the set."""

    name: str
    flags: tuple[str, ...]
    negated: bool = False


class MarkIs(Struct, frozen=True):
    """``-m mark``: the packet mark under ``mask`` is ``value``."""

    value: int
    mask: int
    negated: bool = False


class StateIn(Struct, frozen=True):
    """``-m conntrack --ctstate``: sorted names."""

    states: tuple[str, ...]
    negated: bool = False


class ICMPType(Struct, frozen=True):
    """``--icmp-type``, ``--icmpv6-type``. ``code`` None: any."""

    protocol: int
    type: int
    code: int | None = None
    negated: bool = False


class InGroup(Struct, frozen=True):
    """``-m devgroup``: the link group, under ``mask``, of the packet's input or output interface."""

    side: str
    value: int
    mask: int
    negated: bool = False


class AddressType(Struct, frozen=True):
    """``-m addrtype``: by the node's routes, the address has one of the types (LOCAL, …; sorted)."""

    side: str
    types: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """``-m limit``. ``average`` in units of 1/10,000 s between two matches (xt_limit.h); ``burst`` in matches.

    ``rate`` is the tools' text of ``average``, as ``10/second``: the unit is too coarse to recover it.
    """

    average: int
    burst: int
    rate: str = field(default="", compare=False)

    @classmethod
    def a_second(cls, rate: int, burst: int) -> Limit:
        """The limit of ``rate`` matches a second."""
        return cls(10_000 // rate, burst, f"{rate}/second")


class HopLimit(Struct, frozen=True):
    """``-m hl --hl-eq``: the hop limit of IPv6."""

    value: int
    negated: bool = False


class Bytecode(Struct, frozen=True):
    """``-m bpf --bytecode``: classic BPF (bpf(4)), each step as (code, jt, jf, k)."""

    steps: tuple[tuple[int, int, int, int], ...]


class ReversePath(Struct, frozen=True):
    """``-m rpfilter``: the route back to the source leaves by the interface that the packet came by."""

    negated: bool = False


class OpaqueMatch(Struct, frozen=True):
    """An unknown match; ``module`` as after ``-m``, ``words`` are all its options."""

    module: str
    words: tuple[str, ...]


Match = (
    InterfaceIs
    | AddressIn
    | ProtocolIs
    | PortIn
    | TCPFlags
    | InSet
    | MarkIs
    | StateIn
    | ICMPType
    | InGroup
    | AddressType
    | Limit
    | HopLimit
    | Bytecode
    | ReversePath
    | OpaqueMatch
)

_HEAD = (InterfaceIs, AddressIn, ProtocolIs)
_ORDERED = (Limit, OpaqueMatch)
"""Matches that keep state, or may, so that the matches before them matter."""


class Verdict(Struct, frozen=True):
    """``-j ACCEPT``, ``DROP``, ``RETURN``."""

    name: str


class Jump(Struct, frozen=True):
    """``-j CHAIN``, or an extension without options (``-j NOTRACK``): only the table knows its chains."""

    chain: str


class Goto(Struct, frozen=True):
    """``-g CHAIN``: a jump that returns to where the current chain was jumped from."""

    chain: str


class SetMark(Struct, frozen=True):
    """``-j MARK --set-xmark VALUE/MASK``: the bits of ``mask`` are cleared, then those of ``value`` flipped."""

    value: int
    mask: int


class MapSet(Struct, frozen=True):
    """``-j SET --map-set NAME FLAGS``: the packet gets the member's mark, prio or queue (``what``)."""

    name: str
    flags: tuple[str, ...]
    what: tuple[str, ...]


class Masquerade(Struct, frozen=True):
    """``-j MASQUERADE``; ``options`` sorted."""

    options: tuple[str, ...] = ()


class Log(Struct, frozen=True):
    """``-j NFLOG``; ``options``: sorted pairs of all but group and prefix."""

    group: int
    prefix: str
    options: tuple[tuple[str, str], ...] = ()


class OpaqueTarget(Struct, frozen=True):
    """An unknown target with all its options."""

    name: str
    words: tuple[str, ...] = ()


ACCEPT, DROP, RETURN = Verdict("ACCEPT"), Verdict("DROP"), Verdict("RETURN")

Target = Verdict | Jump | Goto | SetMark | MapSet | Masquerade | Log | OpaqueTarget


class Body(Struct, frozen=True):
    """The normal form of a rule. ``target`` None: it only counts.

    ``matches`` are sorted where their order means nothing: those of the rule's head (``-s -d -i -o -p``) first,
    and those between two matches that keep state (a limit counts only packets that reach it).
    """

    matches: tuple[Match, ...] = ()
    target: Target | None = None

    @classmethod
    def of(cls, matches: Iterable[Match], target: Target | None) -> Body:
        """Sort the matches of a rule."""
        matches = tuple(matches)
        if len(matches) < 2:
            return cls(matches, target)
        head: list[Match] = []
        rest: list[Match] = []
        for match in matches:
            (head if isinstance(match, _HEAD) else rest).append(match)
        return cls((*sorted(head, key=repr), *_sorted_between(rest)), target)

    @property
    def opaque(self) -> tuple[OpaqueMatch | OpaqueTarget, ...]:
        """The unknown parts."""
        found: list[OpaqueMatch | OpaqueTarget] = [m for m in self.matches if isinstance(m, OpaqueMatch)]
        if isinstance(self.target, OpaqueTarget):
            found.append(self.target)
        return tuple(found)


def _sorted_between(matches: Iterable[Match]) -> Iterator[Match]:
    """The matches, sorted between those that keep state."""
    pure: list[Match] = []
    for match in matches:
        if isinstance(match, _ORDERED):
            yield from sorted(pure, key=repr)
            pure = []
            yield match
        else:
            pure.append(match)
    yield from sorted(pure, key=repr)


class RuleSpec(Struct, frozen=True):
    """A planned rule. ``matches`` are tried in order; ``why`` is the rule's purpose for people, or empty."""

    matches: tuple[Match, ...] = ()
    target: Target | None = None
    why: Origin | str = ""

    @property
    def body(self) -> Body:
        """Its normal form."""
        return Body.of(self.matches, self.target)

    @property
    def leads_to(self) -> str:
        """The chain of a jump or goto; empty: none."""
        return self.target.chain if isinstance(self.target, Jump | Goto) else ""


Rules = tuple[RuleSpec, ...]


class Rule(Struct, frozen=True):
    """One rule as it was read. ``text`` follows ``-A CHAIN``; ``hash`` as in our rules' comments."""

    body: Body
    text: str
    comment: str = ""
    hash: str = ""


class Chain(Struct, frozen=True):
    """``policy`` is ACCEPT or DROP for a built-in chain, empty for any other."""

    name: str
    rules: tuple[Rule, ...] = ()
    policy: str = ""


class Table(Struct, frozen=True):
    """A table's chains by name."""

    name: str
    chains: Mapping[str, Chain] = {}


class Ruleset(Struct, frozen=True):
    """All existing tables of one family by name."""

    family: Family
    tables: Mapping[str, Table] = {}

    def chain(self, table: str, name: str) -> Chain | None:
        """Returns a chain, or None if it does not exist."""
        found = self.tables.get(table)
        return found.chains.get(name) if found else None
