"""A node: containerd, kubelet and kube-proxy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.cluster import assets, cgroups
from tests.cluster.images import PAUSE
from tests.cluster.machine import Machine, wait_for
from tests.cluster.pki import Pki
from tests.cluster.plan import CLUSTER_CIDRS, DNS_SERVICE, Shape

_SOCKET = "/run/containerd/containerd.sock"
_CONTAINERD = f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Without CAP_SYS_RESOURCE (as in some sandboxes) a score cannot be lowered, and runc would fail.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""
_DISKS = ("nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree")


class Node:
    """What runs on a node's machine, which must have been booted."""

    def __init__(self, machine: Machine, pki: Pki, shape: Shape, cluster: str) -> None:
        self.name = machine.name
        self.machine = machine
        self._pki = pki
        self._shape = shape
        self._cluster = cluster

    def start(self) -> None:
        """Start what a node's init system starts at boot; files that are there stay.

        Raises:
            CommandFailed: containerd does not answer.
        """
        cgroups.make(self._cluster, self.name)
        if not self.machine.path("/etc/kubernetes/kubelet.yaml").exists():
            self._configure()
        self.machine.start("containerd", "containerd", "--config", "/etc/containerd/config.toml")
        wait_for(f"{self.name}: containerd", lambda: self.machine.run("ctr", "version"), 60)

    def start_kubelet(self) -> None:
        """Start kubelet and kube-proxy: after :meth:`start`, and the first time after the images."""
        families = ",".join(self._shape.of(CLUSTER_CIDRS))
        self.machine.start(
            "kubelet",
            str(assets.program("kubelet")),
            "--config=/etc/kubernetes/kubelet.yaml",
            "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
            f"--hostname-override={self.name}",
            f"--node-ip={','.join(self._shape.addresses(self.name))}",
            "--v=2",
        )
        self.machine.start(
            "kube-proxy",
            str(assets.program("kube-proxy")),
            "--proxy-mode=iptables",
            f"--cluster-cidr={families}",
            "--kubeconfig=/etc/kubernetes/kube-proxy.kubeconfig",
            f"--hostname-override={self.name}",
            # The connection table's limits are the whole machine's, not a network namespace's: 0 leaves them.
            *("--conntrack-max-per-core=0", "--conntrack-min=0"),
            *("--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"),
        )

    def import_images(self, archive: Path) -> None:
        """Have containerd take an archive (docker or OCI) of images; its folder must be shown in the machine."""
        self.machine.run("ctr", "-n", "k8s.io", "images", "import", str(archive), timeout=300)

    def write_kubeconfigs(self) -> None:
        """Those of kubelet and kube-proxy, which read them as they start."""
        for user, file in ((self.name, "kubelet"), ("kube-proxy", "kube-proxy")):
            self.machine.write(f"/etc/kubernetes/{file}.kubeconfig", self._pki.kubeconfig(user), 0o600)

    def _configure(self) -> None:
        for tool in (f"ip{v}tables{what}" for v in ("", "6") for what in ("", "-save", "-restore")):
            link = self.machine.path(f"/etc/alternatives/{tool}")  # as `update-alternatives --set` does
            link.unlink(missing_ok=True)
            link.symlink_to(f"/usr/sbin/{tool.replace('tables', f'tables-{self._shape.backend}', 1)}")
        self.machine.write("/etc/containerd/config.toml", _CONTAINERD)
        copies = {"ca.crt": "ca.crt", f"{self.name}.crt": "kubelet.crt", f"{self.name}.key": "kubelet.key"}
        for name, file in copies.items():
            shutil.copy(self._pki.folder / name, self.machine.path(f"/etc/kubernetes/{file}"))
        self.write_kubeconfigs()
        self.machine.write("/etc/kubernetes/kubelet.yaml", json.dumps(self._kubelet(), indent=1))

    def _kubelet(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroups.node_group(self._cluster, self.name),
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "failSwapOn": False,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": "/etc/kubernetes/kubelet.crt",
            "tlsPrivateKeyFile": "/etc/kubernetes/kubelet.key",
            "clusterDNS": self._shape.of(DNS_SERVICE),
            "clusterDomain": "cluster.local",
            "resolvConf": "/etc/resolv.conf",
            # The disk is the whole machine's: that it is full is no reason to evict pods or remove images.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": dict.fromkeys(("memory.available", *_DISKS), "0%"),
            "cpuCFSQuota": False,
            "nodeStatusUpdateFrequency": "5s",
            "volumeStatsAggPeriod": "0s",
            "maxPods": 200,
            # Tests kill agents over and over; a kubelet that makes them wait for minutes shows nothing of ours.
            "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        }
