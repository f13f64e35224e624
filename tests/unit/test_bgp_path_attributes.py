"""Path attributes as ExaBGP 5.0 writes them, in events and in listings of its tables, and absurd ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.announcement import Announcement
from bgp.attributes import MOST, Malformed, received, sent, words
from bgp.decision import Path
from bgp.events import Event, Update
from bgp.protocol import Connection

# As `"attribute"` of an update, and as `"attributes"` of a line of `show adj-rib in json`.
IN_AN_EVENT = """{"origin": "egp", "as-path": {"0": {"element": "as-sequence", "value": [65000, 65010]},
 "1": {"element": "as-set", "value": [7, 8]}}, "med": 5, "local-preference": 150, "atomic-aggregate": true,
 "aggregator": "65000:192.0.2.1", "community": [ [ 65535, 65281 ], [ 65000, 1 ] ],
 "large-community": [ [ 65000, 1 , 2 ] ], "originator-id": "192.0.2.1", "cluster-list": [ "1.1.1.1", "2.2.2.2" ],
 "extended-community": [ { "value": 0, "string": "target:1:1" } ], "attribute-0x63-0xC0": "0x00"}"""
IN_A_TABLE = """{"origin": "egp", "as-path": {"0": {"element": "as-sequence", "value": [65000, 65010]},
 "1": {"element": "as-set", "value": [7, 8]}}, "med": 5, "local-preference": 150,
 "community": ["no-export", "65000:1"], "large-community": ["65000:1:2"], "originator-id": "192.0.2.1",
 "cluster-list": ["1.1.1.1", "2.2.2.2"]}"""


@pytest.mark.parametrize("text", [IN_AN_EVENT, IN_A_TABLE], ids=["event", "table"])
def test_all_that_counts(text: str) -> None:
    assert received("10.9.0.2", json.loads(text)) == Path(
        "10.9.0.2",
        (65000, 65010, 7, 8),
        3,
        1,
        5,
        150,
        communities=("65000:1", "65535:65281"),
        large_communities=("65000:1:2",),
        originator_id="192.0.2.1",
        cluster_list=("1.1.1.1", "2.2.2.2"),
    )


announcements = st.builds(
    Announcement,
    prefix=st.just("10.244.1.0/24"),
    as_path=st.lists(st.integers(1, 2**32 - 1), max_size=3).map(tuple),
    origin=st.integers(0, 2),
    med=st.none() | st.integers(0, 2**32 - 1),
    local_preference=st.none() | st.integers(0, 2**32 - 1),
    communities=st.sets(st.sampled_from(["65000:1", "65535:0", "65535:65281", "65535:666"]))
    .map(sorted)
    .map(tuple),
    large_communities=st.sets(st.sampled_from(["1:2:3", "4294967295:0:1"])).map(sorted).map(tuple),
    originator_id=st.sampled_from(["", "192.0.2.1"]),
    cluster_list=st.lists(st.sampled_from(["1.1.1.1", "2.2.2.2"]), max_size=2).map(tuple),
)
NAMES = {"65535:65281": "no-export", "65535:666": "blackhole"}


def listed(command: str) -> dict[str, Any]:
    """The words of a command as `show adj-rib out json` shows them later."""
    found: dict[str, Any] = {}
    parts = command.split()
    while parts:
        name, value = parts.pop(0), parts.pop(0)
        if value == "[":
            end = parts.index("]")
            values, parts = parts[:end], parts[end + 1 :]
            if name == "as-path":
                found[name] = {"0": {"element": "as-sequence", "value": [int(v) for v in values]}}
            else:
                found[name] = [NAMES.get(v, v) for v in values]
        else:
            found[name] = int(value) if name in ("med", "local-preference") else value
    return found


@given(announcements, st.sampled_from([0, 65001]))
def test_what_is_announced_is_read_back(announcement: Announcement, own_asn: int) -> None:
    attributes = listed(words(announcement, own_asn))
    read = sent(announcement.prefix, attributes.pop("next-hop"), attributes)
    ours = (own_asn,) if own_asn and announcement.as_path else ()
    assert read.as_path == ours + announcement.as_path
    for name in Announcement.__slots__:
        if name != "as_path":
            assert getattr(read, name) == getattr(announcement, name), name


# --- absurd ----------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"origin": "igp", "as-path": {"0": {"element": "as-sequence", "value": [65000]}}}
ABSURD: dict[str, Any] = {
    "origin": "what",
    "as-path": {"0": {"element": "as-sequence", "value": [65000] * 10_000}},
    "as-path in segments": {str(n): {"element": "as-sequence", "value": [65000] * 100} for n in range(20)},
    "as-path with AS 0": {"0": {"element": "as-sequence", "value": [65000, 0]}},
    "community": [[65000, n] for n in range(1000)],
    "large-community": [[65000, n, 1] for n in range(1000)],
    "cluster-list": [f"10.0.{n // 256}.{n % 256}" for n in range(1000)],
}


def update(attributes: dict[str, Any]) -> list[Event]:
    neighbor = {
        "address": {"local": "10.9.0.1", "peer": "10.9.0.2"},
        "direction": "receive",
        "message": {
            "update": {
                "attribute": attributes,
                "announce": {"ipv4 unicast": {"10.9.0.2": [{"nlri": "10.244.7.0/24"}]}},
                "withdraw": {"ipv4 unicast": [{"nlri": "10.244.8.0/24"}]},
            }
        },
    }
    line = json.dumps({"exabgp": "5.0.0", "counter": 1, "type": "update", "neighbor": neighbor})
    return list(Connection().receive(line.encode() + b"\n"))


@pytest.mark.parametrize("name", ABSURD)
def test_rfc7606_a_route_with_absurd_attributes_is_as_if_withdrawn(name: str) -> None:
    attributes = GOOD | {name.partition(" ")[0]: ABSURD[name]}
    with pytest.raises(Malformed):
        received("10.9.0.2", attributes)
    [event] = update(attributes)
    assert isinstance(event, Update)
    assert event.announced == ()
    assert sorted(n.prefix for n in event.withdrawn) == ["10.244.7.0/24", "10.244.8.0/24"]


def test_as_many_as_may_be() -> None:
    most = {
        "origin": "igp",
        "as-path": {"0": {"element": "as-sequence", "value": [65000] * MOST}},
        "community": [[65000, n] for n in range(MOST)],
    }
    [event] = update(most)
    assert isinstance(event, Update)
    [(_, path)] = event.announced
    assert (path.as_path_length, len(path.communities)) == (MOST, MOST)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("no-export"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*json.loads(IN_AN_EVENT), "x"]), values, max_size=4))
def test_no_attribute_raises_and_what_is_taken_is_within_bounds(attributes: dict[str, Any]) -> None:
    for event in update(attributes):
        assert isinstance(event, Update)
        for _, path in event.announced:
            assert all(isinstance(asn, int) and 0 <= asn < 2**32 for asn in path.as_path)
            assert all(c.replace(":", "").isdecimal() for c in (*path.communities, *path.large_communities))
            assert max(map(len, (path.as_path, path.communities, path.cluster_list))) <= MOST
