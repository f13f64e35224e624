"""Real packets between network namespaces: small servers, and the question "does a connection get through?"."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterable, Iterator

from policy.model import Packet, Protocol
from tests.support.isolate import NetworkNamespace

_TRANSPORTS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextlib.contextmanager
def serve(places: Iterable[tuple[NetworkNamespace, str, Protocol, int]]) -> Iterator[None]:
    """Answer on (namespace, address, protocol, port): TCP by accepting, UDP by sending back what came."""
    chooser = selectors.DefaultSelector()
    opened: list[socket.socket] = []
    for namespace, address, protocol, port in places:
        with namespace.enter():
            listening = socket.socket(_family(address), _TRANSPORTS[protocol])
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address, port))
        if protocol is Protocol.TCP:
            listening.listen(64)
        listening.setblocking(False)
        opened.append(listening)
        chooser.register(listening, selectors.EVENT_READ, protocol)
    wake, waker = socket.socketpair()
    chooser.register(wake, selectors.EVENT_READ, None)

    def run() -> None:
        while True:
            for key, _ in chooser.select():
                assert isinstance(key.fileobj, socket.socket)
                if key.data is None:
                    return
                with contextlib.suppress(OSError):
                    if key.data is Protocol.TCP:
                        key.fileobj.accept()[0].close()
                    else:
                        data, sender = key.fileobj.recvfrom(64)
                        key.fileobj.sendto(data, sender)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        waker.send(b"x")
        thread.join()
        for sock in (*opened, wake, waker):
            sock.close()
        chooser.close()


def attempt(sources: Iterable[tuple[NetworkNamespace, Packet]], seconds: float = 0.3) -> set[Packet]:
    """Try all connections at the same time; those that were answered within ``seconds``."""
    with selectors.DefaultSelector() as chooser, contextlib.ExitStack() as stack:
        for namespace, packet in sources:
            with namespace.enter():
                sock = socket.socket(_family(packet.source), _TRANSPORTS[packet.protocol])
            stack.callback(sock.close)
            sock.setblocking(False)
            sock.bind((packet.source, 0))
            with contextlib.suppress(BlockingIOError, OSError):
                sock.connect((packet.destination, packet.port))
            if packet.protocol is Protocol.UDP:
                with contextlib.suppress(OSError):
                    sock.send(b"?")
            event = selectors.EVENT_WRITE if packet.protocol is Protocol.TCP else selectors.EVENT_READ
            chooser.register(sock, event, packet)
        answered: set[Packet] = set()
        while chooser.get_map() and (ready := chooser.select(seconds)):
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    answered.add(key.data)
                chooser.unregister(key.fileobj)
        return answered
