"""The real agent, as a process of the calling thread's network namespace: fake API server, real kernel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

from felix_py.cni.conflist import install_client
from lab.apiserver.kubeconfig import write_kubeconfig
from tests.support import fakeapi
from tests.support.asking import get
from tests.support.cni import STANDARD_PLUGINS, built_client, pod_args
from tests.support.fakeapi import FakeApi
from tests.support.nursery import Nursery, Popen
from tests.support.waiting import eventually

NODE = "node-1"
POD_CIDR = "10.65.0.0/24"
PATIENCE = 60.0
"""Seconds for what takes one or two on an idle machine."""


@dataclass
class AgentProcess:
    """``start`` and ``stop`` as often as wanted; ``folder`` outlives the process, as a node's disk does."""

    folder: Path
    api: FakeApi
    options: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    nursery: Nursery | None = None
    """Where it comes from, if not from that of all tests."""

    def __post_init__(self) -> None:
        self.pid = 0
        self.process: subprocess.Popen[str] | None = None
        self.run_dir = self.folder / "run"
        self.log = self.folder / "agent.log"
        self.client = install_client(self.folder / "bin", self.run_dir / "cni.sock", built_client())
        write_kubeconfig(self.folder / "kubeconfig", self.api.url, "t")
        node = {
            "metadata": {"name": NODE},
            "spec": {"podCIDRs": [POD_CIDR]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        }
        self.api.put(fakeapi.NODES, node)
        self.api.put(fakeapi.NAMESPACES, {"metadata": {"name": "default"}})

    # --- its life ------------------------------------------------------------------------------------

    @property
    def argv(self) -> list[str]:
        return [
            str(Path(sys.executable).with_name("felix-py")),
            "agent",
            f"--kubeconfig={self.folder}/kubeconfig",
            f"--node-name={NODE}",
            f"--state-dir={self.folder}/lib",
            f"--run-dir={self.run_dir}",
            f"--cni-conf-dir={self.folder}/net.d",
            f"--cni-bin-dir={self.folder}/bin",
            "--chained-plugin=none",
            "--log-format=json",
            *self.options,
        ]

    def start(self, **popen: Any) -> None:
        """As systemd does."""
        with self.log.open("ab") as log:
            options = {"stderr": log, "text": True, **popen}
            environment = {**os.environ, **self.environment}
            self.process = Popen(self.argv, env=environment, nursery=self.nursery, **options)
        self.pid = self.process.pid

    def wait(self) -> int:
        """Until it has ended; its exit code, or minus the signal's number."""
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Whatever happened, it is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Signal it: its exit code, and after how many seconds it was gone."""
        os.kill(self.pid, number)
        started = time.monotonic()
        return self.wait(), time.monotonic() - started

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Poll the other process; fail with its log when it takes too long."""
        try:
            eventually(condition, PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}\n{self.log.read_text()[-5000:]}") from None

    def wait_ready(self) -> None:
        self.until(lambda: self.get("/readyz")[0] == 200, "ready")

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    # --- asking it -----------------------------------------------------------------------------------

    def get(self, path: str, port: int = 9099) -> tuple[int, str]:
        """GET of its health address; (0, reason) when nobody answers."""
        return get(HTTPConnection("127.0.0.1", port, timeout=10), path)

    # --- pods ----------------------------------------------------------------------------------------

    def add_pod(self, name: str, **labels: str) -> None:
        """A pod of this node in the API server, as before its CNI ADD."""
        pod = fakeapi.pod(name, labels=labels)
        pod["spec"]["nodeName"] = NODE
        self.api.put(fakeapi.PODS, pod)

    def call(self, command: str, name: str, netns: str, **config: Any) -> tuple[int, dict[str, Any]]:
        """Run the CNI client as a runtime does for the pod of this name: exit code and what it printed."""
        args = ";".join(f"{key}={value}" for key, value in pod_args(name).items())
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"c-{name}",
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"{self.client.parent}:{STANDARD_PLUGINS}",
            "CNI_ARGS": args,
        }
        network = json.dumps({"cniVersion": "1.0.0", "name": "felix-py", "type": "felix-py-cni", **config})
        done = subprocess.run(
            [str(self.client)], input=network, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, json.loads(done.stdout) if done.stdout else {}
