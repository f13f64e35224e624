"""One object that the kernel refuses is named and harms no other."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from felix_py.dataplane import ipset_commands, iptables_restore
from felix_py.dataplane.kernel import Kernel
from felix_py.netlink import connection as netlink
from felix_py.records import Backend, Failure, Hook, NextHop, Route, SetSpec, SetType, Update
from felix_py.refs import ChainRef, RouteRef, RulesRef, SetRef, chain_or_set
from felix_py.ruleset.model import OpaqueMatch, RuleSpec
from policy.model import Family
from tests.support import kernel_state, node_program
from tests.support.isolate import run
from tests.support.node_program import POD, address, check_quiet, learned_route, name, pod_route, put, whole
from tests.support.rules import rule_of

pytestmark = pytest.mark.root

BAD_RULES = {
    "no such set": rule_of("-m", "set", "--match-set", "felix4-none", "src", "-j", "DROP"),
    "no such chain": rule_of("-j", "FELIX-NONE"),
    "no such option": RuleSpec((OpaqueMatch("mark", ("--bogus",)),)),
    "wrong table": rule_of("-j", "MASQUERADE"),
    "newline": rule_of("-m", "set", "--match-set", "a\nCOMMIT", "src", "-j", "DROP"),
}


@pytest.mark.parametrize("kind", BAD_RULES)
def test_a_bad_chain(kernel: Kernel, backend: Backend, family: Family, kind: str) -> None:
    update = whole(family)
    bad = ChainRef(family, "filter", "FELIX-BAD")
    user = ChainRef(family, "filter", "FELIX-USER")
    update.chains[bad] = (rule_of("-j", "RETURN"), BAD_RULES[kind])
    update.chains[user] = (rule_of("-j", "FELIX-BAD"),)
    report = put(kernel, update)
    assert [str(failure.ref) for failure in report.failures] == [
        f"chain FELIX-BAD (filter, IPv{int(family)})",
        f"chain FELIX-USER (filter, IPv{int(family)})",
    ]
    assert all(failure.reason for failure in report.failures)
    saved = kernel_state.saved(family, backend)
    assert "FELIX-BAD" not in saved
    assert "FELIX-CE-1" in saved
    assert kernel_state.rules(family, backend, "filter", "FORWARD")[0].endswith("-j FELIX-FORWARD")
    assert len(kernel_state.routes(family)) == 3

    # It stays pending and does not get in the way of anything else.
    report = put(kernel, Update(chains={ChainRef(family, "filter", "FELIX-NEW"): (rule_of("-j", "DROP"),)}))
    assert {str(failure.ref).split()[1] for failure in report.failures} == {"FELIX-BAD", "FELIX-USER"}
    assert "FELIX-NEW" in kernel_state.saved(family, backend)

    report = put(kernel, Update(chains={bad: (rule_of("-j", "DROP"),)}))
    assert report.failures == ()
    assert kernel_state.rules(family, backend, "filter", "FELIX-USER")[0].endswith("-j FELIX-BAD")
    check_quiet(kernel)


def test_a_bad_chain_keeps_the_content_it_had(kernel: Kernel, backend: Backend, family: Family) -> None:
    put(kernel, whole(family))
    before = kernel_state.rules(family, backend, "filter", "FELIX-CE-1")
    key = ChainRef(family, "filter", "FELIX-CE-1")
    for rule in BAD_RULES.values():
        (failure,) = put(kernel, Update(chains={key: (rule, rule_of("-j", "DROP"))})).failures
        assert str(failure.ref) == f"chain FELIX-CE-1 (filter, IPv{int(family)})"
        assert kernel_state.rules(family, backend, "filter", "FELIX-CE-1") == before
    assert kernel.apply(sweep=True).failures
    assert kernel_state.rules(family, backend, "filter", "FELIX-CE-1") == before


@pytest.mark.parametrize(
    ("table", "chain"),
    [("filter", "INPUT"), ("filter", "MINE"), ("security", "FELIX-A"), ("filter", "FELIX-" + "A" * 30)],
)
@node_program.one_backend
def test_only_chains_of_ours_are_written(
    kernel: Kernel, backend: Backend, family: Family, table: str, chain: str
) -> None:
    before = kernel_state.everything(backend)
    (failure,) = put(kernel, Update(chains={ChainRef(family, table, chain): (rule_of("-j", "DROP"),)})).failures
    assert str(failure.ref) == f"chain {chain} ({table}, IPv{int(family)})"
    assert kernel_state.everything(backend) == before


def test_chains_in_a_loop(kernel: Kernel, backend: Backend, family: Family) -> None:
    update = whole(family)
    one, two = (ChainRef(family, "filter", chain) for chain in ("FELIX-ONE", "FELIX-TWO"))
    update.chains |= {one: (rule_of("-j", "FELIX-TWO"),), two: (rule_of("-j", "FELIX-ONE"),)}
    update.hooks[Hook(family, "filter", "OUTPUT", rule_of("-j", "FELIX-ONE"), first=True)] = True
    assert put(kernel, update).failures
    assert "-j FELIX-ALLOW" in "".join(kernel_state.rules(family, backend, "filter", "FELIX-CE-1"))
    assert kernel_state.rules(family, backend, "filter", "OUTPUT") == []
    assert put(kernel, Update(chains={two: (rule_of("-j", "DROP"),)})).failures == ()
    check_quiet(kernel)


def test_a_bad_hook(kernel: Kernel, backend: Backend, family: Family) -> None:
    update = whole(family)
    update.hooks[Hook(family, "mangle", "INPUT", rule_of("-j", "FELIX-NONE"), first=True)] = True
    update.hooks[Hook(family, "filter", "FELIX-CE-1", rule_of("-j", "DROP"), first=True)] = True
    whats = sorted(str(failure.ref) for failure in put(kernel, update).failures)
    number = int(family)
    assert whats == [
        f"hook in chain FELIX-CE-1 (filter, IPv{number})",
        f"hooks in chain INPUT (mangle, IPv{number})",
    ]
    assert len(kernel_state.rules(family, backend, "filter", "FORWARD")) == 3


def test_a_chain_that_somebody_else_uses(kernel: Kernel, backend: Backend, family: Family) -> None:
    put(kernel, whole(family))
    tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}"
    run(tool, "-A", "OUTPUT", "-j", "FELIX-EMPTY")
    removal = Update(chains={ChainRef(family, "filter", c): None for c in ("FELIX-EMPTY", "FELIX-FORWARD")})
    removal.hooks = {hook: False for hook in whole(family).hooks if hook.table == "filter"}
    (failure,) = put(kernel, removal).failures
    assert str(failure.ref) == f"chain FELIX-EMPTY (filter, IPv{int(family)})"
    assert "FELIX-FORWARD" not in kernel_state.saved(family, backend)
    run(tool, "-D", "OUTPUT", "-j", "FELIX-EMPTY")
    assert kernel.apply().failures == ()
    check_quiet(kernel)


@node_program.one_backend
def test_bad_members(kernel: Kernel, family: Family) -> None:
    update = whole(family)
    bad = {
        "nets": [
            "0.0.0.0/0" if family is Family.V4 else "::/0",
            "300.0.0.1",
            "",
            "10.0.0.0/8/8",
            address(family, 1) + ",x",
        ],
        "ports": [address(family, 2), address(family, 2) + ",icmp:1", address(family, 2) + ",tcp:65536"],
        "source": [address(family, 2), address(family, 2) + ",", address(family, 2) + "," + "i" * 16],
        "empty": ["192.0.2.1" if family is Family.V6 else "2001:db8::1"],
    }
    expected = set()
    for short, members in bad.items():
        update.members[name(family, short)] |= dict.fromkeys(members, 0)
        expected |= {f"set {name(family, short)} member {member}" for member in members}
    report = put(kernel, update)
    assert {str(failure.ref) for failure in report.failures} == expected
    assert len(kernel_state.sets()[name(family, "ports")]) == 2
    assert len(kernel_state.sets()[name(family, "nets")]) == 2

    gone = Update(members={name(family, short): dict.fromkeys(members) for short, members in bad.items()})
    assert put(kernel, gone).failures == ()
    check_quiet(kernel)


@node_program.one_backend
def test_a_member_that_the_kernel_refuses(
    kernel: Kernel, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the largest size of a set: the first are in, the others are named, or counted if they are many."""
    monkeypatch.setattr(ipset_commands, "MOST_MEMBERS", 60)
    small, prefix = name(family, "small"), "10.7.0." if family is Family.V4 else "fd00:7::"
    update = Update(sets={small: SetSpec(small, SetType.IP, family)})
    update.members[small] = {f"{prefix}{host}": 0 for host in range(1, 250)}
    report = put(kernel, update)
    held = set(kernel_state.sets()[small])
    missing = {f"set {small} member {m}" for m in update.members[small].keys() - held}
    named = {str(f.ref) for f in report.failures if f.count == 1}
    assert 10 < len(named) < len(missing)
    assert named < missing
    assert sum(f.count for f in report.failures) == len(missing)
    assert report.failures[0].reason == "the set is full"


