"""Notice of a full conntrack table, in which case the kernel drops new connections whatever policy says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from felix_py.dataplane.conntrack import fullness
from felix_py.notices import NoticeKind, Notices

_EVERY = 10.0
"""Seconds between two readings of two small files."""

_FULL, _AGAIN = 0.95, 0.9
"""Shares of the table at which the notice appears, and below which it is cleared."""

_SUBJECT = "net.netfilter.nf_conntrack_max"
_TEXT = (
    "the kernel's table of connections is full or nearly so: it drops new connections of pods and of the node, "
    f"whatever policy says; raise the sysctl {_SUBJECT}, or find who opens so many (conntrack -L)"
)


class Connections:
    """On the event loop only."""

    def __init__(self, notices: Notices, share: Callable[[], float] = fullness) -> None:
        """``share`` returns the used share of the table, from 0 to 1."""
        self._notices = notices
        self._share = share

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_EVERY)

    def look(self) -> None:
        """Update the notice."""
        share = self._share()
        if share >= _FULL:
            self._notices.say(NoticeKind.CONNECTIONS_FULL, _SUBJECT, _TEXT)
        elif share < _AGAIN:
            self._notices.clear(NoticeKind.CONNECTIONS_FULL, _SUBJECT)
