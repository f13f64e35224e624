"""Addresses as declared in the API: IPPool, IPReservation, IPAMBlock and BlockAffinity (felixpy.io/v1alpha1).

Kinds and fields have the names and the meaning of Calico's (projectcalico.org/v3, crd.projectcalico.org/v1),
unless docs/ipam.md says otherwise. CIDRs and addresses are canonical texts.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from policy.model import Family


class AllowedUse(Enum):
    """``allowedUses``: what addresses of a pool are for."""

    WORKLOAD = "Workload"
    LOAD_BALANCER = "LoadBalancer"


class AssignmentMode(Enum):
    """``assignmentMode``: AUTOMATIC, or MANUAL: only for pods that ask for the pool or for an address of it."""

    AUTOMATIC = "Automatic"
    MANUAL = "Manual"


class IPPool(Struct, frozen=True, kw_only=True):
    """One pool. ``block_size``: the prefix length of its blocks. Selectors are Calico's (:mod:`bgp.selector`)."""

    name: str
    cidr: str
    block_size: int
    node_selector: str = "all()"
    namespace_selector: str = "all()"
    nat_outgoing: bool = False
    disabled: bool = False
    """No new address and no new block; what pods have stays."""
    disable_bgp_export: bool = False
    allowed_uses: frozenset[AllowedUse] = frozenset({AllowedUse.WORKLOAD})
    assignment_mode: AssignmentMode = AssignmentMode.AUTOMATIC

    @property
    def family(self) -> Family:
        return Family.V6 if ":" in self.cidr else Family.V4


class IPReservation(Struct, frozen=True):
    """``reservedCIDRs``: addresses that no pod gets without asking for them."""

    name: str
    reserved_cidrs: tuple[str, ...]


class Loan(Struct, frozen=True):
    """A single address of a block that its owner has lent to another node.

    ``uid``: this loan's; an address that was returned and lent again is another one. ``node_uid``: that of the
    borrower's Node object.
    """

    address: str
    node: str
    node_uid: str = ""
    uid: str = ""

    @property
    def host(self) -> str:
        """The address as a prefix."""
        return f"{self.address}/{128 if ':' in self.address else 32}"

    @property
    def fields(self) -> dict[str, str]:
        """As it stands in an IPAMBlock's spec, and on disk."""
        return {"address": self.address, "node": self.node, "nodeUID": self.node_uid, "uid": self.uid}


class LoanRequest(Struct, frozen=True, kw_only=True):
    """That a node asks a block's owner for ``count`` addresses."""

    node: str
    node_uid: str
    count: int


class IPAMBlock(Struct, frozen=True, kw_only=True):
    """A block of a pool and the node that has it.

    The object's name is made from ``cidr``, so the API server lets only one node create it. Which address of the
    block a pod has, the owner's address store says alone: a pod's start writes nothing to the API.
    """

    name: str
    cidr: str
    node: str
    node_uid: str
    """A node that was deleted and created anew with its name is another one."""
    resource_version: str = ""
    lent: tuple[Loan, ...] = ()
    """Written by the owner; a borrower, or the controller for one that is gone, takes its entries away."""
    requests: tuple[LoanRequest, ...] = ()
    """Written by other nodes; the owner answers each by taking it away, with or without a loan."""
    uid: str = ""
    """The object's own: a block that was given back and claimed again is another one."""


class AffinityState(Enum):
    """``state`` of a BlockAffinity."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    PENDING_DELETION = "pendingDeletion"


class BlockAffinity(Struct, frozen=True, kw_only=True):
    """That a node wants (pending), has (confirmed), or gives back (pendingDeletion) a block."""

    name: str
    node: str
    cidr: str
    state: AffinityState
    resource_version: str = ""
    uid: str = ""


class Choice(Struct, frozen=True):
    """Where one pod's addresses come from.

    ``cidrs``: the CIDRs (claimed blocks, borrowed addresses as host prefixes, or the node's podCIDRs), of all
    families, in the order in which they are tried. ``requested``: addresses that the pod must have, at most one a
    family. ``mac``: the MAC that it must have, or empty.
    """

    cidrs: tuple[str, ...]
    requested: tuple[str, ...] = ()
    mac: str = ""
