"""Which connections end when policy changes, and what keeps others: facts, reconciler and revoker in memory."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import astuple
from typing import Any

import pytest

from felix_py.agent.concerned import Due
from felix_py.agent.flows import Flows
from felix_py.agent.forgetting import Forgetting
from felix_py.agent.network import PodNetwork
from felix_py.agent.revoke import Quiet, Revoker
from felix_py.agent.view import ClusterView
from felix_py.dataplane.fake import FakeDataplane, FakeFlowTable
from felix_py.dataplane.protocols import Look
from felix_py.desired.marks import Marks
from felix_py.desired.names import SetNames, names_of
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.metrics import Metrics
from felix_py.pending import Pending
from felix_py.reconcile import Reconciler
from felix_py.records import Flow, Lease, NodeRecord
from felix_py.refs import ChainRef, MemberRef, RouteRef
from policy.change import Change
from policy.engine.compile import Engine
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Family,
    LocalEndpoint,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Pod,
    PodPeer,
    PolicyKind,
    PolicyRule,
    Port,
    Protocol,
    RuleAction,
    Selector,
    Tier,
)
from tests.support.builders import labelled
from tests.support.told import ToldFacts
from tests.support.waiting import until

TCP, UDP = Protocol.TCP, Protocol.UDP
WEB, API, DB, FAR, WORLD, HOST = "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.9.9", "198.51.100.7", "192.0.2.1"


def from_pods(port: int | str | None = None, **labels: str) -> PolicyRule:
    ports = (Port(TCP, port),) if port is not None else None
    return PolicyRule((PodPeer(None, labelled(**labels)),), ports)


def policy(*rules: PolicyRule, app: str = "web", name: str = "p") -> NetworkPolicy:
    return NetworkPolicy("shop", name, labelled(app=app), ingress=rules)


def pod(name: str, address: str, node: str = "n1", **labels: str) -> Pod:
    shown = tuple(sorted({"app": name, **labels}.items()))
    return Pod("shop", name, "u", node, shown, (address,), (NamedPort("http", TCP, 80),))


class Rig:
    """A node with pods web, api and db; the pod far is on another one."""

    def __init__(self, pace: Quiet | None = None) -> None:
        self._asked = 0
        self.kernel = FakeDataplane()
        self.kernel.load()
        self.table = FakeFlowTable()
        self.metrics = Metrics()
        self.pending = Pending()
        self.due = Due()
        engine, view = Engine((Family.V4,)), ClusterView()
        self.flows = Flows(self.table, self.table, self.metrics, self.due.suspect)
        pace = pace or Quiet(0.02, 0.1)
        host = lambda: frozenset({HOST})  # noqa: E731
        self.revoker = Revoker(view, engine.chains_of, self.flows, self.due, host, self.metrics, pace)
        self.facts = ToldFacts(
            engine=engine, view=view, changed=self.pending.note, on_policy=[self.revoker.collected]
        )
        self.reconciler = Reconciler(
            self.pending,
            Planner((Family.V4,), StaticOptions(Marks.from_mask(0xFFFF0000)), {}),
            self.kernel,
            self.facts.collect,
            self.metrics,
            refresh_interval=3600,
            on_drift=[self.revoker.mended],
            on_applied=[self.revoker.applied],
        )
        self.network = PodNetwork(self.facts, self.reconciler, lambda: 1500, Forgetting(self.flows, rest=0))
        self.facts.upsert(NodeRecord("n1", "", (HOST,), ("10.1.0.0/24",)))
        self.facts.upsert(Namespace("shop"))
        for name, address in (("web", WEB), ("api", API), ("db", DB)):
            self.facts.upsert(pod(name, address))
            self.facts.attach(lease(name, address))
        self.facts.upsert(pod("far", FAR, "n2"))

    async def __aenter__(self) -> Rig:
        self.tasks = [asyncio.create_task(self.reconciler.run()), asyncio.create_task(self.revoker.run())]
        await self.reconciler.settled()
        self.network.set_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.flows.close()

    def connect(self, source: str, destination: str, port: int = 80, protocol: Protocol | None = TCP) -> Flow:
        return self.table.connect(Flow(source, destination, protocol, port if protocol else 0))

    async def change(self, *records: Any, look: bool = True) -> None:
        """Have changes in the kernel, and wait until the table was looked at because of them."""
        looks = len(self.looks())
        for record in records:
            self.facts.upsert(record)
        await self.reconciler.settled()
        if look:
            await self.idle()
            assert len(self.looks()) > looks

    async def idle(self) -> None:
        """Until nothing is left to do. Looks come one after the other: once a second one of ours has begun, all
        is done that was due before."""
        for _ in range(2):
            self._asked += 1
            asked = f"203.0.113.{self._asked}"
            self.due.suspect([asked])
            await until(lambda: any(asked in look for look in self.table.looks))  # noqa: B023

    def looks(self) -> list[set[str]]:
        """What was looked for, less our own questions."""
        found = [{a for a in look if not a.startswith("203.0.113.")} for look in self.table.looks]
        return [look for look in found if look]

    def alive(self) -> set[Flow]:
        return set(self.table.connections)

    def count(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0


def lease(name: str, address: str) -> Lease:
    return Lease(name, "eth0", "felix-py", "shop", name, "u", f"felix{name}", {Family.V4: address}, 1.0)


async def test_exactly_what_a_new_policy_denies_ends() -> None:
    async with Rig() as rig:
        denied = [rig.connect(DB, WEB), rig.connect(FAR, WEB), rig.connect(WORLD, WEB, 443)]
        denied.append(rig.connect(API, WEB, 81))
        kept = [
            rig.connect(API, WEB),
            rig.connect(WEB, API, 81),
            rig.connect(WEB, WORLD),
            rig.connect(DB, API),
        ]
        elsewhere = rig.connect(FAR, "10.1.9.8")
        await rig.change(policy(from_pods(80, app="api")))
        assert rig.alive() == {*kept, elsewhere}
        assert rig.count("felix_py_flows_revoked_total") == len(denied)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(policy(from_pods(443, app="api")), id="the policy is edited"),
        pytest.param(pod("api", API, app="other"), id="the peer has another label"),
        pytest.param(pod("web", WEB, app="lonely"), id="the pod joins another class"),
    ],
)
async def test_whatever_turns_allowed_into_denied(change: Pod | NetworkPolicy) -> None:
    async with Rig() as rig:
        # The class of `lonely` is there already: no chain changes when another pod joins it.
        lonely = pod("db", DB, app="lonely")
        await rig.change(policy(from_pods(80, app="api")), policy(app="lonely", name="deny"), lonely)
        rig.connect(API, WEB)
        kept = rig.connect(WEB, API)
        await rig.change(change)
        assert rig.alive() == {kept}


async def test_a_namespace_that_is_relabelled_takes_its_pods_along() -> None:
    async with Rig() as rig:
        trusted = PodPeer(labelled(trust="yes"), None)
        rig.facts.upsert(Namespace("dev", (("trust", "yes"),)))
        rig.facts.upsert(Pod("dev", "tool", addresses=("10.1.9.1",)))
        await rig.change(policy(PolicyRule((trusted,))))
        rig.connect("10.1.9.1", WEB)
        await rig.change(Namespace("dev"))
        assert not rig.alive()


async def test_a_named_port_that_moves_takes_the_permission_along() -> None:
    async with Rig() as rig:
        await rig.change(policy(from_pods("http", app="api")))
        old, new = rig.connect(API, WEB, 80), rig.connect(API, WEB, 8080)
        moved = Pod("shop", "web", "u", "n1", (("app", "web"),), (WEB,), (NamedPort("http", TCP, 8080),))
        await rig.change(moved)
        assert rig.alive() == {new}
        assert old not in rig.alive()


async def test_a_pod_that_joins_what_a_cluster_policy_denies_loses_its_connections() -> None:
    async with Rig() as rig:
        banned = PodPeer(Selector(), labelled(banned="yes"))
        rule = ClusterRule(RuleAction.DENY, (banned,))
        guard = ClusterPolicy(PolicyKind.CLUSTER, "guard", Tier.ADMIN, 1, PodPeer(Selector(), None), (rule,))
        rig.facts.upsert(guard)
        await rig.change(pod("db", DB, tier="x"))
        from_far, from_api = rig.connect(FAR, WEB), rig.connect(API, WEB)
        await rig.change(pod("far", FAR, "n2", banned="yes"))
        assert rig.alive() == {from_api}
        assert from_far not in rig.alive()


async def test_what_the_node_itself_sends_to_its_pods_is_never_denied() -> None:
    async with Rig() as rig:
        kept = {rig.connect(HOST, WEB), rig.connect("127.0.0.1", WEB), rig.connect(WEB, HOST)}
        rig.connect("192.0.2.2", WEB)
        await rig.change(policy())
        assert rig.alive() == kept


async def test_other_protocols_need_a_rule_without_ports() -> None:
    async with Rig() as rig:
        kept = {rig.connect(API, WEB, protocol=None), rig.connect(DB, WEB)}
        rig.connect(DB, WEB, protocol=None)
        rig.connect(DB, WEB, 80, UDP)
        await rig.change(policy(from_pods(app="api"), from_pods(80, app="db")))
        assert rig.alive() == kept


async def test_a_related_connection_shares_the_fate_of_the_one_it_belongs_to() -> None:
    async with Rig() as rig:
        control, doomed = rig.connect(API, WEB, 21), rig.connect(DB, WEB, 21)
        data = rig.table.connect(Flow(API, WEB, TCP, 50000, parent=control.original))
        rig.table.connect(Flow(DB, WEB, TCP, 50000, parent=doomed.original))
        rig.table.connect(Flow(API, WEB, TCP, 50001, parent=b"gone"))
        await rig.change(policy(from_pods(21, app="api")))
        assert rig.alive() == {control, data}


async def test_a_pod_that_finished_or_is_gone_from_the_server_stays_under_its_policy() -> None:
    async with Rig() as rig:
        rig.facts.delete(pod("web", WEB))
        done = pod("api", API)
        rig.facts.upsert(Pod(done.namespace, done.name, "u", "n1", done.labels, done.addresses, active=False))
        await rig.change(policy(from_pods(80, app="db"), app="api", name="q"), look=False)
        kept = {rig.connect(DB, WEB), rig.connect(DB, API)}
        rig.connect(DB, WEB, 81)
        rig.connect(DB, API, 81)
        await rig.change(policy(from_pods(80, app="db")), policy(from_pods(80, app="db"), app="api", name="q2"))
        more = policy(from_pods(80, app="db"), from_pods(443, app="db"), app="api", name="q")
        await rig.change(more, look=False)  # only allows
        await rig.idle()
        assert rig.alive() == kept


async def test_an_endpoint_of_which_nothing_is_known_loses_nothing() -> None:
    async with Rig() as rig:
        rig.facts.attach(lease("stray", "10.1.0.9"))
        await rig.reconciler.settled()
        kept = {rig.connect("10.1.0.9", WORLD), rig.connect(WORLD, "10.1.0.9")}
        rig.connect("10.1.0.9", WEB)
        await rig.change(policy(from_pods(80, app="api")))
        rig.due.suspect(["10.1.0.9"])
        await rig.idle()
        assert rig.alive() == kept


async def test_a_restarted_agent_looks_at_all_its_restricted_endpoints() -> None:
    rig = Rig()
    rig.facts.upsert(policy(from_pods(80, app="api")))
    kept = {rig.connect(API, WEB), rig.connect(DB, API)}
    rig.connect(DB, WEB)
    async with rig:
        await until(lambda: rig.count("felix_py_flows_revoked_total"))
        assert rig.alive() == kept


async def test_pods_that_come_and_go_and_applies_without_policy_cause_no_look() -> None:
    async with Rig() as rig:
        await rig.change(policy(from_pods(80, app="api")))
        looks = rig.looks()
        new = pod("web-2", "10.1.0.7", app="web")
        await rig.change(new, pod("far-2", "10.1.9.7", "n2", app="api"), look=False)
        await rig.network.enforce(lease("web-2", "10.1.0.7"))
        rig.facts.learned({"10.9.0.0/24": ("192.0.2.9",)})
        await rig.reconciler.settled()
        await rig.idle()
        assert rig.looks() == looks


def guard(name: str, action: RuleAction, precedence: int, **labels: str) -> ClusterPolicy:
    rule = ClusterRule(action, (PodPeer(Selector(), labelled(**labels)),))
    subject = PodPeer(Selector(), labelled(app="web"))
    return ClusterPolicy(PolicyKind.CLUSTER, name, Tier.ADMIN, precedence, subject, (rule,))


@pytest.mark.parametrize(
    ("before", "changes"),
    [
        pytest.param((), (pod("far-2", "10.1.9.7", "n2", app="api"),), id="a remote pod that is let in comes"),
        pytest.param((), (pod("far", FAR, "n2", app="api"),), id="a remote pod gets the label that is let in"),
        pytest.param((), (policy(from_pods(80, app="api"), from_pods(81, app="db")),), id="one more rule"),
        pytest.param((), (policy(from_pods(443, app="db"), name="more"),), id="one more policy"),
        pytest.param((), (policy(from_pods(80, app="api"), app="nobody", name="more"),), id="of nobody's here"),
        pytest.param((), (None,), id="the only policy goes"),
        pytest.param(
            (guard("deny", RuleAction.DENY, 1, app="bad"), pod("far", FAR, "n2", app="bad")),
            (pod("far", FAR, "n2", app="good"),),
            id="a pod leaves what a cluster policy denies",
        ),
        pytest.param(
            (guard("accept", RuleAction.ACCEPT, 1, app="good"),),
            (pod("far", FAR, "n2", app="good"),),
            id="a pod enters what a cluster policy accepts",
        ),
    ],
)
async def test_what_only_allows_more_costs_no_look(before: tuple[Any, ...], changes: tuple[Any, ...]) -> None:
    async with Rig() as rig:
        await rig.change(policy(from_pods(80, app="api")), *before)
        looks = rig.looks()
        for change in changes:
            if change is None:
                rig.facts.delete(policy())
            else:
                rig.facts.upsert(change)
        await rig.reconciler.settled()
        await rig.idle()
        assert rig.looks() == looks


@pytest.mark.parametrize(
    ("before", "change", "looked_at"),
    [
        pytest.param((), pod("far", FAR, "n2", app="x"), {FAR}, id="a remote pod loses the label that is let in"),
        pytest.param((), policy(from_pods(443, app="far")), {WEB}, id="a policy is narrowed"),
        pytest.param((), policy(from_pods(80, app="other")), {WEB}, id="a policy has other peers"),
        pytest.param((), policy(app="api", name="deny"), {API}, id="a pod that was open is isolated"),
        pytest.param((), pod("db", DB, app="web"), {DB}, id="a pod joins those that are isolated"),
        pytest.param(
            (guard("deny", RuleAction.DENY, 1, app="bad"),),
            pod("far", FAR, "n2", app="bad"),
            {FAR},
            id="a pod enters what a cluster policy denies",
        ),
        pytest.param(
            (guard("pass", RuleAction.PASS, 1, role="x"),),
            pod("far", FAR, "n2", app="far", role="x"),
            {FAR},
            id="a pod enters what a cluster policy passes on",
        ),
        pytest.param(
            (guard("pass", RuleAction.PASS, 1, role="x"), pod("far", FAR, "n2", app="far", role="x")),
            pod("far", FAR, "n2", app="far"),
            {FAR},
            id="a pod leaves what a cluster policy passes on",
        ),
        pytest.param((), guard("accept", RuleAction.ACCEPT, 1, app="api"), {WEB}, id="a cluster policy comes"),
    ],
)
async def test_what_may_deny_costs_a_look_for_those_that_it_concerns(
    before: tuple[Any, ...], change: Any, looked_at: set[str]
) -> None:
    async with Rig() as rig:
        await rig.change(policy(from_pods(80, app="far")), *before)
        looks = len(rig.looks())
        await rig.change(change)
        assert rig.looks()[looks:] == [looked_at]


async def test_a_remote_pod_that_goes_and_a_policy_that_goes_cost_a_look_for_whom_they_let_in() -> None:
    async with Rig() as rig:
        more = policy(from_pods(443, app="db"), name="more")
        await rig.change(policy(from_pods(80, app="far")), more)
        looks = len(rig.looks())
        rig.connect(FAR, WEB)
        rig.facts.delete(pod("far", FAR, "n2"))
        await rig.reconciler.settled()
        await rig.idle()
        assert not rig.alive()
        rig.connect(DB, WEB, 443)
        rig.facts.delete(more)  # web stays isolated by the other one
        await rig.reconciler.settled()
        await rig.idle()
        assert not rig.alive()
        assert rig.looks()[looks:] == [{FAR}, {WEB}]


async def test_a_pod_of_this_node_that_goes_costs_no_look_beside_the_release() -> None:
    async with Rig() as rig:
        await rig.change(policy(from_pods(80, app="api")))
        looks = rig.looks()
        await rig.network.release(lease("web", WEB))
        await rig.idle()
        assert rig.looks() == looks


async def test_the_hosts_addresses_are_read_only_where_there_are_connections() -> None:
    async with Rig() as rig:
        read: list[None] = []

        def host() -> frozenset[str]:
            read.append(None)
            return frozenset()

        rig.revoker._host_addresses = host
        await rig.change(policy(from_pods(80, app="api")))
        assert not read
        rig.connect(DB, WEB)
        await rig.change(policy(from_pods(81, app="api")))
        assert read


async def test_of_a_folder_of_policies_only_the_whole_counts() -> None:
    async with Rig(Quiet(0.1, 5)) as rig:
        kept = rig.connect(API, WEB)
        await rig.change(policy(name="deny-all"), look=False)
        await rig.change(policy(from_pods(80, app="api"), name="allow"))
        assert rig.alive() == {kept}
        assert len(rig.looks()) == 1


async def test_a_storm_of_changes_ends_in_few_looks_and_does_not_put_them_off_for_ever() -> None:
    async with Rig(Quiet(0.5, 2.0)) as rig:
        rig.connect(DB, WEB)
        looks = len(rig.table.looks)
        changes = 0
        while rig.alive():
            await rig.change(policy(from_pods(1 + changes, app="api")), look=False)
            changes += 1
        assert changes > 5 * (len(rig.table.looks) - looks)


async def test_a_table_that_cannot_be_read_is_tried_again() -> None:
    async with Rig() as rig:
        kept = rig.connect(API, WEB)
        rig.connect(DB, WEB)
        rig.table.broken = OSError(105, "No buffer space available")
        await rig.change(policy(from_pods(80, app="api")), look=False)
        await until(lambda: rig.count("felix_py_flow_errors_total"))
        assert len(rig.alive()) == 2
        rig.table.broken = None
        await until(lambda: rig.alive() == {kept})


async def test_a_refused_deletion_is_tried_again_and_keeps_no_other_from_going() -> None:
    async with Rig() as rig:
        held, other = rig.connect(DB, WEB), rig.connect(FAR, WEB)
        rig.table.held.add(held)
        await rig.change(policy(from_pods(80, app="api")), look=False)
        await until(lambda: rig.count("felix_py_flow_errors_total"))
        assert rig.alive() == {held}
        assert other not in rig.alive()
        rig.table.held.clear()
        await until(lambda: rig.count("felix_py_flows_revoked_total") == 2)
        assert not rig.alive()


async def test_a_defect_ends_neither_the_revoker_nor_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Rig() as rig:
        rig.connect(DB, WEB)
        with monkeypatch.context() as patched:
            patched.setattr(FakeFlowTable, "flows", lambda *_: 1 / 0)
            await rig.change(policy(from_pods(80, app="api")), look=False)
            await until(lambda: rig.count("felix_py_flow_errors_total"))
        await until(lambda: not rig.alive())


async def test_rules_that_could_not_be_written_are_looked_at_again_once_they_are() -> None:
    async with Rig() as rig:
        rig.facts.upsert(policy(from_pods(80, app="api")))
        await rig.reconciler.settled()
        names = [name for one in rig.facts.engine.chains_of(("shop", "web")) for name in names_of(one)]
        chain = next(name for name in names if name.startswith("FELIX-P"))
        rig.kernel.failing = {ChainRef(Family.V4, "filter", chain): "no room"}
        rig.facts.upsert(policy(from_pods(443, app="api")))
        await until(lambda: rig.reconciler.failures)
        await until(lambda: rig.table.looks and not rig.due)
        # The old rules still let it begin.
        rig.connect(API, WEB, 80)
        rig.kernel.failing = {}
        await until(lambda: not rig.alive())


async def test_drift_concerns_whom_the_chain_or_set_concerns_and_everybody_where_that_is_all() -> None:
    async with Rig() as rig:
        await rig.change(policy(from_pods(80, app="api")))
        spoilt = rig.kernel.kernel
        shared = astuple(SetNames.of(Family.V4))
        held = [item for item in spoilt if isinstance(item, MemberRef) and item.text == API]
        (members,) = [item for item in held if item.set not in shared]
        chains = [item for item in spoilt if isinstance(item, ChainRef)]
        (chain,) = [item for item in chains if item.name.startswith("FELIX-PI-")]
        forward = ChainRef(Family.V4, "filter", "FELIX-FORWARD")
        for item, concerned in ((members, {API}), (chain, {WEB}), (forward, {WEB, API, DB})):
            before = len(rig.looks())
            value = spoilt.pop(item)
            stray = rig.connect(DB, WEB)
            rig.pending.look(Look.SETS | Look.RULES)
            await until(lambda: len(rig.looks()) > before)  # noqa: B023
            assert rig.looks()[before] == concerned
            assert spoilt[item] == value
            await until(lambda: (stray in rig.alive()) is (WEB not in concerned))  # noqa: B023
            rig.table.connections.pop(stray, None)


async def test_what_began_in_a_gap_ends_once_the_repair_has_succeeded() -> None:
    async with Rig() as rig:
        await rig.change(policy(from_pods(80, app="api")))
        forward = ChainRef(Family.V4, "filter", "FELIX-FORWARD")
        rig.kernel.failing = {forward: "the lock is held"}
        del rig.kernel.kernel[forward]
        rig.pending.look(Look.RULES)
        await until(lambda: rig.reconciler.failures)
        await rig.idle()
        # The gap lasts, and so do those who come through it.
        late = rig.connect(DB, WEB)
        rig.kernel.failing = {}
        await until(lambda: late not in rig.alive())


async def test_a_route_that_cannot_be_written_holds_up_nothing() -> None:
    async with Rig() as rig:
        rig.kernel.failing = {RouteRef("10.9.0.0/24", 89): "somebody else's"}
        rig.facts.learned({"10.9.0.0/24": ("192.0.2.9",)})
        rig.connect(DB, WEB)
        rig.facts.upsert(policy(from_pods(80, app="api")))
        await until(lambda: not rig.alive())
        assert rig.reconciler.failures
        assert not rig.revoker._writing


class SlowTable(FakeFlowTable):
    """Looking at it takes until the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.looking, self.go_on = threading.Event(), threading.Event()

    def flows(self, addresses: Any) -> list[Flow]:
        self.looking.set()
        self.go_on.wait(10)
        return super().flows(addresses)


