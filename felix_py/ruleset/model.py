"""Records of rules: as they are planned (:class:`RuleSpec`), and as a kernel has them (:class:`Rule`).

A rule's :class:`Body` is its normal form: equal bodies mean the same.

Every way in which the tools may spell one thing (hexadecimal or not, ``--syn`` or ``--tcp-flags``, one port by
``-m multiport`` or by ``--dport``, the order of matches) ends in the same records. What is not understood is kept
as :class:`OpaqueMatch` or :class:`OpaqueTarget`, in the words of the tool.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from policy.ir import Origin
from policy.model import Family

FULL = 0xFFFFFFFF
"""The mask of all bits of a mark or a link group."""

IN, OUT = "in", "out"
SOURCE, DESTINATION, EITHER = "src", "dst", "either"


@dataclass(frozen=True, slots=True)
class InterfaceIs:
    """``-i``, ``-o``: ``side`` is IN or OUT. ``prefix``: every interface whose name begins so (``felix+``)."""

    side: str
    name: str
    prefix: bool = False
    negated: bool = False


@dataclass(frozen=True, slots=True)
class AddressIn:
    """``-s``, ``-d``: ``network`` is a canonical CIDR."""

    side: str
    network: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class ProtocolIs:
    """``-p``, as a number (IANA Protocol Numbers)."""

    number: int
    negated: bool = False


@dataclass(frozen=True, slots=True)
class PortIn:
    """A port is in one of the ranges (first, last), which are sorted and do not touch."""

    side: str
    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class TCPFlags:
    """``--tcp-flags``: of the bits in ``mask``, exactly those in ``set`` are set (RFC 9293, section 3.1)."""

    mask: int
    set: int
    negated: bool = False


@dataclass(frozen=True, slots=True)
class InSet:
    """``-m set --match-set NAME FLAGS``: one flag, src or dst, for each dimension of the set."""

    name: str
    flags: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class MarkIs:
    """``-m mark``: the packet mark under ``mask`` is ``value``."""

    value: int
    mask: int
    negated: bool = False


@dataclass(frozen=True, slots=True)
class StateIn:
    """``-m conntrack --ctstate``: sorted names."""

    states: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class ICMPType:
    """``--icmp-type``, ``--icmpv6-type``. ``code`` None: any."""

    protocol: int
    type: int
    code: int | None = None
    negated: bool = False


@dataclass(frozen=True, slots=True)
class InGroup:
    """``-m devgroup``: the link group under ``mask`` of the interface that the packet came or leaves by."""

    side: str
    value: int
    mask: int
    negated: bool = False


@dataclass(frozen=True, slots=True)
class AddressType:
    """``-m addrtype``: the address is of one of the types (LOCAL, …; sorted), as the node's routes say."""

    side: str
    types: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """``-m limit``. ``average`` in units of 1/10,000 s between two matches (xt_limit.h); ``burst`` in matches.

    ``rate`` is how ``average`` was said, as ``10/second``: the unit is too coarse to tell.
    """

    average: int
    burst: int
    rate: str = field(default="", compare=False)

    @classmethod
    def a_second(cls, rate: int, burst: int) -> Limit:
        """So many matches a second."""
        return cls(10_000 // rate, burst, f"{rate}/second")


@dataclass(frozen=True, slots=True)
class HopLimit:
    """``-m hl --hl-eq``: the hop limit of IPv6."""

    value: int
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Bytecode:
    """``-m bpf --bytecode``: classic BPF (bpf(4)), one (code, jt, jf, k) for each step."""

    steps: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class ReversePath:
    """``-m rpfilter``: the route back to the source leaves by the interface that the packet came by."""

    negated: bool = False


@dataclass(frozen=True, slots=True)
class OpaqueMatch:
    """A match that is not understood; ``module`` as behind ``-m``, ``words`` are all its options."""

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
"""Matches that keep state (or may), so that it matters what is tried before them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``-j ACCEPT``, ``DROP``, ``RETURN``."""

    name: str


@dataclass(frozen=True, slots=True)
class Jump:
    """``-j CHAIN``. Also an extension without options (``-j NOTRACK``): only the table knows its chains."""

    chain: str


@dataclass(frozen=True, slots=True)
class Goto:
    """``-g CHAIN``: a jump that comes back to where the chain itself was jumped from."""

    chain: str


@dataclass(frozen=True, slots=True)
class SetMark:
    """``-j MARK --set-xmark VALUE/MASK``: the bits of ``mask`` are cleared, then those of ``value`` flipped."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True)
class MapSet:
    """``-j SET --map-set NAME FLAGS``: the packet gets ``what`` the member carries: mark, prio or queue."""

    name: str
    flags: tuple[str, ...]
    what: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Masquerade:
    """``-j MASQUERADE``; ``options`` sorted."""

    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Log:
    """``-j NFLOG``; ``options``: sorted pairs of all but group and prefix."""

    group: int
    prefix: str
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class OpaqueTarget:
    """A target that is not understood, with all its options."""

    name: str
    words: tuple[str, ...] = ()


ACCEPT, DROP, RETURN = Verdict("ACCEPT"), Verdict("DROP"), Verdict("RETURN")

Target = Verdict | Jump | Goto | SetMark | MapSet | Masquerade | Log | OpaqueTarget


@dataclass(frozen=True, slots=True)
class Body:
    """What a rule does. ``target`` None: it only counts.

    ``matches`` are sorted as far as their order means nothing: between two matches that keep state (a limit
    counts only what comes so far), and those of the rule's head (``-s -d -i -o -p``) before all.
    """

    matches: tuple[Match, ...] = ()
    target: Target | None = None

    @classmethod
    def of(cls, matches: Iterable[Match], target: Target | None) -> Body:
        """The normal form of a rule."""
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
        """The parts that are not understood."""
        found: list[OpaqueMatch | OpaqueTarget] = [m for m in self.matches if isinstance(m, OpaqueMatch)]
        if isinstance(self.target, OpaqueTarget):
            found.append(self.target)
        return tuple(found)


def _sorted_between(matches: Iterable[Match]) -> Iterator[Match]:
    """The matches, sorted between those whose place counts."""
    pure: list[Match] = []
    for match in matches:
        if isinstance(match, _ORDERED):
            yield from sorted(pure, key=repr)
            pure = []
            yield match
        else:
            pure.append(match)
    yield from sorted(pure, key=repr)


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A rule to exist. ``matches`` are tried in their order; ``why`` is for people: what it serves, or empty."""

    matches: tuple[Match, ...] = ()
    target: Target | None = None
    why: Origin | str = ""

    @property
    def body(self) -> Body:
        """Its normal form."""
        return Body.of(self.matches, self.target)

    @property
    def leads_to(self) -> str:
        """The chain that it jumps or goes to; empty: none."""
        return self.target.chain if isinstance(self.target, Jump | Goto) else ""


Rules = tuple[RuleSpec, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a chain as it was read.

    ``text`` is what stands behind ``-A CHAIN``; ``hash`` as in our rules' comments.
    """

    body: Body
    text: str
    comment: str = ""
    hash: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """``policy`` is ACCEPT or DROP for a built-in chain, empty for any other."""

    name: str
    rules: tuple[Rule, ...] = ()
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table's chains by name."""

    name: str
    chains: Mapping[str, Chain] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All tables of one family that exist, by name."""

    family: Family
    tables: Mapping[str, Table] = field(default_factory=dict)

    def chain(self, table: str, name: str) -> Chain | None:
        """A chain, if it exists."""
        found = self.tables.get(table)
        return found.chains.get(name) if found else None
