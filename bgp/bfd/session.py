"""One BFD session in asynchronous mode (RFC 5880, 6.8), as a state machine without I/O: time is an argument.

Intervals are whole microseconds, as in packets; times are seconds of any monotonic clock.

Not used: Demand mode for ourselves (the peer's is respected), Echo, authentication, the passive role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from bgp.bfd.packet import Diagnostic, Packet, State

SLOW = 1_000_000
"""6.8.3: the least Desired Min TX Interval of a session that is not Up."""

_MICRO = 1e-6
_NEVER = float("inf")

TRANSITIONS: Mapping[tuple[State, State], State] = {
    (State.DOWN, State.DOWN): State.INIT,
    (State.DOWN, State.INIT): State.UP,
    (State.INIT, State.ADMIN_DOWN): State.DOWN,
    (State.INIT, State.INIT): State.UP,
    (State.INIT, State.UP): State.UP,
    (State.UP, State.ADMIN_DOWN): State.DOWN,
    (State.UP, State.DOWN): State.DOWN,
}
"""6.8.6: (our state, the state in a packet) -> our next state; otherwise it stays."""


@dataclass(frozen=True, slots=True)
class Timers:
    """What this end wants: least interval of its packets, of the peer's, and Detect Mult (1 to 255)."""

    desired_min_tx: int
    required_min_rx: int
    detect_multiplier: int


class Path(Enum):
    """What a session says of the path to the peer (RFC 5882, 3.2 and 4.2).

    UNKNOWN: it was never Up, or one end has taken it down administratively: no reason to doubt the path. FAILED
    stays until the session is Up again.
    """

    UNKNOWN = "unknown"
    UP = "up"
    FAILED = "failed"


