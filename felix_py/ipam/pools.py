"""Which pools, and which of a node's blocks, the addresses of one pod come from. Pure.

As Calico's IPAM (libcalico-go/lib/ipam, "pool qualification"): pools that are asked for are used in the order in
which they are asked for, whatever their selectors and assignmentMode say; without any, those whose selectors
match node and namespace, by name. ``disabled`` and ``allowedUses`` count always. Each family is decided by
itself, and one that has no pool for pods keeps the node's podCIDRs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from msgspec import Struct

from bgp import prefixes, selector
from felix_py.ipam.parse import overlap
from felix_py.ipam.pool import Pool
from felix_py.ipam.resources import AllowedUse, AssignmentMode, IPAMBlock, IPPool, IPReservation
from policy.model import Family

Labels = Mapping[str, str]

_selector = lru_cache(maxsize=1 << 10)(selector.parse)


NOT_KNOWN = "it is not known yet which IPPools there are (is the API server reachable?)"


class NoPool(ValueError):
    """No pool is for this pod; the message says why, and names what was asked for."""


class Subject(Struct, frozen=True):
    """Whose pools are looked for. ``asked``: names or CIDRs of pools, of all families, in their order."""

    node: Labels
    namespace: Labels
    asked: tuple[str, ...] = ()


def eligible(pools: Iterable[IPPool], subject: Subject) -> dict[Family, tuple[IPPool, ...]]:
    """Returns the pools that the subject may use, in order, by family. ``pools`` do not overlap.

    Families that have no pool for pods at all are left out; those that have, but none for this subject, are
    empty.

    Raises:
        NoPool: a pool that is asked for is not there, is disabled, or is not for pods.
    """
    for_pods = sorted((one for one in pools if AllowedUse.WORKLOAD in one.allowed_uses), key=lambda it: it.name)
    usable = [one for one in for_pods if not one.disabled]
    asked = [_asked(usable, text) for text in dict.fromkeys(subject.asked)]
    found: dict[Family, tuple[IPPool, ...]] = {}
    for family in sorted({one.family for one in for_pods}):
        of_family = [one for one in asked if one.family is family]
        found[family] = tuple(
            dict.fromkeys(of_family) or (one for one in usable if one.family is family and _selects(one, subject))
        )
    return found


def _asked(usable: Iterable[IPPool], text: str) -> IPPool:
    for one in usable:
        if text in (one.name, one.cidr):
            return one
    raise NoPool(f"IPPool {text[:80]} does not exist, is disabled, or is not for pods (allowedUses: Workload)")


def _selects(pool: IPPool, subject: Subject) -> bool:
    return pool.assignment_mode is AssignmentMode.AUTOMATIC and (
        selects_node(pool, subject.node) and _selector(pool.namespace_selector).matches(subject.namespace)
    )


def selects_node(pool: IPPool, labels: Labels) -> bool:
    """Whether the pool's nodeSelector matches a node with these labels."""
    return _selector(pool.node_selector).matches(labels)


def cidrs_of(
    found: Mapping[Family, Sequence[IPPool]],
    blocks: Iterable[IPAMBlock],
    pod_cidrs: Iterable[str],
    borrowed: Iterable[str] = (),
) -> tuple[str, ...]:
    """Returns the CIDRs out of which addresses are given, in order.

    Of :func:`eligible`'s pools these are the node's own usable ``blocks``, by pool, then by address, and after
    all of them ``borrowed`` host prefixes, likewise; of other families its ``pod_cidrs``.
    """
    ordered = [sorted(cidrs, key=prefixes.parse) for cidrs in ([block.cidr for block in blocks], borrowed)]
    chosen = [
        cidr
        for cidrs in ordered
        for pools in found.values()
        for pool in pools
        for cidr in cidrs
        if pool_of([pool], cidr) is not None
    ]
    return (*chosen, *(cidr for cidr in pod_cidrs if Family(prefixes.version(cidr)) not in found))


def pool_of(pools: Iterable[IPPool], cidr: str) -> IPPool | None:
    """The pool that a block, or an address as a CIDR, lies in."""
    family, bits, length, value = prefixes.parse(cidr)
    for pool in pools:
        its_family, _, its_length, its_value = prefixes.parse(pool.cidr)
        if (
            family == its_family
            and its_length <= length
            and value >> (bits - its_length) == its_value >> (bits - its_length)
        ):
            return pool
    return None


def reserved_in(cidr: str, reservations: Iterable[IPReservation]) -> int:
    """How many of a block's addresses are reserved."""
    block = Pool.of(cidr)
    ranges = sorted(
        (max(block.first, first), min(block.last, last))
        for reservation in reservations
        for reserved in reservation.reserved_cidrs
        if overlap(reserved, cidr)
        for first, last in [ends(reserved)]
    )
    total, after = 0, block.first
    for first, last in ranges:
        if last >= (begin := max(first, after)):
            total += last - begin + 1
            after = last + 1
    return total


def ends(cidr: str) -> tuple[int, int]:
    """The first and the last address of a CIDR, as integers."""
    _, bits, length, value = prefixes.parse(cidr)
    return value, value + (1 << (bits - length)) - 1
