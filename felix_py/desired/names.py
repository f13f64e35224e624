"""Names of chains and of policy's IP sets in the kernel: formatting and parsing."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from felix_py.layout import CHAIN_PREFIX, set_prefix
from policy.ir import ChainId, ChainKind, SetId
from policy.model import Direction, Family


class Fixed(enum.StrEnum):
    """Chains that are named by a word."""

    SOURCE = CHAIN_PREFIX + "SOURCE"
    SPOOFED = CHAIN_PREFIX + "SPOOFED"
    ERROR = CHAIN_PREFIX + "ERROR"
    NEIGHBOUR = CHAIN_PREFIX + "NEIGHBOUR"
    CLASSIFY = CHAIN_PREFIX + "CLASSIFY"
    FORWARD = CHAIN_PREFIX + "FORWARD"
    INPUT = CHAIN_PREFIX + "INPUT"
    OUTPUT = CHAIN_PREFIX + "OUTPUT"
    POSTROUTING = CHAIN_PREFIX + "POSTROUTING"
    INVALID = CHAIN_PREFIX + "INVALID"
    MIDSTREAM = CHAIN_PREFIX + "MIDSTREAM"
    ASTRAY = CHAIN_PREFIX + "ASTRAY"
    PROXIED = CHAIN_PREFIX + "PROXIED"
    ALLOW = CHAIN_PREFIX + "ALLOW"
    PASS = CHAIN_PREFIX + "PASS"


DISPATCH = {Direction.EGRESS: CHAIN_PREFIX + "EGRESS", Direction.INGRESS: CHAIN_PREFIX + "INGRESS"}
SETS_BRANCH = "SETS"
"""The dispatch branch of the classes that have no number of their own."""

TIERS = CHAIN_PREFIX + "T"
"""Name prefix of tier chains, which only cluster-scoped policies create."""

_MOST_INDEX = 99
"""A deny chain's name has room for two digits: FELIX-DE-0123456789abcdef-99 is 28 characters, the limit."""

_KINDS = {kind[0]: kind for kind in ChainKind}
_DIRECTIONS = {direction[0]: direction for direction in Direction}
_FIXED = {str(chain): chain for chain in Fixed}
_COMPILED = re.compile(rf"{CHAIN_PREFIX}([CPT])([EI])-([0-9a-f]+)")
_DENY = re.compile(rf"{CHAIN_PREFIX}D([EI])-([0-9a-f]+)(?:-(0|[1-9][0-9]?))?")
_DISPATCH = re.compile(rf"({'|'.join(DISPATCH.values())})(?:-({SETS_BRANCH}|[0-9]+(?:-[0-9]+)?))?")
_SET = re.compile(rf"(?:{'|'.join(map(set_prefix, Family))})([0-9a-f]{{16}})")


@dataclass(frozen=True, slots=True)
class DenyChain:
    """The chain that logs and drops the packets of one Deny rule of a policy.

    ``rule``: its index in the policy's list; -1: shared by all rules whose index does not fit the name.
    """

    policy: ChainId
    rule: int = -1

    @classmethod
    def of(cls, policy: ChainId, rule: int) -> DenyChain:
        """The chain of one rule."""
        return cls(policy, rule if rule <= _MOST_INDEX else -1)


@dataclass(frozen=True, slots=True)
class DispatchChain:
    """The root (``branch`` empty) or a branch of the tree from class numbers to class chains."""

    direction: Direction
    branch: str = ""


ChainName = ChainId | DenyChain | DispatchChain | Fixed


def chain_name(chain: ChainName) -> str:
    """Returns a chain's name; at most 28 characters, the kernel's limit."""
    match chain:
        case ChainId():
            return f"{CHAIN_PREFIX}{chain.kind[0]}{chain.direction[0]}-{chain.digest}"
        case DenyChain(policy, rule):
            rest = f"-{rule}" if rule >= 0 else ""
            return f"{CHAIN_PREFIX}D{policy.direction[0]}-{policy.digest}{rest}"
        case DispatchChain(direction, branch):
            return f"{DISPATCH[direction]}-{branch}" if branch else DISPATCH[direction]
        case Fixed():
            return chain.value


def parse_chain_name(name: str) -> ChainName | None:
    """Returns the chain with a name, or None if it is not ours."""
    if found := _COMPILED.fullmatch(name):
        kind, direction, digest = found.groups()
        return ChainId(_KINDS[kind], _DIRECTIONS[direction], digest)
    if found := _DENY.fullmatch(name):
        direction, digest, rule = found.groups()
        return DenyChain(ChainId(ChainKind.POLICY, _DIRECTIONS[direction], digest), int(rule) if rule else -1)
    if found := _DISPATCH.fullmatch(name):
        root, branch = found.groups()
        return DispatchChain(next(d for d, of in DISPATCH.items() if of == root), branch or "")
    return _FIXED.get(name)


def is_class_chain(name: str) -> bool:
    """Whether a name is that of a policy class's chain."""
    chain = parse_chain_name(name)
    return isinstance(chain, ChainId) and chain.kind is ChainKind.CLASS


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


def set_name(family: Family, peers: SetId) -> str:
    """IP set of a peer list (23 characters; the kernel takes 31)."""
    return set_prefix(family) + peers


def class_set_name(family: Family, chain: ChainId) -> str:
    """IP set of the endpoints of a class that has no number of its own."""
    return set_prefix(family) + chain_name(chain).removeprefix(CHAIN_PREFIX).lower()


def names_of(compiled: ChainId | SetId) -> tuple[str, ...]:
    """Returns the kernel's names of a compiled chain or set."""
    if isinstance(compiled, ChainId):
        return (chain_name(compiled),)
    return tuple(set_name(family, compiled) for family in Family)


def parse_name(name: str) -> ChainId | SetId | None:
    """Returns the compiled chain or set with a name, or None if it is another one, or not ours."""
    if isinstance(chain := parse_chain_name(name), ChainId):
        return chain
    found = _SET.fullmatch(name)
    return SetId(found[1]) if found else None
