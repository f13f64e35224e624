"""The API server: raw bytes from and to it.

The official client's typed models are not used (they cost some 60 times the CPU and 40 times the memory), and
itself only where the way to the server is not a plain one (:mod:`felix_py.datastore.access`).
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
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
"""Seconds for TCP and TLS together with the address lookup."""

READ_TIMEOUT = 60.0
"""Seconds without a byte after which a request (not a watch) is given up."""

_MOST_RETRY_AFTER = 600.0
_CHUNK = 1 << 18

DEAD_AFTER = 60.0
"""Seconds after which a peer that vanished without a word (power loss, a firewall that forgot the flow) is
noticed."""

_LONGEST_LINE = 64 << 20
_LONGEST_BODY = 512 << 20
"""Bytes. An object has some 3 MB at most, and a page 500 of them: what is longer is no answer of an API
server."""


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
    """One answer that is being read. Close it, or use it in a ``with``."""

    def __init__(self, response: urllib3.HTTPResponse) -> None:
        self._response = response

    def patience(self, seconds: float) -> None:
        """Let a read wait so long for a byte from now on; until then it is the request's ``read_timeout``.

        Of no effect on an answer after which the connection is closed: there the request's stays.
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
        """The whole body.

        Raises:
            Unreachable: it was cut off, the read timeout passed without a byte, or it has no end.
        """
        pieces: list[bytes] = []
        length = 0
        for data in self.chunks():
            pieces.append(data)
            length += len(data)
            if length > _LONGEST_BODY:
                raise Unreachable(f"an answer of more than {_LONGEST_BODY} bytes")
        return b"".join(pieces)

    def chunks(self) -> Iterator[bytes]:
        """The body piece by piece, each as soon as it arrives.

        Raises:
            Unreachable: the connection broke, or the read timeout passed without a byte.
        """
        try:
            if self._response.chunked:
                # Twice as fast as read1 for many small chunks, and a watch's event is one chunk.
                yield from self._response.read_chunked(_CHUNK)
            else:
                while data := self._response.read1(_CHUNK):
                    yield data
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(_words(error)) from error

    def lines(self) -> Iterator[list[bytes]]:
        """The lines of a watch, as many at a time as have arrived, without those that are empty.

        Raises:
            Unreachable: as ``chunks`` does, or it ends in the middle of a line, or a line has no end.
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
        """Make a read that blocks in another thread return. The answer is of no use afterwards."""
        try:
            self._response.shutdown()
        except (ValueError, RuntimeError, OSError):
            return  # closed or given back meanwhile: nobody blocks in it any more

    def close(self) -> None:
        """Give the connection back to the pool if the body was read to its end, else close it."""
        if self._response.closed:
            self._response.release_conn()
        else:
            self._response.close()


class Api:
    """Raw requests to one API server. Safe for several threads.

    ``load`` finds the access again, from the files it came from: credentials and CA may be exchanged under a
    running agent. ``dead_after``: seconds after which a connection whose other end does not acknowledge
    anything is given up, by the kernel.
    """

    def __init__(self, load: Callable[[], Access], dead_after: float = DEAD_AFTER) -> None:
        self._load = load
        # Keepalive probes from half of the time on, also while we only read. The limit is TCP_USER_TIMEOUT's
        # (tcp(7), milliseconds), which counts for them instead of their number, and for what we write.
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
        """Read credentials and CA again and leave all connections behind; answers being read are not disturbed.

        Files that cannot be read now (an exchange may be half done) leave everything as it was.
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
        try:
            response = pool.request(
                method,
                url,
                body=body,
                headers=headers,
                preload_content=False,
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=read_timeout),
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
    """Find the API server: by a kubeconfig, else as the service account of the pod we run in. Sends nothing yet.

    Raises:
        ConfigError: there is no usable configuration; the message says what to do.
    """
    api = Api((lambda: _from_kubeconfig(kubeconfig, context)) if kubeconfig else _from_pod)
    if not api.server.startswith(("http://", "https://")):
        raise ConfigError(f"{kubeconfig}: `server: {api.server}` is not an http:// or https:// URL")
    return api


def default_namespace(kubeconfig: Path | None = None, context: str | None = None) -> str:
    """The namespace that kubectl would use without ``-n``: the context's, the pod's own, or ``default``.

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
    # KUBECONFIG may be a list of files, of which some need not be there.
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
    """The error of an answer that is none; reads and closes it."""
    try:
        body = response.read(1 << 16)
    except (urllib3.exceptions.HTTPError, OSError):
        body = b""
    finally:
        response.close()
    try:
        status = msgspec.json.decode(body, type=Status)
    except UNDECODABLE:
        # A proxy or load balancer in between, in its own words.
        status = Status(message=body[:200].decode(errors="replace").strip() or str(response.reason))
    header = response.headers.get("Retry-After", "")
    return error_from_status(status, response.status, float(header) if header.isdecimal() else 0.0)


def error_from_status(status: Status, code: int, retry_after: float = 0.0) -> ApiError:
    """The error that a Status object stands for. ``code`` and ``retry_after`` are those of the HTTP header."""
    details = status.details
    wish = float(min(details.retry_after_seconds, int(_MOST_RETRY_AFTER))) if details else 0.0
    reason = status.reason
    if details and any(cause.reason == "ResourceVersionTooLarge" for cause in details.causes or ()):
        # Sent as 504 Timeout; only this tells "your version is from a future I lost" from a slow server.
        reason = "ResourceVersionTooLarge"
    return ApiError(status.code or code, reason, status.message, max(retry_after, wish))


def _words(error: Exception) -> str:
    """An error on one line, also where it has no text of its own."""
    return " ".join(str(error).split()) or type(error).__name__
