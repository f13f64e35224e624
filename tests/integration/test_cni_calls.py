"""CNI calls end to end: the real client and server, real interfaces; only the policy behind them is a fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from felix_py.cni.conflist import conflist
from felix_py.dataplane.links import LinkError, Links
from felix_py.layout import interface_name
from felix_py.notices import NoticeKind
from policy.model import Family
from tests.support.cni import Node, RoutingNetwork, addresses, host_interfaces, pod_args, refused
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]


async def test_a_pod_reaches_its_host_in_both_families(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path, RoutingNetwork()), make_netns("pod")
    run("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
    run("ip", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad")
    async with node:
        result = await node.runtime.add("c1", pod.path, args=pod_args("web"))
        host, inside = result["interfaces"]
        assert host == {"name": interface_name("c1", "eth0"), "mac": "ee:ee:ee:ee:ee:ee"}
        assert (inside["name"], inside["sandbox"]) == ("eth0", pod.path)
        assert inside["mac"] in pod.run("ip", "link", "show", "eth0")
        assert addresses(result) == ["10.65.0.1", "fd65::1"]
        assert {entry["interface"] for entry in result["ips"]} == {1}
        assert [route["dst"] for route in result["routes"]] == ["0.0.0.0/0", "::/0"]
        for server, own in (("192.0.2.1", "10.65.0.1"), ("2001:db8::1", "fd65::1")):
            assert await _who_connects(pod, server) == own
        await node.runtime.check("c1")


async def _who_connects(pod: NetworkNamespace, address: str) -> str:
    """Connect from the pod to a server on the host; returns the source address that the server saw."""
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(writer.get_extra_info("peername")[0])
        writer.close()

    async with await asyncio.start_server(connected, address, 0) as server:
        port = server.sockets[0].getsockname()[1]
        code = f"import socket; socket.create_connection(({address!r}, {port}), 3).close()"
        await asyncio.to_thread(pod.run, "python3", "-c", code)
        return await asyncio.wait_for(seen, 3)


async def test_the_pods_end_needs_no_neighbour_discovery(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        neighbours = pod.run("ip", "neigh", "show", "dev", "eth0").splitlines()
        assert len(neighbours) == 2
        assert all("lladdr ee:ee:ee:ee:ee:ee PERMANENT" in line for line in neighbours)
        assert "10.65.0.1/32" in pod.run("ip", "-4", "addr", "show", "eth0")
        assert "fd65::1/128" in pod.run("ip", "-6", "addr", "show", "eth0", "-tentative")
        assert "default via 169.254.1.1 dev eth0" in pod.run("ip", "-4", "route")
        assert "default via fe80::1 dev eth0" in pod.run("ip", "-6", "route")
        host = interface_name("c1", "eth0")
        for sysctl, value in {"ipv4/rp_filter": 1, "ipv4/forwarding": 1, "ipv6/accept_ra": 0}.items():
            family, name = sysctl.split("/")
            assert Path(f"/proc/sys/net/{family}/conf/{host}/{name}").read_text().strip() == str(value)
        link_local = run("ip", "-6", "-o", "addr", "show", "dev", host)
        assert [line.split()[3] for line in link_local.splitlines()] == ["fe80::1/64"]


async def test_a_pod_whose_runtime_switched_ipv6_off_still_gets_it(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path, RoutingNetwork()), make_netns("pod")
    pod.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        assert "fd65::1/128" in pod.run("ip", "-6", "addr", "show", "eth0")


async def test_delete_leaves_nothing_and_may_be_repeated(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        assert host_interfaces()
        for _ in range(2):
            await node.runtime.delete("c1", netns=pod.path)
            assert not host_interfaces()
            assert not node.store.all()
            assert not node.network.enforced
        await node.runtime.delete("never-added")


async def test_addresses_are_not_scarce_once_there_is_a_pool_with_more(
    tmp_path: Path, make_netns: MakeNetns
) -> None:
    """Also when the pool has come since the last look."""
    node, pods = Node(tmp_path), [make_netns("one"), make_netns("two")]
    node.network.cidrs = ("10.65.0.0/30",)
    async with node:
        await node.plugin.look()
        node.network.coming = [("10.65.1.0/28",)]
        for number, pod in enumerate(pods):
            await node.runtime.add(f"c{number}", pod.path, args=pod_args(f"web{number}"))
        assert not node.said(NoticeKind.ADDRESSES_SCARCE)
        node.network.coming.clear()
        await node.plugin.look()
        assert "no new pod gets one" in node.said(NoticeKind.ADDRESSES_SCARCE)["IPv4"]


@pytest.mark.parametrize("gone", ["namespace", "link", "result"])
async def test_delete_succeeds_when_part_of_it_is_gone_already(
    tmp_path: Path, make_netns: MakeNetns, gone: str
) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        if gone == "namespace":
            pod.close()
        elif gone == "link":
            pod.run("ip", "link", "del", "eth0")
        else:
            node.configure()  # a runtime that remembers nothing
        await node.runtime.delete("c1")
        assert not host_interfaces()
        assert not node.store.all()
        assert not node.network.enforced


async def test_a_second_add_is_refused_and_the_first_stays(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path, RoutingNetwork()), make_netns("pod")
    async with node:
        first = await node.runtime.add("c1", pod.path, args=pod_args("web"))
        await refused(node.runtime.add("c1", pod.path, args=pod_args("web")), 104, "already has eth0")
        await refused(node.runtime.add("c2", pod.path, args=pod_args("web")), 104, "exists already")
        node.runtime._results["c1", "eth0"][1]["result"] = first
        await node.runtime.check("c1")
        assert [lease.container for lease in node.store.all()] == ["c1"]
        assert set(node.network.enforced) == {("c1", "eth0")}


@pytest.mark.parametrize(
    "failure", ["enforce", "namespace", "interface", "unknown-pod", "late-policy", "no-address"]
)
async def test_a_failed_add_leaves_nothing(tmp_path: Path, make_netns: MakeNetns, failure: str) -> None:
    node, pod = Node(tmp_path, timeout=0.2), make_netns("pod")
    code, words, netns = 11, "not now", pod.path
    if failure == "enforce":
        node.network.refuse = "not now"
    elif failure == "namespace":
        code, words, netns = 4, "not a namespace", "/dev/null"
    elif failure == "interface":
        pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
        code, words = 104, "exists already"
    elif failure == "unknown-pod":
        node.network.known = set()
        words = "default/web is not known"
    elif failure == "late-policy":
        node.network.enforce = lambda lease: asyncio.sleep(60)  # type: ignore[method-assign]
        words = "policy of pod default/web is not in force"
    elif failure == "no-address":
        node.network.cidrs = ()
        code, words = 102, "no podCIDRs yet"
    async with node:
        before = pod.run("ip", "-o", "link")
        await refused(node.runtime.add("c1", netns, args=pod_args("web")), code, words)
        assert not host_interfaces()
        assert not node.store.all()
        assert not node.network.enforced
        assert pod.run("ip", "-o", "link") == before


async def test_an_undo_that_fails_keeps_the_address_for_the_delete(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    node.network.refuse, node.network.stuck = "not now", "kernel says no"
    async with node:
        await refused(node.runtime.add("c1", pod.path, args=pod_args("web")), 11, "not now")
        assert not host_interfaces()
        assert [lease.container for lease in node.store.all()] == ["c1"]
        await refused(node.runtime.delete("c1"), 11, "kernel says no")
        assert [lease.container for lease in node.store.all()] == ["c1"]
        node.network.stuck = None
        await node.runtime.delete("c1")
        assert not node.store.all()


async def test_an_undo_that_cannot_delete_the_interface_keeps_its_address(
    tmp_path: Path, make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, pod, other = Node(tmp_path), make_netns("pod"), make_netns("other")
    node.network.refuse = "not now"

    def busy(*_: object) -> None:
        raise LinkError("cannot delete")

    async with node:
        with monkeypatch.context() as broken:
            broken.setattr(Links, "delete", busy)
            await refused(node.runtime.add("c1", pod.path, args=pod_args("web")), 11, "not now")
        assert host_interfaces() == {interface_name("c1", "eth0")}
        node.network.refuse = None
        assert addresses(await node.runtime.add("c2", other.path, args=pod_args("two")))[0] == "10.65.0.2"
        await node.runtime.delete("c1")
        assert [lease.container for lease in node.store.all()] == ["c2"]


async def test_add_waits_for_the_pod_to_be_known(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    node.network.known = set()
    async with node:
        adding = asyncio.create_task(node.runtime.add("c1", pod.path, args=pod_args("web")))
        await node.network.learn("default", "other")
        assert not node.store.all()
        await node.network.learn("default", "web")
        assert addresses(await adding) == ["10.65.0.1", "fd65::1"]


async def test_the_newest_sandbox_is_the_pods_endpoint(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, old, new = Node(tmp_path), make_netns("old"), make_netns("new")
    async with node:
        await node.runtime.add("c-old", old.path, args=pod_args("web"))
        await node.runtime.add("c-new", new.path, args=pod_args("web"))
        await node.runtime.delete("c-old")
        endpoint = node.network.endpoint("default", "web")
        assert endpoint is not None
        assert endpoint.container == "c-new"


async def test_a_lease_without_interface_is_taken_over(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        run("ip", "link", "del", interface_name("c1", "eth0"))
        node.configure()
        result = await node.runtime.add("c1", pod.path, args=pod_args("web"))
        assert [lease.addresses[Family.V4] for lease in node.store.all()] == addresses(result)[:1]


async def test_a_restarted_agent_finds_its_leases_and_forgets_those_of_before_a_reboot(
    tmp_path: Path, make_netns: MakeNetns
) -> None:
    node, kept, lost = Node(tmp_path), make_netns("kept"), make_netns("lost")
    async with node:
        for container, pod in (("kept", kept), ("lost", lost)):
            await node.runtime.add(container, pod.path, args=pod_args(container))
        lost.run("ip", "link", "del", "eth0")
        await node.stop()
        await node.start()
        assert [lease.container for lease in node.recovered] == ["kept"]
        assert len(node.store.all()) == 2  # this machine has not been restarted
        await node.stop()
        await node.start(boot="another")
        assert [lease.container for lease in node.recovered] == ["kept"]
        assert [lease.container for lease in node.store.all()] == ["kept"]


async def test_fifty_pods_at_once(tmp_path: Path, make_netns: MakeNetns) -> None:
    node = Node(tmp_path)
    pods = [make_netns(f"p{number}") for number in range(50)]
    async with node:
        results = await asyncio.gather(
            *(node.runtime.add(f"c{n}", pod.path, args=pod_args(f"web-{n}")) for n, pod in enumerate(pods))
        )
        assert len({address for result in results for address in addresses(result)}) == 100
        assert len(host_interfaces()) == len(node.network.enforced) == 50
        await asyncio.gather(*(node.runtime.delete(f"c{n}") for n in range(50)))
        assert not host_interfaces()
        assert not node.store.all()


async def test_calls_for_one_container_wait_for_each_other(tmp_path: Path, make_netns: MakeNetns) -> None:
    """The runtime gives an ADD up and calls DEL while the agent is still at it."""
    node, pod = Node(tmp_path), make_netns("pod")
    node.network.known = set()
    async with node:
        adding = asyncio.create_task(node.runtime.add("c1", pod.path, args=pod_args("web")))
        await until(lambda: node.plugin._locks)
        deleting = asyncio.create_task(node.runtime.delete("c1", netns=pod.path))
        await node.network.learn("default", "web")
        await asyncio.gather(adding, deleting)
        assert not host_interfaces()
        assert not node.store.all()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (["ip", "addr", "flush", "dev", "eth0", "scope", "global"], "address 10.65.0.1 is missing"),
        (["ip", "route", "del", "default"], "IPv4 default route"),
        (["ip", "-6", "route", "del", "default"], "IPv6 default route"),
        (["ip", "link", "set", "eth0", "down"], "eth0 is down"),
        (["ip", "link", "del", "eth0"], "missing on the host"),
    ],
)
async def test_check_finds_what_is_missing(
    tmp_path: Path, make_netns: MakeNetns, damage: list[str], words: str
) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        await node.runtime.check("c1")
        pod.run(*damage)
        await refused(node.runtime.check("c1"), 106, words)


async def test_check_asks_for_policy_and_lease_too(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        pod.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:07")  # as the tuning plugin may
        pod.run("ip", "link", "set", "eth0", "mtu", "1400")
        await node.runtime.check("c1")
        node.network.enforced.clear()
        await refused(node.runtime.check("c1"), 106, "no route to felix")
        node.store.release("c1", "eth0")
        await refused(node.runtime.check("c1"), 3, "has no eth0 of ours")


async def test_requested_addresses_and_mac(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, first, second = Node(tmp_path), make_netns("first"), make_netns("second")
    wanted: dict[str, Any] = {"ips": ["10.65.0.77/24"], "mac": "02:00:00:00:00:07"}
    async with node:
        result = await node.runtime.add("c1", first.path, args=pod_args("web"), capabilities=wanted)
        assert addresses(result) == ["10.65.0.77", "fd65::1"]
        assert "02:00:00:00:00:07" in first.run("ip", "link", "show", "eth0")
        adding = node.runtime.add("c2", second.path, args=pod_args("two"), capabilities=wanted)
        await refused(adding, 101, "10.65.0.77 is in use by container c1")


async def test_standard_plugins_work_behind_ours(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    node.configure(conflist(["portmap", "bandwidth", "tuning"]))
    capabilities: dict[str, Any] = {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 10**6, "ingressBurst": 10**6},
    }
    async with node:
        result = await node.runtime.add("c1", pod.path, args=pod_args("web"), capabilities=capabilities)
        assert addresses(result) == ["10.65.0.1", "fd65::1"]
        assert "10.65.0.1:80" in run("iptables-save", "-t", "nat")
        assert "tbf" in run("tc", "qdisc", "show", "dev", interface_name("c1", "eth0"))
        # Only ours: portmap 1.1's own CHECK looks for its IPv4 rules in ip6tables and fails.
        config = {"cniVersion": "1.0.0", "name": "felix-py", "prevResult": result}
        await node.runtime._execute("CHECK", "felix-py-cni", node.environment("CHECK", "c1", pod.path), config)
        await node.runtime.delete("c1")
        assert "10.65.0.1:80" not in run("iptables-save", "-t", "nat")


async def test_addresses_from_host_local(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod, other = Node(tmp_path), make_netns("pod"), make_netns("other")
    data = tmp_path / "host-local"
    network = json.loads(conflist())
    network["plugins"][0]["ipam"] = {
        "type": "host-local",
        "dataDir": str(data),
        "ranges": [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd66::/64"}]],
    }
    node.configure(json.dumps(network))

    def held() -> set[str]:
        files = (data / "felix-py").iterdir()
        return {file.name for file in files if file.name[0].isdigit() or file.name.startswith("fd")}

    async with node:
        result = await node.runtime.add("c1", pod.path, args=pod_args("web"))
        assert addresses(result) == ["10.66.0.2", "fd66::2"]
        assert set(node.store.all()[0].addresses.values()) == held() == {"10.66.0.2", "fd66::2"}
        await node.runtime.check("c1")
        node.network.refuse = "not now"
        await refused(node.runtime.add("c2", other.path, args=pod_args("two")), 11, "not now")
        assert held() == {"10.66.0.2", "fd66::2"}
        await node.runtime.delete("c1")
        assert not held()
        assert not node.store.all()


async def test_an_ipam_plugin_that_fails_is_quoted(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    network = json.loads(conflist())
    async with node:
        for ipam, code, words in [
            ({"type": "no-such"}, 7, "IPAM plugin no-such is not in CNI_PATH"),
            ({"type": "host-local"}, 999, "host-local: no IP ranges specified"),
            ({"type": "../evil"}, 7, "cannot be a plugin's name"),
        ]:
            network["plugins"][0]["ipam"] = ipam
            node.configure(json.dumps(network))
            await refused(node.runtime.add("c1", pod.path, args=pod_args("web")), code, words)
            assert not node.store.all()
            assert not host_interfaces()


async def test_gc_and_status(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, kept, stale = Node(tmp_path), make_netns("kept"), make_netns("stale")

    async def call(command: str, **more: Any) -> None:
        config = {"cniVersion": "1.1.0", "name": "felix-py", "type": "felix-py-cni", **more}
        await node.runtime._execute(command, "felix-py-cni", {}, config)

    async with node:
        await call("STATUS")
        for container, pod in (("kept", kept), ("stale", stale)):
            await node.runtime.add(container, pod.path, args=pod_args(container))
        valid = [{"containerID": "kept", "ifname": "eth0"}]
        await call("GC", **{"name": "another-network", "cni.dev/valid-attachments": valid})
        assert len(host_interfaces()) == 2
        await call("GC", **{"cni.dev/valid-attachments": valid})
        assert host_interfaces() == {interface_name("kept", "eth0")}
        assert set(node.network.enforced) == {("kept", "eth0")}
        await refused(call("GC"), 7, "valid-attachments")
        node.network.cidrs = ("10.65.0.1/32",)
        await refused(call("STATUS"), 50, "no IPv4 address is left")
        node.network.hidden = "IPPool pods: this node may not see the pools"
        await refused(call("STATUS"), 50, "this node may not see the pools")
        node.network.reason = "not in sync"
        await refused(call("STATUS"), 50, "not in sync")


async def test_one_failure_does_not_stop_gc(tmp_path: Path, make_netns: MakeNetns) -> None:
    node = Node(tmp_path)
    pods = [make_netns(f"p{number}") for number in range(3)]
    async with node:
        for number, pod in enumerate(pods):
            await node.runtime.add(f"c{number}", pod.path, args=pod_args(f"web-{number}"))
        node.network.stuck = "kernel says no"
        config = {"cniVersion": "1.1.0", "name": "felix-py", "cni.dev/valid-attachments": []}
        error = await refused(node.runtime._execute("GC", "felix-py-cni", {}, config), 11, "3 attachments")
        assert error.details.count("kernel says no") == 3
        assert not host_interfaces()


async def test_an_agent_that_is_not_ready_connects_nobody(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        node.network.reason = "the API server was not heard yet"
        await refused(node.runtime.add("c2", pod.path, args=pod_args("two")), 11, "not heard yet")
        await node.runtime.delete("c1")
        assert not host_interfaces()
