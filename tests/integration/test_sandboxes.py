"""What no CNI call tells: lost sandboxes, a full disk, plugins that are not installed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from felix_py.cni.conflist import FILE_NAME, conflist
from felix_py.cni.network_list import NetworkList
from felix_py.cni.plugin import GRACE
from felix_py.dataplane.uplink import uplink_mtu
from felix_py.layout import interface_name
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from lab.runtime import PluginError
from tests.support.cni import (
    STANDARD_PLUGINS,
    Node,
    RoutingNetwork,
    addresses,
    host_interfaces,
    pod_args,
    refused,
)
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]


async def status(node: Node, **more: Any) -> None:
    config = {"cniVersion": "1.1.0", "name": "felix-py", "type": "felix-py-cni", **more}
    await node.runtime._execute("STATUS", "felix-py-cni", {}, config)


def held(node: Node) -> list[str]:
    return [lease.container for lease in node.store.all()]


# --- lost sandboxes ----------------------------------------------------------------------------------


async def test_a_sandbox_that_is_lost_is_released_in_time(tmp_path: Path, make_netns: MakeNetns) -> None:
    """Its namespace is gone, its pod too, and no DEL comes: only after the grace, and only if both hold."""
    node = Node(tmp_path)
    pods = {name: make_netns(name) for name in ("kept", "known", "lost")}
    async with node:
        for name, pod in pods.items():
            await node.runtime.add(name, pod.path, args=pod_args(name))
        for name in ("known", "lost"):
            run("ip", "link", "del", interface_name(name, "eth0"))
        await node.plugin.look(1000.0)
        await node.plugin.look(1000.0 + GRACE)
        assert held(node) == ["kept", "known", "lost"]  # all pods are on the node
        node.network.departures = {"lost", "kept"}
        await node.plugin.look(1000.0 + GRACE)
        assert held(node) == ["kept", "known"]
        assert ("lost", "eth0") not in node.network.enforced
        assert list(node.said(NoticeKind.LOST_SANDBOX)) == []
        await node.plugin.look(1000.0 + 2 * GRACE)
        assert list(node.said(NoticeKind.LOST_SANDBOX)) == [interface_name("kept", "eth0")]
        assert held(node) == ["kept", "known"]  # something may run behind that interface
        node.network.departures.clear()
        await node.plugin.look(1000.0 + 2 * GRACE)
        assert not node.said(NoticeKind.LOST_SANDBOX)


async def test_a_del_that_another_plugin_has_refused_before_ours_was_called(
    tmp_path: Path, make_netns: MakeNetns
) -> None:
    """Plugins are deleted in reverse order, and after an ADD that has failed containerd does not repeat a DEL."""
    node, pod = Node(tmp_path), make_netns("pod")
    refusing = node.bin_dir / "refusing"
    refusing.write_text("""#!/bin/sh\necho '{"cniVersion": "1.0.0", "code": 11, "msg": "busy"}'\nexit 1\n""")
    refusing.chmod(0o755)
    node.configure(conflist(["refusing"]))
    async with node:
        await refused(node.runtime.add("c1", pod.path, args=pod_args("web")), 11, "busy")
        await refused(node.runtime.delete("c1"), 11, "busy")
        assert held(node) == ["c1"]
        pod.run("ip", "link", "del", "eth0")  # as the kernel does with the namespace
        node.network.departures = {"web"}
        await node.plugin.look(1000.0)
        await node.plugin.look(1000.0 + GRACE - 1)
        assert held(node) == ["c1"]
        await node.plugin.look(1000.0 + GRACE)
        assert held(node) == []
        assert node.network.enforced == {}


async def test_a_lost_sandbox_leaves_nothing_at_another_ipam_plugin(
    tmp_path: Path, make_netns: MakeNetns
) -> None:
    node = Node(tmp_path)
    network = json.loads(conflist())
    data = tmp_path / "host-local"
    ranges = [[{"subnet": "10.66.0.0/24"}]]
    network["plugins"][0]["ipam"] = {"type": "host-local", "dataDir": str(data), "ranges": ranges}
    node.configure(json.dumps(network))
    async with node:
        for name in ("lost", "freed"):
            await node.runtime.add(name, make_netns(name).path, args=pod_args(name))
            run("ip", "link", "del", interface_name(name, "eth0"))
        assert (data / "felix-py/10.66.0.2").exists()
        node.network.departures = {"lost"}
        await node.plugin.look(1000.0)
        await node.plugin.look(1000.0 + GRACE)
        assert held(node) == ["freed"]
        assert not (data / "felix-py/10.66.0.2").exists()
        await node.plugin.free(node.store.all()[0])
        assert not (data / "felix-py/10.66.0.3").exists()


