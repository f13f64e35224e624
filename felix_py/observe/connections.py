"""Says when the kernel's table of connections is full: it then drops what begins one, and policy is not asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from felix_py.dataplane.conntrack import fullness
from felix_py.notices import NoticeKind, Notices

_EVERY = 10.0
"""Seconds between two looks, at two small files."""

_FULL, _AGAIN = 0.95, 0.9
"""Shares of the table: it is said from the first on, and taken back below the second."""

_SUBJECT = "net.netfilter.nf_conntrack_max"
_TEXT = (
    "the kernel's table of connections is full or nearly so: it drops new connections of pods and of the node, "
    f"whatever policy says; raise the sysctl {_SUBJECT}, or find who opens so many (conntrack -L)"
)


class Connections:
    """On the event loop only."""

    def __init__(self, notices: Notices, share: Callable[[], float] = fullness) -> None:
        """``share``: how much of the table is taken, from 0 to 1."""
        self._notices = notices
        self._share = share

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_EVERY)

    def look(self) -> None:
        """Say how it is now."""
        share = self._share()
        if share >= _FULL:
            self._notices.say(NoticeKind.CONNECTIONS_FULL, _SUBJECT, _TEXT)
        elif share < _AGAIN:
            self._notices.clear(NoticeKind.CONNECTIONS_FULL, _SUBJECT)
