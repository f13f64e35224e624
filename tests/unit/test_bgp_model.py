"""The user's BGP configuration: what is understood, and how precisely what is not is refused."""

from __future__ import annotations

from typing import Any

import pytest

from bgp.fields import BGPConfigError
from bgp.model import Peer, SpeakerConfig, parse_bgp_config

PEER = {"peerIP": "10.9.0.2", "asNumber": 65000}


def parse(peer: dict[str, Any] | None = None, **fields: Any) -> SpeakerConfig:
    peers = [] if peer is None else [PEER | peer]
    return parse_bgp_config({"asNumber": 65001, "routerID": "10.9.0.1", "peers": peers} | fields)


def test_everything_set() -> None:
    config = parse(
        {
            "peerIP": "[FD09:0::2]:1179",
            "asNumber": "1.10",
            "localASNumber": 4200000000,
            "sourceAddress": "fd09::1",
            "password": "s3cret{};#",
            "ttlSecurity": 1,
            "holdTime": "1m30s",
            "maxRestartTime": "2m",
            "numAllowedLocalASNumbers": 1,
            "passive": True,
        },
        listenPort=1790,
        maxPaths=4,
    )
    assert config == SpeakerConfig(
        asn=65001,
        router_id="10.9.0.1",
        listen_port=1790,
        max_paths=4,
        peers=(
            Peer(
                address="fd09::2",
                port=1179,
                asn=65546,
                local_asn=4200000000,
                source_address="fd09::1",
                password="s3cret{};#",
                ttl_security=1,
                hold_time=90,
                max_restart_time=120,
                allowed_own_asns=1,
                passive=True,
            ),
        ),
    )
    assert "s3cret" not in repr(config)


def test_defaults() -> None:
    config = parse({})
    assert config.listen_port == 179
    assert config.peers == (Peer(address="10.9.0.2", asn=65000, local_asn=65001),)
    assert parse_bgp_config({"asNumber": 1}, router_id="192.0.2.1").router_id == "192.0.2.1"


def test_router_id_of_the_nodes_name() -> None:
    """Always the same for one name, and one that every speaker takes: neither 0 nor of class D or E."""
    document = {"asNumber": 1, "routerID": "hash"}
    found = [parse_bgp_config(document, router_id="192.0.2.1", node=f"node-{n}").router_id for n in range(1000)]
    assert len(set(found)) == len(found)
    assert all(1 <= int(router_id.partition(".")[0]) <= 223 for router_id in found)
    assert found[7] == parse_bgp_config(document, node="node-7").router_id
    with pytest.raises(BGPConfigError, match="routerID"):
        parse_bgp_config(document)


