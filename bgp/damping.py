"""Paths that flap: which take no part in the choice, so that what they cost is bounded.

In the spirit of RFC 2439, but for seconds and not for an hour: a path that is withdrawn, or gets another next
hop, more than :data:`BURST` times in a row is left out until it has been the same for :data:`INTERVAL`. Other
paths to the prefix are used meanwhile. What is withdrawn goes at once, always. No I/O; time is an argument.
"""

from __future__ import annotations

from typing import NamedTuple

BURST = 8
INTERVAL = 2.0
"""Seconds in which one change is forgotten."""

FlapKey = tuple[str, str, str]
"""Peer, prefix and path identifier."""


class _Flaps(NamedTuple):
    level: float
    at: float


class Damping:
    """Recent changes of paths. Memory is for those of the last seconds only."""

    def __init__(self) -> None:
        self.now = 0.0
        """As of the last :meth:`tick`."""
        self._flaps: dict[FlapKey, _Flaps] = {}
        self._suppressed: set[FlapKey] = set()
        self._swept = 0.0

    def note(self, key: FlapKey) -> None:
        """A path was withdrawn, or has another next hop."""
        level = min(self._level(key) + 1, BURST + 1)
        self._flaps[key] = _Flaps(level, self.now)
        if level > BURST:
            self._suppressed.add(key)

    def suppresses(self, key: FlapKey) -> bool:
        """Whether a path takes no part now."""
        return key in self._suppressed

    @property
    def suppressed(self) -> frozenset[str]:
        """Peers of which some path takes no part."""
        return frozenset(peer for peer, _, _ in self._suppressed)

    def tick(self, now: float) -> list[FlapKey]:
        """Let time pass; returns the paths that take part again."""
        self.now = now
        calm = [key for key in self._suppressed if self._level(key) <= BURST]
        self._suppressed.difference_update(calm)
        if now >= self._swept + INTERVAL:
            self._swept = now
            self._flaps = {key: one for key, one in self._flaps.items() if self._level(key) > 0}
        return calm

    def _level(self, key: FlapKey) -> float:
        level, at = self._flaps.get(key, _Flaps(0, self.now))
        return max(0.0, level - (self.now - at) / INTERVAL)
