"""What a client needs to reach the server: kubeconfig, bearer token, and on request a CA and a certificate."""

from __future__ import annotations

import base64
import os
import secrets
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    temporary.replace(path)


def ensure_token(path: Path) -> str:
    """The bearer token in a file; made when the file is absent or empty."""
    token = path.read_text().strip() if path.exists() else ""
    if not token:
        token = secrets.token_hex(16)
        write_private(path, token.encode() + b"\n")
    return token


def write_kubeconfig(
    path: Path, server: str, token: str = "", ca: Path | None = None, name: str = "felix-py-lab"
) -> None:
    """Write a kubeconfig with one cluster, user and context called ``name``, in the namespace ``default``.

    ``server`` is the URL; ``ca`` a PEM file, embedded so that the kubeconfig can be copied anywhere.
    """
    cluster = {"server": server}
    if ca is not None:
        cluster["certificate-authority-data"] = base64.b64encode(ca.read_bytes()).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token} if token else {}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
        "current-context": name,
    }
    write_private(path, yaml.safe_dump(document, sort_keys=False).encode())


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files of a server."""

    certificate: Path
    key: Path
    ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """A server-side TLS context. OSError or ssl.SSLError when the files do not fit."""
        for path in (self.certificate, self.key):
            path.open("rb").close()  # OpenSSL's own error does not name the file
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        return context


def make_certificates(folder: Path, hosts: Sequence[str]) -> Certificates:
    """A fresh CA and a server certificate for ``hosts`` (names and addresses), by the openssl command.

    RuntimeError with openssl's words when it fails; FileNotFoundError when openssl is not there.
    """
    ca, ca_key = folder / "ca.crt", folder / "ca.key"
    certificate, key, request = folder / "server.crt", folder / "server.key", folder / "server.csr"
    names = ",".join(("IP:" if _is_address(host) else "DNS:") + host for host in hosts)
    extensions = folder / "server.ext"
    extensions.write_text(
        f"subjectAltName={names}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    ec_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl("req", "-x509", *ec_key, "-keyout", str(ca_key), "-out", str(ca), "-days", "3650",
             "-subj", "/CN=felix-py-lab-ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    _openssl("req", *ec_key, "-keyout", str(key), "-out", str(request), "-subj", "/CN=kube-apiserver")
    _openssl("x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key), "-CAcreateserial",
             "-out", str(certificate), "-days", "3650", "-extfile", str(extensions))  # fmt: skip
    for private in (ca_key, key):
        private.chmod(0o600)
    return Certificates(certificate, key, ca)


def ensure_certificates(folder: Path, hosts: Sequence[str]) -> Certificates:
    """Those that are in the folder, which clients know already; else :func:`make_certificates`."""
    found = Certificates(folder / "server.crt", folder / "server.key", folder / "ca.crt")
    if all(path.is_file() and path.stat().st_size for path in (found.certificate, found.key, folder / "ca.crt")):
        return found
    return make_certificates(folder, hosts)


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _openssl(*arguments: str) -> None:
    done = subprocess.run(("openssl", *arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
