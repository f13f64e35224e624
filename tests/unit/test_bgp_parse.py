"""API objects as records: what fields mean, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest

from bgp import parse
from bgp.parse import Bad
from bgp.resources import (
    Bfd,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    FilterRule,
    NextHopMode,
    Operations,
    PrefixAdvertisement,
    SecretKey,
    SourceAddress,
)
from tests.support.bgp_resources import CONFIGURATION, FILTER, PEER, RULE

SECRET = "felix-py-bgp-passwords"


def test_everything_of_a_configuration() -> None:
    assert parse.configuration("default", CONFIGURATION) == BGPConfiguration(
        name="default",
        as_number=64512,
        node_to_node_mesh_enabled=True,
        node_mesh_password=SecretKey(SECRET, "mesh"),
        node_mesh_max_restart_time=60,
        listen_port=1179,
        bind_mode="NodeIP",
        service_cluster_ips=("10.96.0.0/16", "fd00:10:96::/112"),
        service_external_ips=("192.0.2.0/24",),
        service_load_balancer_ips=("198.51.100.0/24",),
        service_load_balancer_aggregation="Disabled",
        communities={"pods": "64512:1", "large": "64512:1:2"},
        prefix_advertisements=(
            PrefixAdvertisement("10.244.0.0/16", ("pods", "64512:7"), local_preference=200, med=5),
        ),
        ignored_interfaces=("eth9", "vlan*"),
        static_prefixes=("203.0.113.0/24",),
        max_paths=4,
    )
    assert CONFIGURATION.keys() == set(parse.KNOWN[parse.CONFIGURATION])


def test_everything_of_a_peer() -> None:
    assert parse.peer("tor", PEER) == BGPPeer(
        name="tor",
        node_selector="rack == 'r1'",
        peer_ip="10.0.0.1",
        port=1179,
        as_number=65000,
        local_as_number=65001,
        num_allowed_local_as_numbers=1,
        password=SecretKey(SECRET, "tor"),
        source_address=SourceAddress.NONE,
        keepalive_time=3,
        hold_time=9,
        max_restart_time=120,
        ttl_security=1,
        reachable_by="10.0.0.254",
        next_hop_mode=NextHopMode.SELF,
        filters=("pods", "others"),
        reverse_peering=False,
        families=(4, 6),
        bfd=Bfd(100, 5, multihop=True),
        prefix_limit=1000,
    )
    others = {"node", "peerSelector", "keepOriginalNextHop"}  # they exclude some of the above
    assert PEER.keys() | others == set(parse.KNOWN[parse.PEER])


def test_everything_of_a_filter() -> None:
    rule = FilterRule(
        accept=True,
        cidr="10.244.0.0/16",
        match_operator="In",
        prefix_length=(24, 32),
        source="RemotePeers",
        peer_type="eBGP",
        interface="eth*",
        communities=("64512:1",),
        as_path_prefix=(65000, 65001),
        priority=100,
        operations=Operations(("64512:1",), (65000, 65001), 512, 0, 300),
    )
    found = parse.filter_("f", FILTER)
    assert found.export_v4 == (rule,)
    assert found.export_v6 == (FilterRule(accept=False),)
    assert found.import_v4 == (FilterRule(accept=False, cidr="0.0.0.0/0", match_operator="Equal"),)
    assert found.import_v6[0].cidr == "fd00:10:244::/48"
    assert found.import_v6[0].prefix_length == (64, None)
    assert FILTER.keys() == set(parse.KNOWN[parse.FILTER])


@pytest.mark.parametrize("spec", [None, {}])
def test_what_is_not_there_is_not_set(spec: object) -> None:
    assert parse.configuration("node.n1", spec) == BGPConfiguration(name="node.n1")
    assert parse.filter_("f", spec) == BGPFilter(name="f")


def test_empty_texts_and_null_are_not_set() -> None:
    given = {
        "peerIP": "10.0.0.1",
        "asNumber": 1,
        "node": "",
        "nodeSelector": "",
        "peerSelector": "",
        "password": None,
    }
    assert parse.peer("p", given) == BGPPeer(name="p", peer_ip="10.0.0.1", as_number=1)


def test_what_is_prepended_later_stands_foremost() -> None:
    operations = [{"prependASPath": {"prefix": [1, 2]}}, {"prependASPath": {"prefix": [3]}}]
    found = parse.filter_("f", {"exportV4": [{"action": "Accept", "operations": operations}]})
    assert found.export_v4[0].operations.prepend == (3, 1, 2)


@pytest.mark.parametrize(
    ("given", "address", "port", "interface"),
    [
        ("192.0.2.1", "192.0.2.1", 179, ""),
        ("192.0.2.1:1179", "192.0.2.1", 1179, ""),
        ("2001:DB8::1", "2001:db8::1", 179, ""),
        ("[2001:db8::1]:1179", "2001:db8::1", 1179, ""),
        ("fe80::1%eth0", "fe80::1", 179, "eth0"),
        ("[fe80::1%bond0.7]:1179", "fe80::1", 1179, "bond0.7"),
    ],
)
def test_peer_addresses(given: str, address: str, port: int, interface: str) -> None:
    found = parse.peer("p", {"peerIP": given, "asNumber": 1})
    assert (found.peer_ip, found.port, found.interface) == (address, port, interface)


@pytest.mark.parametrize(
    ("given", "number"), [(65001, 65001), ("65001", 65001), ("1.10", 65546), (4294967295, 2**32 - 1)]
)
def test_as_numbers(given: object, number: int) -> None:
    assert parse.peer("p", {"peerIP": "10.0.0.1", "asNumber": given}).as_number == number


def refused_peer(**fields: Any) -> str:
    with pytest.raises(Bad) as caught:
        parse.peer("p", {"peerIP": "10.0.0.1", "asNumber": 65000} | fields)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peerIP": "fe80::1"}, "peerIP: fe80::1 is link-local; say on which interface, as in fe80::1%eth0"),
        ({"peerIP": "10.0.0.1%eth0"}, "peerIP: '10.0.0.1' is not link-local, so it has no interface"),
        ({"peerIP": "fe80::1%a b"}, "peerIP: 'a b' is not the name of an interface"),
        ({"peerIP": "fe80::1%"}, "peerIP: '' is not the name of an interface"),
        ({"peerIP": "10.0.0.1:0"}, "peerIP: 0 is not in 1 to 65535"),
        ({"peerIP": "10.0.0.1:99999"}, "peerIP: 99999 is not in 1 to 65535"),
        ({"peerIP": "tor"}, "peerIP: 'tor' is not an IP address"),
        ({"peerIP": "224.0.0.1"}, "peerIP: 224.0.0.1 is not the address of one host"),
        ({"peerIP": None}, "peerIP: peerIP or peerSelector must be set"),
        ({"asNumber": 0}, "asNumber: 0 is not in 1 to 4294967295"),
        ({"asNumber": "1.70000"}, "asNumber: 70000 is not in 0 to 65535"),
        ({"asNumber": "9" * 5000}, "is not an AS number"),
        ({"asNumber": 10**5000}, "asNumber: the number is not in 1 to 4294967295"),
        ({"node": "n1", "nodeSelector": "all()"}, "node and nodeSelector cannot both be set"),
        ({"peerSelector": "all()"}, "peerIP and peerSelector cannot both be set"),
        ({"peerSelector": "all()", "peerIP": ""}, "asNumber must be empty when peerSelector is set"),
        (
            {"nodeSelector": "rack = 'r1'"},
            "nodeSelector: expected an operator after the label rack at character 6",
        ),
        ({"reachableBy": "fd00::1"}, "reachableBy: must be of the same family as peerIP 10.0.0.1"),
        ({"keepOriginalNextHop": True, "nextHopMode": "Keep"}, "cannot both be set"),
        ({"keepaliveTime": "9s", "holdTime": "9s"}, "keepaliveTime: must be shorter than holdTime"),
        ({"holdTime": "2s"}, "holdTime: 2 s; RFC 4271 wants 3 s at least"),
        ({"holdTime": "1.5m"}, "holdTime: '1.5m' is not a duration such as 90s or 2m"),
        ({"maxRestartTime": "2h"}, "maxRestartTime: 7200 is not in 1 to 4095"),
        ({"ttlSecurity": 255}, "ttlSecurity: 255 is not in 0 to 254"),
        ({"families": ["ipv5"]}, "families[0]: 'ipv5' is not one of ipv4, ipv6"),
        ({"filters": "pods"}, "filters: must be a list, not str"),
        ({"filters": [1]}, "filters[0]: must be text, not int"),
        ({"bfd": {"intervalMilliseconds": 1}}, "bfd.intervalMilliseconds: 1 is not in 10 to 60000"),
        ({"password": "x"}, "password: must be a mapping, not str"),
        ({"password": {}}, "password.secretKeyRef: must be a mapping, not nothing"),
        ({"password": {"secretKeyRef": {"name": "s"}}}, "password.secretKeyRef.key: is missing"),
        ({"password": {"secretKeyRef": {"name": "a,b", "key": "k"}}}, "name: 'a,b' is not the name of a Secret"),
        (
            {"password": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
            "password.secretKeyRef.optional: a session that has a password cannot do without",
        ),
    ],
)
def test_peers_that_are_refused(fields: dict[str, Any], words: str) -> None:
    assert words in refused_peer(**fields)


def test_a_field_of_a_later_version_is_passed_over_and_told() -> None:
    spec = {"peerIP": "10.0.0.1", "asNumber": 65000}
    later = {**spec, "localWorkloadSelector": "all()"}
    assert parse.peer("p", later) == parse.peer("p", spec)
    assert [(one.field, one.reason) for one in parse.unknown(parse.PEER, "p", later)] == [
        ("localWorkloadSelector", "this version does not know the field")
    ]
    assert parse.unknown(parse.PEER, "p", spec) == []
    # What is inside of a field changes the meaning of the rest.
    with pytest.raises(Bad, match=r"exportV4\[0\].rpki: unknown field"):
        parse.filter_("f", {"exportV4": [{"action": "Accept", "rpki": "valid"}]})


def test_all_that_is_wrong_is_told() -> None:
    with pytest.raises(Bad) as caught:
        parse.peer("p", {"peerIP": "tor", "asNumber": -1, "holdTime": True})
    assert [(one.kind, one.name, one.field) for one in caught.value.problems] == [
        ("BGPPeer", "p", field) for field in ("peerIP", "asNumber", "holdTime")
    ]


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("n1", {}, "metadata.name: must be default, for all nodes, or node.NAME, for one"),
        ("default", [], "spec: must be a mapping, not list"),
        ("default", {"listenPort": 0}, "listenPort: 0 is not in 1 to 65535"),
        ("default", {"serviceClusterIPs": ["10.0.0.0/8"]}, "serviceClusterIPs[0]: must be a mapping, not str"),
        ("default", {"serviceClusterIPs": [{"cidr": "10.0.0.1/8"}]}, "'10.0.0.1/8' is not a CIDR such as"),
        ("default", {"serviceClusterIPs": [{"cidr": "10.0.0.1"}]}, "'10.0.0.1' is not a CIDR such as"),
        (
            "default",
            {"communities": [{"name": "a", "value": "1"}]},
            "communities[0].value: '1' is not a community",
        ),
        ("default", {"communities": [{"name": "a", "value": "65536:1"}]}, "'65536:1' is not a community"),
        ("default", {"communities": [{"name": "a", "value": "1:2"}] * 2}, "which is given once"),
        (
            "default",
            {"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["1:99999"]}]},
            "prefixAdvertisements[0].communities[0]: '1:99999' is not a community",
        ),
        (
            "default",
            {"nodeToNodeMeshEnabled": False, "nodeMeshMaxRestartTime": "60s"},
            "nodeMeshMaxRestartTime: cannot be set when nodeToNodeMeshEnabled is false",
        ),
    ],
)
def test_configurations_that_are_refused(name: str, spec: object, words: str) -> None:
    with pytest.raises(Bad) as caught:
        parse.configuration(name, spec)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({}, "exportV4[0].action: is missing"),
        ({"action": "accept"}, "exportV4[0].action: 'accept' is not one of Accept, Reject"),
        ({"action": "Accept", "cidr": "10.0.0.0/8"}, "cidr and matchOperator must both be set or both be empty"),
        ({"action": "Accept", "matchOperator": "In"}, "cidr and matchOperator must both be set or both be empty"),
        ({"action": "Accept", "prefixLength": {"min": 8}}, "cidr is required when prefixLength is set"),
        ({**RULE, "cidr": "fd00::/8"}, "exportV4[0].cidr: fd00::/8 is not of IPv4"),
        ({**RULE, "prefixLength": {"min": 33}}, "prefixLength.min: 33 is not in 0 to 32"),
        ({**RULE, "prefixLength": {"min": 24, "max": 16}}, "prefixLength: min is above max, so nothing matches"),
        ({**RULE, "action": "Reject"}, "operations may only be used with action Accept"),
        ({**RULE, "communities": {"values": []}}, "communities.values: must not be empty"),
        ({**RULE, "operations": [{}]}, "operations[0]: exactly one operation must be set"),
        (
            {**RULE, "operations": [{"setMED": {"value": 1}, "setPriority": {"value": 1}}]},
            "operations[0]: exactly one operation must be set",
        ),
        (
            {**RULE, "operations": [{"setPriority": {"value": 0}}]},
            "setPriority.value: 0 is not in 1 to 2147483646",
        ),
        ({**RULE, "operations": [{"setMED": 1}]}, "operations[0].setMED: must be a mapping, not int"),
        ({**RULE, "asPathPrefix": ["x"]}, "asPathPrefix[0]: 'x' is not an AS number"),
        ({**RULE, "interface": "a b"}, "interface: 'a b' is not the name of an interface"),
    ],
)
def test_filter_rules_that_are_refused(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(Bad) as caught:
        parse.filter_("f", {"exportV4": [rule]})
    assert words in str(caught.value)
