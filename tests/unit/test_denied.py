"""What ``felix-py denies`` prints of events."""

from __future__ import annotations

from typing import Any

from felix_py.cli.denied import by_pair, line, wide

WEB = {"address": "10.1.0.2", "pod": "shop/web-1", "port": 40000}
DB = {"address": "10.1.0.3", "pod": "shop/db-1", "port": 5432}
WORLD = {"address": "192.0.2.9", "port": 80}


def event(**more: Any) -> dict[str, Any]:
    plain = {
        "id": 1,
        "time": "2001-02-03T12:00:00.000Z",
        "until": "2001-02-03T12:00:01.000Z",
        "count": 1,
        "reason": "isolated",
        "direction": "ingress",
        "message": "isolated by NetworkPolicy shop/db (ingress); none of its rules allows it",
        "source": WEB,
        "destination": DB,
        "protocol": "TCP",
        "policies": [{"kind": "NetworkPolicy", "namespace": "shop", "name": "db"}],
    }
    return plain | more


def cells(text: str) -> list[str]:
    return [cell.strip() for cell in text.split("  ") if cell.strip()]


def test_equal_pairs_are_one_row_and_the_newest_comes_last() -> None:
    later = {"until": "2001-02-03T13:00:00.000Z"}
    rows = by_pair([event(count=3, **later), event(destination=WORLD), event(count=4)])
    assert cells(rows[0]) == ["LAST", "PACKETS", "FROM", "TO", "PORT", "WHY"]
    assert [cells(row)[1:] for row in rows[1:]] == [
        ["1", "shop/web-1", "192.0.2.9", "80/TCP", "ingress isolated by shop/db"],
        ["7", "shop/web-1", "shop/db-1", "5432/TCP", "ingress isolated by shop/db"],
    ]


def test_nothing_denied_is_no_table() -> None:
    assert by_pair([]) == []


def test_why_names_the_rule_as_explain_does() -> None:
    decider = {"policy": {"kind": "ClusterNetworkPolicy", "name": "guard"}, "rule": 1, "ruleName": "no-metadata"}
    denied = event(reason="policy", direction="egress", decidedBy=decider)
    assert line(denied).endswith(": ClusterNetworkPolicy guard egress[1]")
    two = event(policies=[{"kind": "NetworkPolicy", "namespace": "shop", "name": name} for name in "ab"])
    assert line(two).endswith(": ingress isolated by shop/a and 1 more")
    assert line(event(reason="midstream", direction="")).endswith(": TCP without a beginning")


def test_wide_has_addresses_and_the_agents_words() -> None:
    text = wide(event(count=3))
    assert " DENIED ingress shop/web-1 10.1.0.2 -> shop/db-1 10.1.0.3 5432/TCP x3: isolated by Net" in text


def test_a_narrow_terminal_shortens_the_ends_and_keeps_the_reason() -> None:
    long = {**WEB, "pod": "a-rather-long-namespace/a-deployment-with-a-name-7d9c5b8f6d-x2x4z"}
    rows = by_pair([event(source=long, destination={**long, "port": 443})], 100)
    assert max(map(len, rows)) <= 100
    assert rows[1].endswith("ingress isolated by shop/db")
    assert "a-rath…" in rows[1]
    assert "x2x4z" in rows[1]


def test_whatever_an_agent_answers_is_printed_and_nothing_that_a_terminal_obeys() -> None:
    for odd in ({}, event(source=None, until=None, count="many", policies=[{}]), event(protocol="\x1b[31m")):
        assert all(text.isprintable() for text in (*by_pair([odd], 80), line(odd), wide(odd)))
