"""Which of the agents leads, by one Lease (coordination.k8s.io/v1). No I/O: clock and answers are arguments.

The rules are those of client-go (tools/leaderelection): who holds the Lease renews it; who finds it unchanged for
its duration takes it. Times of other machines are never compared with ours: what counts is how long this agent
has seen the Lease unchanged, and when it asked for its own last renewal. So clocks may differ as they like, and
may run at different rates as long as the fastest is not :data:`Timing.lease_duration` / ``renew_deadline`` times
as fast as the slowest. Two things are stricter than there: a leader counts from before its request, and a Lease
that somebody has deleted is made anew only after its duration, but by the leader itself. (One that is made and
deleted again between two looks of an agent cannot be seen by it.)

Each write replaces the version of the Lease that was seen, so of several that take it one succeeds.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from felix_py.records import LeaderLease


class Timing(Struct, frozen=True, kw_only=True):
    """In seconds; client-go's names and defaults.

    ``lease_duration``: an unchanged Lease may be taken after so long. ``renew_deadline``: a leader that could not
    renew for so long leads no more. ``retry_period``: between two tries. ``longest``: between two looks of the
    agents that are last to take over.
    """

    lease_duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0
    longest: float = 600.0


JITTER = 1.2
"""A delay is up to so many times longer than it is said to be, one more (client-go's JitterFactor)."""


class Election:
    """One candidate. Times are seconds of one clock that never goes back."""

    def __init__(self, identity: str, timing: Timing | None = None) -> None:
        """``identity``: of this process alone, so that it never takes an earlier one's Lease for its own."""
        self.identity = identity
        self.timing = timing or Timing()
        self._seen: LeaderLease | None = None
        self._looked = False
        self._since = 0.0
        self._until: float | None = None

    # --- what has happened ---------------------------------------------------------------------------

    def found(self, lease: LeaderLease | None, now: float) -> None:
        """Take over what the API server has answered; None: there is no Lease. ``now``: after the answer."""
        if not self._looked or lease != self._seen:
            self._looked, self._seen, self._since = True, lease, now
        if lease is not None and lease.holder != self.identity:
            self._until = None

    def written(self, lease: LeaderLease, asked: float, now: float) -> None:
        """The Lease is written, as it is in the answer. ``asked``: the time before the request."""
        self._looked, self._seen, self._since = True, lease, now
        self._until = asked + self.timing.renew_deadline if lease.holder == self.identity else None

    # --- what to do ----------------------------------------------------------------------------------

    def attempt(self, now: float, stamp: str) -> LeaderLease | None:
        """The Lease to write now, or None: it is another's. With ``version`` it replaces that version, without
        it is created. ``stamp``: the time of day, for people (meta/v1 MicroTime).
        """
        if not self._looked:
            return None
        wanted = LeaderLease(self.identity, self.timing.lease_duration, stamp, stamp)
        seen = self._seen
        if seen is None:
            return wanted if self.left(now) or now >= self._since + self.timing.lease_duration else None
        if seen.holder == self.identity:
            return replace(seen, duration=self.timing.lease_duration, renewed=stamp)
        if seen.holder and now < self._since + max(self.timing.lease_duration, seen.duration):
            return None
        return replace(wanted, transitions=seen.transitions + 1, version=seen.version, uid=seen.uid)

    def release(self, stamp: str) -> LeaderLease | None:
        """The Lease to write so that another may lead at once; None if it is not ours. From here on, this
        candidate does not lead."""
        self._until = None
        if self._seen is None or self._seen.holder != self.identity:
            return None
        return replace(self._seen, holder="", duration=1.0, renewed=stamp)

    def left(self, now: float) -> float:
        """Seconds for which this candidate certainly still leads; 0: it does not."""
        return max(0.0, self._until - now) if self._until is not None else 0.0

    @property
    def holder(self) -> str:
        """Who holds the Lease, as it was seen last; empty: nobody, or it is not known."""
        return self._seen.holder if self._seen is not None else ""

    def pause(self, now: float, rank: int, chance: Callable[[], float]) -> float:
        """Seconds until the next try.

        ``rank``: how many of the nodes come before this one. An agent looks the less often the higher it is, so
        that all of them together ask the harmonic number of them, over ``retry_period``, times a second: a few,
        of thousands. ``chance`` returns a number from 0 to 1.
        """
        if self.left(now):
            return self.timing.retry_period
        pause = min(self.timing.longest, self.timing.retry_period * (rank + 1))
        return pause * (1 + JITTER * chance())
