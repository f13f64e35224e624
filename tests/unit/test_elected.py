"""Who leads, and what it does: agents' controllers on an API server that keeps all that a real one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from felix_py.agent.controllers.elected import Elected
from felix_py.agent.controllers.gone_nodes import AFFINITIES, GoneNodes
from felix_py.agent.controllers.load_balancers import LoadBalancers
from felix_py.agent.declared_pools import DeclaredPools
from felix_py.agent.election import Timing
from felix_py.agent.elector import Elector, boot_time
from felix_py.datastore.access import Identity, Plain
from felix_py.datastore.client import Api
from felix_py.datastore.cluster import Cluster
from felix_py.datastore.kinds import IPAM_BLOCKS
from felix_py.datastore.leases import Leases
from felix_py.datastore.load_balancers import LOAD_BALANCERS
from felix_py.ipam.gone import GRACE
from felix_py.layout import LEASE
from felix_py.metrics import Metrics
from lab.apiserver import ApiServer
from tests.support.waiting import until
from tests.support.watching import QUICK

CRDS = Path(__file__).parents[2] / "manifests" / "crds"
OWN = "/apis/felixpy.io/v1alpha1"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
SOON = Timing(retry_period=0.2, longest=0.2)

Json = dict[str, Any]


class Server:
    """The API server, as ``kubectl`` sees it."""

    def __init__(self, server: ApiServer, session: aiohttp.ClientSession) -> None:
        self.url = server.url
        self._session = session

    async def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Json:
        async with self._session.request(method, path, json=body, headers={"Content-Type": kind}) as answer:
            found: Json = await answer.json()
            assert answer.status < 300, found
            return found

    async def create(self, path: str, name: str, spec: Json, **metadata: Any) -> Json:
        kind = {"felixpy.io": "felixpy.io/v1alpha1"}.get(path.split("/")[2], "v1")
        head = {"apiVersion": kind} if kind != "v1" else {}
        kinds = {"ippools": "IPPool", "ipamblocks": "IPAMBlock", "blockaffinities": "BlockAffinity"}
        named = {"kind": kinds[path.rpartition("/")[2]]} if head else {}
        return await self.ask(
            "POST", path, {**head, **named, "metadata": {"name": name, **metadata}, "spec": spec}
        )

    async def merge(self, path: str, body: Json) -> Json:
        return await self.ask("PATCH", path, body, "application/merge-patch+json")

    async def items(self, path: str) -> dict[str, Json]:
        return {one["metadata"]["name"]: one for one in (await self.ask("GET", path))["items"]}

    async def pool(self, name: str, cidr: str, **spec: Any) -> None:
        size = int(cidr.partition("/")[2])
        fields = {"cidr": cidr, "blockSize": size, "allowedUses": ["LoadBalancer"], **spec}
        await self.create(f"{OWN}/ippools", name, fields)

    async def service(self, name: str, *, annotations: dict[str, str] | None = None, **spec: Any) -> None:
        fields = {"type": "LoadBalancer", "ports": [{"port": 80}], **spec}
        path = "/api/v1/namespaces/default/services"
        await self.create(path, name, fields, annotations=annotations or {})

    async def given(self) -> dict[str, list[str]]:
        """The addresses of each load balancer."""
        services = (await self.items("/api/v1/namespaces/default/services")).items()
        return {
            name: [entry.get("ip", "") for entry in one["status"].get("loadBalancer", {}).get("ingress", [])]
            for name, one in services
            if one["spec"]["type"] == "LoadBalancer"
        }

    async def events(self, reason: str) -> list[str]:
        found = (await self.items("/api/v1/events")).values()
        return [one["message"] for one in found if one["reason"] == reason]

    async def holder(self) -> str:
        leases = await self.items(LEASES)
        holder: str = leases[LEASE]["spec"].get("holderIdentity", "") if LEASE in leases else ""
        return holder.partition("_")[0]


class Agent:
    """What of an agent takes part. ``late``: seconds by which its clock has been put forward."""

    def __init__(self, url: str, name: str, *, foreign: bool = False) -> None:
        self.name = name
        self.late = 0.0
        self.looks = 0
        self.cluster = Cluster(Api(lambda: Plain(Identity(url))), node_name=name, timing=QUICK)
        self.metrics = Metrics()
        cluster, pools = (
            self.cluster,
            DeclaredPools(self.cluster.store, Path("/nonexistent")),
        )
        leases = Leases(cluster.api, "kube-system", LEASE, 5.0)
        self.elector = Elector(leases, f"{name}_1", lambda: 0, timing=SOON)
        balancers = LoadBalancers(
            cluster.api,
            cluster.store,
            pools,
            self.elector,
            lambda: cluster.followed(LOAD_BALANCERS),
            cluster,
            self.metrics,
            foreign=foreign,
        )
        gone = GoneNodes(
            cluster.api,
            cluster.store,
            self.elector,
            lambda: cluster.followed(IPAM_BLOCKS, AFFINITIES),
            look=0.1,
            clock=self._clock,
        )
        self._elected = Elected(self.elector, (balancers.run, gone.run), pools, self.metrics)
        self._task: asyncio.Task[None] | None = None

    def _clock(self) -> float:
        """Of the controller that looks for nodes that are gone."""
        self.looks += 1
        return boot_time() + self.late

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"felix_py_{name}", labels)

    async def __aenter__(self) -> Agent:
        self.cluster.start()
        async with asyncio.timeout(60):
            await self.cluster.in_sync()
        self._task = asyncio.create_task(self._elected.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()
        await self.cluster.stop()

    async def end(self) -> None:
        """As an agent that is stopped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def serving(*agents: str, **options: Any) -> AsyncIterator[tuple[Server, list[Agent]]]:
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiServer())
        session = await stack.enter_async_context(aiohttp.ClientSession(api.url))
        server = Server(api, session)
        for file in ("ippools", "ipreservations", "ipamblocks", "blockaffinities"):
            definition = yaml.safe_load((CRDS / f"felixpy.io_{file}.yaml").read_text())
            await server.ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        # One that nobody holds: where there is none, the first leader waits for its duration.
        await server.create(LEASES, LEASE, {"holderIdentity": "", "leaseDurationSeconds": 1})
        yield server, [await stack.enter_async_context(Agent(server.url, name, **options)) for name in agents]


