"""Whether addresses are about to run out: a notice, and an Event on the Node, before the first pod is refused."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

from felix_py.notices import NoticeKind, Notices
from policy.model import Family

SCARCE = 0.9
"""The share of a family's addresses in use from which on they are scarce."""

_ENOUGH = 0.85
"""The share below which they no longer are: lower, so that one pod that comes and goes is told once."""

_ADVICE = "give the node more addresses, or move pods to other nodes"


class Fullness:
    """The fullness of each family's CIDRs, at its last look. On the event loop only."""

    def __init__(self, notices: Notices, tell: Callable[[str, str], None]) -> None:
        """``tell`` writes a warning Event with a reason in one CamelCase word and a text."""
        self._notices = notices
        self._tell = tell
        self._said: dict[Family, str] = {}

    def look(
        self, usage: Mapping[str, tuple[int, int]], growing: Callable[[], Container[Family]] = frozenset
    ) -> None:
        """``usage``: addresses in use and not in use of each CIDR that new pods get addresses of. ``growing``:
        families of which there are more to come; it is asked only where addresses are scarce.
        """
        for family in Family:
            cidrs = [cidr for cidr in usage if (":" in cidr) is (family is Family.V6)]
            used, free = (sum(usage[cidr][part] for cidr in cidrs) for part in (0, 1))
            share = used / ((used + free) or 1)
            if share < (_ENOUGH if family in self._said else SCARCE) or family in growing():
                self._clear(family)
            else:
                self._say(family, ", ".join(cidrs), free)

    def _clear(self, family: Family) -> None:
        if self._said.pop(family, None) is not None:
            self._notices.clear(NoticeKind.ADDRESSES_SCARCE, f"IPv{int(family)}")

    def _say(self, family: Family, cidrs: str, free: int) -> None:
        subject = f"IPv{int(family)}"
        # Without numbers: each pod would make another notice and another Event of them.
        if free:
            reason = "AddressesScarce"
            text = f"nearly all {subject} addresses of {cidrs} are in use ({SCARCE:.0%} or more): {_ADVICE}"
        else:
            reason = "AddressesExhausted"
            text = f"all {subject} addresses of {cidrs} are in use, and no new pod gets one: {_ADVICE}"
        if self._said.get(family) != text:
            self._said[family] = text
            self._notices.say(NoticeKind.ADDRESSES_SCARCE, subject, text)
            self._tell(reason, text)
