"""HTTP connections of commands to an agent: to its Unix socket, or to a URL, as of a socket that ssh forwards."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

from felix_py.config import ConfigError


class _ByPath(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise


def check(place: str) -> None:
    """Raises ConfigError for anything but the path of a socket or ``http://ADDRESS:PORT``."""
    connection(place, 1.0)


def connection(place: str, timeout: float) -> http.client.HTTPConnection:
    """Returns an unconnected connection; ``timeout``: seconds for each step. Raises what :func:`check` does."""
    if place.startswith("/"):
        return _ByPath(place, timeout)
    try:
        url = urlsplit(place)
        if url.scheme == "http" and url.hostname and url.path in ("", "/") and url.port != 0:
            return http.client.HTTPConnection(url.hostname, url.port or 80, timeout=timeout)
    except ValueError:
        pass
    raise ConfigError(f"--agent-socket {place}: must be the path of an agent's socket, or http://ADDRESS:PORT")
