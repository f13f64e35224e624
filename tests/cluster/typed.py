"""Commands of the documents, typed on the control plane's machine, in what looks like a checkout."""

from __future__ import annotations

from tests.cluster import assets
from tests.cluster.cluster import Cluster
from tests.cluster.machine import CHECKOUT

CHECKED_OUT = "/root"
"""The folder in which commands are typed."""

MANIFESTS = CHECKOUT / "manifests"
"""They must be shown in the machine: an installer's ``binds``."""


def check_out(cluster: Cluster, bgp: str) -> None:
    """Put the manifests there, and a ``bgp.yaml``."""
    place = cluster.machines["cp"]
    place.run("ln", "-s", str(MANIFESTS), f"{CHECKED_OUT}/manifests")
    place.write(f"{CHECKED_OUT}/bgp.yaml", bgp)


def type_in(cluster: Cluster, command: str) -> str:
    """Run a command of a page, or lines of them, as an administrator does; returns what it prints.

    Raises:
        CommandFailed: it exited with an error, or takes minutes.
    """
    programs = ":".join(str(assets.folder(module)) for module in assets.MODULES)
    path = f'PATH="$PATH:{programs}" KUBECONFIG=/etc/kubernetes/admin.kubeconfig'
    script = f"cd {CHECKED_OUT} && export {path} && {command}"
    return cluster.machines["cp"].run("sh", "-c", script, timeout=200)
