"""What apply writes, and that it writes it once."""

from __future__ import annotations

import pytest

from felix_py.dataplane.kernel import Kernel
from felix_py.records import Backend, Report, SetSpec, SetType, Update
from felix_py.refs import ChainRef
from policy.model import Family
from tests.support import kernel_state, node_program
from tests.support.isolate import run
from tests.support.node_program import POD, address, check_quiet, name, put, whole
from tests.support.rules import rule_of

pytestmark = pytest.mark.root


def test_everything_is_written_once(kernel: Kernel, backend: Backend) -> None:
    report = put(kernel, whole())
    assert report.failures == ()
    assert report.transactions == len(Family)
    check_quiet(kernel)
    kernel.load()
    check_quiet(kernel)
    put(kernel, whole())
    check_quiet(kernel)

    for family in Family:
        assert kernel_state.sets()[name(family, "egress")] == [f"{address(family, 2)} skbmark 0x20000/0xfe0000"]
        assert f"{address(family, 2)},{POD}" in kernel_state.sets()[name(family, "source")]
        web, *_, seal = kernel_state.rules(family, backend, "filter", "FELIX-CE-1")
        assert 'default/web \\"it' in seal
        assert "--dports 80,443,8000:8080" in web
        routes = kernel_state.routes(family)
        assert f"blackhole {node_program.blackhole(family).key.destination} proto 88" in routes
        assert len([route for route in routes if "proto 89" in route and route.count("%up0") == 2]) == 1


def test_a_new_process_writes_nothing(kernel: Kernel, backend: Backend) -> None:
    put(kernel, whole())
    before = kernel_state.everything(backend)
    with Kernel(list(Family), backend) as later:
        later.load()
        assert put(later, whole(), sweep=True) == Report()
    assert kernel_state.everything(backend) == before


def test_a_pod_that_joins_a_class_costs_no_transaction(kernel: Kernel) -> None:
    put(kernel, whole())
    update = Update()
    for family in Family:
        host = address(family, 9)
        update.members[name(family, "source")] = {f"{host},{node_program.OTHER}": 0}
        update.members[name(family, "egress")] = {host: 0x20000}
        route = node_program.pod_route(family, 9, node_program.OTHER)
        update.routes[route.key] = route
    assert put(kernel, update) == Report(transactions=0, writes=3 * len(Family))
    for family in Family:
        assert f" dev {node_program.OTHER} " in run("ip", "route", "get", address(family, 9))


def test_sets_keep_unknown_members_until_the_sweep(kernel: Kernel, backend: Backend) -> None:
    put(kernel, whole())
    with Kernel(list(Family), backend) as later:
        later.load()
        update = whole()
        for family in Family:
            del update.members[name(family, "nets")][address(family, 2)]
        assert put(later, update) == Report()
        assert later.apply(sweep=True) == Report(writes=len(Family))
    for family in Family:
        assert address(family, 2) not in kernel_state.sets()[name(family, "nets")]


@node_program.one_backend
def test_a_mark_changes_in_place(kernel: Kernel, family: Family) -> None:
    put(kernel, whole(family))
    member: dict[str, int | None] = {address(family, 2): 0x40000}
    assert put(kernel, Update(members={name(family, "egress"): member})) == Report(writes=1)
    assert kernel_state.sets()[name(family, "egress")] == [f"{address(family, 2)} skbmark 0x40000/0xfe0000"]
    kernel.load()
    check_quiet(kernel)


def test_chain_content_and_removal(kernel: Kernel, backend: Backend, family: Family) -> None:
    put(kernel, whole(family))
    allow = ChainRef(family, "filter", "FELIX-ALLOW")
    report = put(kernel, Update(chains={allow: (rule_of("-j", "ACCEPT"), rule_of("-j", "DROP"))}))
    assert (report.transactions, report.writes) == (1, 1)
    written = kernel_state.rules(family, backend, "filter", "FELIX-ALLOW")
    assert written[:-1] == ["-j ACCEPT", "-j DROP"]
    assert "felix:" in written[-1]

    # A chain and the last reference to it, in one transaction.
    user = ChainRef(family, "filter", "FELIX-CE-1")
    report = put(kernel, Update(chains={allow: None, user: (rule_of("-j", "DROP"),)}))
    assert (report.transactions, report.writes, report.failures) == (1, 2, ())
    assert "FELIX-ALLOW" not in kernel_state.saved(family, backend)
    kernel.load()
    check_quiet(kernel)


