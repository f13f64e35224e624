"""What people read of each kind of object, by which names failures find it, and what policy rests on."""

from __future__ import annotations

import pytest

from felix_py.failures import Failures
from felix_py.records import Failure
from felix_py.refs import (
    KINDS,
    ApplyRef,
    ChainRef,
    HookRef,
    LinkRef,
    LinksRef,
    MemberRef,
    MembersRef,
    Ref,
    RouteRef,
    RoutesRef,
    RulesRef,
    SetRef,
    SysctlRef,
    policy_rests_on,
)
from policy.model import Family

V4, V6 = Family.V4, Family.V6
LABEL = "ipv4/conf/felix0123456789/rp_filter"

REFS: list[tuple[Ref, str, str, set[str], bool]] = [
    (ChainRef(V4, "filter", "FELIX-A"), "chain", "chain FELIX-A (filter, IPv4)", {"FELIX-A"}, True),
    (HookRef(V6, "raw", "OUTPUT"), "hook", "hooks in chain OUTPUT (raw, IPv6)", set(), True),
    (HookRef(V6, "raw", "OUTPUT", single=True), "hook", "hook in chain OUTPUT (raw, IPv6)", set(), True),
    (SetRef("felix4-x"), "set", "set felix4-x", {"felix4-x"}, True),
    (SetRef("felix4-x", unused=True), "set", "unused set felix4-x", {"felix4-x"}, False),
    (MemberRef("felix4-x", "10.0.0.1"), "member", "set felix4-x member 10.0.0.1", {"felix4-x", "10.0.0.1"}, True),
    (
        MemberRef("felix6-y", "fd00::1,felix0"),
        "member",
        "set felix6-y member fd00::1,felix0",
        {"felix6-y", "fd00::1", "felix0"},
        True,
    ),
    (MembersRef("felix4-x"), "member", "set felix4-x", {"felix4-x"}, True),
    (MembersRef("felix4-x", further=True), "member", "set felix4-x further members", {"felix4-x"}, True),
    (RouteRef("10.0.0.1/32", 88), "route", "route 10.0.0.1/32", {"10.0.0.1"}, False),
    (RoutesRef(), "route", "route to further destinations", set(), False),
    (LinkRef("felix0"), "link", "interface felix0", {"felix0"}, False),
    (LinksRef(), "link", "interfaces", set(), False),
    (SysctlRef(LABEL), "sysctl", f"sysctl net.{LABEL.replace('/', '.')}", {"felix0123456789"}, False),
    (SysctlRef("ipv4/ip_forward"), "sysctl", "sysctl net.ipv4.ip_forward", set(), False),
    (SysctlRef("ipv6/conf/all/forwarding"), "sysctl", "sysctl net.ipv6.conf.all.forwarding", set(), False),
    (
        SysctlRef("ipv4/conf/eth0.5/forwarding"),
        "sysctl",
        "sysctl net.ipv4.conf.eth0/5.forwarding",
        {"eth0.5"},
        False,
    ),
    (RulesRef(V6), "rules", "IPv6 rules", set(), True),
    (ApplyRef(), "apply", "apply", set(), True),
]


@pytest.mark.parametrize(
    ("ref", "kind", "text", "names", "decides"), REFS, ids=[text for _, _, text, _, _ in REFS]
)
def test_a_ref(ref: Ref, kind: str, text: str, names: set[str], decides: bool) -> None:
    assert (ref.kind, str(ref), policy_rests_on(ref)) == (kind, text, decides)
    failures = Failures([Failure(ref, "no")])
    everybody = {name for _, _, _, others, _ in REFS for name in others}
    assert {name for name in everybody if failures.naming([name])} == names
    assert failures.naming([""]) == ()
    assert failures.naming([HookRef]) == (tuple(failures) if isinstance(ref, HookRef) else ())


def test_the_metrics_labels() -> None:
    assert KINDS == ("chain", "hook", "set", "member", "route", "link", "sysctl")
