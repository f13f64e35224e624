"""A control group for each node, under one for the cluster: kubelet takes it for the whole machine's."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from tests.cluster.init import CGROUPS

_PREFIX = "felix-py-cluster-"
_PATIENCE = 5.0
"""Seconds in which the kernel ends what was killed; a group with a process in it cannot be removed."""


def node_group(cluster: str, node: str) -> str:
    """Path of a node's group below each hierarchy."""
    return f"/{_PREFIX}{cluster}/{node}"


def _hierarchies() -> list[Path]:
    """The folders of cgroup v1's controllers and its hybrid v2, or the one of cgroup v2 (cgroups(7))."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if not path.is_symlink() and (path / "cgroup.procs").exists()]


def make(cluster: str, node: str) -> None:
    """Make a node's group; it may be there."""
    for top in _hierarchies():
        if top.name == "unified":
            continue
        path = top
        for name in node_group(cluster, node).split("/")[1:]:
            _hand_down(path)
            path /= name
            path.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):  # v1: empty in a new group, and nothing can run in it
                if top.name == "cpuset" and (path.parent / setting).exists():
                    (path / setting).write_text((path.parent / setting).read_text())


def _hand_down(path: Path) -> None:
    """v2: a group's children have the controllers that it hands down."""
    offered = path / "cgroup.controllers"
    if offered.exists():
        wanted = " ".join(f"+{name}" for name in offered.read_text().split())
        (path / "cgroup.subtree_control").write_text(wanted)


def left_behind() -> set[str]:
    """Names of clusters, of those that have a test run's process id in it, whose run was killed."""
    names = {path.name.removeprefix(_PREFIX) for top in _hierarchies() for path in top.glob(f"{_PREFIX}t*-*")}
    runs = {name: re.match(r"t(\d+)-", name) for name in names}
    return {name for name, run in runs.items() if run and not Path("/proc", run[1]).exists()}


def remove(cluster: str, node: str = "") -> None:
    """Remove a cluster's groups, or a node's. runc leaves its own in the hybrid v2 hierarchy, too."""
    deadline = time.monotonic() + _PATIENCE
    for top in _hierarchies():
        group = top / f"{_PREFIX}{cluster}" / node
        while group.exists():
            for folder, _, _ in os.walk(group, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    if time.monotonic() > deadline:
                        return
            time.sleep(0.02)
