"""Lines as ExaBGP 5.0.15 writes them -> events; commands -> lines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp import protocol
from bgp.announcement import Announcement
from bgp.decision import Path
from bgp.events import (
    Answered,
    Down,
    EndOfRib,
    Event,
    Gap,
    GracefulRestart,
    MalformedUpdate,
    Nlri,
    Notified,
    Open,
    Refresh,
    RibEntry,
    Up,
    Update,
)
from bgp.protocol import Connection

HEAD = '{ "exabgp": "5.0.0", "time": 1.5, "host" : "n1", "pid" : 9, "ppid" : 8, "counter": %d, "type": "%s", '
WHO4 = (
    '"neighbor": { "address": { "local": "10.9.0.1", "peer": "10.9.0.2" }, '
    '"asn": { "local": 65001, "peer": 65000 }, "router-id": "10.9.0.1" , '
)
WHO6 = WHO4.replace("10.9.0.1", "fd09::1", 1).replace("10.9.0.2", "fd09::2")


def line(kind: str, rest: str, *, counter: int = 1, who: str = WHO4) -> bytes:
    return (HEAD % (counter, kind) + who + rest + " } }\n").encode()


def events(*lines: bytes) -> list[Event]:
    connection = Connection()
    found = [event for one in lines for event in connection.receive(one)]
    assert not connection.ignored
    return found


def update(attributes: str, routes: str, who: str = WHO4) -> list[Any]:
    content = f'"direction": "receive", "message": {{ "update": {{ {attributes}{routes} }} }}'
    return events(line("update", content, who=who))


AS_PATH = '"origin": "igp", "as-path": {"0": {"element": "as-sequence", "value": [65000, 65010]}}'
EMPTY_PATH = '"attribute": { "origin": "igp", "as-path": {} }, '


def test_session_states() -> None:
    assert events(
        line("state", '"state": "connected"', counter=1),
        line("state", '"state": "up"', counter=2),
        line("state", '"state": "down", "reason": "notification sent (4,0)"', counter=3),
    ) == [Up("10.9.0.2"), Down("10.9.0.2", "notification sent (4,0)")]


def test_open_with_graceful_restart() -> None:
    opened = (
        '"direction": "receive", "open": { "version": 4, "asn": 65000, "hold_time": 240, '
        '"router_id": "10.9.0.2", "capabilities": { "1": { "name": "multiprotocol", "families": '
        '[ "ipv4/unicast" ] }, "64": { "name": "graceful restart", "time": 120, "address-family-flags": '
        '{ "ipv4/unicast": [ "restart" ] , "ipv6/unicast": [ ] }, "restart-flags": [ "forwarding" ] } } }'
    )
    assert events(line("open", opened)) == [
        Open("10.9.0.2", "10.9.0.2", GracefulRestart(120, {4: True, 6: False}))
    ]
    extended = opened.replace('"64"', '"5": { "name": "nexthop", "conversion": [ "ipv4/unicast/ipv6" ] }, "64"')
    [event] = events(line("open", extended))
    assert isinstance(event, Open)
    assert event.extended_next_hop
    without = opened.partition('"64"')[0].rstrip(", ") + " } }"
    assert events(line("open", without)) == [Open("10.9.0.2", "10.9.0.2", None)]


def test_update_with_routes_and_withdrawals() -> None:
    nlris = '[ { "nlri": "10.244.7.0/24" }, { "nlri": "10.244.8.0/24" } ]'
    [event] = update(
        f'"attribute": {{ {AS_PATH}, "med": 7 }}, ',
        f'"announce": {{ "ipv4 unicast": {{ "10.9.0.2": {nlris} }} }}, '
        '"withdraw": { "ipv4 unicast": [ { "nlri": "10.244.9.0/24" } ] }',
    )
    path = Path("10.9.0.2", (65000, 65010), 2, 0, 7)
    assert event == Update(
        "10.9.0.2", (("10.244.7.0/24", path), ("10.244.8.0/24", path)), (Nlri("10.244.9.0/24"),)
    )


def test_ipv6_route_with_two_next_hops_takes_the_global_one() -> None:
    nlri = '[ { "nlri": "fd44:8::/64" } ]'
    for hops in (("fd09::2", "fe80::1"), ("fe80::1", "fd09::2")):
        pairs = ", ".join(f'"{hop}": {nlri}' for hop in hops)
        [event] = update(EMPTY_PATH, f'"announce": {{ "ipv6 unicast": {{ {pairs} }} }}', WHO6)
        assert event == Update("fd09::2", (("fd44:8::/64", Path("fd09::2")),), ())


@pytest.mark.parametrize("hop", ["fe80::1", "::", "null", "10.9.0.2", "ff02::1", "::1"])
def test_announcement_without_usable_next_hop_replaces_the_one_before(hop: str) -> None:
    [event] = update(
        EMPTY_PATH, f'"announce": {{ "ipv6 unicast": {{ "{hop}": [ {{ "nlri": "fd44:8::/64" }} ] }} }}', WHO6
    )
    assert event == Update("fd09::2", (), (Nlri("fd44:8::/64"),))


def test_as_sets_count_as_one_and_confederations_not_at_all() -> None:
    segments = [("as-confed-sequence", [64512]), ("as-sequence", [65000, 65002]), ("as-set", [7, 8, 9])]
    path = json.dumps({str(i): {"element": kind, "value": value} for i, (kind, value) in enumerate(segments)})
    [event] = update(
        f'"attribute": {{ "origin": "incomplete", "as-path": {path}, "local-preference": 150 }}, ',
        '"announce": { "ipv4 unicast": { "10.9.0.2": [ { "nlri": "10.244.7.0/24" } ] } }',
    )
    expected = Path("10.9.0.2", (64512, 65000, 65002, 7, 8, 9), 3, 2, 0, 150, confederation=True)
    assert event.announced[0][1] == expected


def test_malformed_attributes_are_told_and_their_routes_withdrawn() -> None:
    found = update(
        '"attribute": { "origin": "igp", "error": "treat-as-withdraw" }, ',
        '"withdraw": { "ipv4 unicast": [ { "nlri": "10.244.7.0/24" } ] }',
    )
    assert found == [
        MalformedUpdate("10.9.0.2", "treat-as-withdraw"),
        Update("10.9.0.2", (), (Nlri("10.244.7.0/24"),)),
    ]


def test_both_families_on_one_session() -> None:
    six = '"ipv6 unicast": { "fd09::2": [ { "nlri": "fd44:8::/64" } ] }'
    nlri = '[ { "nlri": "10.244.8.0/24" } ]'
    four = f'"ipv4 unicast": {{ "fd09::2": {nlri}, "fe80::2": {nlri} }}'
    flow = '"ipv4 flow": { "10.9.0.2": [ { "nlri": "10.244.9.0/24" } ] }'
    [event] = update(EMPTY_PATH, f'"announce": {{ {six}, {four}, {flow} }}')
    assert {prefix: path.next_hop for prefix, path in event.announced} == {
        "10.244.8.0/24": "fd09::2",  # RFC 8950
        "fd44:8::/64": "fd09::2",
    }


def test_an_ipv6_prefix_has_no_ipv4_next_hop() -> None:
    [event] = update(EMPTY_PATH, '"announce": { "ipv6 unicast": { "10.9.0.2": [ { "nlri": "fd44:8::/64" } ] } }')
    assert (event.announced, event.withdrawn) == ((), (Nlri("fd44:8::/64"),))


@pytest.mark.parametrize(
    "listed", [("fd09::2", "fe80::2"), ("fe80::2", "fd09::2"), ("fe80::2",), ("::", "fe80::2")]
)
def test_a_link_local_peer_has_a_link_local_next_hop(listed: tuple[str, ...]) -> None:
    hops = ", ".join(f'"{hop}": [ {{ "nlri": "10.244.8.0/24" }} ]' for hop in listed)
    content = (
        f'"direction": "receive", "message": {{ "update": {{ {EMPTY_PATH}'
        f'"announce": {{ "ipv4 unicast": {{ {hops} }} }} }} }}'
    )
    told = line("update", content).replace(b"10.9.0.2", b"fe80::2%eth0").replace(b"10.9.0.1", b"fe80::1")
    [event] = events(told)
    assert isinstance(event, Update)
    assert [path.next_hop for _, path in event.announced] == ["fe80::2"]


def test_end_of_rib_refresh_and_notification() -> None:
    eor = '"direction": "receive", "message": { "eor": { "afi" : "%s", "safi" : "unicast" } }'
    refresh = '"direction": "receive", "route-refresh": { "afi": "ipv4", "safi": "unicast", "subtype": "%s" }'
    notification = (
        '"direction": "receive", "notification": { "code": 6, "subcode": 2, "data": "", "message": "bye" }'
    )
    assert events(
        line("update", eor % "ipv4", counter=1),
        line("update", eor % "ipv6", counter=2),
        line("refresh", refresh % "begin", counter=3),
        line("refresh", refresh % "query", counter=4),
        line("refresh", refresh % "end", counter=5),
        line("notification", notification, counter=6),
    ) == [
        EndOfRib("10.9.0.2", 4),
        EndOfRib("10.9.0.2", 6),
        Refresh("10.9.0.2", 4, begin=True),
        Refresh("10.9.0.2", 4, begin=False),
        Notified("10.9.0.2", 6, 2, "bye"),
    ]


def test_gap_in_the_counter_of_one_peer() -> None:
    up = '"state": "connected"'
    assert events(
        line("state", up, counter=5),
        line("state", up, counter=2, who=WHO6),
        line("state", up, counter=6),
        line("state", up, counter=4, who=WHO6),
        line("state", up, counter=1),  # a reload
        line("state", up, counter=2),
    ) == [Gap("fd09::2")]


def test_output_and_answers_go_with_their_commands() -> None:
    connection = Connection()
    for command in (protocol.SHOW_RIB_OUT, protocol.SHOW_RIB_IN, "neighbor 10.9.0.2 announce eor ipv4 unicast"):
        connection.command(command)
    assert connection.data_to_send().count(b"\n") == connection.pending == 3
    entry = (
        b'{"peer": {"address": "10.9.0.2"}, "route": {"nlri": {"prefix": "10.244.7.0/24", "nexthop": "10.9.0.2", '
        b'"family": {"afi": "ipv4", "safi": "unicast"}}, "attributes": {"origin": "igp", "as-path": {}}}}\n'
    )
    found = list(
        connection.receive(entry + b"done\n" + line("state", '"state": "up"') + entry + b"done\nerror\n")
    )
    path = Path("10.9.0.2")
    assert found == [
        RibEntry("10.9.0.2", "10.244.7.0/24", None, True, Announcement("10.244.7.0/24", next_hop="10.9.0.2")),
        Answered(protocol.SHOW_RIB_OUT, ok=True),
        Up("10.9.0.2"),
        RibEntry("10.9.0.2", "10.244.7.0/24", path, outgoing=False),
        Answered(protocol.SHOW_RIB_IN, ok=True),
        Answered("neighbor 10.9.0.2 announce eor ipv4 unicast", ok=False),
    ]
    assert connection.pending == connection.ignored == 0
    assert list(connection.receive(b"done\n")) == []
    assert connection.ignored == 1


def test_commands_are_sent_a_few_at_a_time() -> None:
    connection = Connection()
    for number in range(10):
        connection.command(f"# {number}")
    sent = connection.data_to_send()
    assert 0 < sent.count(b"\n") < 10
    while connection.pending:
        list(connection.receive(b"done\n"))
        sent += connection.data_to_send()
    assert sent == b"".join(b"# %d\n" % number for number in range(10))


def test_commands() -> None:
    prefixes = [f"10.244.{i}.0/24" for i in range(100)]
    lines = list(protocol.announce("10.9.0.2", map(Announcement, prefixes)))
    assert len(lines) > 1
    assert all(one.startswith("neighbor 10.9.0.2 announce attributes next-hop self nlri ") for one in lines)
    assert sorted(word for one in lines for word in one.split()[7:]) == sorted(prefixes)
    assert list(protocol.withdraw("fd09::2", [Announcement("fd44:1::/64")])) == [
        "neighbor fd09::2 withdraw attributes next-hop self nlri fd44:1::/64"
    ]
    assert list(protocol.announce("10.9.0.2", [])) == []
    assert list(protocol.announce("fd09::2", [Announcement("10.244.1.0/24", next_hop="fd09::1")])) == [
        "neighbor fd09::2 announce attributes next-hop fd09::1 nlri 10.244.1.0/24"
    ]
    assert protocol.end_of_rib("fd09::2", 6) == "neighbor fd09::2 announce eor ipv6 unicast"
    assert protocol.route_refresh("fd09::2", 4) == "neighbor fd09::2 announce route-refresh ipv4 unicast"
    with pytest.raises(ValueError, match="not one line"):
        Connection().command("show neighbor\nshutdown")


GOOD = line("state", '"state": "up"')
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    ["neighbor", "route", "peer", "type", "counter", "message", "update", "announce", "open"]
)


@given(
    st.lists(
        st.binary(max_size=60).map(lambda data: data.replace(b"\n", b" "))
        | json_values.map(lambda value: json.dumps(value).encode())
        | st.dictionaries(fields, json_values, max_size=4).map(lambda value: json.dumps(value).encode()),
        max_size=5,
    )
)
def test_rubbish_is_counted_and_never_raises(rubbish: list[bytes]) -> None:
    connection = Connection()
    found = [event for one in rubbish for event in connection.receive(one + b"\n")]
    assert not any(isinstance(event, Up | Down | Update) for event in found)
    assert list(connection.receive(GOOD)) == [Up("10.9.0.2")], "the stream is still good"


@given(st.lists(st.integers(1, 60), max_size=20))
def test_any_chunks_give_the_same_events(sizes: list[int]) -> None:
    stream = GOOD + b"done\n" + line("state", '"state": "down", "reason": "x"', counter=2)
    connection = Connection()
    found: list[Event] = []
    connection.command("# x")
    connection.data_to_send()
    for size in sizes:
        found += connection.receive(stream[:size])
        stream = stream[size:]
    found += connection.receive(stream)
    assert found == [Up("10.9.0.2"), Answered("# x", ok=True), Down("10.9.0.2", "x")]