@node_program.one_backend
def test_a_set_takes_more_members_than_the_kernels_default(kernel: Kernel, family: Family) -> None:
    """65,536 is what `ipset create` says without maxelem: fewer than a large cluster has pods."""
    big = name(family, "big")
    update = Update(sets={big: SetSpec(big, SetType.IP, family)})
    prefix = "10.{}.{}.{}" if family is Family.V4 else "fd00::{:x}:{:x}:{:x}"
    update.members[big] = {prefix.format(n >> 16, n >> 8 & 255, n & 255): 0 for n in range(70_000)}
    assert put(kernel, update).failures == ()
    assert f"{big} 70000" in [f"{n} {len(members)}" for n, members in kernel_state.sets().items()]


@node_program.one_backend
@pytest.mark.parametrize("found", ["at the start", "by a member that does not fit"])
def test_a_set_that_takes_fewer_members_is_made_anew(kernel: Kernel, family: Family, found: str) -> None:
    """As an older version, or whoever restores a saved set, may have made it."""
    ours, inet = name(family, "ours"), "inet" if family is Family.V4 else "inet6"
    update = Update(sets={ours: SetSpec(ours, SetType.IP, family)})
    update.members[ours] = {address(family, 1): 0}
    put(kernel, update)
    run("ipset", "create", "theirs", "hash:ip", "family", inet, "maxelem", "1")
    run("ipset", "add", "theirs", address(family, 9))
    run("ipset", "swap", "theirs", ours)
    if found == "at the start":
        kernel.load()
    else:
        refused = put(kernel, Update(members={ours: {address(family, 2): 0}}))
        assert [failure.reason for failure in refused.failures] == ["the set is full"]
    update.members[ours][address(family, 2)] = 0
    assert put(kernel, update).failures == ()
    assert sorted(kernel_state.sets()[ours]) == [address(family, 1), address(family, 2)]
    assert [(chain_or_set(drift.ref), drift.how) for drift in kernel.take_drift()] == [
        (ours, "made anew as hash:ip for 1 members")
    ]


