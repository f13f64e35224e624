"""The connection to ExaBGP, if there is one: commands out, events in, and log lines about both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bgp import trace
from bgp.events import Event
from bgp.protocol import Connection


@dataclass(frozen=True, slots=True)
class Note:
    """A log line; ``warning``: it needs attention."""

    text: str
    peer: str = ""
    detail: str = ""
    warning: bool = False


class Channel:
    """Successive connections to the bridge. Without one, commands are lost: attaching reads all state anew."""

    def __init__(self) -> None:
        self.ignored = 0
        """Number of invalid lines of all connections."""
        self.trace: Callable[[trace.Traced], None] | None = None
        """Told of every event; None: nobody looks on."""
        self._connection: Connection | None = None
        self._notes: list[Note] = []

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    @property
    def pending(self) -> int:
        """Commands that ExaBGP has not answered yet."""
        return self._connection.pending if self._connection else 0

    @property
    def answered(self) -> int:
        """Commands that ExaBGP has answered since the connection was opened."""
        return self._connection.answered if self._connection else 0

    def open(self) -> None:
        """Replace the connection by a new one."""
        self._connection = Connection()

    def close(self) -> None:
        """Forget the connection."""
        self._connection = None

    def send(self, *commands: str) -> None:
        """Queue commands."""
        if self._connection:
            for command in commands:
                self._connection.command(command)
                if self.trace:
                    for traced in trace.of_command(command):
                        self.trace(traced)

    def data_to_send(self) -> bytes:
        """Bytes for the bridge."""
        return self._connection.data_to_send() if self._connection else b""

    def receive(self, data: bytes, handle: Callable[[Event], None]) -> None:
        """Handle each event in ``data``. Invalid lines are counted, and noted once a connection."""
        if self._connection is None:
            return
        before = self._connection.ignored
        for event in self._connection.receive(data):
            try:
                if self.trace:
                    for traced in trace.of_event(event):
                        self.trace(traced)
                handle(event)
            except Exception as error:
                # A bug of ours in one event must not lose the others, nor end the agent.
                self._connection.ignored += 1
                self.note("cannot take over an event", detail=repr(error)[:200], warning=True)
        if ignored := self._connection.ignored - before:
            if not before:
                self.note("ExaBGP says what makes no sense; it is left out", warning=True)
            self.ignored += ignored

    def note(self, text: str, peer: str = "", detail: str = "", *, warning: bool = False) -> None:
        """Keep a log line for :meth:`take_notes`."""
        self._notes.append(Note(text, peer, detail, warning))
        if self.trace:
            self.trace(trace.Traced(trace.Kind.SESSION, peer, "", f"{text}: {detail}" if detail else text))

    def take_notes(self) -> list[Note]:
        """Log lines since the last call."""
        notes, self._notes = self._notes, []
        return notes
