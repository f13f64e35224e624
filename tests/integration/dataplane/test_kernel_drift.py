"""Somebody changes the kernel behind our back, or does things of their own beside us."""

from __future__ import annotations

from pathlib import Path

import pytest

from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.protocols import Look
from felix_py.records import Backend, Hook, Report, Route, Update
from felix_py.refs import ChainRef, RouteRef
from policy.model import Family
from tests.support import kernel_state, node_program
from tests.support.isolate import run
from tests.support.node_program import (
    OTHER,
    POD,
    address,
    blackhole,
    check_quiet,
    learned_route,
    name,
    pod_route,
    put,
    whole,
)
from tests.support.rules import rule_of

pytestmark = pytest.mark.root

RULE_DRIFT = {
    "rule deleted": ("{iptables} -D FELIX-CE-1 2", ["chain"]),
    "last rule deleted": ("{iptables} -D FELIX-ALLOW 1", ["chain"]),
    "foreign rule in our chain": ("{iptables} -I FELIX-CE-1 1 -j ACCEPT", ["chain"]),
    "seal deleted": ("{iptables} -D FELIX-CE-1 5", ["chain"]),
    "foreign rule behind the seal": ("{iptables} -A FELIX-CE-1 -j ACCEPT", ["chain"]),
    "seal altered": (
        "{iptables} -R FELIX-CE-1 5 -m comment --comment felix:0123456789abcdef",
        ["chain"],
    ),
    "rule with our comment put into our chain": (
        "{iptables} -I FELIX-CE-1 1 -m comment --comment felix:0123456789abcdef -j ACCEPT",
        ["chain"],
    ),
    "chain emptied": ("{iptables} -F FELIX-FORWARD", ["chain"]),
    "chain deleted": ("{iptables} -X FELIX-EMPTY", ["chain"]),
    "chain added": ("{iptables} -N FELIX-NOBODYS", ["chain"]),
    "hook deleted": ("{iptables} -t raw -D PREROUTING 1", ["hook"]),
    "hook pushed down": ("{iptables} -I FORWARD 1 -s {foreign} -j ACCEPT", ["hook"]),
    "rule behind the last hook": ("{iptables} -A FORWARD -p tcp --dport 7 -j DROP", ["hook"]),
    "hooks pushed apart": (
        "{iptables} -I FORWARD 1 -s {foreign} -j DROP; {iptables} -A FORWARD -p tcp -j DROP",
        ["hook"],
    ),
    "hook of our kind added": (
        "{iptables} -A OUTPUT -m comment --comment felix:0123456789abcdef -j RETURN",
        ["hook"],
    ),
    "table flushed": ("{iptables} -t mangle -F", ["chain", "hook"]),
}

WHOLE = "family {inet} maxelem 1048576"
"""As ours are made: a set for fewer members is another set, whatever it holds."""

OTHER_DRIFT = {
    "member added": ("ipset add {ours}-empty {foreign}", ["member"]),
    "member deleted": ("ipset del {ours}-nets {host}", ["member"]),
    "mark changed": ("ipset -exist add {ours}-egress {host} skbmark 0x2/0x3", ["member"]),
    "member inverted": ("ipset -exist add {ours}-nets {host} nomatch", ["member"]),
    "inverted member added": ("ipset add {ours}-nets {foreign} nomatch", ["member"]),
    "set emptied": ("ipset flush {ours}-ports", ["member", "member"]),
    "set destroyed": ("ipset destroy {ours}-empty", ["set"]),
    "set added": ("ipset create {ours}-nobodys hash:ip family {inet}", ["set"]),
    "set of another type": (
        "ipset destroy {ours}-empty; ipset create {ours}-empty hash:net,port family {inet}",
        ["set"],
    ),
    "set made anew": (
        f"ipset create mine hash:net,iface {WHOLE}; ipset swap mine {{ours}}-source; ipset destroy mine",
        ["member"],
    ),
    "route deleted": ("ip -{n} route del {pod}", ["route"]),
    "route bent": ("ip -{n} route replace {pod} dev {other} proto 88", ["route"]),
    "route turned into a blackhole": ("ip -{n} route replace blackhole {pod} proto 88", ["route"]),
    "blackhole turned into a route": ("ip -{n} route replace {own} dev {other} proto 88", ["route"]),
    "path lost": ("ip -{n} route replace {learned} proto 89 via {gateway}", ["route"]),
    "route added": ("ip -{n} route add {foreign} dev {other} proto 89", ["route"]),
    "link down": ("ip link set {interface} down", ["link", "route"]),
    "MAC changed": ("ip link set {interface} address 02:00:00:00:00:07", ["link"]),
    "setting changed": ("sysctl -qw {setting}", ["sysctl"]),
}