@node_program.one_backend
def test_a_set_of_our_name_that_has_come_since_the_last_look_is_made_anew(kernel: Kernel, family: Family) -> None:
    """It is somebody's, or one of ours whose making the kernel did not acknowledge: what it holds is not asked
    for."""
    ours, inet = name(family, "ours"), "inet" if family is Family.V4 else "inet6"
    run("ipset", "create", ours, "hash:ip", "family", inet)
    run("ipset", "add", ours, address(family, 9))
    update = Update(sets={ours: SetSpec(ours, SetType.IP, family)}, members={ours: {address(family, 1): 0}})
    assert put(kernel, update).failures == ()
    assert list(kernel_state.sets()[ours]) == [address(family, 1)]


@node_program.one_backend
def test_sets_that_are_not_ours(kernel: Kernel, family: Family) -> None:
    other = SetSpec("mine", SetType.IP, family)
    wrong = SetSpec(name(Family.V6 if family is Family.V4 else Family.V4, "x"), SetType.IP, family)
    long = SetSpec(name(family, "x" * 30), SetType.IP, family)
    update = Update(sets={spec.name: spec for spec in (other, wrong, long)})
    update.members = {name(family, "undeclared"): {address(family, 1): 0}}
    whats = {str(failure.ref) for failure in put(kernel, update).failures}
    assert whats == {f"set {n}" for n in (other.name, wrong.name, long.name, name(family, "undeclared"))}
    assert kernel_state.sets() == {}


@node_program.one_backend
def test_bad_routes(kernel: Kernel, family: Family) -> None:
    good = whole(family).routes
    gone = pod_route(family, 3, "felix0000000000")
    lost = Route(RouteRef(learned_route(family).key.destination, 89), next_hops=(NextHop("198.51.100.1"),))
    if family is Family.V6:
        lost = Route(lost.key, next_hops=(NextHop("2001:db8:ffff::1"),))
    odd = Route(RouteRef("10.0.0.1/8" if family is Family.V4 else "fd00::1/8", 88), next_hops=lost.next_hops)
    foreign = Route(RouteRef(gone.key.destination, 4), next_hops=gone.next_hops)
    mixed = Route(RouteRef(pod_route(family, 4).key.destination, 89), next_hops=(NextHop("nonsense"),))
    bad = [gone, lost, odd, foreign, mixed]
    del good[lost.key]
    report = put(kernel, Update(routes=good | {route.key: route for route in bad}))
    assert sorted(str(f.ref) for f in report.failures) == sorted(
        f"route {route.key.destination}" for route in bad
    )
    assert len(kernel_state.routes(family)) == len(good)
    assert put(kernel, Update(routes=dict.fromkeys(route.key for route in bad))).failures == ()


