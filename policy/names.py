"""Stable names of compiled objects: hashed, so that any Kubernetes name fits the kernel's limits.

A name depends on content only. The same policy has the same chain after a restart, and equal peer lists of two
policies share one IP set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from policy.model import Direction, Family, ObjectKey

_DIGITS = 16
"""64 bits of a hash: two of a million names collide with a probability of 1 in 37 million."""

_LETTER = {Direction.INGRESS: "I", Direction.EGRESS: "E"}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:_DIGITS]


def policy_chain(direction: Direction, key: ObjectKey) -> str:
    """Chain of one policy in one direction (26 characters; the kernel takes 28)."""
    return f"FELIX-P{_LETTER[direction]}-{_digest(*key)}"


def class_chain(direction: Direction, policies: Iterable[ObjectKey]) -> str:
    """Chain of one policy class: the exact set of policies that selects an endpoint."""
    return f"FELIX-C{_LETTER[direction]}-{_digest(*(part for key in sorted(policies) for part in key))}"


def set_name(family: Family, content: str) -> str:
    """IP set for a peer list, given in canonical text (23 characters; the kernel takes 31)."""
    return f"felix{int(family)}-{_digest(content)}"
