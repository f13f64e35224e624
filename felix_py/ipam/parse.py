"""Objects of the API as the records of :mod:`felix_py.ipam.resources`.

A pool is taken wholly or not at all, but for fields that only a later version knows: these are told by
:func:`unknown`. Of pools that overlap, the oldest is used: what it has given out stays true.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TypeVar

from msgspec import Struct

from bgp import fields, prefixes
from bgp.fields import BGPConfigError
from bgp.resources import Problem
from felix_py.ipam.resources import (
    AffinityState,
    AllowedUse,
    AssignmentMode,
    BlockAffinity,
    IPAMBlock,
    IPPool,
    IPReservation,
    Loan,
    LoanRequest,
)

POOL, RESERVATION = "IPPool", "IPReservation"

BLOCK_SIZES = {4: (20, 32, 26), 6: (116, 128, 122)}
"""IP version -> least, greatest and default ``blockSize``, as Calico's."""

_POOL_FIELDS = (
    "cidr",
    "blockSize",
    "nodeSelector",
    "namespaceSelector",
    "natOutgoing",
    "disabled",
    "disableBGPExport",
    "allowedUses",
    "assignmentMode",
)
_FIELDS = {POOL: _POOL_FIELDS, RESERVATION: ("reservedCIDRs",)}
_LONGEST_REASON = 500
MOST_LOANS = 64
"""Addresses that can be asked for at once."""

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


class Bad(Exception):
    """An object that cannot be used, and why."""

    def __init__(self, kind: str, name: str, reason: str) -> None:
        field, _, text = reason.partition(": ")
        self.problem = Problem(kind, name, field, text[:_LONGEST_REASON])
        super().__init__(reason)


class Origin(Struct, frozen=True):
    """``uid`` and ``resourceVersion`` of an object."""

    uid: str = ""
    resource_version: str = ""


class Declared(Struct, frozen=True):
    """A pool as it was declared. ``created``: its ``creationTimestamp``."""

    pool: IPPool
    created: str = ""


def parse_pool(name: str, spec: object) -> IPPool:
    """The spec (decoded JSON) of the IPPool of that name. Raises Bad."""
    try:
        given = fields.any_mapping("spec", spec)
        cidr = fields.cidr("cidr", fields.required("", given, "cidr"))
        family = prefixes.version(cidr)
        least, most, default = BLOCK_SIZES[family]
        size = _get(given, "blockSize", lambda path, value: fields.integer(path, value, least, most), default)
        if prefixes.parse(cidr)[2] > size:
            raise BGPConfigError(f"cidr: {cidr} has no room for a block of blockSize {size}")
        if ipaddress.ip_network(cidr).is_link_local:
            raise BGPConfigError(f"cidr: {cidr} is link-local")
        return IPPool(
            name=name,
            cidr=cidr,
            block_size=size,
            node_selector=_get(given, "nodeSelector", fields.label_selector, "all()"),
            namespace_selector=_get(given, "namespaceSelector", fields.label_selector, "all()"),
            nat_outgoing=_get(given, "natOutgoing", fields.boolean, False),
            disabled=_get(given, "disabled", fields.boolean, False),
            disable_bgp_export=_get(given, "disableBGPExport", fields.boolean, False),
            allowed_uses=_get(given, "allowedUses", _uses, frozenset({AllowedUse.WORKLOAD})),
            assignment_mode=_get(
                given, "assignmentMode", lambda p, v: _enum(AssignmentMode, p, v), AssignmentMode.AUTOMATIC
            ),
        )
    except BGPConfigError as error:
        raise Bad(POOL, name, str(error)) from None


def parse_reservation(name: str, spec: object) -> IPReservation:
    """The spec (decoded JSON) of the IPReservation of that name. Raises Bad."""
    try:
        given = fields.any_mapping("spec", {} if spec is None else spec)
        return IPReservation(name, _get(given, "reservedCIDRs", _cidrs, ()))
    except BGPConfigError as error:
        raise Bad(RESERVATION, name, str(error)) from None


def unknown(kind: str, name: str, spec: object) -> list[Problem]:
    """What is to be told of fields that a later version's definition has."""
    return [Problem(kind, name, field, fields.UNKNOWN) for field in fields.unknown(spec, _FIELDS[kind])]


