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
CIDR = "10.244.208.0/29"
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
    return {one["spec"]["node"]: one["spec"]["cidr"] for one in lab.get("ipamblocks")["items"]}


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


def settings(**spec: Any) -> str:
    head = {"apiVersion": "felixpy.io/v1alpha1", "kind": "FelixConfiguration", "metadata": {"name": "default"}}
    return manifest({**head, "spec": spec})


def loans(lab: LabUnderTest) -> dict[str, str]:
    """Address -> the node that has borrowed it."""
    found = lab.get("ipamblocks")["items"]
    return {loan["address"]: loan["node"] for one in found for loan in one["spec"].get("lent", ())}


def is_held(lab: LabUnderTest, node: str, name: str, value: float) -> bool:
    return lab.metric(node, f"felix_py_ipam_addresses_{name}") == value


def test_a_pod_with_an_address_of_another_nodes_block(plain_lab: LabUnderTest) -> None:
    lab, nodes = plain_lab, plain_lab.node_names
    before = routed(lab)
    lending = settings(strictAffinity=False, addressCooldownSeconds=0)
    with (
        lab.applied("-f", "-", stdin=lending),
        lab.applied("-f", "-", stdin=pool("one", cidr=CIDR, blockSize=29)),
    ):
        ((owner, block),) = eventually(lambda: blocks(lab).items(), SECONDS)
        borrower = next(node for node in nodes if node != owner)
        assert block == CIDR
        places = dict(zip(NAMES, (owner, borrower), strict=True))
        with lab.applied("-f", "-", stdin=manifest(*(pod(name, node) for name, node in places.items()))):
            eventually(lambda: all(lab.addresses("dev", name) for name in NAMES), SECONDS)
            own, borrowed = (lab.addresses("dev", name)[Family.V4] for name in NAMES)
            assert loans(lab) == {borrowed: borrower}
            # The router has the block, and the one address beside it, and so has the block's node.
            eventually(lambda: {CIDR, f"{borrowed}/32"} <= routed(lab), SECONDS)
            eventually(lambda: any(one.startswith(f"{borrowed} via") for one in lab.routes(owner)), SECONDS)
            others = [lab.addresses("shop", name)[Family.V4] for name in ("web-1", "api-1")]
            for name, mine, theirs in ((NAMES[0], own, borrowed), (NAMES[1], borrowed, own)):
                for address in {theirs, *others} - {mine}:
                    eventually(partial(reaches, lab, name, address), SECONDS)
            eventually(lambda: is_held(lab, owner, "lent", 1) and is_held(lab, borrower, "borrowed", 1), SECONDS)
            lab.verified()
            told = lab.sh(owner, "felix-py", "explain", *(f"dev/{name}" for name in NAMES), "--port", "80")
            assert f"{borrowed} is out of block {CIDR} of node {owner}, which has lent it to {borrower}" in told
            # Both agents are killed, and know it all again.
            for node in nodes:
                lab.kill(node, "agent")
            for node in nodes:
                lab.wait_ready(node)
            assert loans(lab) == {borrowed: borrower}
            eventually(partial(reaches, lab, NAMES[0], borrowed), SECONDS)
            lab.verified()
        # What is borrowed goes back: at once, since the pool is asked for no more.
        lab.kubectl("delete", "ippools.felixpy.io", "one")
        eventually(lambda: not loans(lab), SECONDS)
        eventually(lambda: is_held(lab, owner, "lent", 0) and is_held(lab, borrower, "borrowed", 0), SECONDS)
        for kind in ("ipamblocks", "blockaffinities"):
            lab.kubectl("delete", f"{kind}.felixpy.io", "--all")
    eventually(lambda: routed(lab) == before, SECONDS)
    lab.verified()