def test_a_lock_that_somebody_holds(
    interfaces: None, family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(iptables_restore, "_LOCK_SECONDS", 1)
    with Kernel([family], Backend.LEGACY) as kernel, Path("/run/xtables.lock").open() as lock:
        kernel.load()
        fcntl.flock(lock, fcntl.LOCK_EX)
        report = put(kernel, whole(family))
        assert report.transactions == 1
        assert {str(f.ref) for f in report.failures} >= {f"chain FELIX-CE-1 (filter, IPv{int(family)})"}
        assert all("xtables lock" in failure.reason for failure in report.failures)
        assert (report.lock_waits, report.lock_seconds >= 0.9) == (1, True)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert kernel.apply().failures == ()
        check_quiet(kernel)


def test_a_family_that_is_not_programmed(interfaces: None, backend: Backend) -> None:
    with Kernel([Family.V4], backend) as kernel:
        kernel.load()
        update = whole(Family.V6)
        update.sets, update.members = {}, {}
        failures = put(kernel, update).failures
        assert Failure(RulesRef(Family.V6), "the family is not programmed on this node") in failures
        assert "FELIX" not in kernel_state.saved(Family.V6, backend)


def test_a_hook_that_vanished_since_the_last_load(kernel: Kernel, backend: Backend, family: Family) -> None:
    """Deleting it fails the transaction; what there really is gets read again, and everything is written."""
    put(kernel, whole(family))
    run(f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}", "-D", "FORWARD", "1")
    update = Update(hooks={hook: False for hook in whole(family).hooks if hook.rule.why == "way in"})
    update.chains[ChainRef(family, "filter", "FELIX-NEW")] = (rule_of("-j", "DROP"),)
    assert put(kernel, update).failures == ()
    assert "FELIX-NEW" in kernel_state.saved(family, backend)
    assert len(kernel_state.rules(family, backend, "filter", "FORWARD")) == 2
    kernel.load()
    check_quiet(kernel)


def test_a_stray_set_that_a_rule_of_others_uses_is_told_from_what_is_in_force(
    kernel: Kernel, backend: Backend, family: Family
) -> None:
    put(kernel, whole(family))
    tool, stray = "iptables" if family is Family.V4 else "ip6tables", name(family, "old")
    run("ipset", "create", stray, "hash:ip", "family", "inet" if family is Family.V4 else "inet6")
    rule = ("INPUT", "-m", "set", "--match-set", stray, "src", "-j", "DROP")
    run(f"{tool}-{backend}", "-A", *rule)
    kernel.load()
    for _ in range(2):
        assert kernel.apply(sweep=True).failures == (Failure(SetRef(stray, unused=True), "a rule still uses it"),)
    run(f"{tool}-{backend}", "-D", *rule)
    assert kernel.apply(sweep=True).failures == ()
    assert stray not in kernel_state.sets()


def test_what_the_kernel_does_not_acknowledge_is_written_all_the_same(
    interfaces: None, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers do not fit into the sockets' buffers (ENOBUFS): each apply finds out what is missing."""
    monkeypatch.setattr(netlink, "_RECEIVE_BUFFER", 4096)
    big = name(family, "big")
    update = Update(sets={big: SetSpec(big, SetType.IP, family)})
    prefix = "10.{}.{}.{}" if family is Family.V4 else "fd00::{:x}:{:x}:{:x}"
    update.members[big] = {prefix.format(n >> 16, n >> 8 & 255, n & 255): 0 for n in range(50_000)}
    routes = [pod_route(family, host, POD) for host in range(1, 250)]
    update.routes = {route.key: route for route in routes}
    with Kernel([family], Backend.NFT) as kernel:
        kernel.load()
        report = put(kernel, update)
        tries = 1
        while report.failures and tries < 20:
            report = kernel.apply()
            tries += 1
        assert report.failures == ()
        kernel.load()
        check_quiet(kernel, sweep=False)
    assert len(kernel_state.sets()[big]) == 50_000
    assert len(kernel_state.routes(family)) == len(routes)