@pytest.mark.parametrize("referenced", [False, True])
def test_a_set_changes_its_type(kernel: Kernel, family: Family, referenced: bool) -> None:
    plain = SetSpec(name(family, "x"), SetType.IP, family)
    marked = SetSpec(name(family, "x"), SetType.IP, family, 0xFF0000)
    host = address(family, 2)
    update = Update(sets={plain.name: plain}, members={plain.name: {host: 0}})
    if referenced:
        rule = rule_of("-m", "set", "--match-set", plain.name, "src", "-j", "DROP")
        update.chains[ChainRef(family, "filter", "FELIX-X")] = (rule,)
    assert put(kernel, update).failures == ()
    update = Update(sets={marked.name: marked}, members={marked.name: {host: 0x30000}})
    assert put(kernel, update).failures == ()
    assert kernel_state.sets() == {plain.name: [f"{host} skbmark 0x30000/0xff0000"]}
    kernel.load()
    check_quiet(kernel)


def test_a_set_type_that_cannot_be_swapped(kernel: Kernel, family: Family) -> None:
    def spec(kind: SetType) -> Update:
        return Update(sets={name(family, "x"): SetSpec(name(family, "x"), kind, family)})

    rule = rule_of("-m", "set", "--match-set", name(family, "x"), "src", "-j", "DROP")
    chain = ChainRef(family, "filter", "FELIX-X")
    put(kernel, spec(SetType.IP))
    put(kernel, Update(chains={chain: (rule,)}))
    (failure,) = put(kernel, spec(SetType.NET)).failures
    assert str(failure.ref) == f"set {name(family, 'x')}"
    assert "cannot be swapped" in failure.reason

    put(kernel, Update(chains={chain: None}))  # nothing refers to it any more
    check_eventually_quiet(kernel)
    assert f"create {name(family, 'x')} hash:net " in run("ipset", "save")


def check_eventually_quiet(kernel: Kernel) -> None:
    """nf_tables lets go of a rule's sets a little after the transaction."""
    for _ in range(20):
        if not kernel.apply().failures:
            break
    check_quiet(kernel)


def test_sets_are_destroyed_after_their_rules(kernel: Kernel, family: Family) -> None:
    put(kernel, whole(family))
    everything = whole(family)
    removal = Update(
        sets=dict.fromkeys(everything.sets),
        chains=dict.fromkeys(everything.chains),
        hooks=dict.fromkeys(everything.hooks, False),
        routes=dict.fromkeys(everything.routes),
    )
    report = put(kernel, removal)
    assert report.failures == ()
    assert report.transactions == 1
    assert kernel_state.sets() == {}
    assert kernel_state.routes(family) == []
    check_quiet(kernel)


@node_program.one_backend
def test_a_set_taken_back_before_it_was_destroyed_is_empty(kernel: Kernel, family: Family) -> None:
    spec = SetSpec(name(family, "x"), SetType.IP, family)
    put(kernel, Update(sets={spec.name: spec}, members={spec.name: {address(family, 2): 0}}))
    kernel.update(Update(sets={spec.name: None}))
    put(kernel, Update(sets={spec.name: spec}, members={spec.name: {address(family, 3): 0}}))
    assert kernel_state.sets() == {spec.name: [address(family, 3)]}


def test_remove_all_leaves_nothing_of_ours(kernel: Kernel, backend: Backend) -> None:
    empty = kernel_state.everything(backend)
    put(kernel, whole())
    with Kernel(list(Family), backend) as cleaner:
        cleaner.load()
        owned = cleaner.owned()
        assert {line.split()[0] for line in owned} == {"interface", "route", "chain", "hook", "set"}
        assert len([line for line in owned if line.startswith("set ")]) == len(whole().sets)
        assert cleaner.remove_all().failures == ()
        assert cleaner.owned() == []
    after = kernel_state.everything(backend)
    assert after["sets"] == {}
    assert node_program.without_empty_tables(after) == node_program.without_empty_tables(empty)
    assert "felix" not in run("ip", "link")