def test_password_file() -> None:
    document = {"asNumber": 1, "routerID": "10.0.0.1", "peers": [PEER | {"passwordFile": "/run/secret"}]}
    config = parse_bgp_config(document, read_text={"/run/secret": "from-file\n"}.__getitem__)
    assert config.peers[0].password == "from-file"

    def missing(name: str) -> str:
        raise FileNotFoundError(2, "No such file or directory", name)

    with pytest.raises(BGPConfigError, match=r"peers\[0\]\.passwordFile: .*No such file.*'/run/secret'"):
        parse_bgp_config(document, read_text=missing)


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        ({"asNumber": None}, "peers[0].asNumber: is missing"),
        ({"asNumber": 0}, "peers[0].asNumber: 0 is not in 1 to 4294967295"),
        ({"asNumber": True}, "peers[0].asNumber: must be a number, not bool"),
        ({"asNumber": "1.70000"}, "peers[0].asNumber: 70000 is not in 0 to 65535"),
        ({"asNumber": "65000; }"}, "peers[0].asNumber: '65000; }' is not an AS number"),
        ({"asNumber": "٣"}, "peers[0].asNumber: '٣' is not an AS number"),
        ({"peerIP": "tor.example"}, "peers[0].peerIP: 'tor.example' is not an IP address"),
        ({"peerIP": "10.9.0.2 { passive"}, "peers[0].peerIP: '10.9.0.2 { passive' is not an IP address"),
        ({"peerIP": "10.9.0.2:99999"}, "peers[0].peerIP: 99999 is not in 1 to 65535"),
        ({"peerIP": "fe80::1"}, "peers[0].peerIP: fe80::1 is link-local; give an address that needs no"),
        ({"peerIP": "fd09::1%eth0"}, "peers[0].peerIP: fd09::1%eth0 is link-local"),
        ({"peerIP": "224.0.0.5"}, "peers[0].peerIP: 224.0.0.5 is not the address of one host"),
        ({"sourceAddress": "fd09::1"}, "peers[0].sourceAddress: fd09::1 is not of the same family as peerIP"),
        ({"password": 'a"; run /bin/sh;'}, "peers[0].password: must not be empty nor hold spaces, quotes"),
        ({"password": "a\nb"}, "peers[0].password: must not be empty nor hold"),
        ({"password": "x" * 81}, "peers[0].password: 81 characters, TCP MD5 takes 80 at most"),
        ({"password": "a", "passwordFile": "b"}, "peers[0].passwordFile: give password or passwordFile"),
        ({"passwordFile": "b"}, "peers[0].passwordFile: cannot be used here"),
        ({"holdTime": "2s"}, "peers[0].holdTime: 2 s; RFC 4271 wants 3 s at least"),
        ({"holdTime": ""}, "peers[0].holdTime: '' is not a duration such as 90s or 2m"),
        ({"maxRestartTime": "2h"}, "peers[0].maxRestartTime: 7200 is not in 1 to 4095"),
        ({"ttlSecurity": 255}, "peers[0].ttlSecurity: 255 is not in 0 to 254"),
        ({"passive": "yes"}, "peers[0].passive: must be true or false, not str"),
        ({"pasive": True}, "peers[0].pasive: unknown field; known are peerIP, asNumber"),
    ],
)
def test_bad_peer(peer: dict[str, Any], message: str) -> None:
    with pytest.raises(BGPConfigError) as caught:
        parse(peer)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "configuration: must be a mapping, not nothing"),
        ([], "configuration: must be a mapping, not list"),
        ({}, "asNumber: is missing"),
        ({"asNumber": 1}, "routerID: is missing and this node has no IPv4 address to take it from"),
        ({"asNumber": 1, "routerID": "fd09::1"}, "routerID: 'fd09::1' is not of the form 192.0.2.1"),
        ({"asNumber": 1, "routerID": "0.0.0.0"}, "routerID: must not be 0.0.0.0"),
        ({"asNumber": 1, "asnumber": 1}, "asnumber: unknown field"),
        ({"asNumber": 1, "routerID": "1.1.1.1", "peers": "10.9.0.2"}, "peers: must be a list, not str"),
        ({"asNumber": 1, "routerID": "1.1.1.1", "peers": [7]}, "peers[0]: must be a mapping, not int"),
        (
            {"asNumber": 1, "routerID": "1.1.1.1", "peers": [PEER, PEER]},
            "peers[1].peerIP: 10.9.0.2 is listed twice",
        ),
        (
            {
                "asNumber": 1,
                "routerID": "1.1.1.1",
                "peers": [PEER, PEER | {"peerIP": "10.9.0.2:1180", "passive": True}],
            },
            "peers[1].passive: 10.9.0.2 is listed with several ports, and none shows in a connection from there",
        ),
        (
            {"asNumber": 1, "routerID": "1.1.1.1", "listenPort": 0, "peers": [PEER | {"passive": True}]},
            "peers[0].passive: nobody could connect, listenPort is 0",
        ),
    ],
)
def test_bad_document(document: object, message: str) -> None:
    with pytest.raises(BGPConfigError) as caught:
        parse_bgp_config(document)
    assert str(caught.value).startswith(message)