def do(commands: str, family: Family, backend: Backend) -> None:
    """Run commands, separated by semicolons, with the names of this test filled in."""
    v4 = family is Family.V4
    filled = commands.format(
        iptables=f"{'iptables' if v4 else 'ip6tables'}-{backend}",
        n=int(family),
        inet="inet" if v4 else "inet6",
        ours=f"felix{int(family)}",
        host=address(family, 2),
        foreign="192.0.2.77" if v4 else "2001:db8::77",
        pod=pod_route(family, 2).key.destination,
        own=blackhole(family).key.destination,
        learned=learned_route(family, 7).key.destination,
        gateway=learned_route(family, 7).next_hops[0].gateway,
        interface=POD,
        other=OTHER,
        setting=f"net.ipv4.conf.{POD}.rp_filter=0" if v4 else f"net.ipv6.conf.{POD}.accept_ra=1",
    )
    for command in filled.split(";"):
        run(*command.split())


def ours(state: dict[str, object]) -> dict[str, object]:
    """Kernel state less the foreign rules that the cases above add."""

    def without(text: str) -> list[str]:
        return [line for line in text.splitlines() if "felix:" in line or not line.startswith("-A")]

    return {key: without(value) if isinstance(value, str) else value for key, value in state.items()}


@node_program.each_with_another
@pytest.mark.parametrize("kind", RULE_DRIFT)
def test_drift_of_rules(kernel: Kernel, backend: Backend, family: Family, kind: str) -> None:
    check_repaired(kernel, backend, family, *RULE_DRIFT[kind])


@node_program.one_backend
@pytest.mark.parametrize("kind", OTHER_DRIFT)
def test_drift_of_sets_and_routes(kernel: Kernel, backend: Backend, family: Family, kind: str) -> None:
    check_repaired(kernel, backend, family, *OTHER_DRIFT[kind])


@node_program.one_backend
def test_a_link_went_down_and_up(kernel: Kernel, backend: Backend, family: Family) -> None:
    """What the kernel dropped stays away; of IPv6, that is the gateway's address, too."""
    commands = "ip link set {interface} down; ip link set {interface} up"
    check_repaired(kernel, backend, family, commands, ["route"] if family is Family.V4 else ["link", "route"])


def check_repaired(kernel: Kernel, backend: Backend, family: Family, commands: str, expected: list[str]) -> None:
    """What the commands spoil is found at load, counted once, and put right."""
    put(kernel, whole(family), sweep=True)
    wanted = state(backend)
    do(commands, family, backend)
    assert state(backend) != wanted
    check_quiet(kernel)  # nobody has told it
    assert kernel.take_drift() == []

    kernel.load()
    kernel.load()
    drift = kernel.take_drift()
    assert sorted(found.ref.kind for found in drift) == expected, drift
    report = kernel.apply(sweep=True)
    assert report.failures == ()
    assert report.writes > 0
    assert ours(state(backend)) == ours(wanted)
    kernel.load()
    check_quiet(kernel)
    assert kernel.take_drift() == []


def state(backend: Backend) -> dict[str, object]:
    """The kernel's content with the host ends of pods."""
    shown = run("ip", "-o", "link", "show", "dev", POD).split()
    return {
        **kernel_state.everything(backend),
        "link": [shown[shown.index("link/ether") + 1], "UP" in shown[2].strip("<>").split(",")],
        "settings": [
            Path(f"/proc/sys/net/ipv{n}/conf/{POD}/{name}").read_text()
            for n, name in ((4, "rp_filter"), (6, "accept_ra"))
        ],
    }