def without_overlaps(declared: Iterable[Declared]) -> tuple[tuple[IPPool, ...], tuple[Problem, ...]]:
    """The pools that can be used, by name, and why others cannot: each overlaps an older one that can.

    Of pools of one second, the one whose name is first counts as the older.
    """
    kept: list[IPPool] = []
    problems: list[Problem] = []
    for one in sorted(declared, key=lambda it: (it.created, it.pool.name)):
        older = next((pool for pool in kept if overlap(pool.cidr, one.pool.cidr)), None)
        if older is None:
            kept.append(one.pool)
        else:
            reason = f"{one.pool.cidr} overlaps {older.cidr} of the older IPPool {older.name}, so it is not used"
            problems.append(Problem(POOL, one.pool.name, "cidr", reason))
    return tuple(sorted(kept, key=lambda pool: pool.name)), tuple(sorted(problems))


def overlap(one: str, other: str) -> bool:
    """Whether two canonical CIDRs have addresses in common."""
    (family, bits, length, value), (its_family, _, its_length, its_value) = map(prefixes.parse, (one, other))
    shift = bits - min(length, its_length)
    return family == its_family and value >> shift == its_value >> shift


def parse_block(name: str, spec: object, origin: Origin) -> IPAMBlock:
    """The spec (decoded JSON) of an IPAMBlock. Raises ValueError."""
    given = _of_agents(spec)
    return IPAMBlock(
        name=name,
        cidr=fields.cidr("cidr", fields.required("", given, "cidr")),
        node=fields.text("node", fields.required("", given, "node")),
        node_uid=fields.text("nodeUID", fields.required("", given, "nodeUID")),
        resource_version=origin.resource_version,
        lent=_get(given, "lent", lambda path, value: _entries(path, value, _loan), ()),
        requests=_get(given, "requests", lambda path, value: _entries(path, value, _request), ()),
        uid=origin.uid,
    )


def parse_affinity(name: str, spec: object, origin: Origin) -> BlockAffinity:
    """The spec (decoded JSON) of a BlockAffinity. Raises ValueError."""
    given = _of_agents(spec)
    return BlockAffinity(
        name=name,
        node=fields.text("node", fields.required("", given, "node")),
        cidr=fields.cidr("cidr", fields.required("", given, "cidr")),
        state=_enum(AffinityState, "state", fields.required("", given, "state")),
        resource_version=origin.resource_version,
        uid=origin.uid,
    )


def _of_agents(spec: object) -> Mapping[str, object]:
    """A spec that an agent has written, perhaps one of a later version with fields more."""
    if not isinstance(spec, Mapping):
        raise ValueError(f"spec: must be a mapping, not {fields.kind_of(spec)}")
    return spec


def _get(given: Mapping[str, object], key: str, check: Callable[[str, object], T], default: T) -> T:
    # Writers of Go send empty texts for what is not set.
    value = given.get(key)
    return default if value is None or value == "" else check(key, value)


def _enum(kind: type[E], path: str, value: object) -> E:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(str(one.value) for one in kind)
        raise BGPConfigError(f"{path}: {str(value)[:80]!r} is not one of {known}") from None


def _uses(path: str, value: object) -> frozenset[AllowedUse]:
    found = frozenset(
        _enum(AllowedUse, f"{path}[{index}]", one) for index, one in enumerate(fields.sequence(path, value))
    )
    if not found:
        raise BGPConfigError(f"{path}: must not be empty")
    return found


def _cidrs(path: str, value: object) -> tuple[str, ...]:
    given: Sequence[object] = fields.sequence(path, value)
    return tuple(fields.cidr(f"{path}[{index}]", one) for index, one in enumerate(given))


def _entries(path: str, value: object, parse: Callable[[str, Mapping[str, object]], T]) -> tuple[T, ...]:
    """A list of mappings that agents have written, as :func:`_of_agents`."""
    found = []
    for index, one in enumerate(fields.sequence(path, value)):
        where = f"{path}[{index}]"
        if not isinstance(one, Mapping):
            raise BGPConfigError(f"{where}: must be a mapping, not {fields.kind_of(one)}")
        found.append(parse(where, one))
    return tuple(found)


def _loan(where: str, given: Mapping[str, object]) -> Loan:
    return Loan(
        address=fields.address(f"{where}.address", fields.required(where, given, "address")),
        node=fields.text(f"{where}.node", fields.required(where, given, "node")),
        node_uid=fields.text(f"{where}.nodeUID", fields.required(where, given, "nodeUID")),
        uid=fields.text(f"{where}.uid", fields.required(where, given, "uid")),
    )


def _request(where: str, given: Mapping[str, object]) -> LoanRequest:
    return LoanRequest(
        node=fields.text(f"{where}.node", fields.required(where, given, "node")),
        node_uid=fields.text(f"{where}.nodeUID", fields.required(where, given, "nodeUID")),
        count=fields.integer(f"{where}.count", fields.required(where, given, "count"), 1, MOST_LOANS),
    )
