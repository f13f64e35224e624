"""The agent as a program of its own in the current network namespace, and a runtime that connects pods through
it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

from felix_py.cni.conflist import install_client
from felix_py.observe import ask
from lab.apiserver.kubeconfig import write_kubeconfig
from lab.runtime import CNIRuntime
from tests.support.asking import free_port
from tests.support.cni import STANDARD_PLUGINS, built_client

NODE = "node-1"
PATIENCE = 30.0
"""Seconds until a start that does not come to an end is a failure."""


class AgentProgram:
    """``felix-py agent`` against one API server. What it leaves on the node outlives ``stop``."""

    def __init__(self, folder: Path, server: str, *options: str) -> None:
        """``folder``: everything of this node; ``server``: an http:// URL."""
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "agent.log"
        self.socket = folder / "run" / "agent.sock"
        kubeconfig = folder / "kubeconfig"
        write_kubeconfig(kubeconfig, server)
        self._address = f"127.0.0.1:{free_port()}"
        self.argv = [
            str(Path(sys.executable).with_name("felix-py")),
            "agent",
            f"--node-name={NODE}",
            f"--kubeconfig={kubeconfig}",
            f"--state-dir={folder / 'state'}",
            f"--run-dir={folder / 'run'}",
            f"--cni-conf-dir={folder / 'net.d'}",
            f"--cni-bin-dir={folder / 'bin'}",
            "--chained-plugin=none",
            f"--health-address={self._address}",
            *options,
        ]
        install_client(folder / "bin", folder / "run" / "cni.sock", built_client())
        self.runtime = CNIRuntime(folder / "net.d", [folder / "bin", STANDARD_PLUGINS])
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> AgentProgram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it; returns at once."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        """End it as systemd does."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)

    @property
    def pid(self) -> int:
        """Of the running agent."""
        assert self._process is not None
        return self._process.pid

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of what it serves; (0, "") while it does not."""
        try:
            with urllib.request.urlopen(f"http://{self._address}{path}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read().decode()
        except OSError:
            return 0, ""

    def status(self) -> Any:
        """What ``/status`` says."""
        with closing(ask.connection(str(self.socket), PATIENCE)) as asked:
            asked.request("GET", "/status")
            return json.loads(asked.getresponse().read())

    def wait_ready(self) -> None:
        """Until ``/readyz`` is content, and pods can be connected."""
        end = time.monotonic() + PATIENCE
        while self.get("/readyz")[0] != 200 or self.runtime.network() is None:
            assert time.monotonic() < end, self.log.read_text()[-4000:]
            time.sleep(0.02)
