"""Tells of kinds that the API server does not let the agent see, as with the rights of an earlier version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from felix_py.notices import NoticeKind, Notices

_LOOK = 2.0
"""Seconds between two looks; a refusal counts after five."""


class UnseenKinds:
    """On the event loop only."""

    def __init__(self, refused: Callable[[], Collection[str]], notices: Notices) -> None:
        """``refused``: the names of the kinds."""
        self._refused = refused
        self._notices = notices

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._notices.replace(NoticeKind.KIND_REFUSED, {kind: _text(kind) for kind in self._refused()})
            await asyncio.sleep(_LOOK)


def _text(kind: str) -> str:
    return (
        f"the API server does not let this agent list {kind}: what it read last stays in force, and what changes "
        "has no effect. See whether the ClusterRole felix-py is of this version"
    )
