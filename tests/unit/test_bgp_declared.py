"""What the API declares, and what stays in force where something of it cannot be used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given as drawn
from hypothesis import strategies as st

from bgp import parse
from bgp.declared import Declared, Given, Unreadable, Verdict
from bgp.model import Peer
from bgp.node import bgp_node
from bgp.resources import BGPNode, Problem, SecretKey

N1, N2 = BGPNode(name="n1", addresses=("10.0.0.11",)), BGPNode(name="n2", addresses=("10.0.0.12",))
TOR: dict[str, Any] = {"peerIP": "10.0.0.1", "asNumber": 65000}
DEFAULT: dict[str, Any] = {"asNumber": 64512, "nodeToNodeMeshEnabled": False}
SECRET = {"password": {"secretKeyRef": {"name": "s", "key": "tor"}}}
KEY = SecretKey("s", "tor")


def said(
    peers: dict[str, Any] | None = None,
    default: Any = None,
    filters: dict[str, Any] | None = None,
    secrets: dict[str, Any] | None = None,
    nodes: tuple[BGPNode, ...] = (N1, N2),
    **configurations: Any,
) -> Given:
    named = {name.replace("_", "."): spec for name, spec in configurations.items()}
    return Given(
        specs={
            parse.CONFIGURATION: {"default": DEFAULT if default is None else default, **named},
            parse.PEER: {} if peers is None else peers,
            parse.FILTER: filters or {},
        },
        nodes={node.name: node for node in nodes},
        secrets=secrets or {},
    )


def declared(specs: Any = None, passwords: Any = None) -> Declared:
    return Declared("n1", specs or {}, passwords or {})


def sessions(verdict: Verdict) -> dict[str, Peer]:
    assert verdict.speaker is not None
    return {peer.address: peer for peer in verdict.speaker.peers}


def reasons(verdict: Verdict) -> list[str]:
    return [f"{one.kind} {one.name} {one.field}: {one.reason}" for one in verdict.problems]


def test_nothing_declared_is_no_speaker() -> None:
    verdict = declared().review(Given(specs={}, nodes={"n1": N1}))
    assert verdict == Verdict(None, (), frozenset())


def test_a_peer_comes_changes_and_goes() -> None:
    it = declared()
    assert sessions(it.review(said({"tor": TOR})))["10.0.0.1"].asn == 65000
    assert sessions(it.review(said({"tor": {**TOR, "asNumber": 65001}})))["10.0.0.1"].asn == 65001
    assert sessions(it.review(said())) == {}
    assert it.specs[parse.PEER] == {}


def test_a_field_of_a_later_version_ends_no_session() -> None:
    """As after going back: the object has the field, and the agent what its later version has kept on disk."""
    later = {"tor": {**TOR, "shutdownMessage": "bye"}}
    unknown = ["BGPPeer tor shutdownMessage: this version does not know the field"]
    further = "BGPConfiguration default logLevel: this version does not know the field"
    for it in (declared({parse.PEER: later}), declared()):
        for _ in range(2):
            verdict = it.review(said(later))
            assert sessions(verdict)["10.0.0.1"].asn == 65000
            assert reasons(verdict) == unknown
    # It is no reason for passing over what else has changed.
    verdict = it.review(said({"tor": {**later["tor"], "asNumber": 65001}}, {**DEFAULT, "logLevel": "x"}))
    assert sessions(verdict)["10.0.0.1"].asn == 65001
    assert reasons(verdict) == [further, *unknown]


def test_a_peer_that_cannot_be_used_stays_as_it_was_or_is_left_out() -> None:
    it = declared()
    before = sessions(it.review(said({"tor": TOR})))
    wrong = {"tor": {**TOR, "asNumber": 0, "holdTime": "9s"}, "new": {"peerIP": "x"}}
    verdict = it.review(said(wrong))
    assert sessions(verdict) == before
    assert reasons(verdict) == [
        "BGPPeer new peerIP: 'x' is not an IP address; it is not used",
        "BGPPeer tor asNumber: 0 is not in 1 to 4294967295; what was there before stays in force",
    ]
    assert it.specs[parse.PEER] == {"tor": TOR}
    # A later life of the agent knows it, too; what is deleted is gone all the same.
    later = declared(it.specs)
    assert sessions(later.review(said(wrong))) == before
    assert sessions(later.review(said())) == {}


def test_an_object_that_cannot_be_read() -> None:
    it = declared()
    before = it.review(said({"tor": TOR}))
    verdict = it.review(said({"tor": Unreadable("no JSON")}))
    assert verdict.speaker == before.speaker
    assert reasons(verdict) == ["BGPPeer tor spec: no JSON; what was there before stays in force"]


def test_a_configuration_of_this_node_that_never_was_good_decides_nothing() -> None:
    it = declared()
    assert not it.review(said({"tor": TOR}, {"asNumber": 0})).certain
    assert it.review(said({"tor": TOR})).certain
    assert not it.review(said({"tor": TOR}, node_n1={"listenPort": 0})).certain
    kept = it.review(said({"tor": TOR}, {"asNumber": -1}))
    assert (kept.certain, kept.speaker) == (True, it.review(said({"tor": TOR})).speaker)


def test_a_configuration_of_another_node_ends_sessions_with_that_one_only() -> None:
    mesh = {"asNumber": 64512}
    it = declared()
    assert sessions(it.review(said({"tor": TOR}, mesh))).keys() == {"10.0.0.1", "10.0.0.12"}
    assert sessions(it.review(said({"tor": TOR}, mesh, node_n2={"asNumber": 0}))).keys() == {"10.0.0.1"}


def test_a_filter_that_is_gone_stays_while_a_peer_names_it() -> None:
    it = declared()
    rules = {"exportV4": [{"action": "Reject"}]}
    peers = {"tor": {**TOR, "filters": ["f"]}}
    verdict = it.review(said(peers))
    assert sessions(verdict) == {}
    assert any("filters" in one for one in reasons(verdict))
    before = sessions(it.review(said(peers, filters={"f": rules})))
    assert len(before["10.0.0.1"].filters[0].export_v4) == 1
    verdict = it.review(said(peers))
    assert sessions(verdict) == before
    assert reasons(verdict) == ["BGPPeer tor filters: BGPFilter f is gone; what was there before stays in force"]
    assert sessions(it.review(said({"tor": TOR})))["10.0.0.1"].filters == ()
    assert it.specs[parse.FILTER] == {}


def test_a_filter_that_comes_after_the_peer_that_names_it() -> None:
    """``kubectl apply`` of both: the session that there is must not end for it."""
    it = declared()
    before = sessions(it.review(said({"tor": TOR})))
    peers = {"tor": {**TOR, "filters": ["f"]}}
    verdict = it.review(said(peers))
    assert sessions(verdict) == before
    assert reasons(verdict) == [
        "BGPPeer tor filters: there is no BGPFilter f; what was there before stays in force"
    ]
    verdict = it.review(said(peers, filters={"f": {"exportV4": [{"action": "Reject"}]}}))
    assert len(sessions(verdict)["10.0.0.1"].filters[0].export_v4) == 1
    assert not reasons(verdict)


def test_passwords() -> None:
    it = declared()
    peers = {"tor": {**TOR, **SECRET}, "other": {"peerIP": "10.0.0.2", "asNumber": 65000}}
    verdict = it.review(said(peers))
    assert sessions(verdict).keys() == {"10.0.0.2"}
    assert (verdict.wanted, verdict.problems) == (frozenset({"s"}), ())
    assert "Secret s" in reasons(it.review(replace(said(peers), overdue=frozenset({"s"}))))[0]
    verdict = it.review(said(peers, secrets={"s": None}))
    assert sessions(verdict).keys() == {"10.0.0.2"}
    assert ["Secret s" in one for one in reasons(verdict)] == [True]
    verdict = it.review(said(peers, secrets={"s": {"tor": "a b"}}))
    assert "Secret s tor: must not be empty nor hold spaces" in "".join(reasons(verdict))
    verdict = it.review(said(peers, secrets={"s": {"tor": "first"}}))
    assert (sessions(verdict)["10.0.0.1"].password, verdict.problems) == ("first", ())
    other = sessions(verdict)["10.0.0.2"]
    verdict = it.review(said(peers, secrets={"s": {"tor": "second"}}))
    assert sessions(verdict)["10.0.0.1"].password == "second"
    assert sessions(verdict)["10.0.0.2"] == other
    losses: list[dict[str, Any]] = [{"s": None}, {"s": {}}, {"s": {"tor": "a b"}}]
    for lost in losses:
        verdict = it.review(said(peers, secrets=lost))
        assert sessions(verdict)["10.0.0.1"].password == "second"
        assert "Secret s tor: " in reasons(verdict)[0]
        assert reasons(verdict)[0].endswith("; what was there before stays in force")
    # Not read yet, as after a restart.
    later = declared(it.specs, it.passwords)
    assert sessions(later.review(said(peers)))["10.0.0.1"].password == "second"
    assert later.review(said({"other": peers["other"]})).wanted == frozenset()
    assert later.passwords == {}


def test_a_password_that_is_not_known_yet_changes_no_session() -> None:
    it = declared()
    before = sessions(it.review(said({"tor": TOR})))
    with_password = {"tor": {**TOR, **SECRET, "holdTime": "9s"}}
    verdict = it.review(said(with_password))
    assert sessions(verdict) == before
    assert (verdict.wanted, verdict.problems) == (frozenset({"s"}), ())
    overdue = replace(said(with_password), overdue=frozenset({"s"}))
    assert "the Secret s cannot be read" in reasons(it.review(overdue))[0]
    verdict = it.review(said(with_password, secrets={"s": {"other": "x"}}))
    assert sessions(verdict) == before
    assert reasons(verdict) == [
        "BGPPeer tor password: there is no key tor in a Secret s; what was there before stays in force"
    ]
    after = sessions(it.review(said(with_password, secrets={"s": {"tor": "x"}})))["10.0.0.1"]
    assert (after.password, after.hold_time) == ("x", 9)


def test_nodes() -> None:
    it = declared()
    mesh = {"asNumber": 64512}
    before = it.review(said(default=mesh))
    assert sessions(before).keys() == {"10.0.0.12"}
    assert it.review(said(default=mesh, nodes=(N2,))).speaker == before.speaker, "its own object is gone"
    assert sessions(it.review(said(default=mesh, nodes=(N1,)))) == {}
    spoilt, problems = bgp_node("n2", ("10.0.0.12",), {}, {"felixpy.io/as-number": "x"})
    given = Given(said(default=mesh).specs, {"n1": N1, "n2": spoilt}, {"n2": problems})
    verdict = it.review(given)
    assert sessions(verdict) == {}
    assert reasons(verdict) == [
        "Node n2 felixpy.io/as-number: 'x' is not an AS number; the node takes no part in BGP"
    ]


SPECS = st.sampled_from(
    [
        TOR,
        {**TOR, "asNumber": 0},
        {**TOR, "filters": ["f"]},
        {**TOR, **SECRET},
        Unreadable("no"),
        {"peerIP": "10.0.0.2"},
    ]
)
GIVEN = st.builds(
    said,
    st.dictionaries(st.sampled_from(["tor", "p"]), SPECS),
    st.sampled_from([DEFAULT, {"asNumber": 0}, {}]),
    st.sampled_from([{}, {"f": {}}, {"f": {"exportV4": [{"action": "Accept"}]}}, {"f": []}]),
    st.sampled_from([{}, {"s": None}, {"s": {"tor": "one"}}, {"s": {"tor": "two"}}, {"s": {"tor": " "}}]),
)
GOOD = said(
    {"tor": {**TOR, **SECRET, "filters": ["f"]}},
    filters={"f": {"exportV4": [{"action": "Reject"}]}},
    secrets={"s": {"tor": "last"}},
)


@drawn(st.lists(st.tuples(GIVEN, st.booleans()), max_size=5))
def test_whatever_was_before_ends_where_a_fresh_start_does(history: list[tuple[Given, bool]]) -> None:
    it = declared()
    for given, restarts in history:
        if restarts:
            it = declared(it.specs, it.passwords)
        it.review(given)
    assert it.review(GOOD) == declared().review(GOOD)
    assert it.specs == declared_specs()


def declared_specs() -> Any:
    fresh = declared()
    fresh.review(GOOD)
    return fresh.specs


def test_settings_of_a_node() -> None:
    addresses = ("10.0.0.11", "10.0.0.99", "fd00::11")
    assert bgp_node("n1", addresses, {"rack": "r1"}, {})[0] == BGPNode(
        name="n1", addresses=("10.0.0.11", "fd00::11"), labels={"rack": "r1"}
    )
    ours = {
        "felixpy.io/as-number": "1.10",
        "felixpy.io/route-reflector-cluster-id": "244.0.0.1",
        "felixpy.io/router-id": "10.255.0.1",
        "felixpy.io/bgp-ipv4-address": "192.0.2.1",
        "felixpy.io/bgp-ipv6-address": "2001:DB8::1",
    }
    wanted = BGPNode(
        name="n1",
        addresses=("192.0.2.1", "2001:db8::1"),
        as_number=65546,
        cluster_id="244.0.0.1",
        router_id="10.255.0.1",
    )
    assert bgp_node("n1", addresses, {}, ours) == (wanted, ())
    assert bgp_node("n1", addresses, {"felixpy.io/as-number": "7"}, {})[0].as_number == 7
    calicos = {
        "projectcalico.org/ASNumber": "65546",
        "projectcalico.org/RouteReflectorClusterID": "244.0.0.1",
        "projectcalico.org/IPv4Address": "192.0.2.1/24",
        "projectcalico.org/IPv6Address": "2001:db8::1/64",
        "kube-router.io/router.id": "10.255.0.1",
    }
    assert bgp_node("n1", addresses, {}, calicos)[0].as_number is None
    assert bgp_node("n1", addresses, {}, calicos, foreign=True) == (wanted, ())
    routers = {"kube-router.io/node.asn": "65000", "kube-router.io/rr.server": "42"}
    node, _ = bgp_node("n1", addresses, {}, routers | {"felixpy.io/as-number": "1"}, foreign=True)
    assert (node.as_number, node.cluster_id) == (1, "0.0.0.42")


def test_settings_of_a_node_that_cannot_be_used() -> None:
    wrong = {
        "felixpy.io/as-number": "0",
        "felixpy.io/router-id": "x",
        "felixpy.io/bgp-ipv4-address": "fd00::1",
    }
    _, problems = bgp_node("n1", (), {}, wrong)
    assert [(one.field, one.reason) for one in problems] == [
        ("felixpy.io/as-number", "0 is not in 1 to 4294967295"),
        ("felixpy.io/bgp-ipv4-address", "fd00::1 is not an IPv4 address"),
        ("felixpy.io/router-id", "'x' is not of the form 192.0.2.1"),
    ]
    assert all(isinstance(one, Problem) and (one.kind, one.name) == ("Node", "n1") for one in problems)
    assert bgp_node("n1", (), {}, {"felixpy.io/router-id": "hash"})[0].router_id.count(".") == 3