async def eventually(look: Callable[[], Coroutine[Any, Any, object]], wanted: object) -> None:
    """Wait until what the server says is this."""
    found: object = None
    try:
        async with asyncio.timeout(60):
            while (found := await look()) != wanted:  # noqa: ASYNC110 - the server is asked
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"still {found!r}, not {wanted!r}") from None


async def test_without_pools_nothing_is_asked_for_or_written() -> None:
    async with serving("n1") as (server, (agent,)):
        await server.service("web")
        await asyncio.wait_for(agent.cluster.in_sync(), 60)
        assert await server.holder() == ""
        assert "Service" not in agent.cluster.ages()
        await server.pool("pods", "10.64.0.0/26", allowedUses=["Workload"])
        await until(agent.elector.leading.is_set)
        assert await server.given() == {"web": []}


async def test_addresses_come_stay_and_go() -> None:
    async with serving("n1") as (server, (agent,)):
        await server.service("first")
        await server.pool("lb", "192.0.2.0/29")
        await eventually(server.given, {"first": ["192.0.2.1"]})
        await server.service("second")
        await server.service("asking", loadBalancerIP="192.0.2.6")
        await server.service("others", loadBalancerClass="example.com/other")
        now = {"first": ["192.0.2.1"], "second": ["192.0.2.2"], "asking": ["192.0.2.6"], "others": []}
        await eventually(server.given, now)
        await until(lambda: agent.metric("load_balancer_addresses", pool="lb", state="allocated") == 3)
        assert agent.metric("load_balancer_addresses", pool="lb", state="free") == 3
        assert agent.metric("leader") == 1

        path = "/api/v1/namespaces/default/services"
        raw = await server.ask("GET", f"{path}/first")
        assert raw["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.1", "ipMode": "VIP"}]
        await server.ask("DELETE", f"{path}/first")
        await server.merge(f"{path}/second", {"spec": {"type": "ClusterIP"}})
        await server.service("third")
        await until(lambda: agent.metric("load_balancer_addresses", pool="lb", state="allocated") == 2)
        assert (await server.given())["third"] == ["192.0.2.1"]
        second = await server.ask("GET", f"{path}/second")
        assert not second["status"]["loadBalancer"].get("ingress")


