"""Containers of a real containerd without Kubernetes: ``ctr run --cni``."""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.layout import interface_name
from felix_py.records import Backend
from tests.support.cni import STANDARD_PLUGINS, host_interfaces
from tests.support.containerd import Containerd
from tests.support.isolate import NetworkNamespace
from tests.support.live_node import LiveNode
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns"), pytest.mark.timeout(900)]

CONTAINERS = 20


def answers(address: str) -> bool:
    """Whether the container's server does."""
    asked = http.client.HTTPConnection(address, 80, timeout=10)
    try:
        asked.request("GET", "/nothing")
        return asked.getresponse().status == 404
    except OSError:
        return False
    finally:
        asked.close()


def test_twenty_containers_come_and_go(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> None:
    with LiveNode(tmp_path, Backend.NFT, make_netns) as node:
        node.start("--connect-containers")
        node.ready()
        (tmp_path / "lists").mkdir()
        network = json.loads((tmp_path / "net.d/10-felix-py.conflist").read_text())
        network["plugins"] += [{"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}]
        network["plugins"] += [{"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}]
        (tmp_path / "lists/10.conflist").write_text(json.dumps(network))
        for name in ("portmap", "tuning"):
            shutil.copy(STANDARD_PLUGINS / name, tmp_path / "bin")
        with Containerd(tmp_path, tmp_path / "lists", tmp_path / "bin") as containerd:
            names = [f"c{number}" for number in range(CONTAINERS)]
            script = "busybox cat /proc/sys/net/core/somaxconn; exec busybox httpd -f -p 80 -h /"
            running = {name: containerd.run(name, "sh", "-c", script) for name in names}

            def leases() -> dict[str, list[str]]:
                found = json.loads(node.ask("/ipam")[1])["leases"]
                return {lease["container"]: lease["addresses"] for lease in found}

            eventually(lambda: len(leases()) == CONTAINERS, 300, 0.5)
            held = leases()
            assert set(held) == {containerd.cni_id(name) for name in names}
            assert len({address for own in held.values() for address in own}) == 2 * CONTAINERS
            ends = {interface_name(container, "eth0") for container in held}
            eventually(lambda: host_interfaces() == ends, 120, 0.5)
            every = [address for own in held.values() for address in own]
            eventually(lambda: all(map(answers, every)), 120, 0.5)
            containerd.kill(names[: CONTAINERS // 2])
            for name in names[: CONTAINERS // 2]:
                output, _ = running.pop(name).communicate(timeout=120)
                assert output.startswith("500"), output
            assert set(leases()) == {containerd.cni_id(name) for name in running}
            # The agent is away for a while: no container comes, and those that go are caught up with.
            node.kill()
            containerd.kill(running)
            for process in running.values():
                process.communicate(timeout=120)
            node.start("--connect-containers")
            node.ready()
            eventually(lambda: not leases(), 120, 0.5)
            assert not host_interfaces()
            assert containerd.ctr("containers", "list", "--quiet").stdout == ""
