"""The dataplane in memory behaves as its interface says."""

from __future__ import annotations

from felix_py.dataplane.fake import FakeDataplane
from felix_py.dataplane.protocols import Look
from felix_py.records import Failure, Hook, NextHop, Report, Route, SetSpec, SetType, Update
from felix_py.refs import ChainRef, MemberRef, RouteRef, SetRef
from policy.model import Family
from tests.support.rules import rule_of

SPEC = SetSpec("felix4-x", SetType.IP, Family.V4)
CHAIN = ChainRef(Family.V4, "filter", "FELIX-A")
HOOK = Hook(Family.V4, "filter", "FORWARD", rule_of("-j", "FELIX-A"), first=True)
MEMBER = MemberRef("felix4-x", "10.0.0.1")
ROUTE = Route(RouteRef("10.0.0.1/32", 88), next_hops=(NextHop(interface="felix0123456789"),))


def everything() -> Update:
    return Update(
        sets={SPEC.name: SPEC},
        members={SPEC.name: {"10.0.0.1": 0}},
        chains={CHAIN: (rule_of("-j", "DROP"),)},
        hooks={HOOK: True},
        routes={ROUTE.key: ROUTE},
    )


def written() -> FakeDataplane:
    fake = FakeDataplane()
    fake.load()
    fake.update(everything())
    assert fake.apply() == Report(transactions=1, writes=5)
    return fake


def test_writes_once_and_shows_it() -> None:
    fake = written()
    assert fake.apply() == Report()
    assert fake.sets == {SPEC.name: SPEC}
    assert fake.members(SPEC.name) == {"10.0.0.1": 0}
    assert fake.chains == {CHAIN: (rule_of("-j", "DROP"),)}
    assert fake.hooks == {HOOK}
    assert fake.routes == {ROUTE.key: ROUTE}


def test_removes_what_must_not_be() -> None:
    fake = written()
    fake.update(
        Update(sets={SPEC.name: None}, chains={CHAIN: None}, hooks={HOOK: False}, routes={ROUTE.key: None})
    )
    assert fake.apply().failures == ()
    assert fake.kernel == {}


def test_a_failure_stays_pending_and_harms_nothing_else() -> None:
    fake = FakeDataplane(failing={ROUTE.key: "no device", MEMBER: "full"})
    fake.update(everything())
    report = fake.apply()
    assert set(report.failures) == {
        Failure(ROUTE.key, "no device"),
        Failure(MEMBER, "full"),
    }
    assert fake.chains
    assert not fake.routes
    fake.failing.clear()
    assert fake.apply() == Report(writes=2)
    assert fake.routes


def test_a_member_needs_its_set() -> None:
    fake = FakeDataplane(failing={SetRef("felix4-x"): "no room"})
    fake.update(everything())
    assert {str(failure.ref) for failure in fake.apply().failures} == {
        "set felix4-x",
        "set felix4-x member 10.0.0.1",
    }


def test_drift_shows_only_after_a_load() -> None:
    fake = written()
    del fake.kernel[ROUTE.key]
    assert fake.apply() == Report()
    fake.load()
    assert fake.apply() == Report(writes=1)


def test_strays_go_with_the_sweep_only() -> None:
    fake = FakeDataplane()
    stray = ChainRef(Family.V4, "filter", "FELIX-OLD")
    fake.kernel[stray] = ()
    fake.load()
    assert fake.apply() == Report()
    assert fake.apply(sweep=True) == Report(transactions=1, writes=1)
    assert fake.kernel == {}


def test_drift_is_told_once_and_what_is_pending_is_none() -> None:
    fake = written()
    fake.failing[RouteRef("10.0.0.2/32", 88)] = "no"
    key = RouteRef("10.0.0.2/32", 88)
    fake.update(Update(routes={key: Route(key, next_hops=ROUTE.next_hops)}))
    assert fake.apply().failures
    del fake.kernel[CHAIN]
    fake.kernel[SetRef("felix4-y")] = SetSpec("felix4-y", SetType.IP, Family.V4)
    fake.load(Look.ROUTES)
    assert fake.take_drift() == []
    fake.load()
    fake.load()
    assert {str(drift) for drift in fake.take_drift()} == {
        "chain FELIX-A (filter, IPv4): missing",
        "set felix4-y: nobody asked for it",
    }
    assert fake.take_drift() == []


def test_a_set_that_is_gone_is_told_without_its_members() -> None:
    fake = written()
    del fake.kernel[SetRef(SPEC.name)]
    del fake.kernel[MemberRef(SPEC.name, "10.0.0.1")]
    fake.load()
    assert [str(drift) for drift in fake.take_drift()] == ["set felix4-x: missing"]


def test_rules_that_were_read_before_a_write_are_read_again() -> None:
    fake = written()
    read = fake.read_rules()
    fake.kernel[CHAIN] = ()
    fake.load(Look.RULES, read)
    assert fake.take_drift() == []  # as it was when it was read
    other = ChainRef(Family.V4, "filter", "FELIX-B")
    fake.update(Update(chains={other: ()}))
    fake.apply()
    fake.load(Look.RULES, read)
    assert [str(drift) for drift in fake.take_drift()] == ["chain FELIX-A (filter, IPv4): other content"]
