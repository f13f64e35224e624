"""A table of connections that is full is said, and taken back once there is room again."""

from __future__ import annotations

from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from felix_py.observe.connections import Connections


def test_it_is_said_once_and_taken_back_once_there_is_room() -> None:
    notices, shares = Notices(Metrics()), [0.5, 0.96, 1.0, 0.92, 0.89]
    told = Connections(notices, lambda: shares[0])
    kinds = []
    while shares:
        told.look()
        kinds.append([notice.kind for notice in notices.all()])
        del shares[0]
    full = [NoticeKind.CONNECTIONS_FULL]
    assert kinds == [[], full, full, full, []]
