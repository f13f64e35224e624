"""The cluster's certificates and kubeconfigs."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.machine import command
from tests.cluster.plan import API_SERVICE, CONTROL_PLANE, Shape, url_host

# Without the system's openssl.cnf, whose x509_extensions would make each certificate a CA's.
_CONFIG = "[req]\ndistinguished_name = name\n[name]\n"
_DAYS = "30"


class Pki:
    """Two authorities (the cluster's, and the front proxy's of aggregated APIs) and what they have signed."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.folder = folder
        self._shape = shape
        self.api = f"https://{url_host(shape.addresses(CONTROL_PLANE)[0])}:6443"

    def make(self) -> None:
        """Everything that the control plane needs."""
        self.folder.mkdir(mode=0o700)
        (self.folder / "openssl.cnf").write_text(_CONFIG)
        for authority in ("ca", "front-proxy-ca"):
            self._make_authority(authority)
        self._trust("ca")
        self._openssl("genpkey", "-algorithm", "RSA", "-out", self._file("sa.key"))
        self._openssl("pkey", "-in", self._file("sa.key"), "-pubout", "-out", self._file("sa.pub"))
        self.certify_apiserver("ca")
        self.certify("front-proxy", "/CN=front-proxy-client", authority="front-proxy-ca")
        self.certify("admin", "/O=system:masters/CN=admin")
        for component in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
            self.certify(component, f"/CN=system:{component}")
        for node in self._shape.node_names:
            self.certify(node, f"/O=system:nodes/CN=system:node:{node}", self._shape.addresses(node), [node])

    def trust_another(self) -> None:
        """Make a second authority, ``ca2``, which all are to trust beside the first (``root-ca.crt``)."""
        self._make_authority("ca2")
        self._trust("ca", "ca2")

    def certify_apiserver(self, authority: str) -> None:
        """Make kube-apiserver's certificate."""
        names = ["localhost", CONTROL_PLANE, "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        addresses = [*self._shape.addresses(CONTROL_PLANE), *self._shape.of(API_SERVICE), "127.0.0.1"]
        self.certify("apiserver", "/CN=kube-apiserver", addresses, names, authority)

    def certify(
        self,
        name: str,
        subject: str,
        addresses: Sequence[str] = (),
        names: Sequence[str] = (),
        authority: str = "ca",
    ) -> None:
        """Make ``NAME.key`` and ``NAME.crt``, for servers (where they have names) and clients."""
        extensions = [
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature,keyEncipherment",
            "extendedKeyUsage=clientAuth,serverAuth",
        ]
        if alternatives := [f"IP:{found}" for found in addresses] + [f"DNS:{found}" for found in names]:
            extensions.append("subjectAltName=" + ",".join(alternatives))
        self._request(name, subject, extensions, authority)

    def kubeconfig(self, name: str) -> str:
        """A kubeconfig with a certificate of ours."""

        def data(file: str) -> str:
            return base64.b64encode((self.folder / file).read_bytes()).decode()

        user = {"client-certificate-data": data(f"{name}.crt"), "client-key-data": data(f"{name}.key")}
        cluster = {"server": self.api, "certificate-authority-data": data("root-ca.crt")}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "cluster",
                "clusters": [{"name": "cluster", "cluster": cluster}],
                "users": [{"name": name, "user": user}],
                "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": name}}],
            },
            indent=1,
        )

    def _make_authority(self, name: str) -> None:
        use = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]
        self._request(name, f"/CN={name}", use)

    def _trust(self, *authorities: str) -> None:
        """Write what clients of the API server trust."""
        found = [(self.folder / f"{name}.crt").read_text() for name in authorities]
        (self.folder / "root-ca.crt").write_text("".join(found))

    def _request(self, name: str, subject: str, extensions: Sequence[str], authority: str | None = None) -> None:
        signer: list[str] = []
        if authority:
            signer = ["-CA", self._file(f"{authority}.crt"), "-CAkey", self._file(f"{authority}.key")]
        self._openssl(
            *("req", "-x509", "-config", self._file("openssl.cnf"), "-days", _DAYS, "-subj", subject, *signer),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"),
            *("-keyout", self._file(f"{name}.key"), "-out", self._file(f"{name}.crt")),
            *(word for extension in extensions for word in ("-addext", extension)),
        )

    def _openssl(self, *argv: str) -> None:
        command("openssl", *argv)

    def _file(self, name: str) -> str:
        return str(self.folder / name)
