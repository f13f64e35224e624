"""Comparison of a rule that was read back with the wanted one."""

from __future__ import annotations

import enum

from felix_py.ruleset.extensions import MATCHES, TARGETS
from felix_py.ruleset.model import Body, OpaqueMatch, OpaqueTarget


class Likeness(enum.Enum):
    """UNKNOWN: an unknown part of one of the two may mean the same."""

    SAME = enum.auto()
    DIFFERENT = enum.auto()
    UNKNOWN = enum.auto()


def compare(wanted: Body, actual: Body) -> Likeness:
    """Compare a rule of ours with the kernel's as the tools print it.

    An extension that we never use is a difference. One that we use, in unknown words, is none: another version
    of the tools may print it so.
    """
    if wanted == actual:
        return Likeness.SAME
    if wanted.opaque or any(map(_is_dialect, actual.opaque)):
        return Likeness.UNKNOWN
    return Likeness.DIFFERENT


def _is_dialect(part: OpaqueMatch | OpaqueTarget) -> bool:
    """Whether a part has a known name, but unknown words."""
    match part:
        case OpaqueMatch(module, _):
            return not module or module in MATCHES
        case OpaqueTarget(name, _):
            return not name or name in TARGETS
