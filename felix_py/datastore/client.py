"""The HTTP client of the API server: raw bytes.

The official client's typed models are not used: they cost some 60 times the CPU and 40 times the memory. Its
configuration is used only for access that is not plain (:mod:`felix_py.datastore.access`).
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import cast
from urllib.parse import urlencode

import msgspec
import urllib3

from felix_py import log
from felix_py.config import ConfigError
from felix_py.datastore import access
from felix_py.datastore.access import Access, NotPlain
from felix_py.datastore.wire import UNDECODABLE, Status

CONNECT_TIMEOUT = 10.0
"""Seconds for name resolution, TCP and TLS together."""

READ_TIMEOUT = 60.0
"""Seconds without a byte after which a request (not a watch) fails."""

_MOST_RETRY_AFTER = 600.0
_CHUNK = 1 << 18

DEAD_AFTER = 60.0
"""Seconds until a vanished peer (power loss, a firewall that dropped the flow) is noticed."""

_LONGEST_LINE = 64 << 20
_LONGEST_BODY = 512 << 20
"""Bytes. An object has some 3 MB at most, and a page 500 of them: an API server sends nothing longer."""


class Unreachable(Exception):
    """No answer: refused, reset, timed out, cut off, or TLS failed. The message says which."""


class ApiError(Exception):
    """The API server's refusal (API: meta/v1 Status).

    ``status`` is the HTTP code, ``reason`` the machine-readable word ("Expired", "Forbidden" …), ``retry_after``
    the seconds the server asks to wait, or 0.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {reason}: {message}" if reason else f"{status}: {message}")
        self.status = status
        self.reason = reason
        self.retry_after = min(retry_after, _MOST_RETRY_AFTER)


class Answer:
    """An answer whose body is read step by step. Close it, or use it in a ``with``."""

    def __init__(self, response: urllib3.HTTPResponse) -> None:
        self._response = response

    def patience(self, seconds: float) -> None:
        """Set the read timeout from now on; before, the request's ``read_timeout`` applies.

        No effect on an answer after which the connection is closed: the request's stays.
        """
        sock = getattr(self._response.connection, "sock", None)
        if sock is not None:
            sock.settimeout(seconds)

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def read(self) -> bytes:
        """The whole body; Unreachable if it is cut off, times out or is too long."""
        pieces: list[bytes] = []
        length = 0
        for data in self.chunks():
            pieces.append(data)
            length += len(data)
            if length > _LONGEST_BODY:
                raise Unreachable(f"an answer of more than {_LONGEST_BODY} bytes")
        return b"".join(pieces)

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces as they arrive; Unreachable if the connection breaks or a read times out."""
        try:
            if self._response.chunked:
                # Twice as fast as read1 for many small chunks; a watch's event is one chunk.
                yield from self._response.read_chunked(_CHUNK)
            else:
                while data := self._response.read1(_CHUNK):
                    yield data
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(_words(error)) from error

    def lines(self) -> Iterator[list[bytes]]:
        """The non-empty lines of a watch, as many at a time as have arrived.

        Raises:
            Unreachable: as ``chunks``, or the body ends within a line, or a line is too long.
        """
        rest: list[bytes] = []
        length = 0
        for data in self.chunks():
            if b"\n" not in data:
                rest.append(data)
                length += len(data)
                if length > _LONGEST_LINE:
                    raise Unreachable(f"an event of more than {_LONGEST_LINE} bytes")
                yield []
                continue
            *lines, last = b"".join([*rest, data]).split(b"\n")
            rest, length = [last], len(last)
            yield [line for line in lines if line]
        if length:
            raise Unreachable("the watch was cut off in the middle of an event")

    def interrupt(self) -> None:
        """Make a read that blocks in another thread return. The answer is unusable afterwards."""
        with suppress(ValueError, RuntimeError, OSError):  # closed or released meanwhile: no read blocks
            self._response.shutdown()

    def close(self) -> None:
        """Return the connection to the pool if the body was read to its end, else close it."""
        if self._response.closed:
            self._response.release_conn()
        else:
            self._response.close()


class Api:
    """Raw requests to one API server. Thread-safe.

    ``load`` reads the access again from its files: credentials and CA may be rotated under a running agent.
    ``dead_after``: seconds without an acknowledgement after which the kernel drops a connection.
    """

    def __init__(self, load: Callable[[], Access], dead_after: float = DEAD_AFTER) -> None:
        self._load = load
        # Keepalive probes start at half of the time, also on a connection that only reads. TCP_USER_TIMEOUT
        # (tcp(7), milliseconds) limits both the probes, in place of their number, and unacknowledged writes.
        self._socket_options = [
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(dead_after / 2))),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(dead_after / 6))),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(dead_after * 1000)),
        ]
        self._log = log.get("api")
        self._lock = threading.Lock()
        self._access, self._pool = self._open()

    def _open(self) -> tuple[Access, urllib3.PoolManager]:
        found = self._load()
        return found, found.pool(self._socket_options)

    @property
    def server(self) -> str:
        """The API server's URL, without a path."""
        return self._access.server

    def renew(self) -> None:
        """Read credentials and CA again and drop idle connections; answers being read are not disturbed.

        If the files cannot be read (a rotation may be half done), nothing changes.
        """
        try:
            found, pool = self._open()
        except (ConfigError, OSError) as error:
            self._log.warning("cannot read the credentials again, going on with those at hand", error=str(error))
            return
        with self._lock:
            old, self._access, self._pool = self._pool, found, pool
        old.clear()

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pool.clear()

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: bytes | None = None,
        content_type: str = "application/json",
        read_timeout: float = READ_TIMEOUT,
    ) -> Answer:
        """Send one request and return its answer, not yet read. ``path`` is URL-quoted, ``query`` is not.

        Raises:
            ApiError: any status but 2xx.
            Unreachable: no answer.
        """
        with self._lock:
            way, pool = self._access, self._pool
            headers = _headers(way)
        if body is not None:
            headers["Content-Type"] = content_type
        url = way.server + path + (f"?{urlencode(query)}" if query else "")
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=read_timeout)
        try:
            response = pool.request(
                method, url, body=body, headers=headers, preload_content=False, retries=False, timeout=timeout
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, urllib3.exceptions.SSLError):
                self.renew()
            raise Unreachable(f"{self.server}: {_words(error)}") from error
        if not 200 <= response.status < 300:
            if response.status == 401:
                self.renew()
            raise _refusal(response)
        return Answer(cast(urllib3.HTTPResponse, response))