async def test_what_cannot_be_had_is_said_and_takes_nothing_away() -> None:
    async with serving("n1", foreign=True) as (server, (agent,)):
        await server.pool("lb", "192.0.2.0/30")
        await server.service("a")
        await eventually(server.given, {"a": ["192.0.2.1"]})
        await server.service("b", annotations={"metallb.universe.tf/loadBalancerIPs": "192.0.2.1"})
        await eventually(server.given, {"a": ["192.0.2.1"], "b": []})
        text = "192.0.2.1 is asked for, but it is the address of the Service default/a; addresses are not shared"
        await eventually(lambda: server.events("AddressRefused"), [text])
        await server.service("c")
        await eventually(server.given, {"a": ["192.0.2.1"], "b": [], "c": ["192.0.2.2"]})
        await server.service("d")
        await eventually(lambda: server.events("NoAddressLeft"), ["no IPv4 address is left in IPPool lb"])
        await until(lambda: agent.metric("load_balancers_refused") == 2)
        assert len(await server.events("PoolExhausted")) == 1
        path = "/api/v1/namespaces/default/services/c"
        await server.merge(path, {"metadata": {"annotations": {"felixpy.io/loadbalancer-ips": "nonsense"}}})
        await until(lambda: agent.metric("load_balancers_refused") == 3)
        assert (await server.given())["c"] == ["192.0.2.2"]
        await server.ask("DELETE", "/api/v1/namespaces/default/services/a")
        await eventually(server.given, {"b": ["192.0.2.1"], "c": ["192.0.2.2"], "d": []})


async def test_of_two_services_with_one_address_the_older_keeps_it() -> None:
    async with serving("n1") as (server, _):
        await server.service("older")
        # A creationTimestamp has whole seconds; names decide within one.
        await server.service("younger")
        taken = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.3"}, {"hostname": "a.example"}]}}}
        for name in ("older", "younger"):
            await server.merge(f"/api/v1/namespaces/default/services/{name}/status", taken)
        await server.service("cloud")
        foreign = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}}
        await server.merge("/api/v1/namespaces/default/services/cloud/status", foreign)
        await server.pool("lb", "192.0.2.0/29")
        path = "/api/v1/namespaces/default/services/younger"

        async def younger() -> object:
            return (await server.ask("GET", path))["status"]["loadBalancer"]["ingress"]

        await eventually(younger, [{"hostname": "a.example"}, {"ip": "192.0.2.1", "ipMode": "VIP"}])
        older = await server.ask("GET", "/api/v1/namespaces/default/services/older")
        assert older["status"] == taken["status"]
        assert (await server.given())["cloud"] == ["203.0.113.1"]
        text = "192.0.2.3 is the address of the older Service default/older as well, which keeps it"
        await eventually(lambda: server.events("AddressConflict"), [text])


