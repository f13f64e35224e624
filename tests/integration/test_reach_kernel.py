"""What we say of next hops is what the kernel says when it is asked to write a route with them."""

from __future__ import annotations

import random
import subprocess

import pytest

from felix_py.dataplane.reach import Hosts, read_links
from policy.model import Family
from tests.support.isolate import run, veth
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

UPLINKS = ["up0", "up1", "up2"]
SUBNETS = {
    Family.V4: ["10.9.0.{}/24", "10.9.0.{}/29", "10.9.{}.1/16", "198.51.100.{}/31", "203.0.113.{}/32"],
    Family.V6: ["fd09::{}/64", "fd09::{}/120", "fd09:{}::1/32", "2001:db8::{}/127", "2001:db8:7::{}/128"],
}
HOPS = {
    Family.V4: ["10.9.0.{}", "10.9.{}.2", "198.51.100.{}", "203.0.113.{}", "192.0.2.{}", "10.77.0.{}"],
    Family.V6: ["fd09::{}", "fd09:{}::2", "2001:db8::{}", "2001:db8:7::{}", "2001:db8:9::{}", "fd77::{}"],
}
TARGET = {Family.V4: "172.31.0.0/24", Family.V6: "fdff::/64"}
DIRECT = {Family.V4: "192.0.2.0/24", Family.V6: "2001:db8:9::/64"}
VIA = {Family.V4: "10.77.0.0/24", Family.V6: "fd77::/64"}


def _links(dice: random.Random, family: Family) -> None:
    for name in UPLINKS:
        veth(name, f"{name}p")
    for subnet in dice.sample(SUBNETS[family], 3):
        address = subnet.format(dice.randint(1, 6))
        words = ["nodad"] if family is Family.V6 else []
        run("ip", "address", "add", address, "dev", dice.choice(UPLINKS), *words)
    run("ip", f"-{int(family)}", "route", "add", DIRECT[family], "dev", UPLINKS[0])
    eventually(lambda: "tentative" not in run("ip", "address") and "state DOWN" not in run("ip", "link"))


def _accepted(family: Family, hop: str) -> bool:
    argv = ["ip", f"-{int(family)}", "route", "add", TARGET[family], "via", hop]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        return False
    run("ip", f"-{int(family)}", "route", "del", TARGET[family])
    return True


@pytest.mark.parametrize("family", list(Family), ids=["v4", "v6"])
@pytest.mark.parametrize("seed", range(3))
def test_as_the_kernel(family: Family, seed: int) -> None:
    dice = random.Random(seed)
    _links(dice, family)
    hops = {hop.format(number) for hop in HOPS[family] for number in range(8 if family is Family.V4 else 10)}
    found = {hop: _accepted(family, hop) for hop in hops}
    assert len(set(found.values())) == 2
    # A route that only leads there by a gateway changes nothing, whoever wrote it.
    if good := sorted(hop for hop, accepted in found.items() if accepted):
        run("ip", f"-{int(family)}", "route", "add", VIA[family], "via", good[0], "proto", "89")
    reach = Hosts(read_links([family]))
    said = {hop: reach(hop).problem for hop in hops}
    # The kernel takes an IPv4 address of its own as a gateway, and then sends what goes there nowhere.
    own = {hop for hop, problem in said.items() if problem == "it is an address of this node"}
    assert own >= {hop for hop in hops if f" {hop}/" in run("ip", "address")}
    assert {hop: not said[hop] for hop in hops - own} == {hop: found[hop] for hop in hops - own}
