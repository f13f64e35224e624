"""Kernel settings of a node."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from felix_py.dataplane import sysctl
from felix_py.dataplane.sysctl import HostSettings, available_families, set_up_host
from felix_py.records import Failure
from felix_py.refs import SysctlRef
from policy.model import Family
from tests.support.isolate import new_netns, run
from tests.support.node_program import POD

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("interfaces")]

NET = Path("/proc/sys/net")


def value(name: str) -> str:
    return (NET / name).read_text().strip()


def test_a_node_becomes_a_router_and_keeps_its_default_route() -> None:
    assert available_families() == (Family.V4, Family.V6)
    (NET / f"ipv6/conf/{POD}/accept_ra").write_text("1")
    (NET / "ipv6/conf/tor0/accept_ra").write_text("0")
    assert set_up_host(available_families()) == ()
    assert value("ipv4/ip_forward") == value("ipv6/conf/all/forwarding") == "1"
    assert value("ipv6/conf/up0/accept_ra") == "2"
    assert value("ipv6/conf/tor0/accept_ra") == "0"
    assert value(f"ipv6/conf/{POD}/accept_ra") == "1"
    assert set_up_host(available_families()) == ()


def test_one_family_only() -> None:
    assert set_up_host([Family.V4]) == ()
    assert value("ipv6/conf/all/forwarding") == "0"


def test_container_with_a_writable_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the DaemonSet's pod. What is written is the namespace of the thread that writes."""
    monkeypatch.setattr(sysctl, "IN_CONTAINER", tmp_path)
    run("mount", "--bind", "/proc/sys/net", str(tmp_path))
    run("mount", "--bind", "/proc/sys", "/proc/sys")
    try:
        run("mount", "-o", "remount,bind,ro", "/proc/sys")
        assert set_up_host(available_families()) == ()
        assert value("ipv4/ip_forward") == value("ipv6/conf/all/forwarding") == "1"
        with new_netns():
            assert value("ipv4/ip_forward") == "0"
            sysctl.write("ipv4/conf/lo/proxy_arp", "1")
            assert value("ipv4/conf/lo/proxy_arp") == "1"
        assert value("ipv4/conf/lo/proxy_arp") == "0"
    finally:
        run("umount", "/proc/sys")
        run("umount", str(tmp_path))


def test_read_only_settings_are_named() -> None:
    """As in a container without privilege over the host's settings."""
    (NET / "ipv4/ip_forward").write_text("1")
    run("mount", "--bind", "/proc/sys", "/proc/sys")
    try:
        run("mount", "-o", "remount,bind,ro", "/proc/sys")
        assert set_up_host([Family.V4]) == ()
        failures = set_up_host([Family.V6])
    finally:
        run("umount", "/proc/sys")
    name = "net.ipv6.conf.all.forwarding"
    reason = f"/proc/sys is read-only here; set {name}=1 on the host"
    assert Failure(SysctlRef("ipv6/conf/all/forwarding"), reason) in failures


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_setting_that_cannot_be_read_is_no_drift() -> None:
    """Before, it counted as wrong: without a descriptor left, everything had been changed by somebody else."""
    set_up_host(available_families())
    settings = HostSettings(available_families())
    settings.load()
    with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
        settings.load()
    settings.load()
    assert settings.take_drift() == []
