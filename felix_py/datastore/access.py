"""Access to the API server by a pod's service account or a plain kubeconfig: server, TLS and credentials.

The official client reads every kubeconfig (:mod:`felix_py.datastore.official`), but loading it takes longer than
everything else in an agent's start. So this module reads the common case: a token or certificates, in the file or
beside it. Anything else, or anything wrong, is left to the official client, which then reports what is wrong.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import urllib3
from msgspec import Struct
from urllib3.util.ssl_ import create_urllib3_context

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_TOKEN_AGE = 60.0
"""Seconds after which a token's file is read again: the kubelet rotates it long before it expires."""

_POOL = 32
"""Connections kept to the server: one a kind, and those of the writers."""

_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
_AUTHORITY = {"certificate-authority", "certificate-authority-data"}
_CLUSTER = {"server", *_AUTHORITY, "insecure-skip-tls-verify", "tls-server-name"}
_CERTIFICATE = {"client-certificate", "client-certificate-data", "client-key", "client-key-data"}
_USER = {"token", "tokenFile", *_CERTIFICATE}
"""Members of a kubeconfig's cluster and user that are understood here."""

SocketOptions = Sequence[tuple[int, int, int]]


class Access(Protocol):
    """Server and credentials, as they were when read."""

    @property
    def server(self) -> str:
        """The API server's URL, without a path."""

    def authorization(self) -> str:
        """Value of the Authorization header, or empty; OSError if its source cannot be read now."""

    def pool(self, options: SocketOptions) -> urllib3.PoolManager:
        """Connections to it.

        Raises:
            OSError: certificates cannot be read now, or are none (ssl.SSLError).
        """


class NotPlain(Exception):
    """The official client is to read this."""


class Identity(Struct, frozen=True):
    """A server and its credentials. Certificates are PEM text; ``token_file`` takes precedence over ``token``."""

    server: str
    authority: str = ""
    verify: bool = True
    server_name: str = ""
    certificate: str = ""
    key: str = ""
    token: str = ""
    token_file: Path | None = None


class Plain:
    """Access by an :class:`Identity`."""

    def __init__(self, identity: Identity) -> None:
        """Raises OSError if the token's file cannot be read, or a certificate is invalid."""
        self.server = identity.server
        """The API server's URL, without a path."""
        self._identity = identity
        self._context = _context(identity) if identity.server.startswith("https://") else None
        self._token = identity.token
        self._read = time.monotonic()
        if identity.token_file is not None:
            self._token = identity.token_file.read_text().strip()

    def authorization(self) -> str:
        """The bearer token; while its file is empty or cannot be read the last token stays, as in client-go."""
        file = self._identity.token_file
        if file is not None and time.monotonic() - self._read > _TOKEN_AGE:
            with suppress(OSError, UnicodeDecodeError):
                self._token = file.read_text().strip() or self._token
                self._read = time.monotonic()
        return f"Bearer {self._token}" if self._token else ""

    def pool(self, options: SocketOptions) -> urllib3.PoolManager:
        """A pool whose connections verify the server as the identity says."""
        arguments: dict[str, Any] = {"socket_options": options, "maxsize": _POOL}
        if self._context is not None:
            arguments["ssl_context"] = self._context
            if self._identity.server_name:
                arguments["server_hostname"] = self._identity.server_name
        return urllib3.PoolManager(**arguments)


def _context(identity: Identity) -> ssl.SSLContext:
    context = create_urllib3_context()
    if not identity.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif identity.authority:
        context.load_verify_locations(cadata=identity.authority)
    else:
        context.load_default_certs()
    if identity.certificate:
        with tempfile.NamedTemporaryFile("w") as file:  # OpenSSL reads files only; this one has mode 0600
            file.write(f"{identity.certificate}\n{identity.key}\n")
            file.flush()
            context.load_cert_chain(file.name)
    return context


def of_pod() -> Plain:
    """Access as this pod's service account; NotPlain if it has none that can be used, or a proxy is set."""
    _refuse_proxies()
    try:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        authority = (SERVICE_ACCOUNT / "ca.crt").read_text()
        if not (host and port and authority):
            raise NotPlain
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        plain = Plain(Identity(server, authority, token_file=SERVICE_ACCOUNT / "token"))
    except (KeyError, OSError, ValueError) as error:
        raise NotPlain from error
    if not plain.authorization():
        raise NotPlain
    return plain


def of_kubeconfig(path: Path, context: str | None) -> Plain:
    """Access by a kubeconfig.

    Raises:
        NotPlain: it has members that are not read here, or is invalid, or a proxy is set.
    """
    import yaml

    _refuse_proxies()
    try:
        # The C parser takes a tenth of the time, if PyYAML has it.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        document = yaml.load(path.read_text(), loader)  # noqa: S506 - either is a safe one
        chosen = _entry(document, "contexts", context or document["current-context"], "context")
        cluster = _entry(document, "clusters", chosen["cluster"], "cluster")
        user = _entry(document, "users", chosen["user"], "user")
        if not (cluster.keys() <= _CLUSTER and user.keys() <= _USER):
            raise NotPlain
        verify = not cluster.get("insecure-skip-tls-verify", False)
        token_file = user.get("tokenFile")
        return Plain(
            Identity(
                server=_text(cluster["server"]).rstrip("/"),
                authority=_pem(cluster, "certificate-authority", path) if verify else "",
                verify=verify,
                server_name=_text(cluster.get("tls-server-name", "")),
                certificate=_pem(user, "client-certificate", path),
                key=_pem(user, "client-key", path),
                token=_text(user.get("token", "")).strip(),
                token_file=path.parent / _text(token_file) if token_file else None,
            )
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError, yaml.YAMLError) as error:
        raise NotPlain from error


def _refuse_proxies() -> None:
    if any(os.environ.get(name) for name in _PROXIES):
        raise NotPlain


def _entry(document: Any, kind: str, name: str, member: str) -> Mapping[str, Any]:
    """The entry of that name in a list; NotPlain unless there is exactly one, and it is an object."""
    found = [one for one in document[kind] if one["name"] == name]
    if len(found) != 1 or not isinstance(entry := found[0][member], Mapping):
        raise NotPlain
    return entry


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise NotPlain
    return value


def _pem(entry: Mapping[str, Any], name: str, kubeconfig: Path) -> str:
    """PEM text: the base64 member NAME-data, else the file that NAME names, else empty."""
    if data := entry.get(f"{name}-data"):
        return base64.b64decode(_text(data), validate=True).decode()
    if file := entry.get(name):
        return (kubeconfig.parent / _text(file)).read_text()
    return ""
