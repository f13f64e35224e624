"""A node's CNI part for tests: real client, server, store and interfaces over a network that tests control."""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from felix_py.cni.build import build_client
from felix_py.cni.conflist import conflist, install_client, install_conflist
from felix_py.cni.delegate import forget
from felix_py.cni.network import FakeNetwork
from felix_py.cni.plugin import Plugin
from felix_py.cni.recovery import recover
from felix_py.cni.server import CNIServer
from felix_py.cni.workers import Interfaces, Leases
from felix_py.dataplane.elsewhere import ElsewhereLookup
from felix_py.dataplane.links import Links
from felix_py.ipam.reserved import Reserved
from felix_py.ipam.resources import IPReservation
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from felix_py.records import Lease
from lab.runtime import CNIRuntime, PluginError
from tests.support.isolate import run

STANDARD_PLUGINS = Path("/usr/lib/cni")
CONFIG = b'{"cniVersion": "1.0.0", "name": "felix-py", "type": "felix-py-cni"}'
GC = b"""{"cniVersion": "1.1.0", "name": "felix-py", "type": "felix-py-cni",
    "cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]}"""


@functools.cache
def built_client() -> Path:
    """The client, compiled once for the test run."""
    folder = Path(tempfile.mkdtemp(prefix="felix-py-client-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build_client(folder / "felix-py-cni")
    return folder / "felix-py-cni"


def pod_args(name: str, namespace: str = "default") -> dict[str, str]:
    """What a kubelet's runtime puts into CNI_ARGS."""
    return {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": namespace,
        "K8S_POD_NAME": name,
        "K8S_POD_INFRA_CONTAINER_ID": "sandbox",
        "K8S_POD_UID": f"uid-{name}",
    }


class RoutingNetwork(FakeNetwork):
    """A fake network that routes pods for real, so that packets can show what was made."""

    async def enforce(self, lease: Lease) -> None:
        for address in lease.addresses.values():
            run("ip", "route", "replace", address, "dev", lease.interface, "proto", "88")
        await super().enforce(lease)


class Node:
    """One node in the current network namespace. ``start`` and ``stop`` are the agent's; the rest outlives it."""

    def __init__(self, folder: Path, network: Any = None, *, timeout: float = 5.0) -> None:
        """``network``: a FakeNetwork, unless the test has a real one."""
        self.network = network or FakeNetwork()
        self.timeout = timeout
        self.notices = Notices(Metrics())
        self.chained: tuple[str, ...] = ()
        self.containers = False
        self.reservations: list[IPReservation] = []
        self.socket = folder / "run" / "cni.sock"
        self.spool = folder / "run" / "spool"
        self.bin_dir = folder / "bin"
        self.conf_dir = folder / "net.d"
        self.database = folder / "leases.db"
        self.client = install_client(self.bin_dir, self.socket, built_client())
        self.configure()

    def said(self, kind: NoticeKind) -> dict[str, str]:
        """The notices of one kind, by subject."""
        return {notice.subject: notice.text for notice in self.notices.all() if notice.kind is kind}

    def configure(self, text: str | None = None) -> None:
        """Install a network configuration list, and a runtime that has not read it yet."""
        install_conflist(self.conf_dir, text or conflist())
        self.runtime = CNIRuntime(self.conf_dir, [self.bin_dir, STANDARD_PLUGINS])

    async def start(self, boot: str = "") -> None:
        self.elsewhere = ElsewhereLookup()
        self.reserved = Reserved(self.elsewhere)
        self.reserved.set(self.reservations)
        with Links() as links:
            say = self.notices.say
            self.store, self.recovered = recover(self.database, links, say, boot, self.reserved)
        self.leases, self.interfaces = Leases(self.store), Interfaces()
        self.plugin = Plugin(
            self.leases,
            self.interfaces,
            self.network,
            self.notices,
            timeout=self.timeout,
            chained=self.chained,
            forget=functools.partial(forget, conf_dir=self.conf_dir, bin_dir=STANDARD_PLUGINS),
            containers=self.containers,
        )
        self.server = CNIServer(self.plugin, self.socket, Metrics())
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop()
        self.interfaces.close()
        self.leases.close()
        self.elsewhere.close()

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def environment(self, command: str, container: str, netns: str, **more: str) -> dict[str, str]:
        """The environment of one call, for tests that run the client themselves."""
        args = ";".join(f"{name}={value}" for name, value in pod_args(container).items())
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"{self.bin_dir}:{STANDARD_PLUGINS}",
            "CNI_ARGS": args,
            **more,
        }


class WaitingRuntime:
    """A runtime whose calls return when they are done, each on a loop of its own: tests of an agent that is a
    process are no coroutines."""

    def __init__(self, runtime: CNIRuntime) -> None:
        self._calls = runtime

    def add(
        self, container: str, netns: str, ifname: str = "eth0", args: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The result of ADD; raises PluginError."""
        return asyncio.run(self._calls.add(container, netns, ifname, args))

    def check(self, container: str, ifname: str = "eth0") -> None:
        """CHECK; raises PluginError."""
        asyncio.run(self._calls.check(container, ifname))

    def delete(self, container: str, ifname: str = "eth0") -> None:
        """DEL; raises PluginError."""
        asyncio.run(self._calls.delete(container, ifname))


async def refused(call: Awaitable[object], code: int, words: str) -> PluginError:
    """A call fails with this code (CNI, "Error") and these words."""
    with pytest.raises(PluginError, match=words) as caught:
        await call
    assert caught.value.code == code, caught.value
    return caught.value


def host_interfaces() -> set[str]:
    """Pod interfaces of ours in the current network namespace."""
    lines = run("ip", "-o", "link", "show", "type", "veth").splitlines()
    return {name for line in lines if (name := line.split(": ")[1].split("@")[0]).startswith("felix")}


def addresses(result: dict[str, Any]) -> list[str]:
    """The addresses in a result, without prefix length."""
    return [entry["address"].partition("/")[0] for entry in result["ips"]]


def execute(node: Node, environment: dict[str, str], stdin: bytes = CONFIG) -> tuple[int, dict[str, Any] | None]:
    """Run the client as a runtime would; its exit code and what it printed."""
    done = subprocess.run(
        [node.client], env=environment, input=stdin, capture_output=True, timeout=30, check=False
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None
