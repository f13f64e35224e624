"""The streams of tests on a cluster: a program that stands still is told apart from a network that is slow."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.cluster.traffic import PORT, Place, Stream, Traffic
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

STALL = 2.0


def test_a_stall_of_the_program_is_told_and_loses_nothing() -> None:
    here = Place("here", Path(f"/proc/{os.getpid()}/ns/net"))
    streams = [Stream(kind, here, "127.0.0.1", PORT, "here") for kind in ("udp", "tcp", "connect")]
    with Traffic(streams, [here], rate=200) as traffic:
        eventually(lambda: all(stream.answered for stream in streams), 60)
        traffic._loop.call_soon_threadsafe(time.sleep, STALL)
        before = [stream.sent for stream in streams]
        eventually(lambda: all(stream.sent > sent + 1 for stream, sent in zip(streams, before, strict=True)), 60)
    assert all(stream.well for stream in streams), traffic.report()
    assert "stood still" in traffic.report()


def test_long_turns_of_the_loop_queue_no_datagrams_up() -> None:
    """On a machine under load: what one turn leaves in a socket is late, and more so from turn to turn."""
    here = Place("here", Path(f"/proc/{os.getpid()}/ns/net"))
    streams = [Stream("udp", here, "127.0.0.1", PORT, "here") for _ in range(12)]

    with Traffic(streams, [here], rate=3000) as traffic:

        def take_long() -> None:
            time.sleep(0.02)
            traffic._loop.call_soon(take_long)

        traffic._loop.call_soon_threadsafe(take_long)
        eventually(lambda: traffic.streams[0].sent > 30, 60)
        sent, answered = sum(one.sent for one in streams), sum(one.answered for one in streams)
    assert sent - answered < sent / 3, traffic.report()
    assert all(stream.well for stream in streams), traffic.report()
