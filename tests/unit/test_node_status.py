"""Whether a node is well: what is said of an agent's answer."""

from __future__ import annotations

from typing import Any

import pytest

from felix_py.diagnose.node_status import as_json, read, text


def answer(**more: Any) -> dict[str, Any]:
    well = {
        "node": "node1",
        "unready": None,
        "configuration": {"backend": "nft", "families": [4, 6]},
        "podCIDRs": ["10.244.1.0/24"],
        "endpoints": 6,
        "uptimeSeconds": 7300.0,
        "comparedAgeSeconds": 41.2,
        "denyLog": {"state": "on", "reason": None},
        "notices": [],
        "failures": [],
        "watchAgeSeconds": {"pods": 3.0, "nodes": 40.0},
        "problems": [],
        "peers": [{"address": "192.0.2.1", "asNumber": 65000, "established": True, "reason": ""}],
        "routes": {"10.244.2.0/24": ["192.0.2.1"]},
    }
    return well | more


def test_a_node_that_is_well() -> None:
    found = read(answer())
    assert found.fine
    assert text(found) == [
        "node1: fine",
        "  agent     ready, policy is in force; 6 pods; iptables nft; IPv4 and IPv6; 10.244.1.0/24; up 2h",
        "  kernel    compared 41s ago; nothing failed",
        "  cluster   last heard of pods 3s ago",
        "  bgp       1 of 1 peer established; 1 route",
        "  deny log  on",
    ]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"unready": "this node has no podCIDRs yet"}, "not ready: this node has no podCIDRs yet"),
        ({"failures": [{"what": "set x", "reason": "full"}]}, "cannot write to the kernel: set x: full"),
        (
            {"notices": [{"kind": "k", "subject": "s", "text": "felix0 is called eth9 now"}]},
            "felix0 is called eth9",
        ),
        ({"watchAgeSeconds": {"pods": 400.0, "nodes": 500.0}}, "nothing heard from the API server for 6m"),
        (
            {"watchAgeSeconds": {"Pod": 4.0, "NetworkPolicy": 1500.0}},
            "nothing heard of NetworkPolicy",
        ),
        (
            {"peers": [{"address": "192.0.2.1", "asNumber": 65000, "established": False, "reason": "refused"}]},
            "BGP peer 192.0.2.1 (AS 65000) is down: refused",
        ),
        (
            {"problems": [{"kind": "NetworkPolicy", "namespace": "shop", "name": "p", "reason": "odd"}]},
            "not understood: NetworkPolicy shop/p: odd",
        ),
        ({"configuration": {"restartRequired": ["mtu"]}}, "changed settings wait for a restart: mtu"),
        ({"denyLog": {"state": "unavailable", "reason": "group 88 is taken"}}, "not logged: group 88 is taken"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_problem_is_said_and_makes_the_node_unwell(more: dict[str, Any], words: str) -> None:
    found = read(answer(**more))
    assert not found.fine
    lines = text(found)
    assert lines[0] == "node1: 1 problem"
    assert lines[1].startswith("  ! ")
    assert words in lines[1]
    assert as_json(found)["problems"][0]["what"] == lines[1].removeprefix("  ! ")


def test_many_of_a_kind_are_counted_and_what_to_do_is_said_once() -> None:
    found = read(answer(failures=[{"what": f"set {n}", "reason": "full"} for n in range(30)]))
    lines = text(found)
    assert lines[6] == "  ! cannot write to the kernel: 25 more"
    assert sum("felix-py verify" in line for line in lines) == 1


def test_last_drift_is_a_fact_and_no_problem() -> None:
    found = read(answer(lastDrift={"secondsAgo": 130, "found": ["chain FELIX-INPUT: gone", "set x: gone"]}))
    assert found.fine
    assert "put right 2m ago: chain FELIX-INPUT: gone and 1 more" in found.facts["kernel"]


def test_an_answer_of_another_version_is_no_reason_to_fail() -> None:
    assert read({}).node == "?"


def test_what_was_denied_in_the_last_minute_is_a_fact_and_no_problem() -> None:
    top = [{"source": "shop/web", "destination": "shop/db:5432/TCP", "packets": 9}]
    log = {"state": "on", "reason": None, "lastMinute": {"packets": 1200, "pairs": 4, "top": top}}
    found = read(answer(denyLog=log))
    assert found.fine
    told = "on; 1,200 packets denied in the last minute: shop/web -> shop/db:5432/TCP (9) and 3 more pairs"
    assert found.facts["deny log"] == told
    quiet = {"state": "on", "reason": None, "lastMinute": {"packets": 0, "pairs": 0, "top": []}}
    assert read(answer(denyLog=quiet)).facts["deny log"] == "on; nothing denied in the last minute"
