"""A real kube-apiserver on a real etcd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import eventually

_PATIENCE = 120.0


@contextmanager
def real_apiserver(assets: Path, folder: Path) -> Iterator[None]:
    """Run the programs of a folder on loopback; ``folder`` has the administrator's kubeconfig then."""
    with socket.create_server(("127.0.0.1", 0)) as listener, (folder / "log").open("wb") as log:
        options = [f"--state-dir={folder}", f"--assets={assets}", "--service-cidr=10.96.0.0/16"]
        argv = [sys.executable, "-m", "lab.kube_apiserver", *options, f"--fd={listener.fileno()}"]
        # What lasts and grows collects its garbage, unlike kubectl of tests.
        env = {name: value for name, value in os.environ.items() if name not in ("GOGC", "GOMEMLIMIT")}
        process = subprocess.Popen(argv, env=env, pass_fds=[listener.fileno()], stdout=log, stderr=log)
    try:
        eventually(lambda: (folder / "ready").exists() or process.poll() is not None, _PATIENCE)
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