def test_hooks_stay_first_and_last_and_are_never_doubled(
    kernel: Kernel, backend: Backend, family: Family
) -> None:
    put(kernel, whole(family))
    do(
        "{iptables} -I FORWARD 1 -s {foreign} -j DROP; {iptables} -A FORWARD -s {foreign} -j DROP",
        family,
        backend,
    )
    hook = next(rule for rule in kernel_state.rules(family, backend, "filter", "FORWARD") if "way in" in rule)
    # Somebody restored a saved copy on top: the same rule twice.
    tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}-restore"
    run(tool, "--noflush", stdin=f"*filter\n-A FORWARD {hook}\nCOMMIT\n")
    kernel.load()
    assert kernel.apply().failures == ()
    rules = kernel_state.rules(family, backend, "filter", "FORWARD")
    kinds = ["felix:" if "felix:" in rule else "foreign" for rule in rules]
    assert kinds == ["felix:", "foreign", "foreign", "felix:", "felix:"]
    assert "way in" in rules[0]
    assert ["-i felix+" in rules[3], "-o felix+" in rules[4]] == [True, True]


def test_a_new_hook_comes_before_strangers_of_ours_are_swept(
    kernel: Kernel, backend: Backend, family: Family
) -> None:
    """An upgrade changed a hook: the new one is in place before the old one goes."""
    put(kernel, whole(family))
    with Kernel(list(Family), backend) as later:
        later.load()
        update = whole(family)
        old = next(hook for hook in update.hooks if hook.chain == "FORWARD" and hook.table == "mangle")
        del update.hooks[old]
        new = Hook(family, "mangle", "FORWARD", rule_of("-i", "felix+", "-j", "FELIX-CLASSIFY"), first=True)
        update.hooks[new] = True
        put(later, update)
        before = kernel_state.rules(family, backend, "mangle", "FORWARD")
        assert ["-i felix+" in rule for rule in before] == [True, False]
        later.apply(sweep=True)
        assert kernel_state.rules(family, backend, "mangle", "FORWARD") == before[:1]
        check_quiet(later)


def test_what_is_not_ours_is_left_alone(kernel: Kernel, backend: Backend, family: Family) -> None:
    do(
        "{iptables} -N MINE; {iptables} -A MINE -m comment --comment felix:nothing -j DROP;"
        "{iptables} -A FORWARD -s {foreign} -j MINE; {iptables} -t nat -A POSTROUTING -s {foreign} -j ACCEPT;"
        "ipset create mine hash:ip family {inet}; ipset add mine {foreign}; ipset create felixmine hash:ip;"
        "ip -{n} route add {learned} via {gateway} metric 99; ip -{n} route add blackhole {pod} metric 7",
        family,
        backend,
    )
    before = kernel_state.everything(backend)
    put(kernel, whole(family))
    assert kernel.apply(sweep=True).failures == ()
    with Kernel(list(Family), backend) as cleaner:
        assert cleaner.remove_all().failures == ()
    after = kernel_state.everything(backend)
    assert after["sets"] == before["sets"]
    for key in before:
        if key.startswith("rules"):
            rules = [line for line in str(after[key]).splitlines() if line.startswith("-A")]
            assert rules == [line for line in str(before[key]).splitlines() if line.startswith("-A")]
    assert after[f"routes{family}"] == before[f"routes{family}"]


@node_program.one_backend
def test_a_foreign_route_is_not_replaced(kernel: Kernel, backend: Backend, family: Family) -> None:
    do("ip -{n} route add {pod} dev {other} proto static", family, backend)
    update = whole(family)
    report = put(kernel, update)
    (failure,) = report.failures
    assert str(failure.ref) == f"route {pod_route(family, 2).key.destination}"
    assert "protocol 4" in failure.reason
    assert len(kernel_state.routes(family)) == 3  # the foreign one, and all the others of ours

    do("ip -{n} route del {pod}", family, backend)
    assert kernel.apply() == Report(writes=1)
    check_quiet(kernel)

    # Taken while we were not looking, then ours changes.
    do("ip -{n} route replace {pod} dev {interface} proto static", family, backend)
    (failure,) = put(kernel, Update(routes={pod_route(family, 2).key: pod_route(family, 2, OTHER)})).failures
    assert "protocol 4" in failure.reason
    do("ip -{n} route del {pod} proto static", family, backend)


