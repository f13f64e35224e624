"""Codes of NOTIFICATIONs in words."""

from __future__ import annotations

import pytest

from bgp.notification import explained, words


@pytest.mark.parametrize(
    ("code", "subcode", "text"),
    [
        (6, 2, "6/2 Cease: Administrative Shutdown"),
        (2, 2, "2/2 OPEN Message Error: Bad Peer AS"),
        (4, 0, "4/0 Hold Timer Expired"),
        (6, 200, "6/200 Cease"),
        (99, 1, "99/1"),
    ],
)
def test_words(code: int, subcode: int, text: str) -> None:
    assert words(code, subcode) == text


@pytest.mark.parametrize(
    ("reason", "said", "text"),
    [
        ("notification received (6,2)", "", "notification received 6/2 Cease: Administrative Shutdown"),
        (
            "notification received (6,2)",
            "back at noon",
            "notification received 6/2 Cease: Administrative Shutdown: back at noon",
        ),
        ("notification sent (4,0)", "", "notification sent 4/0 Hold Timer Expired"),
        ("peer reset", "of another session", "peer reset"),
        ("", "", ""),
    ],
)
def test_what_exabgp_says(reason: str, said: str, text: str) -> None:
    assert explained(reason, said) == text
