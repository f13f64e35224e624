"""A node whose agent and sidecar run in containers of the image, as the DaemonSet has them: same mounts, users
and capabilities, in the calling thread's network namespace. API server: fake; kernel: real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from image.base import SIDECAR_ID
from lab.apiserver.kubeconfig import write_kubeconfig
from tests.support import fakeapi
from tests.support.asking import get
from tests.support.cni import STANDARD_PLUGINS, pod_args
from tests.support.container import Archive, Container
from tests.support.fakeapi import FakeApi
from tests.support.isolate import run
from tests.support.waiting import eventually

AGENT_CAPABILITIES = ("NET_ADMIN", "NET_RAW", "SYS_ADMIN")
SIDECAR_CAPABILITIES = ("NET_BIND_SERVICE",)
NODE = "node-1"
POD_CIDR, OTHER_CIDR = "10.65.0.0/24", "10.65.1.0/24"
_PATIENCE = 60.0


class ImageNode:
    """Use it in a ``with``. ``folder`` is the node's disk."""

    def __init__(self, root: Path, archive: Archive, folder: Path, bgp: str = "") -> None:
        """``bgp``: the text of bgp.yaml."""
        self.folder = folder
        self.api = FakeApi()
        self._root, self._image, self._bgp = root, archive.config, bgp
        self._running: list[tuple[Container, Path, subprocess.Popen[str]]] = []
        self._number = 0

    def __enter__(self) -> Self:
        for name in ("run", "run/bgp", "state", "net.d", "bin", "tmp", "etc"):
            (self.folder / name).mkdir()
        # What the kubelet makes of an emptyDir where the pod has an fsGroup.
        os.chown(self.folder / "run/bgp", 0, SIDECAR_ID)
        (self.folder / "run/bgp").chmod(0o2777)
        if self._bgp:
            (self.folder / "etc/bgp.yaml").write_text(self._bgp)
        (self.folder / "xtables.lock").touch()
        # As the runtime's on a node: what is mounted there later is seen in containers that run already.
        run("mount", "--make-shared", "/run/netns")
        self.api.__enter__()
        write_kubeconfig(self.folder / "etc/kubeconfig", self.api.url, "t")
        addresses = [{"type": "InternalIP", "address": "10.9.0.1"}]
        node = {"metadata": {"name": NODE}, "spec": {"podCIDRs": [POD_CIDR]}, "status": {"addresses": addresses}}
        self.api.put(fakeapi.NODES, node)
        self.api.put(fakeapi.NODES, {"metadata": {"name": "node-2"}, "spec": {"podCIDRs": [OTHER_CIDR]}})
        self.api.put(fakeapi.NAMESPACES, {"metadata": {"name": "default"}})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for container, bundle, process in self._running:
            container.end(bundle, process)
        self.api.__exit__()
        if error is not None:
            print(self.log("agent"), self.log("bgp"), sep="\n")

    # --- containers ----------------------------------------------------------------------------------

    def install_client(self) -> None:
        """What the init container does."""
        container = Container(self._root, self._image, binds={"/opt/cni/bin": self.folder / "bin"})
        socket = str(self.folder / "run/cni.sock")
        argv = ("felix-py", "install-cni", "--cni-bin-dir", "/opt/cni/bin", "--socket", socket)
        done = container.run(self._bundle(), *argv)
        assert done.returncode == 0, done.stdout

    def start_agent(self, backend: str, capabilities: Sequence[str] = AGENT_CAPABILITIES) -> None:
        """Start it; it need not be ready yet."""
        binds = {
            "/run/felix-py": self.folder / "run",
            "/run/felix-py/bgp": self.folder / "run/bgp",
            "/var/lib/felix-py": self.folder / "state",
            "/etc/cni/net.d": self.folder / "net.d",
            "/etc/felix-py": self.folder / "etc",
            "/tmp": self.folder / "tmp",
            "/run/netns": Path("/run/netns"),
            "/host/proc/sys/net": Path("/proc/sys/net"),
            "/run/xtables.lock": self.folder / "xtables.lock",
        }
        container = Container(
            self._root, self._image, 0, [SIDECAR_ID], capabilities, binds, {"FELIX_PY_NODE_NAME": NODE}, "rslave"
        )
        options = ["--kubeconfig=/etc/felix-py/kubeconfig", "--chained-plugin=none", f"--backend={backend}"]
        options += ["--bgp-config=/etc/felix-py/bgp.yaml"] if self._bgp else []
        self._start("agent", container, "felix-py", "agent", *options)

    def start_sidecar(self, capabilities: Sequence[str] = SIDECAR_CAPABILITIES) -> None:
        """Start it, as a user without rights."""
        binds = {"/run/felix-py/bgp": self.folder / "run/bgp"}
        container = Container(self._root, self._image, SIDECAR_ID, [SIDECAR_ID], capabilities, binds)
        self._start("bgp", container, "felix-py", "bgp-sidecar")

    def stop(self, name: str) -> int:
        """SIGTERM to the newest container of that name; its exit code."""
        container, bundle, process = next(one for one in reversed(self._running) if one[1].name.endswith(name))
        container.signal(bundle, signal.SIGTERM.name)
        return process.wait(20)

    def ended(self, name: str) -> bool:
        """Whether the newest container of that name has ended."""
        return next(one for one in reversed(self._running) if one[1].name.endswith(name))[2].poll() is not None

    def log(self, name: str) -> str:
        """What all containers of that name have said."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def _start(self, name: str, container: Container, *argv: str) -> None:
        bundle = self._bundle(name)
        with (self.folder / f"{name}.log").open("a") as log:
            self._running.append((container, bundle, container.start(bundle, *argv, stdout=log)))

    def _bundle(self, name: str = "once") -> Path:
        self._number += 1
        return self.folder / f"bundle-{self._number}-{name}"

    # --- asking, and calling -------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """What a readiness probe finds."""
        return get(HTTPConnection("127.0.0.1", 9099, timeout=10), "/readyz")[0] == 200

    def wait_ready(self) -> None:
        """Until it is, or has ended."""
        eventually(lambda: self.is_ready() or self.ended("agent"), _PATIENCE)
        assert not self.ended("agent"), self.log("agent")[-3000:]

    def add(self, name: str, netns: str) -> dict[str, Any]:
        """A pod and its CNI ADD; the result, or the error."""
        pod = fakeapi.pod(name)
        pod["spec"]["nodeName"] = NODE
        self.api.put(fakeapi.PODS, pod)
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": f"c-{name}",
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"{self.folder}/bin:{STANDARD_PLUGINS}",
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in pod_args(name).items()),
        }
        network = json.dumps({"cniVersion": "1.0.0", "name": "felix-py", "type": "felix-py-cni"})
        argv = [str(self.folder / "bin/felix-py-cni")]
        done = subprocess.run(argv, input=network, env=environment, capture_output=True, text=True, check=False)
        found: dict[str, Any] = json.loads(done.stdout)
        return found