@node_program.one_backend
def test_local_routes_win_over_learned_ones(kernel: Kernel, family: Family) -> None:
    own = blackhole(family)
    learned = RouteRef(own.key.destination, 89)
    put(kernel, Update(routes={learned: Route(learned, next_hops=learned_route(family, 7).next_hops)}))
    assert put(kernel, Update(routes={own.key: own})).writes == 1
    assert kernel_state.routes(family) == [f"blackhole {own.key.destination} proto 88"]
    (failure,) = kernel.apply().failures
    assert "protocol 88" in failure.reason
    put(kernel, Update(routes={own.key: None}))
    check_quiet(kernel)
    assert "proto 89" in kernel_state.routes(family)[0]


@node_program.one_backend
def test_an_interface_made_anew_gets_its_route_back(kernel: Kernel, family: Family) -> None:
    """The same lease again within one apply: the record is equal, the kernel's route is gone."""
    put(kernel, whole(family))
    run("ip", "link", "del", POD)
    run("ip", "link", "add", POD, "type", "veth", "peer", "name", "pod0")
    run("ip", "link", "set", POD, "up")
    route = pod_route(family, 2)
    assert put(kernel, Update(routes={route.key: route})) == Report(writes=1)
    assert f" dev {POD} " in run("ip", "route", "get", address(family, 2))


@pytest.mark.parametrize("half", ["sets", "sets and chains", "chains without hooks", "everything but a route"])
def test_a_half_applied_state_converges(kernel: Kernel, backend: Backend, family: Family, half: str) -> None:
    """The agent died in the middle; another one takes over."""
    part = whole(family)
    if half == "sets":
        part.chains, part.hooks, part.routes = {}, {}, {}
    elif half == "sets and chains":
        part.hooks, part.routes = {}, {}
        del part.chains[ChainRef(family, "filter", "FELIX-FORWARD")]
    elif half == "chains without hooks":
        part.hooks = {}
    else:
        part.routes.popitem()
    part.members[name(family, "nets")].popitem()
    assert put(kernel, part).failures == ()
    with Kernel(list(Family), backend) as later:
        later.load()
        assert put(later, whole(family), sweep=True).failures == ()
        later.load()
        check_quiet(later)


def test_rules_read_before_a_write_of_ours_are_not_taken_for_what_there_is(
    kernel: Kernel, family: Family
) -> None:
    put(kernel, whole(family))
    read = kernel.read_rules()
    key = ChainRef(family, "filter", "FELIX-ALLOW")
    put(kernel, Update(chains={key: (rule_of("-j", "DROP"),)}))
    kernel.load(Look.RULES, read)
    assert kernel.take_drift() == []
    check_quiet(kernel)


def test_rules_read_ahead_are_taken_for_what_there_is(kernel: Kernel, backend: Backend, family: Family) -> None:
    put(kernel, whole(family))
    do("{iptables} -D FELIX-ALLOW 1", family, backend)
    read = kernel.read_rules()
    do("{iptables} -F FELIX-CE-1", family, backend)
    kernel.load(Look.RULES, read)
    assert [str(drift.ref).split()[1] for drift in kernel.take_drift()] == ["FELIX-ALLOW"]


@node_program.one_backend
def test_a_set_destroyed_while_members_are_written_is_drift(kernel: Kernel, family: Family) -> None:
    """Found by the write itself, before anybody looks."""
    put(kernel, whole(family))
    run("ipset", "destroy", name(family, "empty"))
    member: dict[str, int | None] = {address(family, 7): 0}
    assert put(kernel, Update(members={name(family, "empty"): member})).failures
    assert [str(drift) for drift in kernel.take_drift()] == [f"set {name(family, 'empty')}: missing"]
    assert kernel.apply() == Report(writes=2)
    assert kernel.take_drift() == []
