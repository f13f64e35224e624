"""TCP connections on which both ends talk all the time, and an exact account of what arrived."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from lab.namespaces import inside
from tests.support.isolate import NetworkNamespace

Place = NetworkNamespace | Path | None
"""A network namespace, or its path; None: the one the test is in."""

_RECORD = struct.Struct("!Qd")
_INTERVAL = 0.005


@dataclass
class Side:
    """One end. ``got``: number and sending time (time.monotonic()) of each record of the other end, in order."""

    sock: socket.socket
    sent: int = 0
    got: list[tuple[int, float]] = field(default_factory=list)
    error: str = ""
    _buffer: bytes = b""

    def talk(self) -> None:
        """Send a record, and take what there is."""
        try:
            if self.sock.send(_RECORD.pack(self.sent, time.monotonic())) == _RECORD.size:
                self.sent += 1
            while data := self.sock.recv(1 << 16):
                self._buffer += data
        except BlockingIOError:
            pass
        except OSError as error:
            self.error = str(error)
        whole = len(self._buffer) // _RECORD.size * _RECORD.size
        self.got += _RECORD.iter_unpack(self._buffer[:whole])
        self._buffer = self._buffer[whole:]


class Stream:
    """One connection."""

    def __init__(self, name: str, client: socket.socket, server: socket.socket) -> None:
        self.name = name
        self.client, self.server = Side(client), Side(server)

    @property
    def progress(self) -> int:
        """How much has arrived at both ends."""
        return min(len(self.client.got), len(self.server.got))

    @property
    def intact(self) -> bool:
        """Whether every byte arrived, in order, at both ends, and neither end saw an error."""
        return all(
            not side.error and [number for number, _ in side.got] == list(range(len(side.got)))
            for side in (self.client, self.server)
        )

    def heard_after(self, moment: float) -> int:
        """How many records arrived that were sent after a moment."""
        return sum(sent_at > moment for side in (self.client, self.server) for _, sent_at in side.got)


class Streams:
    """Opens connections and keeps them talking, in one thread, for the time of the context."""

    def __init__(self) -> None:
        self._streams: list[Stream] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Streams:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for stream in self._streams:
            stream.client.sock.close()
            stream.server.sock.close()

    def open(
        self,
        client: Place,
        source: str,
        server: Place,
        address: str,
        port: int,
        *,
        to: tuple[str, int] | None = None,
    ) -> Stream:
        """Connect. ``to``: where the client believes the server to be."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with _inside(server):
            listening = socket.socket(family)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address, port))
        listening.listen(1)
        with _inside(client):
            near = socket.socket(family)
        near.settimeout(10)
        near.bind((source, 0))
        near.connect(to or (address, port))
        listening.settimeout(10)
        far = listening.accept()[0]
        listening.close()
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = Stream(f"{source} -> {address}:{port}", near, far)
        self._streams.append(stream)
        return stream

    def _run(self) -> None:
        while not self._over.wait(_INTERVAL):
            for stream in list(self._streams):
                stream.client.talk()
                stream.server.talk()


def _inside(place: Place) -> contextlib.AbstractContextManager[None]:
    if place is None:
        return contextlib.nullcontext()
    return inside(place) if isinstance(place, Path) else place.enter()
