"""Whether a rule that was read back is the rule that was wanted."""

from __future__ import annotations

import enum

from felix_py.ruleset.extensions import MATCHES, TARGETS
from felix_py.ruleset.model import Body, OpaqueMatch, OpaqueTarget


class Likeness(enum.Enum):
    """UNKNOWN: a part of one of the two is not understood, and could be right."""

    SAME = enum.auto()
    DIFFERENT = enum.auto()
    UNKNOWN = enum.auto()


def compare(wanted: Body, actual: Body) -> Likeness:
    """Compare a rule of ours with what the kernel is said to have.

    An extension that we never use is a difference. One that we do use, printed in a way that is not understood,
    is not: another version of the tools may print it so.
    """
    if wanted == actual:
        return Likeness.SAME
    if wanted.opaque or any(map(_is_dialect, actual.opaque)):
        return Likeness.UNKNOWN
    return Likeness.DIFFERENT


def _is_dialect(part: OpaqueMatch | OpaqueTarget) -> bool:
    """Something that we know by name, in words that we do not know."""
    match part:
        case OpaqueMatch(module, _):
            return not module or module in MATCHES
        case OpaqueTarget(name, _):
            return not name or name in TARGETS
