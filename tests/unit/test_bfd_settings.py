"""What the agent tells the BFD process and hears of it, and when that process takes too much of a core."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.bfd import settings
from bgp.bfd.priority import Cost
from bgp.bfd.session import Path
from bgp.bfd.settings import Report, Wanted
from bgp.model import Peer, SpeakerConfig
from bgp.render import render
from bgp.resources import Bfd

COUNT = st.integers(0, 2**40 - 1)
WORD = st.sampled_from(["UP", "DOWN", "INIT", "ADMIN_DOWN"])
REPORTS = st.builds(
    Report,
    peer=st.sampled_from(["10.9.0.2", "fd09::2", "fe80::2"]),
    interface=st.sampled_from(["", "eth0"]),
    path=st.sampled_from(Path),
    age=st.floats(0, 1e9),
    state=WORD,
    remote_state=WORD,
    diagnostic=st.integers(0, 31),
    remote_diagnostic=st.integers(0, 31),
    independent=st.booleans(),
    transmit_interval=COUNT,
    detection_time=COUNT,
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def peer(address: str, source: str, bfd: Bfd | None, **fields: object) -> Peer:
    return Peer(address=address, source_address=source, asn=1, local_asn=2, bfd=bfd, **fields)  # type: ignore[arg-type]


def test_the_sessions_of_a_configuration() -> None:
    peers = [
        peer("10.9.0.2", "10.9.0.1", Bfd()),
        peer("10.9.0.2", "10.9.0.1", Bfd(), port=1179),
        peer("10.9.0.3", "10.9.0.1", None),
        peer("10.20.0.2", "10.9.0.1", Bfd(interval=1000, detect_multiplier=5, multihop=True), ttl_security=3),
        peer("10.20.0.3", "10.9.0.1", Bfd(multihop=True)),
        peer("fd09::2", "fd09::1", Bfd(), interface="eth1"),
        peer("fe80::2", "fe80::1", Bfd(), interface="eth0"),
    ]
    text = render(SpeakerConfig(asn=2, router_id="10.9.0.1"), peers)
    one = {"interval": 300, "detect_multiplier": 3, "multihop": False, "least_ttl": 255}
    several = {**one, "multihop": True}
    assert settings.parse(text) == (
        Wanted(peer="10.9.0.2", source="10.9.0.1", **one),  # type: ignore[arg-type]
        Wanted(
            peer="10.20.0.2",
            source="10.9.0.1",
            interval=1000,
            detect_multiplier=5,
            multihop=True,
            least_ttl=253,
        ),
        Wanted(peer="10.20.0.3", source="10.9.0.1", **{**several, "least_ttl": 1}),  # type: ignore[arg-type]
        Wanted(peer="fd09::2", source="fd09::1", **one),  # type: ignore[arg-type]
        Wanted(peer="fe80::2", source="fe80::1", interface="eth0", **one),  # type: ignore[arg-type]
    )


def test_no_sessions() -> None:
    assert not settings.parse(
        render(SpeakerConfig(asn=2, router_id="10.9.0.1"), [peer("10.9.0.2", "10.9.0.1", None)])
    )


@given(REPORTS)
def test_a_report_is_heard_as_it_was_told(report: Report) -> None:
    assert settings.decode(settings.encode(report)) == report


@given(REPORTS, st.data())
def test_any_other_line_is_none(report: Report, data: st.DataObject) -> None:
    fields = json.loads(settings.encode(report))
    name = data.draw(st.sampled_from(sorted(fields)))
    for line in (
        data.draw(st.binary(max_size=40)),
        json.dumps(data.draw(ANY)).encode(),
        json.dumps({**fields, name: data.draw(ANY)}).encode(),
        json.dumps({other: value for other, value in fields.items() if other != name}).encode(),
    ):
        heard = settings.decode(line)
        assert heard is None or isinstance(heard.path, Path)


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"age": NaN}', b"", b"{}", b"\xff"])
def test_lines_that_are_none(line: bytes) -> None:
    assert settings.decode(line) is None


def test_the_cost_of_a_second() -> None:
    cost = Cost(10.0)
    assert not cost.is_too_much(10.9, 0.9)
    assert cost.is_too_much(11.0, 0.9)
    assert not cost.is_too_much(12.0, 1.3)
