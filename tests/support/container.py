"""Containers of the image by runc, as a kubelet has them: read-only root, no new privileges, few capabilities.

They share the caller's network namespace, as pods with ``hostNetwork`` do the node's.
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

_DEV = ["nosuid", "strictatime", "mode=755", "size=65536k"]
_CAPABILITY = "SCHILY.xattr.security.capability"


class Archive:
    """An OCI archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with tarfile.open(path) as tar:
            self.names = tar.getnames()
        (described,) = self.json("index.json")["manifests"]
        self.described: dict[str, Any] = described
        self.manifest: dict[str, Any] = self.json(blob(described["digest"]))
        self.config: dict[str, Any] = self.json(blob(self.manifest["config"]["digest"]))

    def json(self, name: str) -> Any:
        """A member's content."""
        with tarfile.open(self.path) as tar:
            member = tar.extractfile(name)
            assert member is not None
            return json.load(member)

    def unpack(self, root: Path) -> list[tarfile.TarInfo]:
        """Unpack the layers as a runtime does, with file capabilities; returns all entries."""
        root.chmod(0o755)
        entries = []
        with tarfile.open(self.path) as tar:
            for layer in self.manifest["layers"]:
                with tarfile.open(fileobj=tar.extractfile(blob(layer["digest"])), mode="r:gz") as content:
                    members = content.getmembers()
                    content.extractall(root, members, filter="fully_trusted")  # noqa: S202 what we have built
                entries += members
        for entry in entries:
            if value := entry.pax_headers.get(_CAPABILITY):
                os.setxattr(root / entry.name, "security.capability", value.encode())
        return entries


def blob(digest: str) -> str:
    """The path of a blob in an OCI layout."""
    return "blobs/" + digest.replace(":", "/")


@dataclass
class Container:
    """A container of an unpacked image. ``binds``: path inside -> path outside; ``env`` adds to the image's."""

    root: Path
    image: Mapping[str, Any]
    uid: int = 0
    groups: Sequence[int] = ()
    capabilities: Sequence[str] = ()
    binds: Mapping[str, Path] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    propagation: str = "rprivate"

    def start(self, bundle: Path, *argv: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start a command in a container of its own. End it by :meth:`end`."""
        bundle.mkdir(parents=True)
        (bundle / "config.json").write_text(json.dumps(self._spec(argv)))
        command = ["runc", "--root", str(bundle / "runc"), "run", "--bundle", str(bundle), self._name(bundle)]
        return subprocess.Popen(command, stdout=stdout, stderr=subprocess.STDOUT, text=True)

    def end(self, bundle: Path, process: subprocess.Popen[str]) -> None:
        """Kill the container, if it still is there, and wait."""
        argv = ["runc", "--root", str(bundle / "runc"), "delete", "--force", self._name(bundle)]
        subprocess.run(argv, capture_output=True, check=False)
        process.wait(20)

    def run(self, bundle: Path, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = self.start(bundle, *argv)
        try:
            output, _ = process.communicate(timeout=120)
        finally:
            self.end(bundle, process)
        return subprocess.CompletedProcess(argv, process.returncode, output)

    def signal(self, bundle: Path, name: str) -> None:
        """Send a signal to the container's first process."""
        argv = ["runc", "--root", str(bundle / "runc"), "kill", self._name(bundle), name]
        subprocess.run(argv, check=True, capture_output=True)

    def _name(self, bundle: Path) -> str:
        return f"fxt-{uuid.uuid5(uuid.NAMESPACE_URL, str(bundle)).hex[:12]}"

    def _spec(self, argv: Sequence[str]) -> dict[str, Any]:
        """The runtime's configuration (OCI Runtime Specification 1.0) as containerd makes it of a pod's."""
        held = [f"CAP_{name}" for name in self.capabilities]
        environment = [*self.image["config"]["Env"], *(f"{key}={value}" for key, value in self.env.items())]
        binds = [
            {
                "destination": inside,
                "type": "bind",
                "source": str(outside),
                "options": ["rbind", self.propagation],
            }
            for inside, outside in self.binds.items()
        ]
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": self.uid, "gid": self.uid, "additionalGids": list(self.groups)},
                "args": list(argv),
                "env": environment,
                "cwd": "/",
                "noNewPrivileges": True,
                "capabilities": {"bounding": held, "effective": held, "permitted": held},
            },
            "root": {"path": str(self.root), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": _DEV},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec"]},
                {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]},
                *binds,
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        }
