"""ExaBGP's helper process, which connects its stdin and stdout with the agent's end of a Unix socket.

It runs by file name (``python -I -S bridge.py SOCKET``), so it imports the standard library only.

ExaBGP blocks if its output is not read, and its sessions then end by hold timer; it gives up if its helper dies
too often. So the bridge always reads stdin, buffers events, disconnects an agent that is too slow, and survives
everything but the end of ExaBGP itself.

ExaBGP's loop polls for work and then sleeps, up to a tenth of a second as the sidecar configures it, unless its
helper writes. So after traffic in either direction the bridge writes a blank a few times, at growing intervals:
it wakes the loop and is ignored before the next command. Busy, ExaBGP is as fast as with a short sleep; idle, it
costs a tenth of it. After ExaBGP's start and each change of a session's state, the loop is kept awake for some
seconds, because it accepts and opens connections once a turn.

Events without a connected agent are kept for the next one, up to a bound: ExaBGP's sessions are often up before
the agent has found the socket. An agent reads all state back anyway, except what ExaBGP does not keep: so each
peer's last OPEN, which has its graceful restart capability, is sent to every new agent.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import stat
import sys
import time

_CHUNK = 65536
_EVENTS_MOST = 64 * 1024 * 1024
_BACKLOG_MOST = 4 * 1024 * 1024
_COMMANDS_MOST = 1024 * 1024
_LINE_MOST = 512 * 1024  # half of what ExaBGP takes for a command before it starts its helper anew
_EVENT_MOST = 16 * 1024 * 1024
"""Bytes of a line, as :mod:`bgp.protocol` takes it: that of all neighbors has up to 1.5 KB for each."""

_OPENS_MOST = 10_000
_LISTEN_RETRY = 0.5
LOOK = 5.0
"""Seconds between two looks whether the socket can still be found."""

_WAKE_FIRST, _WAKE_MOST = 0.001, 0.1
_QUICK = 0.01
_START, _CHANGE = 10.0, 3.0
_STATE = b'"type": "state"'
_ANSWERS = (b"done", b"error")
_EVENT = b'{ "exabgp"'
_OPEN = re.compile(rb'"type": "open", "neighbor": \{ "address": \{ "local": "[^"]*", "peer": "([^"]*)"')


class Bridge:
    """Serves one agent at a time, the newest. Only whole lines pass, in both directions.

    Answers to commands of a previous agent are dropped, since the next one would take them for its own.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener: socket.socket | None = None
        self._listen_at = 0.0
        self._agent: socket.socket | None = None
        self._events = bytearray()
        self._opens: dict[bytes, bytes] = {}
        self._commands = bytearray()
        self._lines = Lines(_EVENT_MOST)
        self._partial_command = b""
        self._unanswered = 0
        self._foreign_answers = 0
        self._wake_in = _WAKE_FIRST
        self._quick_until = time.monotonic() + _START

    def run(self) -> None:
        """Run until ExaBGP closes our stdin."""
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        while True:
            self._keep_listening(time.monotonic())
            ready = self._poll()
            if ready.keys() & {0, 1}:
                self._wake_in = _WAKE_FIRST
            elif not ready:
                self._wake()
            if ready.get(0) and not self._read_events():
                return
            if ready.get(1):
                with contextlib.suppress(BlockingIOError):
                    del self._commands[: os.write(1, self._commands)]
            if self._agent is not None:
                self._serve(self._agent, ready.get(self._agent.fileno(), 0))
            if self._listener is not None and ready.get(self._listener.fileno()):
                self._accept(self._listener)

    def _keep_listening(self, now: float) -> None:
        if now < self._listen_at:
            return
        self._listen_at = now + LOOK
        if self._listener is not None:
            if os.path.lexists(self._path):  # one that is not ours is of the next ExaBGP's bridge
                return
            self._listener.close()
            self._listener = None
        try:
            self._listener = listen(self._path)
        except OSError as error:
            sys.stderr.write(f"bridge: {self._path}: {error}; trying again\n")
            self._listen_at = now + _LISTEN_RETRY

    def _poll(self) -> dict[int, int]:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        if self._commands:
            poll.register(1, select.POLLOUT)
        if self._listener is not None:
            poll.register(self._listener, select.POLLIN)
        if self._agent is not None:
            wanted = select.POLLOUT if self._events else 0
            if len(self._commands) < _COMMANDS_MOST:
                wanted |= select.POLLIN
            poll.register(self._agent, wanted)
        seconds = _LISTEN_RETRY if self._listener is None else LOOK
        if self._is_quick():
            seconds = min(self._wake_in, _QUICK)
        elif self._wake_in < _WAKE_MOST:
            seconds = self._wake_in
        return dict(poll.poll(seconds * 1000))

    def _wake(self) -> None:
        """Wake ExaBGP after a moment without events, since it may sleep despite work."""
        if self._wake_in < _WAKE_MOST or self._is_quick():
            self._wake_in = min(2 * self._wake_in, 2 * _WAKE_MOST)
            if not self._commands:  # else there may be half a command in the pipe
                with contextlib.suppress(BlockingIOError):
                    os.write(1, b" ")

    def _is_quick(self) -> bool:
        return time.monotonic() < self._quick_until

    def _read_events(self) -> bool:
        """Read ExaBGP's output; false when it has ended."""
        try:
            data = os.read(0, _CHUNK)
        except BlockingIOError:
            return True
        if not data:
            return False
        # No valid line is longer. The agent finds the gap in the counters.
        for line in self._lines.take(data):
            if _STATE in line:
                self._quick_until = max(self._quick_until, time.monotonic() + _CHANGE)
            match = _OPEN.search(line)
            if match and (match[1] in self._opens or len(self._opens) < _OPENS_MOST):
                self._opens[match[1]] = line + b"\n"
            if self._for_agent(line):
                self._events += line + b"\n"
        if len(self._events) > (_EVENTS_MOST if self._agent else _BACKLOG_MOST):
            # The agent will reconnect and read everything anew; a silent gap would be worse.
            self._hang_up()
        return True

    def _for_agent(self, line: bytes) -> bool:
        answer = line in _ANSWERS
        if answer:
            self._unanswered = max(0, self._unanswered - 1)
        if self._agent is not None and not self._foreign_answers:
            return True
        self._foreign_answers = max(0, self._foreign_answers - answer)
        return line.startswith(_EVENT)

    def _accept(self, listener: socket.socket) -> None:
        try:
            agent, _ = listener.accept()
        except OSError:
            return
        if self._agent is not None:
            self._hang_up()
        agent.setblocking(False)
        self._agent = agent
        self._events[:0] = b"".join(self._opens.values())
        self._foreign_answers = self._unanswered

    def _serve(self, agent: socket.socket, ready: int) -> None:
        try:
            if ready & select.POLLOUT:
                del self._events[: agent.send(self._events)]
            if ready & ~select.POLLOUT:
                self._read_commands(agent.recv(_CHUNK))
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up()

    def _read_commands(self, data: bytes) -> None:
        *lines, self._partial_command = (self._partial_command + data).split(b"\n")
        if not data or len(self._partial_command) > _LINE_MOST:
            self._hang_up()
            return
        for line in lines:
            # ExaBGP decodes as ASCII and restarts its helper when it cannot.
            if line.strip() and line.isascii() and len(line) <= _LINE_MOST:
                self._commands += line + b"\n"
                self._unanswered += 1

    def _hang_up(self) -> None:
        if self._agent is not None:
            self._agent.close()
        self._agent = None
        self._events.clear()
        self._partial_command = b""


