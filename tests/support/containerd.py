"""A containerd of its own in the current network namespace, with folders that nobody else sees."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.waiting import eventually

_CONFIG = """\
version = 2
root = "{folder}/root"
state = "/run/containerd"
disabled_plugins = [{disabled}]
[grpc]
  address = "{folder}/containerd.sock"
"""
_DISABLED = ("grpc.v1.cri", "snapshotter.v1.aufs", "snapshotter.v1.btrfs", "snapshotter.v1.zfs")
_CGROUPS = Path("/sys/fs/cgroup")


class Containerd:
    """``ctr`` finds network lists in ``conf_dir``, plugins in ``bin_dir``. Containers have busybox alone."""

    def __init__(self, folder: Path, conf_dir: Path, bin_dir: Path) -> None:
        self._folder = folder
        self._name = f"fxt-{uuid.uuid4().hex[:8]}"
        """The namespace (of containerd's), which is that of the cgroups as well."""
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._root = folder / "rootfs"
        (self._root / "bin").mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "/bin/busybox", self._root / "bin/busybox")
        disabled = ", ".join(f'"io.containerd.{name}"' for name in _DISABLED)
        (folder / "config.toml").write_text(_CONFIG.format(folder=folder, disabled=disabled))
        self._set_up = [
            "mount -t tmpfs tmpfs /run",
            "mount -t tmpfs tmpfs /opt",
            "mkdir -p /opt/cni/bin /etc/cni/net.d",
            f"mount --bind {shlex.quote(str(conf_dir))} /etc/cni/net.d",
            f"mount --bind {shlex.quote(str(bin_dir))} /opt/cni/bin",
            f"exec containerd --config {shlex.quote(str(folder / 'config.toml'))}",
        ]

    def __enter__(self) -> Self:
        with (self._folder / "containerd.log").open("ab") as log:
            argv = ["unshare", "--mount", "--", "sh", "-ec", "\n".join(self._set_up)]
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        eventually(lambda: self.ctr("version").returncode == 0, 60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for running in self._running.values():
            running.kill()
            running.communicate()
        self._process.terminate()
        self._process.wait(60)
        for pid in self._shims():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(self._have_left_cgroups, 60, 0.5)

    def run(self, container: str, *command: str) -> subprocess.Popen[str]:
        """``ctr run --cni``, in the foreground until its command has ended; then DEL."""
        argv = ["run", "--rm", "--cni", "--rootfs", str(self._root), container, "/bin/busybox", *command]
        both: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._running[container] = subprocess.Popen(self._argv(argv), text=True, **both)
        return self._running[container]

    def kill(self, containers: Iterable[str]) -> None:
        """SIGKILL for the containers' commands."""
        for container in containers:
            self.ctr("task", "kill", "--signal", "SIGKILL", container)

    def ctr(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run ``ctr``."""
        return subprocess.run(self._argv(argv), capture_output=True, text=True, check=False)

    def cni_id(self, container: str) -> str:
        """CNI_CONTAINERID, as ctr has it."""
        return f"{self._name}-{container}"

    def _argv(self, argv: Iterable[str]) -> list[str]:
        inside = ["nsenter", f"--mount=/proc/{self._process.pid}/ns/mnt", "--"]
        return [*inside, "ctr", "-a", f"{self._folder}/containerd.sock", "-n", self._name, *argv]

    def _have_left_cgroups(self) -> bool:
        """End what runs in ours, and remove those that are left, which takes until its processes are gone."""
        for path in _CGROUPS.glob(f"*/{self._name}"):
            for group in (*filter(Path.is_dir, path.iterdir()), path):
                with suppress(OSError):
                    for pid in (group / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                    group.rmdir()
        return not any(_CGROUPS.glob(f"*/{self._name}"))

    def _shims(self) -> list[int]:
        """Those of our containers, which outlive containerd."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"containerd-shim" in words[0] and self._name.encode() in words:
                    found.append(int(entry.name))
        return found
