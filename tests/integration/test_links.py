"""Pod interfaces in real namespaces: all or nothing, and nobody else's."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py.dataplane.host_ends import CONF_OF_V6, SYSCTLS
from felix_py.dataplane.links import LinkError, LinkExists, Links, NoNamespace, PodLink, random_mac
from felix_py.netlink.connection import Netlink
from felix_py.netlink.links import get_link_at, read_ipv6_settings
from felix_py.netlink.wire import NETLINK_ROUTE
from policy.model import Family
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]
ADDRESSES = {Family.V4: "10.65.0.1", Family.V6: "fd65::1"}

SETTINGS = {(family, name): value for family in Family for name, value in SYSCTLS[family].items()}
WRONG = {"1": "0", "0": "1", "-1": "0"}


@pytest.fixture
def links(netns: None) -> Iterator[Links]:
    with Links() as links:
        yield links


def pod_link(netns: str, number: int = 0) -> PodLink:
    return PodLink(f"felix{number:010x}", netns, "eth0", ADDRESSES, random_mac(), 1400)


def test_made_as_asked(links: Links, make_netns: MakeNetns) -> None:
    pod = make_netns("pod")
    link = pod_link(pod.path)
    links.create(link)
    assert links.exists(link.host)
    for where, name in ((run, link.host), (pod.run, "eth0")):
        shown = where("ip", "-o", "link", "show", "dev", name)
        assert "mtu 1400" in shown
        assert "state UP" in shown
    assert link.mac in pod.run("ip", "link", "show", "dev", "eth0")
    assert links.check(link, list(Family)) == []


def test_many_are_deleted_at_once_and_nobody_elses(links: Links, make_netns: MakeNetns) -> None:
    pods = [make_netns(f"p{number}") for number in range(5)]
    made = [pod_link(pod.path, number) for number, pod in enumerate(pods)]
    for link in made:
        links.create(link)
    run("ip", "link", "add", "other0", "type", "veth", "peer", "name", "other1")
    run("ip", "link", "set", "other0", "group", "7")
    links.delete([link.host for link in made[:4]] + ["felixnever00000"])
    assert [links.exists(link.host) for link in made] == [False] * 4 + [True]
    links.delete([made[4].host])
    links.delete([made[4].host])
    assert not links.exists(made[4].host)
    assert links.exists("other0")


def test_an_existing_name_on_either_end_is_left_alone(links: Links, make_netns: MakeNetns) -> None:
    first, second = make_netns("first"), make_netns("second")
    links.create(pod_link(first.path))
    for again in (pod_link(second.path), pod_link(first.path, 1)):
        with pytest.raises(LinkExists):
            links.create(again)
    assert links.check(pod_link(first.path), list(Family)) == []
    assert "eth0" not in second.run("ip", "-o", "link")


@pytest.mark.parametrize(
    "path", ["/dev/null", "/no/such", "/proc/self/ns/net", "/proc/self/ns/mnt", "/tmp", "a\0b", ""]
)
def test_what_is_no_pods_namespace(links: Links, path: str) -> None:
    with pytest.raises(NoNamespace):
        links.create(pod_link(path))
    assert not links.exists(pod_link(path).host)


def test_what_cannot_be_configured_is_removed_again(links: Links, make_netns: MakeNetns) -> None:
    pod = make_netns("pod")
    pod.run("ip", "route", "add", "blackhole", "default")
    with pytest.raises(LinkError, match=r"cannot configure eth0.*has a default route already"):
        links.create(pod_link(pod.path))
    assert not links.exists(pod_link(pod.path).host)
    assert "eth0" not in pod.run("ip", "-o", "link")


def test_each_setting_of_the_host_end_whatever_the_nodes_defaults_are(
    links: Links, make_netns: MakeNetns
) -> None:
    for (family, name), value in SETTINGS.items():
        default = Path(f"/proc/sys/net/ipv{int(family)}/conf/default/{name}")
        if default.exists():  # not each kernel has segment routing
            default.write_text(WRONG[value])
    link = pod_link(make_netns("pod").path)
    links.create(link)
    for (family, name), value in SETTINGS.items():
        setting = Path(f"/proc/sys/net/ipv{int(family)}/conf/{link.host}/{name}")
        if setting.exists():
            assert setting.read_text().strip() == value, setting


@pytest.mark.parametrize("name", SYSCTLS[Family.V6])
def test_where_netlink_tells_a_setting_of_ipv6(netns: None, name: str) -> None:
    run("ip", "link", "add", "one", "type", "veth", "peer", "name", "other")
    setting = Path(f"/proc/sys/net/ipv6/conf/one/{name}")
    if not setting.exists():
        pytest.skip("this kernel has no such setting")
    index = socket.if_nametoindex("one")
    with Netlink(NETLINK_ROUTE) as netlink:
        for value in ("1", "0", "1"):
            setting.write_text(value)
            held = int(setting.read_text())
            assert read_ipv6_settings(netlink.get(get_link_at(index)))[CONF_OF_V6[name]] == held


def test_entering_a_namespace_leaves_the_caller_where_it_was(links: Links, make_netns: MakeNetns) -> None:
    pod = make_netns("pod")
    own = os.stat("/proc/thread-self/ns/net").st_ino
    fd = os.open(pod.path, os.O_RDONLY)
    try:
        assert links.inside(fd, lambda: os.stat("/proc/thread-self/ns/net").st_ino) == os.fstat(fd).st_ino
        with pytest.raises(ZeroDivisionError):
            links.inside(fd, lambda: 1 // 0)
    finally:
        os.close(fd)
    assert os.stat("/proc/thread-self/ns/net").st_ino == own


def test_no_file_descriptor_is_lost(links: Links, make_netns: MakeNetns) -> None:
    pod = make_netns("pod")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        links.create(pod_link(pod.path))
        links.check(pod_link(pod.path), list(Family))
        with pytest.raises(LinkExists):
            links.create(pod_link(pod.path))
        links.delete([pod_link(pod.path).host])
        with pytest.raises(NoNamespace):
            links.create(pod_link("/tmp"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
