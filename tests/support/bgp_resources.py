"""Specs of BGP resources in which every field is set, to something else than its default."""

from __future__ import annotations

from typing import Any

CONFIGURATION: dict[str, Any] = {
    "asNumber": 64512,
    "nodeToNodeMeshEnabled": True,
    "nodeMeshPassword": {"secretKeyRef": {"name": "felix-py-bgp-passwords", "key": "mesh"}},
    "nodeMeshMaxRestartTime": "60s",
    "listenPort": 1179,
    "bindMode": "NodeIP",
    "serviceClusterIPs": [{"cidr": "10.96.0.0/16"}, {"cidr": "fd00:10:96::/112"}],
    "serviceExternalIPs": [{"cidr": "192.0.2.0/24"}],
    "serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/24"}],
    "serviceLoadBalancerAggregation": "Disabled",
    "communities": [{"name": "pods", "value": "64512:1"}, {"name": "large", "value": "64512:1:2"}],
    "prefixAdvertisements": [
        {"cidr": "10.244.0.0/16", "communities": ["pods", "64512:7"], "localPreference": 200, "med": 5}
    ],
    "ignoredInterfaces": ["eth9", "vlan*"],
    "staticPrefixes": [{"cidr": "203.0.113.0/24"}],
    "maxPaths": 4,
}

PEER: dict[str, Any] = {
    "nodeSelector": "rack == 'r1'",
    "peerIP": "10.0.0.1:1179",
    "asNumber": 65000,
    "localASNumber": 65001,
    "numAllowedLocalASNumbers": 1,
    "password": {"secretKeyRef": {"name": "felix-py-bgp-passwords", "key": "tor"}},
    "sourceAddress": "None",
    "keepaliveTime": "3s",
    "holdTime": "9s",
    "maxRestartTime": "2m",
    "ttlSecurity": 1,
    "reachableBy": "10.0.0.254",
    "nextHopMode": "Self",
    "filters": ["pods", "others"],
    "reversePeering": "Manual",
    "families": ["ipv6", "ipv4"],
    "bfd": {"intervalMilliseconds": 100, "detectMultiplier": 5, "multihop": True},
    "prefixLimit": 1000,
}

RULE: dict[str, Any] = {
    "action": "Accept",
    "cidr": "10.244.0.0/16",
    "matchOperator": "In",
    "prefixLength": {"min": 24, "max": 32},
    "source": "RemotePeers",
    "peerType": "eBGP",
    "interface": "eth*",
    "communities": {"values": ["64512:1"]},
    "asPathPrefix": [65000, 65001],
    "priority": 100,
    "operations": [
        {"addCommunity": {"value": "64512:1"}},
        {"prependASPath": {"prefix": [65000, 65001]}},
        {"setPriority": {"value": 512}},
        {"setMED": {"value": 0}},
        {"setLocalPreference": {"value": 300}},
    ],
}

FILTER: dict[str, Any] = {
    "exportV4": [RULE],
    "exportV6": [{"action": "Reject"}],
    "importV4": [{"action": "Reject", "cidr": "0.0.0.0/0", "matchOperator": "Equal"}],
    "importV6": [{**RULE, "cidr": "fd00:10:244::/48", "prefixLength": {"min": 64}}],
}
