"""State, not history: however updates are grouped and whoever applies them, the kernel's content is the same."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.dataplane.fake import FakeDataplane
from felix_py.dataplane.iptables_text import render_chain
from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.protocols import Dataplane
from felix_py.records import Backend, Hook, SetSpec, SetType, Update
from felix_py.refs import ChainRef
from policy.model import Family
from tests.support import kernel_state, node_program
from tests.support.isolate import new_netns, run
from tests.support.node_program import address, name
from tests.support.rules import rule_of
from tests.support.thorough import examples

pytestmark = pytest.mark.root

FAMILY = Family.V4
RULES = [
    rule_of("-j", "DROP"),
    rule_of("-j", "FELIX-A"),
    rule_of("-m", "set", "--match-set", name(FAMILY, "kept"), "src", "-j", "RETURN"),
    rule_of(
        "-m", "mark", "--mark", "0x10000/0xff0000", "-m", "comment", "--comment", 'a "b" \\', "-g", "FELIX-A"
    ),
]
KEPT = SetSpec(name(FAMILY, "kept"), SetType.NET, FAMILY)
MARKED = SetSpec(name(FAMILY, "marked"), SetType.IP, FAMILY, 0xFF0000)
COMING = SetSpec(name(FAMILY, "coming"), SetType.IP_PORT, FAMILY)
A = ChainRef(FAMILY, "filter", "FELIX-A")
HOOKS = [
    Hook(FAMILY, "filter", "FORWARD", rule_of("-j", "FELIX-A"), first=True),
    Hook(FAMILY, "filter", "FORWARD", rule_of("-i", "felix+", "-j", "ACCEPT"), first=False, rank=1),
    Hook(FAMILY, "filter", "FORWARD", rule_of("-o", "felix+", "-j", "ACCEPT"), first=False, rank=2),
]
ROUTES = [
    node_program.pod_route(FAMILY, 2),
    node_program.pod_route(FAMILY, 2, node_program.OTHER),
    node_program.pod_route(FAMILY, 3),
    node_program.blackhole(FAMILY),
    node_program.learned_route(FAMILY, 7),
    node_program.learned_route(FAMILY, 7, 8),
]


def always() -> Update:
    """What other objects refer to."""
    return Update(sets={KEPT.name: KEPT, MARKED.name: MARKED}, chains={A: ()})


@st.composite
def updates(draw: st.DrawFn) -> Update:
    hosts = st.integers(1, 4).map(lambda n: address(FAMILY, n))
    update = Update()
    members = draw(st.dictionaries(hosts, st.sampled_from([0, None])))
    marks = draw(st.dictionaries(hosts, st.sampled_from([0x10000, 0x20000, None])))
    if members:
        update.members[KEPT.name] = members
    if marks:
        update.members[MARKED.name] = marks
    coming = draw(st.sampled_from(["leave", "remove", "make"]))
    if coming == "remove":
        update.sets[COMING.name] = None
    elif coming == "make":
        update.sets[COMING.name] = COMING
        update.members[COMING.name] = draw(
            st.dictionaries(hosts.map(lambda host: f"{host},tcp:80"), st.sampled_from([0, None]))
        )
    for chain in draw(st.sets(st.sampled_from("BCD"))):
        rules = draw(st.none() | st.lists(st.sampled_from(RULES), max_size=3).map(tuple))
        update.chains[ChainRef(FAMILY, "filter", f"FELIX-{chain}")] = rules
    update.hooks = draw(st.dictionaries(st.sampled_from(HOOKS), st.booleans()))
    for route in draw(st.lists(st.sampled_from(ROUTES), max_size=3)):
        update.routes[route.key] = draw(st.sampled_from([route, None]))
    return update


def feed(dataplane: Dataplane, changes: Iterable[Update]) -> None:
    for change in changes:
        dataplane.update(change)


def in_fresh_kernel(backend: Backend, changes: list[Update], groups: list[str]) -> dict[str, object]:
    """Content of a new namespace's kernel after the changes.

    After each change, ``groups`` says what happens: nothing, an apply, a load and an apply, or a new process.
    """
    with new_netns():
        node_program.make_interfaces()
        kernel = Kernel([FAMILY], backend)
        try:
            for number, (change, then) in enumerate(zip(changes, groups, strict=True), 1):
                kernel.update(change)
                if then in ("load", "restart"):
                    if then == "restart":
                        kernel.close()
                        kernel = Kernel([FAMILY], backend)
                        feed(kernel, changes[:number])
                    kernel.load()
                if then != "wait":
                    assert kernel.apply(sweep=then == "restart").failures == ()
            assert kernel.apply(sweep=True).failures == ()
            state = kernel_state.everything(backend)
            kernel.load()
            assert not kernel.apply(sweep=True).writes
            return node_program.without_empty_tables(state)
        finally:
            kernel.close()


@pytest.mark.parametrize("backend", list(Backend))
@settings(max_examples=examples(15), deadline=None)
@given(
    steps=st.lists(
        st.tuples(updates(), st.sampled_from(["wait", "apply", "load", "restart"])), min_size=2, max_size=6
    )
)
def test_the_end_does_not_depend_on_the_way(backend: Backend, steps: list[tuple[Update, str]]) -> None:
    changes = [always(), *(change for change, _ in steps)]
    way = in_fresh_kernel(backend, changes, ["load", *(then for _, then in steps)])
    merged = Update()
    for change in changes:
        merged.merge(change)
    assert way == in_fresh_kernel(backend, [merged], ["load"])

    fake = FakeDataplane()
    fake.load()
    feed(fake, changes)
    assert fake.apply(sweep=True).failures == ()
    check_fake_agrees(fake, way)


def check_fake_agrees(fake: FakeDataplane, state: dict[str, object]) -> None:
    """The stand-in that other tests trust comes to the same end as the real one."""
    for spec in (KEPT, MARKED, COMING):
        held = state["sets"]
        assert isinstance(held, dict)
        assert (spec.name in held) == (spec.name in fake.sets)
        assert [text.split()[0] for text in held.get(spec.name, [])] == sorted(fake.members(spec.name))
    rules = str(state[f"rules{FAMILY}"]).splitlines()
    assert len(rules) == sum(len(render_chain(chain)) for chain in fake.chains.values()) + len(fake.hooks)
    assert len(state[f"routes{FAMILY}"]) == len(fake.routes)  # type: ignore[arg-type]
    assert run("ip", "route") == ""  # and all of it was in namespaces that are gone
