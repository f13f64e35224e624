"""Identities of compiled objects: digests, so that any Kubernetes name fits the kernel's limits.

A digest depends on content only: a policy keeps its chain over a restart, and equal peer lists share one set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from policy.ir import ChainId, ChainKind, SetId
from policy.model import Direction, PolicyRef

_DIGITS = 16
"""64 bits of a hash: among a million, the probability of a collision is 1 in 37 million."""


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:_DIGITS]


def _flat(policies: Sequence[PolicyRef]) -> Iterable[str]:
    return (part for ref in policies for part in ref)


def policy_chain(direction: Direction, ref: PolicyRef) -> ChainId:
    """Chain of one policy in one direction."""
    return ChainId(ChainKind.POLICY, direction, _digest(ref))


def tier_chain(direction: Direction, policies: Sequence[PolicyRef]) -> ChainId:
    """Chain of the policies of one tier, in the order in which they are tried."""
    return ChainId(ChainKind.TIER, direction, _digest(_flat(policies)))


def class_chain(
    direction: Direction, admin: Sequence[PolicyRef], network: Sequence[PolicyRef], baseline: Sequence[PolicyRef]
) -> ChainId:
    """Chain of one policy class: the policies that count for an endpoint, tier by tier."""
    parts = (*_flat(admin), "/", *_flat(network), "/", *_flat(baseline))
    return ChainId(ChainKind.CLASS, direction, _digest(parts))


def set_id(content: str) -> SetId:
    """Set of a peer list, given in canonical text."""
    return SetId(_digest((content,)))
