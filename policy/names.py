"""Stable names of compiled objects: hashed, so that any Kubernetes name fits the kernel's limits.

A name depends on content only. The same policy has the same chain after a restart, and equal peer lists of two
policies share one IP set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from policy.model import Direction, Family, PolicyRef

_DIGITS = 16
"""64 bits of a hash: two of a million names collide with a probability of 1 in 37 million."""

TIERS = "FELIX-T"
"""What the names of all tiers' chains begin with: cluster-scoped policies alone make such."""

_LETTER = {Direction.INGRESS: "I", Direction.EGRESS: "E"}


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:_DIGITS]


def _flat(policies: Sequence[PolicyRef]) -> Iterable[str]:
    return (part for ref in policies for part in ref)


def policy_chain(direction: Direction, ref: PolicyRef) -> str:
    """Chain of one policy in one direction (26 characters; the kernel takes 28)."""
    return f"FELIX-P{_LETTER[direction]}-{_digest(ref)}"


def tier_chain(direction: Direction, policies: Sequence[PolicyRef]) -> str:
    """Chain of the policies of one tier, in the order in which they are tried."""
    return f"{TIERS}{_LETTER[direction]}-{_digest(_flat(policies))}"


def class_chain(
    direction: Direction,
    admin: Sequence[PolicyRef],
    network: Sequence[PolicyRef],
    baseline: Sequence[PolicyRef],
) -> str:
    """Chain of one policy class: the policies that count for an endpoint, tier by tier."""
    parts = (*_flat(admin), "/", *_flat(network), "/", *_flat(baseline))
    return f"FELIX-C{_LETTER[direction]}-{_digest(parts)}"


def set_name(family: Family, content: str) -> str:
    """IP set for a peer list, given in canonical text (23 characters; the kernel takes 31)."""
    return f"felix{int(family)}-{_digest((content,))}"
