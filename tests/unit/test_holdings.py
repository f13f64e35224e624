"""What ``felix-py ipam check`` says."""

from __future__ import annotations

from felix_py.cni.holdings import Finding, compare
from felix_py.dataplane.links import HostEnd
from felix_py.records import Lease
from policy.model import Family


def test_an_address_that_is_leased_and_lent() -> None:
    """Also of a container that is no pod's."""
    pod = Lease("c1", "eth0", "net", "shop", "web", "u", "felix1", {Family.V4: "10.1.1.5"}, 0.0)
    container = Lease("c2", "eth0", "net", "", "", "", "felix2", {Family.V4: "10.1.1.6"}, 0.0)
    other = Lease("c3", "eth0", "net", "shop", "db", "v", "felix3", {Family.V4: "10.1.1.7"}, 0.0)
    leases = (pod, container, other)
    ends = [HostEnd(number, lease.interface, lease, routed=True) for number, lease in enumerate(leases, 1)]
    lent = {"10.1.1.5": "n2", "10.1.1.6": "n3", "10.1.1.9": "n2"}
    assert compare(leases, ends, (), ("10.1.1.0/24",), lambda _lease: False, lent) == [
        Finding(("10.1.1.5",), "leased to pod shop/web, and lent to node n2"),
        Finding(("10.1.1.6",), "leased to container c2, and lent to node n3"),
    ]