async def test_neither_add_nor_del_waits_for_a_look_at_the_table() -> None:
    async with Rig() as rig:
        slow = SlowTable()
        rig.flows._table = slow
        rig.facts.upsert(pod("new", "10.1.0.8"))
        await rig.change(policy(from_pods(80, app="api")), look=False)
        await until(slow.looking.is_set)
        gone = rig.connect("10.1.0.8", WORLD)
        await rig.network.enforce(lease("new", "10.1.0.8"))
        await rig.network.release(lease("new", "10.1.0.8"))
        await until(lambda: gone not in rig.alive())
        assert not slow.go_on.is_set()
        slow.go_on.set()


async def test_an_address_is_released_with_all_that_is_its_own_and_nothing_else() -> None:
    async with Rig() as rig:
        rig.connect(WEB, WORLD)
        rig.connect(API, WEB)
        rig.table.connect(Flow(WORLD, "10.1.9.9", TCP, 80), WEB)  # translated from or to it
        kept = {rig.connect(API, DB), rig.connect(WORLD, API)}
        await rig.network.release(lease("web", WEB))
        await until(lambda: rig.alive() == kept)
        await until(lambda: rig.count("felix_py_flows_released_total") == 3)


async def test_releases_at_the_same_time_share_a_look_and_a_failed_one_is_judged_later() -> None:
    async with Rig() as rig:
        await rig.change(policy(from_pods(80, app="api")))
        addresses = [f"10.1.0.{n}" for n in range(20, 60)]
        for address in addresses:
            rig.connect(address, WORLD)
        calls: list[set[str]] = []
        forget = rig.table.forget
        rig.table.forget = lambda found: calls.append(set(found)) or forget(found)  # type: ignore[method-assign,assignment]
        await asyncio.gather(*(rig.flows.forget([address]) for address in addresses))
        assert not rig.alive()
        assert len(calls) <= 2
        stale = rig.connect(WORLD, WEB)
        rig.table.broken = OSError(1, "no")
        await rig.flows.forget([WEB])
        assert rig.count("felix_py_flow_errors_total") >= 1
        rig.table.broken = None
        await until(lambda: stale not in rig.alive())


def test_the_view_shows_what_an_endpoint_leased_before_the_server_knows() -> None:
    rig = Rig()
    rig.facts.upsert(Pod("shop", "new", "u", "n1", (("app", "new"),)))
    rig.facts.attach(lease("new", "10.1.0.8"))
    view = rig.facts.view
    view.advance()
    found = view.pod_at("10.1.0.8")
    assert found is not None
    assert (found.name, view.endpoint_at("10.1.0.8"), view.subject_at("10.1.0.8")) == ("new", found.key, found)
    # The next one with this address and name starts with nothing.
    view.detach(found.key)
    view.fold(Change(found, None))
    view.attach(LocalEndpoint("shop", "new", ("10.1.0.8",)), None)
    view.advance()
    assert view.subject_at("10.1.0.8") is None
    rig.flows.close()