class Lines:
    """Takes a stream apart into its lines. One of more than ``most`` bytes is left out, and counted."""

    def __init__(self, most: int) -> None:
        self.too_long = 0
        self._most = most
        self._partial = bytearray()
        self._skipping = False

    def take(self, data: bytes) -> list[bytes]:
        """The lines that end in ``data``. A long one that comes in many pieces is not copied for each."""
        *ends, last = data.split(b"\n")
        if ends:
            self._partial += ends[0]
            ends[0] = bytes(self._partial)
            self._partial.clear()
        self._partial += last
        if ends and self._skipping:
            del ends[0]  # the end of it
            self._skipping = False
        if self._skipping or len(self._partial) > self._most:
            self.too_long += not self._skipping
            self._partial.clear()
            self._skipping = True
        return ends


def listen(path: str) -> socket.socket:
    """A socket in place of any other at ``path``. Raises OSError.

    A connection controls the node's routes, so only owner and root may connect; and the group, where the folder
    is one that a group shares (setgid).
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.umask(0o117 if os.stat(os.path.dirname(path) or ".").st_mode & stat.S_ISGID else 0o177)
        listener.bind(path)
        listener.listen(4)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def main() -> None:
    """Command line: the path of the socket."""
    if len(sys.argv) != 2:
        sys.exit("usage: bridge.py SOCKET")
    # A closed stdout or stdin means that ExaBGP has ended.
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        Bridge(sys.argv[1]).run()


if __name__ == "__main__":
    main()