def _headers(way: Access) -> dict[str, str]:
    headers = {"Accept": "application/json", "User-Agent": "felix-py"}
    try:
        authorization = way.authorization()
    except (OSError, ValueError) as error:
        raise Unreachable(f"cannot read the token: {error}") from error
    if authorization:
        headers["Authorization"] = authorization
    return headers


def connect(kubeconfig: Path | None = None, context: str | None = None) -> Api:
    """The API server of a kubeconfig, else of this pod's service account. Sends nothing yet.

    Raises:
        ConfigError: there is no usable configuration; the message says what to do.
    """
    api = Api((lambda: _from_kubeconfig(kubeconfig, context)) if kubeconfig else _from_pod)
    if not api.server.startswith(("http://", "https://")):
        raise ConfigError(f"{kubeconfig}: `server: {api.server}` is not an http:// or https:// URL")
    return api


def default_namespace(kubeconfig: Path | None = None, context: str | None = None) -> str:
    """The namespace that kubectl uses without ``-n``: the context's, the pod's own, or ``default``.

    Raises:
        ConfigError: the kubeconfig cannot be read, or does not have the context.
    """
    if kubeconfig is None:
        try:
            return (access.SERVICE_ACCOUNT / "namespace").read_text().strip() or "default"
        except OSError:
            return "default"
    from felix_py.datastore import official

    return official.namespace_of(kubeconfig, context)


def _from_kubeconfig(path: Path, context: str | None) -> Access:
    # KUBECONFIG may be a list of files, some of which may be missing.
    if not any(Path(one).expanduser().is_file() for one in str(path).split(os.pathsep)):
        raise ConfigError(f"--kubeconfig {path}: no such file; give one that `kubectl --kubeconfig` accepts")
    try:
        return access.of_kubeconfig(path, context)
    except NotPlain:
        from felix_py.datastore import official

        return official.of_kubeconfig(path, context)


def _from_pod() -> Access:
    try:
        return access.of_pod()
    except NotPlain:
        from felix_py.datastore import official

        return official.of_pod()


def _refusal(response: urllib3.BaseHTTPResponse) -> ApiError:
    """The error of a non-2xx response; reads and closes it."""
    try:
        body = response.read(1 << 16)
    except (urllib3.exceptions.HTTPError, OSError):
        body = b""
    finally:
        response.close()
    try:
        status = msgspec.json.decode(body, type=Status)
    except UNDECODABLE:
        # The text of a proxy or load balancer in between.
        status = Status(message=body[:200].decode(errors="replace").strip() or str(response.reason))
    header = response.headers.get("Retry-After", "")
    return error_from_status(status, response.status, float(header) if header.isdecimal() else 0.0)


def error_from_status(status: Status, code: int, retry_after: float = 0.0) -> ApiError:
    """The error of a Status object. ``code`` and ``retry_after`` are those of the HTTP header."""
    details = status.details
    wish = float(min(details.retry_after_seconds, int(_MOST_RETRY_AFTER))) if details else 0.0
    reason = status.reason
    if details and any(cause.reason == "ResourceVersionTooLarge" for cause in details.causes or ()):
        # Sent as 504 Timeout; only the cause tells a resourceVersion that the store lost from a slow server.
        reason = "ResourceVersionTooLarge"
    return ApiError(status.code or code, reason, status.message, max(retry_after, wish))


def _words(error: Exception) -> str:
    """An error on one line; its type if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__
