"""What `felix-py bgp` says of prefixes that a session cannot carry."""

from __future__ import annotations

from dataclasses import replace

from bgp.session import PeerStatus
from felix_py.cli.bgp import announced_rows, peer_rows
from felix_py.observe.bgp_http import announcements, refusals
from felix_py.observe.status import described

V4, V6 = "10.244.1.0/24", "fd44:1::/64"
WHY, OTHER = "IPv6 next hops of IPv4 are not agreed on (RFC 8950)", "IPv4 is not agreed on"
UP = PeerStatus("fd09::2", 65000, True, 1.0, 0, ("ipv4 unicast", "ipv6 unicast"))


def test_announced_has_what_cannot_be_announced_behind_the_rest() -> None:
    refused = {"fd09::2": {V4: WHY}, "fd0a::2": {V4: WHY}, "fd0b::2": {V4: OTHER}, "10.9.0.2": {}}
    found = {"announced": announcements({"fd09::2": {V6: None}}), "refused": refusals(refused)}
    assert list(announced_rows(found))[1:] == [
        (V6, "fd09::2", ""),
        (V4, "not to fd0b::2", OTHER),
        (V4, "not to fd09::2, fd0a::2", WHY),
    ]


def test_peers_say_of_one_that_is_up_how_many_prefixes_it_cannot_be_told() -> None:
    def why(peer: PeerStatus) -> str:
        return peer_rows({"peers": [described(peer) | {"sinceSeconds": 1.0}]})[1][-1]

    assert why(UP) == ""
    assert why(replace(UP, refused=1, refusal=WHY)) == f"1 prefix not announced: {WHY}"
    assert why(replace(UP, refused=3, refusal=WHY)) == f"3 prefixes not announced: {WHY}"
    assert why(replace(UP, established=False, error="hold timer")) == "hold timer"
