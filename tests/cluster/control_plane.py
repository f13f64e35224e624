"""The machine with etcd, kube-apiserver, kube-controller-manager and kube-scheduler."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from tests.cluster import assets
from tests.cluster.machine import CommandFailed, Machine, wait_for
from tests.cluster.pki import Pki
from tests.cluster.plan import CLUSTER_CIDRS, CONTROL_PLANE, NODE_MASKS, SERVICE_CIDRS, Shape

AUDIT_LOG = "/var/log/audit.log"
_ETCD = "127.0.0.1:2379"
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


class ControlPlane:
    """What runs on the control plane's machine, which must have been booted."""

    def __init__(self, machine: Machine, pki: Pki, shape: Shape) -> None:
        self.machine = machine
        self._pki = pki
        self._shape = shape

    def start(self) -> None:
        """Start everything and wait for the API server.

        Raises:
            CommandFailed: it is not ready in time.
        """
        self.write_kubeconfigs()
        self.machine.write("/etc/kubernetes/audit.yaml", json.dumps(_AUDIT))
        self.start_etcd()
        self.start_apiserver()
        wait_for("the API server", lambda: self.kubectl("get", "--raw=/readyz") == "ok", 180)
        self._start("kube-controller-manager", *self._controller_manager())
        self._start("kube-scheduler", *self._with_kubeconfig("kube-scheduler"), "--leader-elect=false")

    def start_etcd(self) -> None:
        """Start etcd, without waiting; it goes on with the data that is there."""
        peer = "http://127.0.0.1:2380"
        self._start(
            "etcd",
            str(assets.program("etcd")),
            "--data-dir=/var/lib/etcd",
            f"--listen-client-urls=http://{_ETCD}",
            f"--advertise-client-urls=http://{_ETCD}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        )

    def write_kubeconfigs(self) -> None:
        """Those of all clients on this machine."""
        for name in ("admin", "kube-controller-manager", "kube-scheduler"):
            self.machine.write(f"/etc/kubernetes/{name}.kubeconfig", self._pki.kubeconfig(name), 0o600)

    def start_apiserver(self) -> None:
        """Start kube-apiserver, without waiting: also after ``machine.stop("kube-apiserver")``."""
        self._start("kube-apiserver", *self._apiserver())

    def end_apiserver(self) -> None:
        """End kube-apiserver at once; asked to end, it waits a minute for its watches.

        Raises:
            CommandFailed: it has not ended.
        """
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(self.machine.stop, "kube-apiserver")
            while not stopping.done():
                with suppress(CommandFailed):  # it has ended
                    self.machine.signal_service("kube-apiserver", signal.SIGKILL)
                time.sleep(0.1)
            stopping.result()

    def kubectl(self, *argv: str, timeout: float = 60, stdin: str | None = None) -> str:
        """The administrator's kubectl, on the control plane's machine.

        Raises:
            CommandFailed: it said no, or nothing in time.
        """
        return self.machine.run(*self.kubectl_command(), *argv, timeout=timeout, stdin=stdin)

    def kubectl_command(self) -> list[str]:
        """The start of a command line of the administrator's kubectl, on the control plane's machine."""
        return [str(assets.program("kubectl")), "--kubeconfig=/etc/kubernetes/admin.kubeconfig"]

    def _start(self, service: str, *argv: str) -> None:
        self.machine.start(service, *argv)

    def _apiserver(self) -> list[str]:
        pki = self._pki.folder
        options = [
            f"--etcd-servers=http://{_ETCD}",
            f"--advertise-address={self._shape.addresses(CONTROL_PLANE)[0]}",
            f"--service-cluster-ip-range={','.join(self._shape.of(SERVICE_CIDRS))}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key",
            f"--kubelet-client-certificate={pki}/admin.crt",
            f"--kubelet-client-key={pki}/admin.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={pki}/front-proxy.crt",
            f"--proxy-client-key-file={pki}/front-proxy.key",
            "--enable-aggregator-routing=true",
            "--cert-dir=/var/lib/kube-apiserver",
            "--profiling=false",
        ]
        if self._shape.audit:
            options += [
                "--audit-policy-file=/etc/kubernetes/audit.yaml",
                f"--audit-log-path={AUDIT_LOG}",
                "--audit-log-maxsize=500",
            ]
        return [str(assets.program("kube-apiserver")), *options]

    def _controller_manager(self) -> list[str]:
        pki = self._pki.folder
        return [
            *self._with_kubeconfig("kube-controller-manager"),
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={','.join(self._shape.of(CLUSTER_CIDRS))}",
            *(f"--node-cidr-mask-size-ipv{family}={NODE_MASKS[family]}" for family in self._shape.families),
            f"--service-cluster-ip-range={','.join(self._shape.of(SERVICE_CIDRS))}",
            f"--root-ca-file={pki}/root-ca.crt",
            f"--service-account-private-key-file={pki}/sa.key",
            "--use-service-account-credentials=true",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            "--leader-elect=false",
            "--profiling=false",
            "--cert-dir=/var/lib/kube-controller-manager",
        ]

    def _with_kubeconfig(self, component: str) -> list[str]:
        file = f"/etc/kubernetes/{component}.kubeconfig"
        options = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
        return [str(assets.program(component)), *(f"--{option}={file}" for option in options)]
