"""IPPools by kubectl in the lab: two nodes, their router, real packets between pods of a pool and of podCIDRs."""

from __future__ import annotations

import ipaddress
import json
import re
from functools import partial
from typing import Any

import pytest

from lab.topology import TOR
from policy.model import Family
from tests.support.lab import LabUnderTest, manifest
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(600)]

POOL = "10.244.192.0/20"
NAMES = ("pooled-1", "pooled-2")
SECONDS = 60.0


def pod(name: str, node: str) -> dict[str, Any]:
    containers = [{"name": "c", "image": "busybox", "ports": [{"containerPort": 80}]}]
    metadata = {"namespace": "dev", "name": name}
    spec = {"containers": containers, "nodeName": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def pool(name: str, **spec: Any) -> str:
    head = {"apiVersion": "felixpy.io/v1alpha1", "kind": "IPPool", "metadata": {"name": name}}
    return manifest({**head, "spec": {"cidr": POOL, "blockSize": 28, **spec}})


def blocks(lab: LabUnderTest) -> dict[str, str]:
    return {one["spec"]["node"]: one["spec"]["cidr"] for one in lab.get("ipamblocks.felixpy.io")["items"]}


def known(lab: LabUnderTest, node: str) -> list[str]:
    found: list[str] = json.loads(lab.agent(node, "/status")[1])["blocks"]
    return found


def routed(lab: LabUnderTest) -> set[str]:
    return set(re.findall(r"^(\S+/\d+) ", lab.sh(TOR, "birdc", "show", "route"), re.MULTILINE))


def reaches(lab: LabUnderTest, name: str, address: str) -> bool:
    done = lab.lab.run(f"dev/{name}", "curl", "-s", "--max-time", "3", f"http://{address}/", check=False)
    return done.returncode == 0


def test_pods_of_a_pool_reach_each_other_and_others_over_the_router(plain_lab: LabUnderTest) -> None:
    lab, nodes = plain_lab, plain_lab.node_names
    before = routed(lab)
    with lab.applied("-f", "-", stdin=pool("lab")):
        eventually(lambda: all(known(lab, node) for node in nodes), SECONDS)
        claimed = blocks(lab)
        assert set(claimed) == set(nodes)
        assert len(set(claimed.values())) == len(nodes)
        eventually(lambda: set(claimed.values()) <= routed(lab), SECONDS)
        pods = manifest(*(pod(name, node) for name, node in zip(NAMES, nodes, strict=True)))
        with lab.applied("-f", "-", stdin=pods):
            eventually(lambda: all(lab.addresses("dev", name) for name in NAMES), SECONDS)
            addresses = [lab.addresses("dev", name)[Family.V4] for name in NAMES]
            for address, node in zip(addresses, nodes, strict=True):
                assert ipaddress.ip_address(address) in ipaddress.ip_network(claimed[node])
            # Each node has learned the other's block; pods with addresses of podCIDRs are reached as before.
            others = [lab.addresses("shop", name)[Family.V4] for name in ("web-1", "api-1")]
            for name, own in zip(NAMES, addresses, strict=True):
                for address in {*addresses, *others} - {own}:
                    eventually(partial(reaches, lab, name, address), SECONDS)
            lab.verified()
    # Without pools nobody needs the blocks: the nodes would give them back after a rest.
    for kind in ("ipamblocks", "blockaffinities"):
        lab.kubectl("delete", f"{kind}.felixpy.io", "--all")
    eventually(lambda: routed(lab) == before, SECONDS)
    lab.verified()
