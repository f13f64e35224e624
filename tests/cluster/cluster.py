"""A whole cluster: up, down, and what one does with it meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.cluster import assets, cgroups, images
from tests.cluster.control_plane import ControlPlane
from tests.cluster.installers import INSTALLERS, Installer
from tests.cluster.machine import Machine, wait_for
from tests.cluster.node import Node
from tests.cluster.pki import Pki
from tests.cluster.plan import CONTROL_PLANE, OUTSIDE, TOR, Shape, check_name
from tests.cluster.tor import Tor

_TOOLS = """
    containerd ctr runc bird birdc iptables-nft iptables-legacy conntrack ip nsenter unshare pivot_root
    openssl busybox cc curl
"""


class Cluster:
    """A cluster by the name of ``name``, with all its files in ``folder``."""

    def __init__(
        self,
        name: str,
        folder: Path,
        shape: Shape,
        installer: Installer,
        *,
        binds: Sequence[Path] = (),
        lifeline: int | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``binds`` are further folders to show in all machines, ``lifeline`` is :class:`Machine`'s.

        ``say`` gets a line for each step of :meth:`up`.

        Raises:
            ValueError: a name that cannot be used.
        """
        self.name = check_name(name)
        self.folder = folder.absolute()
        self.shape = shape
        self.installer = installer
        self.pki = Pki(self.folder / "pki", shape)
        self._say = say
        shown = [path.absolute() for path in (assets.folder(), *installer.binds, *binds)]
        only = {CONTROL_PLANE: [self.pki.folder]}
        self.machines = {
            machine: Machine(machine, self.folder / machine, shape, [*shown, *only.get(machine, [])], lifeline)
            for machine in shape.machines
        }
        self.tor = Tor(self.machines[TOR], shape)
        self.control_plane = ControlPlane(self.machines[CONTROL_PLANE], self.pki, shape)
        self.nodes = [Node(self.machines[node], self.pki, shape, name) for node in shape.node_names]

    # --- life ----------------------------------------------------------------------------------------

    def up(self) -> None:
        """Bring it up, with a network until all nodes are Ready. What fails leaves all for a look: :meth:`down`.

        Raises:
            CommandFailed: something did not come up.
            FileExistsError: there is one already.
            FileNotFoundError: a program is missing.
        """
        self._check_tools()
        self.folder.mkdir(parents=True)
        self._save()
        archive = images.archive()
        self.pki.make()
        self.machines[TOR].boot(None)
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            prepared = [pool.submit(self._prepare, node, archive) for node in self.nodes]
            for name in (OUTSIDE, CONTROL_PLANE):
                self.machines[name].boot(self.machines[TOR])
            self.tor.start()
            self.control_plane.start()
            self._say("API server ready")
            for done in prepared:
                done.result()
        for node in self.nodes:
            node.start_kubelet()
        self._say("kubelets started")
        for node in self.nodes:
            wait_for(f"{node.name}'s pod CIDRs", lambda node=node: self.pod_cidrs(node.name), 120)  # type: ignore[misc]
        self.installer.install(self)
        if self.installer.makes_ready:
            self._say("network installed")
            self.wait_ready()
            self._say("all nodes Ready")
        wait_for("the default ServiceAccount", lambda: self.kubectl("get", "serviceaccount", "default"), 60)

    def down(self) -> None:
        """End everything and remove all files; one that is half up, or gone, is fine."""
        with ThreadPoolExecutor(len(self.machines)) as pool:
            for halted in [pool.submit(machine.halt) for machine in self.machines.values()]:
                halted.result()
        cgroups.remove(self.name)
        # With a machine's end its mounts have ended, so nothing of others is below.
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def reboot(self, node: Node) -> None:
        """A power cut and a boot: the disk is kept, /run and the kernel's state are gone."""
        node.machine.halt()
        # A kernel that starts has no groups. kubelet's look at each that is left takes three seconds.
        cgroups.remove(self.name, node.name)
        node.machine.boot(self.tor.machine)
        node.start()
        node.start_kubelet()
        self.installer.boot(self, node)

    def each_node(self, work: Callable[[Node], object]) -> None:
        """Do something on all nodes at once; the first failure is raised once all have ended."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            for done in [pool.submit(work, node) for node in self.nodes]:
                done.result()

    def wait_ready(self, seconds: float = 180) -> None:
        """Wait until all nodes are Ready.

        Raises:
            CommandFailed: they are not in time.
        """
        names = [f"node/{node.name}" for node in self.nodes]
        self.kubectl("wait", "--for=condition=Ready", f"--timeout={seconds:.0f}s", *names, timeout=seconds + 10)

    def _prepare(self, node: Node, archive: Path) -> None:
        node.machine.boot(self.tor.machine)
        node.start()
        node.import_images(archive)

    def _check_tools(self) -> None:
        missing = [tool for tool in _TOOLS.split() if not shutil.which(tool)] + assets.missing(assets.KUBERNETES)
        if missing:
            raise FileNotFoundError(f"missing: {' '.join(missing)} (`make cluster` installs and builds them)")
        if os.geteuid():
            raise PermissionError("a cluster needs root: namespaces")

    # --- use -----------------------------------------------------------------------------------------

    def kubectl(self, *argv: str, timeout: float = 60, stdin: str | None = None) -> str:
        """The administrator's kubectl: see :meth:`ControlPlane.kubectl`."""
        return self.control_plane.kubectl(*argv, timeout=timeout, stdin=stdin)

    def get(self, *argv: str) -> Any:
        """What ``kubectl get ARGV -o json`` says, decoded."""
        return json.loads(self.kubectl("get", *argv, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """``kubectl apply`` of these objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))

    def node(self, name: str) -> Node:
        """A node by its name."""
        return next(node for node in self.nodes if node.name == name)

    def pod_cidrs(self, node: str) -> list[str]:
        """The pod CIDRs of a node, the primary family's first; none yet: an empty list."""
        return list(self.get("node", node)["spec"].get("podCIDRs", []))

    # --- state ---------------------------------------------------------------------------------------

    def _save(self) -> None:
        installer = next((name for name, kind in INSTALLERS.items() if kind is type(self.installer)), "none")
        state = {"shape": asdict(self.shape), "installer": installer, "since": time.time()}
        unfinished = self.folder / "cluster.json.new"
        unfinished.write_text(json.dumps(state))
        unfinished.replace(self.folder / "cluster.json")


def load(name: str, folder: Path) -> Cluster | None:
    """The cluster whose files are in a folder; None: there is none, or it has not come far enough to be used."""
    try:
        state = json.loads((folder / "cluster.json").read_text())
    except FileNotFoundError:
        return None
    shape = Shape(**{**state["shape"], "families": tuple(state["shape"]["families"])})
    return Cluster(name, folder, shape, INSTALLERS[state["installer"]]())
