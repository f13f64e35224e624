"""NetworkPolicies on real pods: who reaches whom, across nodes and on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.machine import wait_for
from tests.cluster.workloads import HTTP, Namespace, pod, policy, targets

pytestmark = pytest.mark.root

ADMIN = 9090
CLIENTS = ("api", "other", "friend")
ALL = {(client, port) for client in CLIENTS for port in (HTTP, ADMIN)}


class Shop:
    """A database with two ports on node1, and clients on the same and other nodes, one of another namespace."""

    def __init__(self, cluster: Cluster) -> None:
        self.own = Namespace(cluster, {"team": "shop"})
        self.friends = Namespace(cluster, {"team": "friends"})
        self.own.apply(
            pod("db", {"app": "db"}, {"http": HTTP, "admin": ADMIN}, nodeName="node1"),
            pod("api", {"app": "api"}, nodeName="node2"),
            pod("other", {"app": "other"}, nodeName="node1"),
        )
        self.friends.apply(pod("friend", {"app": "friend"}, nodeName="node3"))
        for namespace in (self.own, self.friends):
            namespace.wait_ready()
        (self.address,) = self.own.addresses("db")

    def matrix(self) -> set[tuple[str, int]]:
        """Which client reaches which of the database's ports."""
        to = {next(iter(targets([self.address], port))): port for port in (HTTP, ADMIN)}

        def ask(client: str) -> set[tuple[str, int]]:
            namespace = self.friends if client == "friend" else self.own
            return {(client, to[found]) for found in namespace.reaches(client, to)}

        with ThreadPoolExecutor(len(CLIENTS)) as pool:
            return set().union(*pool.map(ask, CLIENTS))

    def delete(self) -> None:
        """Both namespaces."""
        for namespace in (self.own, self.friends):
            namespace.delete()


@pytest.fixture(scope="module")
def shop(cluster: Cluster) -> Iterator[Shop]:
    found = Shop(cluster)
    wait_for("all to reach the database", lambda: found.matrix() == ALL, 60)
    yield found
    found.delete()


DB: dict[str, Any] = {"podSelector": {"matchLabels": {"app": "db"}}}
API = {"podSelector": {"matchLabels": {"app": "api"}}}
FRIENDS = {"namespaceSelector": {"matchLabels": {"team": "friends"}}}


def passes(client: str, *ports: int) -> set[tuple[str, int]]:
    return {(client, port) for port in ports or (HTTP, ADMIN)}


CASES: dict[str, tuple[Callable[[Shop], dict[str, Any]], set[tuple[str, int]]]] = {
    "default deny": (lambda _: {"policyTypes": ["Ingress"]}, set()),
    "by label": (lambda _: {**DB, "ingress": [{"from": [API]}]}, passes("api")),
    "by namespace": (lambda _: {**DB, "ingress": [{"from": [FRIENDS]}]}, passes("friend")),
    "by label or namespace": (
        lambda _: {**DB, "ingress": [{"from": [API, FRIENDS]}]},
        passes("api") | passes("friend"),
    ),
    "named port": (
        lambda _: {**DB, "ingress": [{"ports": [{"port": "admin"}]}]},
        {(client, ADMIN) for client in CLIENTS},
    ),
    "port of a namespace": (
        lambda _: {**DB, "ingress": [{"from": [FRIENDS], "ports": [{"port": HTTP}]}]},
        passes("friend", HTTP),
    ),
    "no egress": (
        lambda _: {"podSelector": API["podSelector"], "policyTypes": ["Egress"]},
        passes("other") | passes("friend"),
    ),
    "egress to a block and port": (
        lambda shop: {
            "podSelector": API["podSelector"],
            "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": f"{shop.address}/32"}}], "ports": [{"port": ADMIN}]}],
        },
        passes("api", ADMIN) | passes("other") | passes("friend"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_policy_lets_pass(shop: Shop, case: str) -> None:
    spec, expected = CASES[case]
    shop.own.apply(policy("tried", **spec(shop)))
    try:
        wait_for("what the policy says", lambda: shop.matrix() == expected, 30)
    finally:
        shop.own.kubectl("delete", "networkpolicy", "tried")
    wait_for("the end of the policy", lambda: shop.matrix() == ALL, 30)


def test_label_that_comes_and_goes(shop: Shop) -> None:
    """A pod's label decides at once, without a change of policy."""
    shop.own.apply(
        policy("tried", **DB, ingress=[{"from": [{"podSelector": {"matchLabels": {"role": "reader"}}}]}])
    )
    try:
        wait_for("all to be denied", lambda: shop.matrix() == set(), 30)
        shop.own.kubectl("label", "pod", "other", "role=reader")
        wait_for("the label to open", lambda: shop.matrix() == passes("other"), 30)
        shop.own.kubectl("label", "pod", "other", "role-")
        wait_for("the label's end to close", lambda: shop.matrix() == set(), 30)
    finally:
        shop.own.kubectl("delete", "networkpolicy", "tried")
    wait_for("the end of the policy", lambda: shop.matrix() == ALL, 30)