class Session:
    """The state variables of RFC 5880, 6.8.1.

    Give it every packet for it (:meth:`receive`) and the time (:meth:`tick`) no later than :meth:`due`; then
    send what :meth:`take` returns, each time.
    """

    def __init__(
        self,
        timers: Timers,
        discriminator: int,
        now: float,
        random: Callable[[], float],
        *,
        announce: bool = False,
    ) -> None:
        """``random`` returns numbers in [0, 1), for the jitter. ``announce``: the first packet says AdminDown.

        A peer that had a session with an earlier life of this end ends it by that, without taking it for a
        failure of the path, as our Down would be (RFC 5882, 3.2).
        """
        self.discriminator = discriminator
        self.state = State.DOWN
        self.diagnostic = Diagnostic.NONE
        self.path = Path.UNKNOWN
        self.since = now
        """When :attr:`path` changed last."""
        self.remote_state = State.DOWN
        self.remote_discriminator = 0
        self.remote_diagnostic = 0
        self.remote_independent = False
        self._timers = timers
        self._random = random
        self._remote_min_rx = 1
        self._remote_min_tx = 0
        self._remote_multiplier = 0
        self._remote_demand = False
        # What is in force: a change takes effect with the end of a Poll Sequence at the latest (6.8.3).
        self._min_tx = max(SLOW, timers.desired_min_tx)
        self._min_rx = timers.required_min_rx
        self._poll = False
        self._poll_again = False
        self._final = False
        self._farewell = announce
        self._heard = now
        self._sent = now
        self._send_at = now

    # --- what is agreed ----------------------------------------------------------------------------------

    @property
    def transmit_interval(self) -> int:
        """6.8.7: microseconds between our packets, before jitter; 0: none are sent."""
        if not self._remote_min_rx or self._is_demanded():
            return 0
        return max(self._min_tx, self._remote_min_rx)

    @property
    def detection_time(self) -> int:
        """6.8.4: microseconds without a packet after which the peer is lost; 0: no packet has told it yet."""
        return self._remote_multiplier * max(self._min_rx, self._remote_min_tx)

    def due(self) -> float:
        """When something is to be done next, if no packet comes before."""
        return min(self._send_at, self._expires())

    # --- inputs ------------------------------------------------------------------------------------------

    def configure(self, timers: Timers) -> None:
        """Change the timers of a session (6.8.3); one that is Up stays Up."""
        if timers == self._timers:
            return
        self._timers = timers
        # A Final may be on its way that answers for the values of before.
        self._poll_again = self._poll
        self._agree()

    def receive(self, packet: Packet, now: float) -> bool:
        """Take a valid packet that is for this session (6.8.6); false if it is discarded."""
        if packet.authenticated:
            return False
        self.remote_discriminator = packet.my_discriminator
        self.remote_state = packet.state
        self.remote_diagnostic = packet.diagnostic
        self.remote_independent = packet.independent
        self._remote_demand = packet.demand
        self._remote_min_tx, self._remote_multiplier = packet.desired_min_tx, packet.detect_multiplier
        before, self._remote_min_rx = self._remote_min_rx, packet.required_min_rx
        if self._poll and packet.final:
            self._end_poll()
        elif before != packet.required_min_rx or not self._is_sending():
            self._schedule()
        if self.state is State.ADMIN_DOWN:
            return False
        self._heard = now
        after = TRANSITIONS.get((self.state, packet.state))
        if after is not None:
            self._enter(after, Diagnostic.NEIGHBOR_SIGNALED_DOWN, now)
        self._final = self._final or packet.poll
        return True

    def tick(self, now: float) -> None:
        """Notice that the peer is silent."""
        if now < self._expires():
            return
        # 6.8.1, bfd.RemoteDiscr: forgotten, in any state.
        self.remote_discriminator, self.remote_state = 0, State.DOWN
        self._remote_multiplier, self._remote_min_rx, self._remote_demand = 0, 1, False
        if self.state in (State.INIT, State.UP):
            self._enter(State.DOWN, Diagnostic.DETECTION_TIME_EXPIRED, now)

    def disable(self, now: float) -> None:
        """Take the session down administratively (6.8.16): the path is not to be doubted for it."""
        self._enter(State.ADMIN_DOWN, Diagnostic.ADMINISTRATIVELY_DOWN, now)

    def take(self, now: float) -> list[Packet]:
        """The packets to send now: at most one that answers a poll, and one that was due."""
        packets = []
        if self._final:
            self._final = False
            packets.append(self._packet(final=True))
        if now >= self._send_at:
            packets.append(self._packet(final=False))
            self._farewell, self._sent = False, now
            self._schedule()
        return packets

    # --- inside ------------------------------------------------------------------------------------------

    def _enter(self, state: State, diagnostic: Diagnostic, now: float) -> None:
        if state is self.state:
            return
        self.state = state
        if state in (State.DOWN, State.ADMIN_DOWN):
            self.diagnostic = diagnostic
        elif state is State.UP:
            self.diagnostic = Diagnostic.NONE
        path = self._path_of(state)
        if path is not self.path:
            self.path, self.since = path, now
        self._agree()
        # 6.8.7: a changed packet should be sent at once.
        self._send_at = now if self.transmit_interval or state is State.ADMIN_DOWN else _NEVER

    def _path_of(self, state: State) -> Path:
        if state is State.UP:
            return Path.UP
        if state is State.ADMIN_DOWN or self.remote_state is State.ADMIN_DOWN:
            return Path.UNKNOWN
        return Path.FAILED if self.path is not Path.UNKNOWN else Path.UNKNOWN

    def _wanted_min_tx(self) -> int:
        return self._timers.desired_min_tx if self.state is State.UP else max(SLOW, self._timers.desired_min_tx)

    def _agree(self) -> None:
        """6.8.3: use the wanted intervals, now or, where the peer has to know first, after a Poll Sequence."""
        min_tx, min_rx = self._wanted_min_tx(), self._timers.required_min_rx
        if self.state is State.UP:
            self._poll = self._poll or (min_tx, min_rx) != (self._min_tx, self._min_rx)
            self._min_tx, self._min_rx = min(min_tx, self._min_tx), max(min_rx, self._min_rx)
        else:
            self._poll = self._poll_again = False
            self._min_tx, self._min_rx = min_tx, min_rx
        self._schedule()

    def _end_poll(self) -> None:
        if self._poll_again:
            self._poll_again = False
            return
        self._poll = False
        self._min_tx, self._min_rx = self._wanted_min_tx(), self._timers.required_min_rx
        self._schedule()

    def _is_demanded(self) -> bool:
        return self._remote_demand and not self._poll and self.state is self.remote_state is State.UP

    def _is_sending(self) -> bool:
        return self._send_at != _NEVER

    def _schedule(self) -> None:
        """6.8.7: the time of the next packet, with jitter, counted from the last one."""
        interval = self.transmit_interval
        most = 0.9 if self._timers.detect_multiplier == 1 else 1.0
        jittered = interval * (0.75 + (most - 0.75) * self._random())
        self._send_at = self._sent + jittered * _MICRO if interval else _NEVER

    def _expires(self) -> float:
        detection_time = self.detection_time
        return self._heard + detection_time * _MICRO if detection_time else _NEVER

    def _packet(self, *, final: bool) -> Packet:
        return Packet(
            state=State.ADMIN_DOWN if self._farewell else self.state,
            diagnostic=self.diagnostic,
            poll=self._poll and not final,
            final=final,
            detect_multiplier=self._timers.detect_multiplier,
            my_discriminator=self.discriminator,
            your_discriminator=self.remote_discriminator,
            desired_min_tx=self._wanted_min_tx(),
            required_min_rx=self._timers.required_min_rx,
        )