async def test_the_grace_begins_with_the_loss(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    node.network.departures = {"web"}
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        await node.plugin.look(1000.0)
        run("ip", "link", "del", interface_name("c1", "eth0"))
        await node.plugin.look(1000.0 + GRACE)
        await node.plugin.look(1000.0 + 2 * GRACE - 1)
        assert held(node) == ["c1"]
        await node.plugin.look(1000.0 + 2 * GRACE)
        assert held(node) == []


async def test_a_label_that_somebody_took_away_is_set_again(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        host = interface_name("c1", "eth0")
        before = run("ip", "link", "show", "dev", host)
        assert "alias felix-py default/web 10.65.0.1 fd65::1 . . " in before
        run("ip", "link", "set", host, "alias", "")
        await node.plugin.look()
        assert run("ip", "link", "show", "dev", host) == before


async def test_addresses_in_use_are_looked_after(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path, RoutingNetwork()), make_netns("pod")
    run("ip", "addr", "add", "10.65.0.1/32", "dev", "lo")
    run("ip", "route", "add", "10.65.0.64/26", "dev", "lo")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        with pytest.raises(PluginError):
            await node.runtime.add("c2", pod.path, args=pod_args("two"), capabilities={"ips": ["10.65.0.70"]})
        await node.plugin.look()
        assert list(node.said(NoticeKind.ADDRESS_IN_USE)) == ["10.65.0.1"]
        run("ip", "addr", "add", "10.65.0.2/32", "dev", "lo")  # now the pod's
        await node.plugin.look()
        assert "is pod default/web's" in node.said(NoticeKind.ADDRESS_IN_USE)["10.65.0.2"]
        for address in ("10.65.0.1", "10.65.0.2"):
            run("ip", "addr", "del", f"{address}/32", "dev", "lo")
        run(
            "ip", "rule", "add", "pref", "40000", "lookup", "main"
        )  # so the kernel asks one table after the other
        run("ip", "route", "add", "local", "10.65.0.0/28", "dev", "lo")
        await node.plugin.look()
        assert "10.65.0.0/28 is an address of this host" in node.said(NoticeKind.ADDRESS_IN_USE)["10.65.0.2"]
        run("ip", "route", "del", "local", "10.65.0.0/28", "dev", "lo")
        await node.plugin.look()
        assert not node.said(NoticeKind.ADDRESS_IN_USE)


# --- a full disk -------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=256k", "felix-py-tests", str(folder))
    yield folder
    run("umount", str(folder))


def fill(disk: Path) -> Path:
    with (disk / "filler").open("wb") as file:
        subprocess.run(["cat", "/dev/zero"], stdout=file, stderr=subprocess.DEVNULL, check=False)
    return disk / "filler"


@pytest.mark.parametrize("journal", [True, False])
async def test_a_full_disk_keeps_no_pod(disk: Path, tmp_path: Path, make_netns: MakeNetns, journal: bool) -> None:
    """Without a journal that has its room already nothing can be written, not even that a lease is gone."""
    node = Node(tmp_path)
    node.database = disk / "leases.db"
    pods = [make_netns(f"p{number}") for number in range(3)]
    async with node:
        for number in (0, 1):
            await node.runtime.add(f"c{number}", pods[number].path, args=pod_args(f"web-{number}"))
        if not journal:
            await node.stop()
            (disk / "leases.db-journal").unlink()
            await node.start()
        filler = fill(disk)
        for _ in range(2):
            await node.runtime.delete("c0")
            assert host_interfaces() == {interface_name("c1", "eth0")}
            assert set(node.network.enforced) == {("c1", "eth0")}
        assert held(node) == (["c1"] if journal else ["c0", "c1"])
        if not journal:
            assert list(node.said(NoticeKind.LEASES_NOT_WRITTEN)) == ["leases"]
            await refused(node.runtime.add("c2", pods[2].path, args=pod_args("web-2")), 5, "disk is full")
            await refused(node.runtime.add("c0", pods[0].path, args=pod_args("web-0")), 5, "disk is full")
            await refused(status(node), 50, "cannot be written: database or disk is full")
            assert host_interfaces() == {interface_name("c1", "eth0")}
        await node.stop()  # and a restart meanwhile
        await node.start()
        assert [lease.container for lease in node.recovered] == ["c1"]
        await node.runtime.delete("c0")
        filler.unlink()
        await status(node)
        assert not node.notices.all()
        assert held(node) == ["c1"]
        assert addresses(await node.runtime.add("c2", pods[2].path, args=pod_args("web-2")))[0] == "10.65.0.3"


@pytest.mark.parametrize("another", [False, True], ids=["the next look", "another pod's ADD first"])
async def test_a_disk_that_cannot_be_written_to_keeps_no_pod(
    tmp_path: Path, make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    node, pod, other = Node(tmp_path), make_netns("pod"), make_netns("other")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        with monkeypatch.context() as disk:
            disk.setattr(os, "fdatasync", broken)
            await refused(node.runtime.add("c2", other.path, args=pod_args("two")), 5, "Input/output error")
            await node.runtime.delete("c1")
            assert not host_interfaces()
            assert not node.network.enforced
            await refused(status(node), 50, "Input/output error")
        if another:
            await node.runtime.add("c2", other.path, args=pod_args("two"))
        await status(node)
        assert held(node) == (["c2"] if another else [])


async def test_a_full_disk_keeps_no_node_from_coming_up_after_a_reboot(
    disk: Path, tmp_path: Path, make_netns: MakeNetns
) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    node.database = disk / "leases.db"
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        fill(disk)
        await node.stop()
        run("ip", "link", "del", interface_name("c1", "eth0"))
        await node.start(boot="after")
        assert not node.store.all()
        assert not node.notices.all()


# --- other plugins -----------------------------------------------------------------------------------


async def test_delegated_addresses_need_no_pod_cidr(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod, other = Node(tmp_path), make_netns("pod"), make_netns("other")
    node.network.cidrs = ()
    network = json.loads(conflist())
    network["name"] = "mine"
    network["plugins"][0]["ipam"] = {
        "type": "host-local",
        "dataDir": str(tmp_path / "host-local"),
        "ranges": [[{"subnet": "10.66.0.0/24"}]],
    }
    async with node:
        await refused(node.runtime.add("c2", other.path, args=pod_args("two")), 102, "no podCIDRs yet")
        await refused(status(node), 50, "no podCIDRs yet")
        node.configure(json.dumps(network))
        assert addresses(await node.runtime.add("c1", pod.path, args=pod_args("web"))) == ["10.66.0.2"]
        await node.runtime.delete("c1")
        assert not node.store.all()


async def test_a_chained_plugin_that_is_not_installed(tmp_path: Path, make_netns: MakeNetns) -> None:
    """It comes and goes: the list follows, pods can be deleted, STATUS says it."""
    node, pod, other = Node(tmp_path), make_netns("pod"), make_netns("other")
    node.chained = ("portmap",)
    notices = Notices(Metrics())
    list_ = NetworkList(node.conf_dir, node.bin_dir, node.chained, notices)
    ports: dict[str, Any] = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}

    def plugins() -> list[str]:
        written = json.loads((node.conf_dir / FILE_NAME).read_text())
        return [plugin["type"] for plugin in written["plugins"]]

    async def current(*, list_changes: bool = True) -> None:
        before = (node.conf_dir / FILE_NAME).read_text()
        await list_.bring_up_to_date()
        text = (node.conf_dir / FILE_NAME).read_text()
        assert (text != before) is list_changes
        node.configure(text)
        node.runtime._bin_dirs = (node.bin_dir,)

    async with node:
        shutil.copy(STANDARD_PLUGINS / "portmap", node.bin_dir)
        await current()
        assert plugins() == ["felix-py-cni", "portmap"]
        await node.runtime.add("c1", pod.path, args=pod_args("web"), capabilities=ports)
        await status(node)
        assert not notices.all()
        (node.bin_dir / "portmap").unlink()
        await current()
        assert plugins() == ["felix-py-cni"]
        assert [notice.subject for notice in notices.all()] == ["portmap"]
        await refused(status(node), 50, "the chained plugin portmap is not in")
        await node.runtime.delete("c1", netns=pod.path)
        assert not host_interfaces()
        adding = node.runtime.add("c2", other.path, args=pod_args("two"), capabilities=ports)
        await refused(adding, 2, "portMappings is not supported.*portmap")
        await node.runtime.add("c2", other.path, args=pod_args("two"))
        (node.conf_dir / FILE_NAME).write_text("somebody's own")
        await current(list_changes=False)  # nothing has changed for us
        (node.conf_dir / FILE_NAME).unlink()
        await list_.bring_up_to_date()
        assert plugins() == ["felix-py-cni"]
        shutil.copy(STANDARD_PLUGINS / "portmap", node.bin_dir)
        await current()
        assert plugins() == ["felix-py-cni", "portmap"]
        assert not notices.all()


@pytest.mark.parametrize(
    ("answer", "versions"),
    [
        ('{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}', ["1.0.0", "1.1.0"]),
        ('{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}', None),
        ("nonsense", None),
    ],
)
async def test_the_list_offers_what_all_its_plugins_know(
    tmp_path: Path, answer: str, versions: list[str] | None
) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name in ("felix-py-cni", "tuning"):
        (bin_dir / name).write_text(
            f"#!/bin/sh\n[ $CNI_COMMAND = VERSION ] && cat > /dev/null && echo '{answer}'\n"
        )
        (bin_dir / name).chmod(0o755)
    list_ = NetworkList(tmp_path, bin_dir, ["tuning"], Notices(Metrics()))
    await list_.bring_up_to_date()
    written = json.loads((tmp_path / FILE_NAME).read_text())
    assert written["cniVersion"] == "1.0.0"
    assert written.get("cniVersions") == versions


async def test_plugins_that_cannot_be_seen_are_not_called_absent(tmp_path: Path) -> None:
    notices = Notices(Metrics())
    await NetworkList(tmp_path, tmp_path / "bin", ["portmap"], notices).bring_up_to_date()
    assert len(json.loads((tmp_path / FILE_NAME).read_text())["plugins"]) == 2
    assert not notices.all()


async def test_the_list_of_the_cni_plugin_before_us_is_said(tmp_path: Path) -> None:
    """The runtime would go on using that, and the agent would be content."""
    notices = Notices(Metrics())
    list_ = NetworkList(tmp_path, tmp_path / "bin", [], notices)
    (tmp_path / "00-multus.conf").write_text('{"type": "multus", "delegates": [{"type": "felix-py-cni"}]}')
    (tmp_path / "05-bridge.conflist.bak").write_text("{}")
    (tmp_path / "99-loopback.conf").write_text("{}")
    await list_.bring_up_to_date()
    assert not notices.all()
    (tmp_path / "10-calico.conflist").write_text('{"name": "k8s-pod-network"}')
    await list_.bring_up_to_date()
    assert [(notice.kind, notice.subject) for notice in notices.all()] == [
        (NoticeKind.OTHER_NETWORK, str(tmp_path / "10-calico.conflist"))
    ]
    (tmp_path / "10-calico.conflist").unlink()
    await list_.bring_up_to_date()
    assert not notices.all()


# --- MTU ---------------------------------------------------------------------------------------------


def interfaces(**mtus: int) -> None:
    for number, (name, mtu) in enumerate(mtus.items()):
        run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
        run("ip", "link", "set", name, "mtu", str(mtu))
        run("ip", "link", "set", name, "up")
        run("ip", "link", "set", f"{name}-far", "up")
        run("ip", "addr", "add", f"192.0.{number}.5/24", "dev", name)


@pytest.mark.parametrize(
    ("routes", "nodes", "mtu"),
    [
        ([], [], 1280),  # nothing better is known
        (["default via 192.0.0.1"], [], 9000),
        (["default via 192.0.0.1"], ["192.0.1.9", "192.0.1.5"], 1400),  # a node; its own address says nothing
        (["default nexthop via 192.0.0.1 nexthop via 192.0.1.1"], [], 1400),
        (["default via 192.0.0.1", "10.9.0.0/24 via 192.0.1.1 proto 89"], [], 1400),
        (["default via 192.0.0.1", "10.9.0.0/24 via 192.0.1.1 proto 99"], [], 9000),
    ],
)
def test_pods_have_the_mtu_of_what_carries_the_nodes_traffic(
    routes: list[str], nodes: list[str], mtu: int
) -> None:
    """docker0, a VPN to somewhere else: they do not count."""
    interfaces(up0=9000, up1=1400, docker0=1280)
    for route in routes:
        run("ip", "route", "add", *route.split())
    assert uplink_mtu(nodes) == mtu


@pytest.mark.parametrize(("uplink", "cidrs", "mtu"), [(1000, ("10.65.0.0/24",), 1000), (1000, None, 1280)])
async def test_families_keep_the_least_mtu_they_need(
    tmp_path: Path, make_netns: MakeNetns, uplink: int, cidrs: tuple[str, ...] | None, mtu: int
) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    node.network.mtu = lambda: uplink  # type: ignore[method-assign]
    if cidrs:
        node.network.cidrs = cidrs
    async with node:
        result = await node.runtime.add("c1", pod.path, args=pod_args("web"))
        assert f"mtu {mtu}" in pod.run("ip", "link", "show", "eth0")
        assert len(addresses(result)) == len(
            pod.run("ip", "-o", "addr", "show", "eth0", "scope", "global").splitlines()
        )
