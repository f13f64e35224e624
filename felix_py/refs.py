"""Refs identify the agent's objects in the kernel: a type for each kind of object, with a text for operators.

Failures, drift and differences name a ref; the endpoints concerned follow from its type and fields.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct

from policy.model import Family


class ChainRef(Struct, frozen=True):
    """A chain of ours, of one family and table."""

    kind: ClassVar[str] = "chain"
    family: Family
    table: str
    name: str

    def __str__(self) -> str:
        return f"chain {self.name} ({self.table}, IPv{int(self.family)})"


class HookRef(Struct, frozen=True):
    """All our rules in a built-in chain; ``single``: one of them."""

    kind: ClassVar[str] = "hook"
    family: Family
    table: str
    chain: str
    single: bool = False

    def __str__(self) -> str:
        noun = "hook" if self.single else "hooks"
        return f"{noun} in chain {self.chain} ({self.table}, IPv{int(self.family)})"


class SetRef(Struct, frozen=True):
    """An IP set. ``unused``: no rule of ours uses it, and it is to be destroyed."""

    kind: ClassVar[str] = "set"
    name: str
    unused: bool = False

    def __str__(self) -> str:
        return f"{'unused ' * self.unused}set {self.name}"


class MemberRef(Struct, frozen=True):
    """A member of an IP set, in ``ipset add``'s spelling."""

    kind: ClassVar[str] = "member"
    set: str
    text: str

    def __str__(self) -> str:
        return f"set {self.set} member {self.text}"

    @property
    def address(self) -> str:
        """Its address or CIDR, without port or interface."""
        return self.text.partition(",")[0]


class MembersRef(Struct, frozen=True):
    """Several members of an IP set. ``further``: beyond those that are named."""

    kind: ClassVar[str] = "member"
    set: str
    further: bool = False

    def __str__(self) -> str:
        return f"set {self.set}{' further members' * self.further}"


class RouteRef(Struct, frozen=True):
    """A route of ours: destination CIDR text and our protocol number, in the main table."""

    kind: ClassVar[str] = "route"
    destination: str
    protocol: int

    def __str__(self) -> str:
        return f"route {self.destination}"


class ServiceDropRef(Struct, frozen=True):
    """A routing rule or a blackhole of ours for announced Service prefixes."""

    kind: ClassVar[str] = "service-drop"
    text: str

    def __str__(self) -> str:
        return self.text


class RoutesRef(Struct, frozen=True):
    """Routes beyond those that are named."""

    kind: ClassVar[str] = "route"

    def __str__(self) -> str:
        return "route to further destinations"


class LinkRef(Struct, frozen=True):
    """The host end of a pod's veth pair, by its interface name."""

    kind: ClassVar[str] = "link"
    name: str

    def __str__(self) -> str:
        return f"interface {self.name}"


class LinksRef(Struct, frozen=True):
    """All host ends of pods."""

    kind: ClassVar[str] = "link"

    def __str__(self) -> str:
        return "interfaces"


class SysctlRef(Struct, frozen=True):
    """A kernel setting, by its path below /proc/sys/net."""

    kind: ClassVar[str] = "sysctl"
    path: str

    def __str__(self) -> str:
        return f"sysctl {self.dotted}"

    @property
    def dotted(self) -> str:
        """The name in sysctl(8)'s spelling: a dot inside an interface name becomes a slash."""
        return "net." + ".".join(part.replace(".", "/") for part in self.path.split("/"))

    @property
    def interface(self) -> str:
        """The interface of the setting; empty for a setting of the whole host (ip-sysctl.rst, ``conf/``)."""
        parts = self.path.split("/")
        return parts[2] if parts[1:2] == ["conf"] and parts[2] not in ("all", "default") else ""


class RulesRef(Struct, frozen=True):
    """All rules of a family."""

    kind: ClassVar[str] = "rules"
    family: Family

    def __str__(self) -> str:
        return f"IPv{int(self.family)} rules"


class ApplyRef(Struct, frozen=True):
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
    | ServiceDropRef
    | LinkRef
    | LinksRef
    | SysctlRef
    | RulesRef
    | ApplyRef
)

KINDS = tuple(ref.kind for ref in (ChainRef, HookRef, SetRef, MemberRef, RouteRef, LinkRef, SysctlRef))
"""Kinds of objects that can drift: the label values of the drift metric."""


def chain_or_set(ref: Ref) -> str:
    """Returns the name of the ref's chain or set, or of the set that a member is in; else empty."""
    match ref:
        case ChainRef(name=name) | HookRef(chain=name) | SetRef(name=name):
            return name
        case MemberRef(set=name) | MembersRef(set=name):
            return name
    return ""


def policy_rests_on(ref: Ref) -> bool:
    """Whether verdicts on packets depend on the object, as they do on rules, sets and members.

    A route, interface or sysctl that can never be written must not keep old rules alive; nor must a set that
    cannot be destroyed because another program's rules use it.
    """
    match ref:
        case RouteRef() | RoutesRef() | LinkRef() | LinksRef() | SysctlRef() | SetRef(unused=True):
            return False
    return True
