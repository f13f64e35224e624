"""Commands to ExaBGP that wait to be sent, without I/O."""

from __future__ import annotations

import re
from collections import deque

_PEERS_PER_LINE = 256
_TO_ONE = re.compile(r"neighbor (\S+) ((?:announce|withdraw) (?:attributes|eor) .*)", re.ASCII)
"""A command to one session that may go to others as well."""


class CommandQueue:
    """Commands that wait to be sent. Equal ones to different sessions become one: a route reflector tells the
    same to hundreds. Each session gets its own in the order in which they came.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, list[str]]] = deque()
        self._first = 0
        self._open: dict[str, int] = {}
        self._latest: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, line: str) -> None:
        """One command at the end, or together with an equal one that no later one of its session follows."""
        told = _TO_ONE.fullmatch(line)
        if told is None:
            self._open.clear()
            self._waiting.append((line, []))
            return
        peer, what = told.groups()
        at = self._open.get(what, -1)
        if at < self._first or self._latest.get(peer, -1) >= at or len(self._together(at)) >= _PEERS_PER_LINE:
            at = self._open[what] = self._first + len(self._waiting)
            self._waiting.append((what, []))
        self._together(at).append(peer)
        self._latest[peer] = at

    def _together(self, at: int) -> list[str]:
        return self._waiting[at - self._first][1]

    def take(self) -> str:
        """The next command. Raises IndexError if there is none."""
        what, peers = self._waiting.popleft()
        self._first += 1
        if self._open.get(what, self._first) < self._first:
            del self._open[what]
        return " , ".join(f"neighbor {peer}" for peer in peers) + f" {what}" if peers else what
