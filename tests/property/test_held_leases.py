"""Which leases stand for their owners: facts and planner against what follows from the leases that are left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from felix_py.desired.marks import Marks
from felix_py.desired.names import SetNames
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.layout import ROUTE_PROTOCOL_PODS, interface_name
from felix_py.records import Lease, NodeRecord, Update, endpoints_of
from felix_py.refs import RouteRef
from policy.model import Direction, Family, NetworkPolicy, Pod, Selector
from tests.support.told import ToldFacts

NAMES = SetNames.of(Family.V4)
OWNERS = {"c1": "web", "c2": "web", "c3": "db", "c4": "", "c5": ""}
"""Containers of pods, and of none."""


def _lease(container: str, ifname: str, number: int) -> Lease:
    pod = OWNERS[container]
    addresses = {Family.V4: f"10.1.0.{number}"}
    host = interface_name(container, ifname)
    return Lease(container, ifname, "n", "shop" if pod else "", pod, "", host, addresses, float(number))


attachments = st.tuples(st.sampled_from(sorted(OWNERS)), st.sampled_from(["eth0", "net1"]))
steps = st.lists(
    st.one_of(st.tuples(st.just("add"), attachments), st.tuples(st.just("del"), attachments)), max_size=25
)


def standing(leases: list[Lease]) -> list[Lease]:
    """Of each pod the leases of the container that got its first one last; of other containers all."""
    found = set()
    for lease in leases:
        rivals = [other for other in leases if lease.pod and other.pod == lease.pod]
        first = {c: min(o.created for o in rivals if o.container == c) for c in {o.container for o in rivals}}
        if not lease.pod or first[lease.container] == max(first.values()):
            found.add(lease.interface)
    return [lease for lease in leases if lease.interface in found]


@given(steps, st.sets(st.integers(0, 25)))
def test_the_plan_is_that_of_the_leases_that_stand(
    done: list[tuple[str, tuple[str, str]]], pauses: set[int]
) -> None:
    facts = ToldFacts("n1", (Family.V4,))
    planner = Planner((Family.V4,), StaticOptions(Marks.from_mask(0xFFFF0000)), {})
    facts.upsert(NodeRecord("n1", "", ("192.0.2.1",), ("10.1.0.0/24",)))
    for name in ("web", "db"):
        facts.upsert(Pod("shop", name, "", "n1"))
    facts.upsert(NetworkPolicy("shop", "deny", Selector(), ingress=()))
    held: dict[tuple[str, str], Lease] = {}
    kernel = Update()
    for number, (what, key) in enumerate(done):
        if what == "add" and key not in held:
            held[key] = _lease(*key, number + 1)
            facts.attach(held[key])
        elif what == "del" and key in held:
            gone = held.pop(key)
            facts.leaving(gone)
            facts.detach(gone)
        if number in pauses:
            facts.collect(planner)
            kernel.merge(planner.take())
            kernel.merge(planner.confirm())
    facts.collect(planner)
    kernel.merge(planner.take())
    wanted = standing(list(held.values()))
    owned = {lease.addresses[Family.V4]: lease for lease in wanted}

    def members(name: str) -> dict[str, int]:
        return {text: mark for text, mark in kernel.members.get(name, {}).items() if mark is not None}

    assert set(members(NAMES.source)) == {f"{address},{lease.interface}" for address, lease in owned.items()}
    assert set(members(NAMES.local)) == set(owned)
    assert set(members(NAMES.class_map(Direction.INGRESS))) == {a for a, lease in owned.items() if lease.pod}
    assert not members(NAMES.class_map(Direction.EGRESS))
    routes = {key: route for key, route in kernel.routes.items() if route and route.next_hops}
    expected = {RouteRef(f"{a}/32", ROUTE_PROTOCOL_PODS): lease.interface for a, lease in owned.items()}
    assert {key: route.next_hops[0].interface for key, route in routes.items()} == expected
    assert {lease.interface for lease in facts.held.standing()} == {lease.interface for lease in wanted}
    told = {endpoint.key: set(endpoint.addresses) for endpoint in endpoints_of(held.values())}
    by_owner: dict[tuple[str, str], set[str]] = {}
    for address, lease in owned.items():
        by_owner.setdefault(lease.owner, set()).add(address)
    assert told == by_owner
