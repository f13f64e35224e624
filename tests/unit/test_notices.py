"""Notices: what holds, told once."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import cast

import structlog
from structlog.testing import capture_logs

from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices


class _Kind(enum.StrEnum):
    RENAMED = "renamed"
    CLAIMED = "claimed"


RENAMED, CLAIMED = cast("NoticeKind", _Kind.RENAMED), cast("NoticeKind", _Kind.CLAIMED)


def count(metrics: Metrics, kind: NoticeKind) -> float | None:
    return metrics.registry.get_sample_value("felix_py_notices", {"kind": kind.value})


def test_what_holds_is_logged_once_and_counted_until_it_is_over() -> None:
    structlog.reset_defaults()
    metrics = Metrics()
    with capture_logs() as lines:
        notices = Notices(metrics)
        notices.say(RENAMED, "felix0", "felix0 is called eth9 now")
        notices.say(RENAMED, "felix0", "felix0 is called eth9 now")
        notices.say(CLAIMED, "10.0.0.1", "two pods claim 10.0.0.1")
        assert [notice.subject for notice in notices.all()] == ["felix0", "10.0.0.1"]
        assert count(metrics, RENAMED) == 1
        notices.clear(RENAMED, "felix0")
        notices.clear(RENAMED, "felix0")
    assert [line["log_level"] for line in lines] == ["warning", "warning", "info"]
    assert count(metrics, RENAMED) == 0
    assert count(metrics, CLAIMED) == 1


def test_replacing_a_kind_ends_what_is_not_named_and_leaves_other_kinds() -> None:
    notices = Notices(Metrics())
    notices.say(CLAIMED, "10.0.0.1", "two pods claim 10.0.0.1")
    notices.replace(RENAMED, {"a": "1", "b": "2"})
    notices.replace(RENAMED, {"b": "3"})
    assert [(notice.subject, notice.text) for notice in notices.all()] == [
        ("10.0.0.1", "two pods claim 10.0.0.1"),
        ("b", "3"),
    ]


def test_notices_of_one_kind_are_bounded() -> None:
    notices = Notices(Metrics())
    for number in range(3000):
        notices.say(CLAIMED, str(number), "two pods claim it")
    assert len(notices.all()) == 1000


def test_the_operators_page_says_what_to_do_about_each() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    section = page.partition("## Notices")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| .+ \|$", section, re.MULTILINE)
    assert sorted(set(rows) - {"kind"}) == sorted(kind.value for kind in NoticeKind)
