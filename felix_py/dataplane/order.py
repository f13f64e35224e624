"""The order of the writes in one apply, and its reasons.

Three things must never happen, whichever write fails or however long it takes: a packet passes unjudged although
a policy selects its pod, half-written sets drop a packet that policy allows, and a rule names a missing object.
"""

from __future__ import annotations

import enum


class Step(enum.Enum):
    """The steps of an apply; the value is the reason for its place."""

    REMOVE_ROUTES = "Nothing may be delivered to an endpoint that is about to lose its policy."
    GROW_SETS = "Rules can only name sets that exist; and what a new rule allows must be in its sets at once."
    WRITE_CHAINS = (
        "One transaction a family. Chains that are no longer wanted go in it as well: nothing else in it refers "
        "to them any more, and their sets cannot be destroyed before."
    )
    WRITE_MARKS = (
        "An address may only be given a class number once the dispatch rules know it: a number that they do not "
        "know is dropped. Written even where a chain failed: unmarked, a new endpoint would not be restricted."
    )
    MEND_LINKS = (
        "Of pods that are reachable already: the host's forwarding, and interfaces that somebody has set down or "
        "changed. A route through an interface that is down would be refused."
    )
    WRITE_ROUTES = "Last of what makes an endpoint reachable: its source binding, class and chains are there."
    SHRINK_SETS = (
        "After the chains: until then, the old rules need the old members. First the sets without marks, so that "
        "an endpoint that goes away loses its source binding before its class."
    )
    DESTROY_SETS = "The kernel refuses while a rule refers to a set."


ORDER = tuple(Step)
