"""A real kube-apiserver on a real etcd, where their programs are at hand."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import eventually

_ASSETS = "~/.cache/felix-py/kubernetes-v1.36.3"
_PATIENCE = 90.0


def assets(folder: Path) -> str:
    """Gather the programs in ``folder``; returns what is missing. ``KUBERNETES_ASSETS`` names another place.

    A network namespace of tests has no default route, by which kube-apiserver finds the address that it gives to
    others: it is told one.
    """
    place = Path(os.environ.get("KUBERNETES_ASSETS", _ASSETS)).expanduser()
    for name in ("kube-apiserver", "etcd"):
        program = place / name if (place / name).is_file() else shutil.which(name)
        if program is None:
            return f"no {name} in {place} (KUBERNETES_ASSETS), nor on PATH"
        more = "--advertise-address=192.0.2.1" if name == "kube-apiserver" else ""
        (folder / name).write_text(f'#!/bin/sh\nexec {program} "$@" {more}\n')
        (folder / name).chmod(0o755)
    return ""


@contextmanager
def real_apiserver(programs: Path, folder: Path) -> Iterator[Path]:
    """Run it on loopback; yields the administrator's kubeconfig."""
    with socket.create_server(("127.0.0.1", 0)) as listener, (folder / "log").open("wb") as log:
        options = [f"--state-dir={folder}", f"--assets={programs}", "--service-cidr=10.96.0.0/16"]
        argv = [sys.executable, "-m", "lab.kube_apiserver", *options, f"--fd={listener.fileno()}"]
        process = subprocess.Popen(argv, pass_fds=[listener.fileno()], stdout=log, stderr=log)
    try:
        eventually(lambda: (folder / "ready").exists() or process.poll() is not None, _PATIENCE)
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        yield folder / "kubeconfig"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
