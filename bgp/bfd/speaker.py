"""The process that runs BFD sessions: ``python -m bgp.bfd.speaker FOLDER``, a child of the sidecar.

A process of its own, and one that does nothing else: what it needs is to be in time. It is told the wanted
sessions by its standard input (texts with the lines of :mod:`bgp.bfd.settings`, each ended by a zero byte). The
end of that input, which comes in whatever way the sidecar ends, is its own: it says AdminDown to every peer, so
that none takes it for a failure of the path. Log lines go to standard output; without room there, they are lost.

Whoever connects to ``FOLDER/bfd.sock`` is told every session's state, and then each change.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bgp.bfd import packet, priority, settings
from bgp.bfd.audience import Audience
from bgp.bfd.links import MULTIHOP_PORT, PORT, Link, Sender, family_of, receive, receiving
from bgp.bfd.priority import Cost
from bgp.bfd.settings import Wanted

_BUDGET = 128
"""Packets read of one socket in a turn: a flood must not keep our own packets waiting."""

_RETRY = 1.0
_CONFIG_MOST = 4 * 1024 * 1024
_LOGGED_MOST = 64
_FAREWELLS = 3
_CHUNK = 65536
_NEVER = float("inf")


class Speaker:
    """All sessions, the sockets that packets come by, and those who are told of states."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._links: dict[tuple[str, str], Link] = {}
        self._by_discriminator: dict[int, Link] = {}
        self._heap: list[tuple[float, int]] = []
        self._receiving: dict[tuple[int, bool], socket.socket] = {}
        self._receive_at = 0.0
        self._cost = Cost(time.monotonic()) if priority.take() else None
        self._input = b""
        self._logged: set[tuple[str, str]] = set()

    def run(self) -> None:
        """Run until standard input ends, or SIGTERM."""
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # What is there now stays, so that no collection has to look through it.
        gc.freeze()
        try:
            while self._turn():
                pass
        except KeyboardInterrupt:
            pass
        finally:
            self._farewell()

    # --- one turn ----------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        ready = self._wait()
        now = time.monotonic()
        if self._cost and self._cost.is_too_much(now, time.process_time()):
            self._cost = None
            priority.give_back()
            self._log("warning", "", "this takes too much of a core for real-time priority")
        if now >= self._receive_at:
            self._open_receiving(now)
        if now >= self._audience.look_at and (problem := self._audience.look(now)):
            self._log("error", "", problem)
        # First what has come, also since poll() looked: a peer whose packets wait here was not silent.
        for (_, multihop), incoming in self._receiving.items():
            self._read_packets(incoming, multihop, now)
        for link in self._due(now):
            link.session.tick(now)
            self._serve(link, now)
        self._audience.serve(ready, lambda: [settings.encode(link.report(now)) for link in self._links.values()])
        return 0 not in ready or self._read_input(now)

    def _wait(self) -> set[int]:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        for incoming in self._receiving.values():
            poll.register(incoming, select.POLLIN)
        self._audience.register(poll)
        due = min(self._heap[0][0] if self._heap else _NEVER, self._receive_at, self._audience.look_at)
        left = max(0.0, due - time.monotonic())
        return {number for number, _ in poll.poll(left * 1000)}

    def _due(self, now: float) -> Iterator[Link]:
        while self._heap and self._heap[0][0] <= now:
            at, discriminator = heapq.heappop(self._heap)
            link = self._by_discriminator.get(discriminator)
            if link is not None and link.scheduled == at:
                link.scheduled = _NEVER
                yield link

    def _serve(self, link: Link, now: float) -> None:
        """Send what is due, tell what has changed, and note when to look again."""
        if (packets := link.session.take(now)) and (problem := link.send(packets, now)):
            self._log("warning", link.wanted.peer, problem)
        due = link.session.due()
        # An expiry moves away with each packet: what is in the heap then finds nothing to do, and moves on.
        if due < link.scheduled:
            link.scheduled = due
            heapq.heappush(self._heap, (due, link.session.discriminator))
        if report := link.news(now):
            self._audience.tell(settings.encode(report))

    # --- packets -----------------------------------------------------------------------------------------

    def _read_packets(self, incoming: socket.socket, multihop: bool, now: float) -> None:
        for _ in range(_BUDGET):
            if (received := receive(incoming)) is None:
                return
            data, sender, ttl = received
            if problem := self._take_packet(data, sender, ttl, multihop, now):
                self._log("info", sender[0], f"packet ignored: {problem}")

    def _take_packet(self, data: bytes, sender: Sender, ttl: int, multihop: bool, now: float) -> str:
        """Give a packet to its session (RFC 5880, 6.8.6; RFC 5881, 5); returns why it is for none."""
        try:
            decoded = packet.decode(data)
        except packet.BadPacket as error:
            return str(error)
        if decoded.your_discriminator:
            link = self._by_discriminator.get(decoded.your_discriminator)
        else:
            link = self._links.get(sender)
        if link is None or link.wanted.multihop != multihop:
            return "no such session"
        if link.wanted.key != sender:
            return "the session is somebody else's"
        if ttl < link.wanted.least_ttl:
            return f"TTL {ttl} is less than {link.wanted.least_ttl}"
        if not link.session.receive(decoded, now):
            return "authentication is not used"
        self._serve(link, now)
        return ""

    def _open_receiving(self, now: float) -> None:
        """Have a socket for each kind of packets that a session is there for; one that fails is tried again."""
        self._receive_at = _NEVER
        needed = {(family_of(link.wanted.peer), link.wanted.multihop) for link in self._links.values()}
        for kind in self._receiving.keys() - needed:
            self._receiving.pop(kind).close()
        for kind in needed - self._receiving.keys():
            try:
                self._receiving[kind] = receiving(*kind)
            except OSError as error:
                self._log("error", "", f"cannot receive on port {MULTIHOP_PORT if kind[1] else PORT}: {error}")
                self._receive_at = now + _RETRY

    # --- wanted sessions ---------------------------------------------------------------------------------

    def _read_input(self, now: float) -> bool:
        """Read standard input; false at its end."""
        try:
            data = os.read(0, _CHUNK)
        except BlockingIOError:
            return True
        *texts, self._input = (self._input + data).split(b"\0")
        if texts:
            self._configure(settings.parse(texts[-1].decode(errors="replace")), now)
        return bool(data) and len(self._input) < _CONFIG_MOST

    def _configure(self, sessions: tuple[Wanted, ...], now: float) -> None:
        """Have exactly these sessions. One whose timers alone have changed stays up."""
        self._logged.clear()
        wanted = {session.key: session for session in sessions}
        for key, link in list(self._links.items()):
            new = wanted.get(key)
            if new is None or (new.source, new.multihop) != (link.wanted.source, link.wanted.multihop):
                self._remove(link, now)
            else:
                link.wanted = new
                link.session.configure(new.timers)
                self._serve(link, now)
        for key, session in wanted.items():
            if key not in self._links:
                link = self._links[key] = Link(session, self._discriminator(), now)
                self._by_discriminator[link.session.discriminator] = link
        self._open_receiving(now)
        for link in self._links.values():
            self._serve(link, now)

    def _remove(self, link: Link, now: float) -> None:
        link.session.disable(now)
        link.send(link.session.take(now) * _FAREWELLS, now)
        link.close()
        del self._links[link.wanted.key], self._by_discriminator[link.session.discriminator]

    def _discriminator(self) -> int:
        """RFC 5880, 10: one that nobody can guess."""
        while True:
            number = int.from_bytes(os.urandom(4), "big")
            if number and number not in self._by_discriminator:
                return number

    def _farewell(self) -> None:
        for link in list(self._links.values()):
            self._remove(link, time.monotonic())

    def _log(self, level: str, peer: str, text: str) -> None:
        """A line, once; and no more at all of different ones than a log can bear."""
        if (peer, text) in self._logged or len(self._logged) > _LOGGED_MOST:
            return
        self._logged.add((peer, text))
        if len(self._logged) > _LOGGED_MOST:
            level, peer, text = "warning", "", "too many different lines; no more"
        with contextlib.suppress(OSError):
            os.write(1, f"{level} {peer or '-'} {text}\n".encode())


def main() -> None:
    """Command line: the folder that is shared with the agent."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bgp.bfd.speaker FOLDER")
    Speaker(Audience(str(Path(sys.argv[1]) / settings.SOCKET))).run()


if __name__ == "__main__":
    main()
