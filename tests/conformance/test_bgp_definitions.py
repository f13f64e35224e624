"""BGPConfiguration, BGPPeer and BGPFilter, with real kubectl: columns, what is refused; the agent agrees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from bgp import parse
from tests.conformance.conftest import Kubectl, Scenery, emptied, installed
from tests.support.bgp_resources import CONFIGURATION, FILTER, PEER, RULE

KINDS = {
    parse.CONFIGURATION: (parse.configuration, CONFIGURATION),
    parse.PEER: (parse.peer, PEER),
    parse.FILTER: (parse.filter_, FILTER),
}
NAMES = ("bgpconfigurations", "bgppeers", "bgpfilters")


@pytest.fixture(scope="module", autouse=True)
def definitions(cluster: Kubectl) -> Iterator[None]:
    with installed(cluster, NAMES):
        yield


@pytest.fixture
def clean(cluster: Kubectl, scenery: Scenery) -> Iterator[Kubectl]:
    with emptied(cluster, scenery, (f"/apis/felixpy.io/v1alpha1/{name}" for name in NAMES)) as found:
        yield found


def resource(kind: str, name: str = "default", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "felixpy.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_can_be_set_and_is_read_as_it_was_written(clean: Kubectl, kind: str) -> None:
    read, whole = KINDS[kind]
    clean.apply(resource(kind, **whole))
    found = clean.get(f"{kind.lower()}s.felixpy.io", "default")["spec"]
    assert found == whole
    assert read("default", found) == read("default", whole)


def test_columns(clean: Kubectl) -> None:
    clean.apply(resource(parse.CONFIGURATION, asNumber=64512, nodeToNodeMeshEnabled=False, listenPort=179))
    clean.apply(resource(parse.PEER, "tor", peerIP="10.0.0.1", asNumber="1.10", nodeSelector="all()"))
    head, row = clean("get", "bgpconfig").splitlines()
    assert head.split() == ["NAME", "AS", "MESH", "PORT", "AGE"]
    assert row.split()[:4] == ["default", "64512", "false", "179"]
    head, row = clean("get", "bgppeers.felixpy.io").splitlines()
    assert " ".join(head.split()) == "NAME PEER IP PEER AS NODE NODE SELECTOR PEER SELECTOR AGE"
    assert row.split()[:4] == ["tor", "10.0.0.1", "1.10", "all()"]


PEER_OF = {"peerIP": "10.0.0.1", "asNumber": 65000}


def test_peer_addresses_that_are_taken(clean: Kubectl) -> None:
    addresses = (
        "192.0.2.1",
        "192.0.2.1:1179",
        "2001:db8::1",
        "[2001:db8::1]:1179",
        "fe80::1%eth0",
        "[fe80::1%bond0.7]:1179",
    )
    items = [
        resource(parse.PEER, f"p{number}", **PEER_OF | {"peerIP": ip}) for number, ip in enumerate(addresses)
    ]
    clean.apply({"apiVersion": "v1", "kind": "List", "items": items})
    for ip in addresses:
        assert parse.peer("p", {"peerIP": ip}).peer_ip


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (parse.CONFIGURATION, {"asNumber": 0}, "should be greater than or equal to 1"),
    (parse.CONFIGURATION, {"asNumber": 2**32}, "should be less than or equal to 4294967295"),
    (parse.CONFIGURATION, {"asNumber": "1.2.3"}, "spec.asNumber"),
    (parse.CONFIGURATION, {"asNumber": True}, "spec.asNumber"),
    (parse.CONFIGURATION, {"listenPort": 0}, "should be greater than or equal to 1"),
    (parse.CONFIGURATION, {"bindMode": "All"}, 'supported values: "None", "NodeIP"'),
    (parse.CONFIGURATION, {"serviceClusterIPs": [{"cidr": "10.0.0.1/8"}]}, "write it as a canonical CIDR"),
    (
        parse.CONFIGURATION,
        {"communities": [{"name": "a", "value": "65536:1"}]},
        "must be a community: two numbers",
    ),
    (parse.CONFIGURATION, {"communities": [{"name": "a", "value": "1:2"}] * 2}, "Duplicate value"),
    (parse.CONFIGURATION, {"nodeMeshMaxRestartTime": "1.5m"}, "must be whole seconds, as 90s or 1m30s"),
    (
        parse.CONFIGURATION,
        {"nodeToNodeMeshEnabled": False, "nodeMeshMaxRestartTime": "60s"},
        "nodeMeshMaxRestartTime cannot be set when nodeToNodeMeshEnabled is false",
    ),
    (
        parse.CONFIGURATION,
        {"nodeToNodeMeshEnabled": False, "nodeMeshPassword": CONFIGURATION["nodeMeshPassword"]},
        "nodeMeshPassword cannot be set when nodeToNodeMeshEnabled is false",
    ),
    (
        parse.PEER,
        {**PEER_OF, "node": "n1", "nodeSelector": "all()"},
        "node and nodeSelector cannot both be set",
    ),
    (
        parse.PEER,
        {"peerIP": "10.0.0.1", "peerSelector": "all()"},
        "peerIP and peerSelector cannot both be set",
    ),
    (parse.PEER, {"asNumber": 65000}, "peerIP or peerSelector must be set"),
    (parse.PEER, {"peerIP": ""}, "peerIP or peerSelector must be set"),
    (parse.PEER, {"peerSelector": "all()", "asNumber": 1}, "asNumber must be empty when peerSelector is set"),
    (
        parse.PEER,
        {"peerSelector": "all()", "reachableBy": "10.0.0.1"},
        "reachableBy must be empty when peerIP is",
    ),
    (
        parse.PEER,
        {**PEER_OF, "keepOriginalNextHop": True, "nextHopMode": "Keep"},
        "keepOriginalNextHop and nextHopMode cannot both be set",
    ),
    *(
        (
            parse.PEER,
            {"peerIP": address, "asNumber": 65000},
            "must be an address, with a port as 192.0.2.1:1179",
        )
        for address in (
            "tor",
            "10.0.0.1:0",
            "10.0.0.1:99999",
            "10.0.0.256:179",
            "fe80::1",
            "10.0.0.1%eth0",
            "[fe80::1]:1",
        )
    ),
    (parse.PEER, {**PEER_OF, "reachableBy": "tor"}, "must be an address"),
    (parse.PEER, {**PEER_OF, "holdTime": "x"}, "must be whole seconds, as 90s or 1m30s"),
    (parse.PEER, {**PEER_OF, "families": ["ipv4", "ipv4"]}, "Duplicate value"),
    (
        parse.PEER,
        {**PEER_OF, "password": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
        "a session that has a password cannot do without",
    ),
    (parse.FILTER, {"exportV4": [{}]}, "spec.exportV4[0].action: Required value"),
    (
        parse.FILTER,
        {"importV4": [{"action": "Accept", "cidr": "10.0.0.0/8"}]},
        "cidr and matchOperator must both be set or both be empty",
    ),
    (
        parse.FILTER,
        {"importV6": [{"action": "Accept", "prefixLength": {"min": 8}}]},
        "cidr is required when prefixLength is set",
    ),
    (
        parse.FILTER,
        {"exportV4": [{**RULE, "action": "Reject"}]},
        "operations may only be used with action Accept",
    ),
    (parse.FILTER, {"exportV6": [RULE]}, "write it as a canonical CIDR of IPv6: fd00::/48"),
    (
        parse.FILTER,
        {"exportV4": [{**RULE, "prefixLength": {"max": 33}}]},
        "should be less than or equal to 32",
    ),
    (parse.FILTER, {"exportV4": [{**RULE, "prefixLength": {"min": 9, "max": 8}}]}, "min is above max"),
    (
        parse.FILTER,
        {"exportV4": [{**RULE, "operations": [{"setMED": {"value": 1}, "setPriority": {"value": 1}}]}]},
        "must have at most 1",
    ),
]


def test_what_is_refused_and_why(clean: Kubectl) -> None:
    names = [f"node.case{number}" for number in range(len(REFUSED))]
    items = [resource(kind, name, **spec) for name, (kind, spec, _) in zip(names, REFUSED, strict=True)]
    said = clean.fails(
        "create", "--validate=false", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": items}
    )
    told = dict(re.findall(r'"(node\.case\d+)" is invalid:(.*?)(?=\nError from |\Z)', said, re.DOTALL))
    assert told.keys() == set(names), said[:1500]
    for name, (kind, spec, words) in zip(names, REFUSED, strict=True):
        assert words in told[name], spec
        if "Duplicate" not in words:
            with pytest.raises(parse.Bad):
                KINDS[kind][0]("default", spec)


def test_names_of_configurations(clean: Kubectl) -> None:
    words = clean.fails("apply", "-f", "-", stdin=resource(parse.CONFIGURATION, "n1"))
    assert "the name must be default, for all nodes, or node.NAME" in words
    clean.apply(resource(parse.CONFIGURATION, "node.n1", listenPort=1179))
    words = clean.fails(
        "apply", "-f", "-", stdin=resource(parse.CONFIGURATION, "node.n1", nodeToNodeMeshEnabled=True)
    )
    assert "the node-to-node mesh is of all nodes, so only default can say what it is like" in words
