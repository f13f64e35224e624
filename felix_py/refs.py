"""The identity of what the agent has in the kernel: a type for each kind of object, with one text for people.

A failure, drift or difference is told of a ref; whom it concerns follows from the ref's type and fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policy.model import Family


@dataclass(frozen=True, slots=True)
class ChainRef:
    """One chain of ours, of one family and table."""

    kind: ClassVar[str] = "chain"
    family: Family
    table: str
    name: str

    def __str__(self) -> str:
        return f"chain {self.name} ({self.table}, IPv{int(self.family)})"


@dataclass(frozen=True, slots=True)
class HookRef:
    """Our rules in a built-in chain; ``single``: one of them."""

    kind: ClassVar[str] = "hook"
    family: Family
    table: str
    chain: str
    single: bool = False

    def __str__(self) -> str:
        noun = "hook" if self.single else "hooks"
        return f"{noun} in chain {self.chain} ({self.table}, IPv{int(self.family)})"


@dataclass(frozen=True, slots=True)
class SetRef:
    """An IP set. ``unused``: one that no rule of ours uses, and that is to be destroyed."""

    kind: ClassVar[str] = "set"
    name: str
    unused: bool = False

    def __str__(self) -> str:
        return f"{'unused ' * self.unused}set {self.name}"


@dataclass(frozen=True, slots=True)
class MemberRef:
    """A member of an IP set, as ``ipset add`` spells it."""

    kind: ClassVar[str] = "member"
    set: str
    text: str

    def __str__(self) -> str:
        return f"set {self.set} member {self.text}"

    @property
    def address(self) -> str:
        """Its address or CIDR, without port or interface."""
        return self.text.partition(",")[0]


@dataclass(frozen=True, slots=True)
class MembersRef:
    """Several members of an IP set. ``further``: beyond those that are named."""

    kind: ClassVar[str] = "member"
    set: str
    further: bool = False

    def __str__(self) -> str:
        return f"set {self.set}{' further members' * self.further}"


@dataclass(frozen=True, slots=True)
class RouteRef:
    """A route of ours: destination CIDR text and our protocol number, in the main table."""

    kind: ClassVar[str] = "route"
    destination: str
    protocol: int

    def __str__(self) -> str:
        return f"route {self.destination}"


@dataclass(frozen=True, slots=True)
class RoutesRef:
    """Routes beyond those that are named."""

    kind: ClassVar[str] = "route"

    def __str__(self) -> str:
        return "route to further destinations"


@dataclass(frozen=True, slots=True)
class LinkRef:
    """The host's end of a pod, by its interface name."""

    kind: ClassVar[str] = "link"
    name: str

    def __str__(self) -> str:
        return f"interface {self.name}"


@dataclass(frozen=True, slots=True)
class LinksRef:
    """All host ends of pods."""

    kind: ClassVar[str] = "link"

    def __str__(self) -> str:
        return "interfaces"


@dataclass(frozen=True, slots=True)
class SysctlRef:
    """A kernel setting, by its path below /proc/sys/net."""

    kind: ClassVar[str] = "sysctl"
    path: str

    def __str__(self) -> str:
        return f"sysctl {self.dotted}"

    @property
    def dotted(self) -> str:
        """As sysctl(8) spells it: a dot inside an interface name becomes a slash."""
        return "net." + ".".join(part.replace(".", "/") for part in self.path.split("/"))

    @property
    def interface(self) -> str:
        """The interface whose setting it is; empty for one of the whole host (ip-sysctl.rst, ``conf/``)."""
        parts = self.path.split("/")
        return parts[2] if parts[1:2] == ["conf"] and parts[2] not in ("all", "default") else ""


@dataclass(frozen=True, slots=True)
class RulesRef:
    """All rules of a family."""

    kind: ClassVar[str] = "rules"
    family: Family

    def __str__(self) -> str:
        return f"IPv{int(self.family)} rules"


@dataclass(frozen=True, slots=True)
class ApplyRef:
    """A whole apply."""

    kind: ClassVar[str] = "apply"

    def __str__(self) -> str:
        return "apply"


Ref = (
    ChainRef
    | HookRef
    | SetRef
    | MemberRef
    | MembersRef
    | RouteRef
    | RoutesRef
    | LinkRef
    | LinksRef
    | SysctlRef
    | RulesRef
    | ApplyRef
)

KINDS = tuple(ref.kind for ref in (ChainRef, HookRef, SetRef, MemberRef, RouteRef, LinkRef, SysctlRef))
"""Kinds of objects that somebody else can change: the values of a metric's label."""


def chain_or_set(ref: Ref) -> str:
    """The name of the chain or set that it is, or is in; empty where it is neither."""
    match ref:
        case ChainRef(name=name) | HookRef(chain=name) | SetRef(name=name):
            return name
        case MemberRef(set=name) | MembersRef(set=name):
            return name
    return ""


def policy_rests_on(ref: Ref) -> bool:
    """Whether packets may be judged by it, now or once it is right: rules, sets and members are.

    A route, an interface or a setting that cannot be written, perhaps for ever, must not keep old rules alive;
    nor must a set that cannot be destroyed because somebody else's rules use it.
    """
    match ref:
        case RouteRef() | RoutesRef() | LinkRef() | LinksRef() | SysctlRef() | SetRef(unused=True):
            return False
    return True
