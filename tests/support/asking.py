"""Asking what answers by HTTP, on whatever kind of socket."""

from __future__ import annotations

import socket
from contextlib import closing
from http.client import HTTPConnection, HTTPException


def get(connection: HTTPConnection, path: str) -> tuple[int, str]:
    """GET, and close the connection: (status, body); (0, reason) when nobody answers."""
    with closing(connection):
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, HTTPException) as error:
            return 0, str(error)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