async def test_another_agent_goes_on_where_the_leader_was() -> None:
    async with serving("n1", "n2") as (server, agents):
        await server.pool("lb", "192.0.2.0/29")
        await server.service("web")
        await eventually(server.given, {"web": ["192.0.2.1"]})
        (leader,) = [agent for agent in agents if agent.elector.leading.is_set()]
        (other,) = [agent for agent in agents if agent is not leader]
        assert await server.holder() == leader.name
        await leader.end()
        assert not leader.elector.leading.is_set()
        assert leader.metric("load_balancer_addresses", pool="lb", state="free") is None
        await until(other.elector.leading.is_set)
        await server.service("more")
        await eventually(server.given, {"web": ["192.0.2.1"], "more": ["192.0.2.2"]})
        # No pool any more: nobody leads, and what Services have stays.
        await server.ask("DELETE", f"{OWN}/ippools/lb")
        await eventually(server.holder, "")
        assert await server.given() == {"web": ["192.0.2.1"], "more": ["192.0.2.2"]}


async def left_blocks(server: Server) -> list[set[str]]:
    return [set(await server.items(f"{OWN}/{kind}")) for kind in ("ipamblocks", "blockaffinities")]


async def block(server: Server, node: str, uid: str, number: int, **spec: Any) -> None:
    cidr = f"10.64.0.{number * 16}/28"
    had = {"node": node, "cidr": cidr, "state": "confirmed"}
    await server.create(f"{OWN}/blockaffinities", f"{node}-{number}", had)
    await server.create(f"{OWN}/ipamblocks", f"b{number}", {"node": node, "nodeUID": uid, "cidr": cidr, **spec})


async def lent_of(server: Server, name: str) -> list[Json]:
    found: list[Json] = (await server.items(f"{OWN}/ipamblocks"))[name]["spec"]["lent"]
    return found


async def test_blocks_of_nodes_that_are_gone_are_freed_after_the_grace() -> None:
    async with serving("n1") as (server, (agent,)):
        here = (await server.create("/api/v1/nodes", "n1", {}))["metadata"]["uid"]
        anew = (await server.create("/api/v1/nodes", "anew", {}))["metadata"]["uid"]
        stays = {"address": "10.64.0.18", "node": "anew", "nodeUID": anew, "uid": "l1"}
        ends = {"address": "10.64.0.17", "node": "lost", "nodeUID": "u9", "uid": "l2"}
        await block(server, "n1", here, 1, lent=[ends, stays])
        await block(server, "gone", "u1", 2)
        await block(server, "anew", "u0", 3)
        await block(
            server, "lender", "u2", 4, lent=[stays | {"address": "10.64.0.65", "node": "n1", "nodeUID": here}]
        )
        await block(server, "busy", "u3", 5)
        pods = "/api/v1/namespaces/default/pods"
        containers = [{"name": "c", "image": "i"}]
        await server.create(pods, "web", {"nodeName": "busy", "containers": containers})
        await server.create(pods, "proxy", {"nodeName": "gone", "containers": containers, "hostNetwork": True})
        wanted = {"node": "gone", "cidr": "10.64.0.96/28", "state": "pending"}
        await server.create(f"{OWN}/blockaffinities", "gone-6", wanted)
        await server.pool("pods", "10.64.0.0/24", blockSize=28, allowedUses=["Workload"])
        await until(agent.elector.leading.is_set)
        before = await left_blocks(server)
        await until(lambda: agent.looks > 5)
        agent.late += GRACE - 60
        looks = agent.looks
        await until(lambda: agent.looks > looks + 20)
        assert await left_blocks(server) == before
        assert (await server.items(f"{OWN}/ipamblocks"))["b1"]["spec"]["lent"] == [ends, stays]

        agent.late += 60
        rest = [{"b1", "b4", "b5"}, {"n1-1", "lender-4", "busy-5"}]
        await eventually(lambda: left_blocks(server), rest)
        await eventually(lambda: lent_of(server, "b1"), [stays])
        await server.ask("DELETE", f"{pods}/web", {"gracePeriodSeconds": 0})
        agent.late += GRACE
        await eventually(lambda: left_blocks(server), [{"b1", "b4"}, {"n1-1", "lender-4"}])
