"""The way to ExaBGP, while there is one: commands out, events in, and the log lines that come of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bgp.protocol import Connection, Event


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a log line. ``warning``: somebody should look at it."""

    text: str
    peer: str = ""
    detail: str = ""
    warning: bool = False


class Channel:
    """One connection to the bridge after the other. Without one, commands are lost: attaching reads all anew."""

    def __init__(self) -> None:
        self.ignored = 0
        """Lines that made no sense, of all connections."""
        self._connection: Connection | None = None
        self._notes: list[Note] = []

    @property
    def is_open(self) -> bool:
        """There is a connection."""
        return self._connection is not None

    @property
    def pending(self) -> int:
        """Commands that ExaBGP has not answered yet."""
        return self._connection.pending if self._connection else 0

    def open(self) -> None:
        """A new connection in place of any other."""
        self._connection = Connection()

    def close(self) -> None:
        """The connection is gone."""
        self._connection = None

    def send(self, *commands: str) -> None:
        """Queue commands."""
        if self._connection:
            for command in commands:
                self._connection.command(command)

    def data_to_send(self) -> bytes:
        """Bytes for the bridge."""
        return self._connection.data_to_send() if self._connection else b""

    def receive(self, data: bytes, handle: Callable[[Event], None]) -> None:
        """Hand over each event of these bytes. What makes no sense is counted, and said once a connection."""
        if self._connection is None:
            return
        before = self._connection.ignored
        for event in self._connection.receive(data):
            try:
                handle(event)
            except Exception as error:
                # A defect of ours over one event must not cost the others, nor the agent.
                self._connection.ignored += 1
                self.note("cannot take over an event", detail=repr(error)[:200], warning=True)
        if ignored := self._connection.ignored - before:
            if not before:
                self.note("ExaBGP says what makes no sense; it is left out", warning=True)
            self.ignored += ignored

    def note(self, text: str, peer: str = "", detail: str = "", *, warning: bool = False) -> None:
        """Keep a log line for :meth:`take_notes`."""
        self._notes.append(Note(text, peer, detail, warning))

    def take_notes(self) -> list[Note]:
        """Log lines since the last call."""
        notes, self._notes = self._notes, []
        return notes
