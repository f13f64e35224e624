"""The agent: starts the parts in the order in which they need each other, and stops them the other way round.

Order of a start, and why:

1. Leases and kernel are read: a restarted agent knows its endpoints before anybody asks. What the kernel holds is
   guarded from here on against what others change, whether the API server answers or not.
2. The CNI server listens: a DEL must work whatever else is missing. ADD answers "try again" until step 4.
3. The informers run until every kind is in sync. Until then nothing is written to the kernel but what others have
   spoilt.
4. The first apply: the kernel is read again, written and swept. Nothing that was left behind is in force any
   more, so ADD works, and only then does the runtime get its network list.
5. BGP: what the node announces works by now. Once learned routes are complete again, or have had their time,
   those that no peer has told of are swept.

Order of an end: no more CNI calls; those under way come to their end, or are told to try again. Then the applies
end, and whoever waits for one hears it. Then all else, the other way round than it was started. What is in the
kernel stays. :mod:`felix_py.agent.stopping` sees to it that this takes ten seconds at most.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import os
import resource
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, NoReturn

from felix_py import log
from felix_py.agent import kernel_features, memory, status
from felix_py.agent.bgp import Bgp
from felix_py.agent.connections import Connections
from felix_py.agent.deny_log import DenyLogging
from felix_py.agent.facts import Facts
from felix_py.agent.families import Families
from felix_py.agent.flows import Flows
from felix_py.agent.host_notices import HostNotices
from felix_py.agent.identity import Identity
from felix_py.agent.listener import listen, listen_for, remove
from felix_py.agent.network import PodNetwork, concern_everybody
from felix_py.agent.pods import Pods
from felix_py.agent.policy_counters import Accounts, PolicyCounters
from felix_py.agent.refusals import Refusals
from felix_py.agent.revoke import Revoker
from felix_py.agent.stalls import Stalls, WatchedSelector
from felix_py.agent.stopping import Stopping
from felix_py.cni.server import SocketInUse
from felix_py.config import AgentConfig, ConfigError, EndpointToHost, as_json
from felix_py.dataplane import sysctl
from felix_py.dataplane.backend import ToolError, end_tools, find_backend
from felix_py.dataplane.conntrack import Conntrack
from felix_py.dataplane.counters import read_counters
from felix_py.dataplane.host_addresses import host_addresses
from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.monitor import Monitor
from felix_py.dataplane.other_backend import OtherBackend
from felix_py.datastore.client import ApiError, Unreachable, connect
from felix_py.datastore.cluster import Cluster
from felix_py.datastore.informer import Timing
from felix_py.datastore.store import Deleted, Event, Upserted
from felix_py.ipam.store import StoreError
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from felix_py.plan.marks import Marks
from felix_py.plan.names import DISPATCH, TIERS
from felix_py.plan.planner import HeldNumbers, Planner, TakenNumbers
from felix_py.plan.render import class_numbers
from felix_py.plan.static import SetNames, StaticOptions
from felix_py.reconcile import Reconciler
from felix_py.records import Backend, Update
from policy.model import Direction, Family, Pod

FATAL = (ConfigError, StoreError, ToolError, SocketInUse, PermissionError)
"""What no waiting will mend: the message says what to do."""

_SYNC_NOTICE = 10.0
"""Seconds between two log lines that say what the agent still waits for."""

_MOST_NAMED = 10
"""Objects named in one log line."""
_HEALTH_WAITS = 1.0
"""Seconds after which the health endpoint answers although policy is not in force yet."""

_OTHER_RETRY = 5.0
"""Seconds until rules that could not be taken out of the other backend are tried again."""
_DESCRIPTORS = 16384

_CONDITION_RETRY = 60.0
"""Seconds until the node's condition is tried again."""


def main(config: AgentConfig) -> NoReturn:
    """Be the agent until SIGTERM or SIGINT, then end the process.

    Exit codes: 0 stopped, 1 could not start or has failed, :data:`~felix_py.agent.stopping.HUNG`.
    """
    _raise_descriptor_limit()
    memory.guard()
    selector = WatchedSelector()
    code = asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)).run(run(config, selector))
    # Everything that has to be closed is. Threads that a peer or the kernel lets wait must not keep the process.
    log.flush()
    os._exit(code)


def _raise_descriptor_limit() -> None:
    """Services get 1,024 by default. Those who connect get a fraction; the rest is for what enforces."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def run(config: AgentConfig, selector: WatchedSelector | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code. Call it in the main thread, once a process.

    ``selector``: the running loop's, to count stalls.
    """
    logger = log.get("agent")
    stopping = Stopping(end_tools, lambda text: logger.error(text))
    asyncio.get_running_loop().set_exception_handler(memory.unhandled)
    told = True
    try:
        async with AsyncExitStack() as stack:
            agent = Agent(config, stack)
            if selector is not None:
                selector.on_stall = agent.stalls
            work = asyncio.create_task(agent.run())
            asked = asyncio.create_task(stopping.asked.wait())
            await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                told = stopping.asked.is_set()
                stopping.begin()
            else:
                logger.info("stopping")
            await agent.stop_calls()
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
    except FATAL as error:
        if not told:  # else it may have failed because its tools were killed
            logger.error("cannot start", reason=str(error))
            return 1
    except Exception as error:
        if memory.is_lack(error):
            logger.error(memory.WORDS)
        else:
            logger.exception("the agent has failed")
        return 1
    finally:
        stopping.over()
    logger.info("stopped; everything in the kernel stays as it is")
    return 0


class Agent:
    """All parts of one node's agent. ``stack`` takes what must be closed, in reverse order."""

    def __init__(self, config: AgentConfig, stack: AsyncExitStack) -> None:
        self._config = config
        self._stack = stack
        self._log = log.get("agent")
        self._metrics = Metrics()
        self._notices = Notices(self._metrics)
        self._marks = Marks.from_mask(config.mark_mask)
        self._born = time.monotonic()
        self._in_force = asyncio.Event()
        self._pods = Pods(config, stack, self._metrics, self._notices)
        self._log_lost: dict[str, int] = {}
        self.stalls = Stalls(self._metrics.loop_stalls.observe, log.get("loop").warning)

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            FATAL: see there.
        """
        await self.start()
        await self.work()

    async def stop_calls(self) -> None:
        """The first step of the end: no more CNI calls, while all that those under way need still works."""
        await self._pods.stop_calls()

    async def start(self) -> None:
        """Steps 1 to 3.

        Raises:
            FATAL: see there.
        """
        config = self._config
        of_node = Families.of_this_node(config.ip_families)
        families, closed = of_node.programmed, of_node.closed
        for failure in sysctl.set_up_host(families):
            self._log.warning("cannot set a kernel setting", what=failure.what, reason=failure.reason)
        backend = find_backend(config.backend)
        kernel = self._kernel = self._stack.enter_context(Kernel(families, backend, closed))
        self._listen_to_the_kernel()
        kernel.load()
        off = {"switched_off": [int(family) for family in closed]} if closed else {}
        self._log.info("starting", backend=backend.value, families=[int(f) for f in families], **off)
        self._other = OtherBackend((*families, *closed), backend, kernel.own_processes)

        self._facts = Facts(config.node_name, families, config.cluster_cidrs, lambda: self._reconciler.note())
        self._facts.tell = self._notices.replace
        self._deny_log = DenyLogging(config, families, backend, self._facts, self._facts.view, self._metrics)
        self._missing = kernel_features.missing(families, backend, self._notices)
        self._counters = self._policy_counters(families, backend)
        self._configuration = {
            "backend": backend.value,
            "families": [int(family) for family in families],
            "clusterCidrs": list(config.cluster_cidrs),
            "rules": dataclasses.asdict(self._options()),
            "settings": as_json(config),
        }
        held, taken = self._held_numbers(kernel, families), self._taken_numbers(kernel, families)
        before = self._held_numbers(self._other, families)
        planner = Planner(families, self._options(), held, taken, before, closed)
        self._reconciler = Reconciler(
            planner,
            kernel,
            self._facts.collect,
            self._metrics,
            refresh_interval=config.refresh_interval,
            abandon=end_tools,
            everybodys=partial(concern_everybody, self._facts),
        )
        # Where the other backend's rules are in force, half of ours beside them would only be in their way.
        self._hold(Update() if self._other.owned else Planner(families, self._options(), held).take())
        host = HostNotices(self._notices, kernel, self._facts.endpoint_at)
        self._reconciler.on_applied.append(host.look)
        self._start_flows()
        self._network = PodNetwork(self._facts, self._reconciler, self._pods.mtu, self._flows.forget)
        self._stack.push_async_callback(self._network.close)
        self._bgp = Bgp(config, self._facts, families, self._notices, self._metrics)
        self._facts.on_nodes = self._bgp.cluster_changed
        self._listener = self._stack.enter_context(listen(config.health_address))
        self._private = self._stack.enter_context(listen_for(config.socket_group, config.agent_socket))
        self._stack.callback(remove, config.agent_socket, config.agent_socket.stat().st_ino)
        await self._pods.start(self._network, self._facts.attach)
        self._start_cluster()

    def _options(self) -> StaticOptions:
        return StaticOptions(
            self._marks,
            nat_outgoing=self._config.nat_outgoing,
            endpoint_to_host=self._config.endpoint_to_host.upper(),
            drop_invalid=self._config.drop_invalid,
            drop_midstream=self._config.revoke_established,
            deny_log=self._deny_log.rules,
            missing=self._missing,
        )

    def _policy_counters(self, families: Sequence[Family], backend: Backend) -> PolicyCounters:
        accounts = Accounts(self._facts.chain_names, self._facts.view.cluster_policies)
        counters = PolicyCounters(accounts, families, lambda family: read_counters(family, backend))
        self._stack.callback(counters.close)
        self._metrics.registry.register(counters)
        return counters

    def _start_flows(self) -> None:
        enter = self._stack.enter_context
        self._flows = Flows(enter(Conntrack()), enter(Conntrack()), self._metrics)
        self._stack.callback(self._flows.close)
        self._revoker = None
        if self._config.revoke_established:
            facts = self._facts
            self._revoker = Revoker(
                facts.view,
                facts.engine.chains_of,
                self._flows,
                host_addresses,
                self._metrics,
                host_closed=self._config.endpoint_to_host is EndpointToHost.DROP,
            )
            facts.on_policy = self._revoker.collected
            self._reconciler.on_drift.append(self._revoker.mended)
            self._reconciler.on_applied.append(self._revoker.applied)
            self._flows.on_kept = self._revoker.suspect

    def _held_numbers(self, kernel: Kernel | OtherBackend, families: Sequence[Family]) -> HeldNumbers:
        return {
            (family, direction): class_numbers(
                kernel.rules(family, "filter", DISPATCH[direction]), direction, self._marks
            )
            for family in families
            for direction in Direction
        }

    def _unready(self) -> str | None:
        """Why no pod can be connected, or what keeps policy from being wholly in force; None if nothing does."""
        if reason := self._network.unready() or self._pods.no_addresses(self._facts.pod_cidrs):
            return reason
        if failure := self._reconciler.unenforced:
            return f"policy is not wholly in force: {failure.what}: {failure.reason}"
        return f"the kernel cannot be read back: {unread}" if (unread := self._reconciler.unread) else None

    def _taken_numbers(self, kernel: Kernel, families: Sequence[Family]) -> TakenNumbers:
        return {
            (family, direction): {
                self._marks.number(direction, mark)
                for mark in kernel.marks(SetNames.of(family).class_map(direction))
            }
            for family in families
            for direction in Direction
        }

    async def _serve_health(self) -> None:
        """Answer those who connect to the health endpoint. Not before policy is in force, if that is soon: what
        answers them takes longer to load than all that pods wait for.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._in_force.wait(), _HEALTH_WAITS)
        await asyncio.to_thread(importlib.import_module, "felix_py.agent.health")
        from felix_py.agent.flows_http import flows_route
        from felix_py.agent.health import HealthServer

        health = HealthServer(
            self._metrics.registry,
            self._unready,
            self.status,
            self._refresh_metrics,
            [*self._deny_log.routes(), flows_route(self._flows, self._facts.view.endpoint_addresses)],
        )
        await health.start(self._listener, self._private)
        self._stack.push_async_callback(health.stop)

    def _start_cluster(self) -> None:
        api = connect(self._config.kubeconfig)
        self._cluster = Cluster(
            api,
            node_name=self._config.node_name,
            timing=Timing(absent=self._config.discovery_interval),
            on_invalid=lambda kind, _key, _reason: self._metrics.rejected.labels(kind).inc(),
            tiers_in_force=any(
                tables.rules(family, "filter", TIERS)
                for tables in (self._kernel, self._other)
                for family in Family
            ),
        )
        self._cluster.store.subscribe(self._on_events)
        self._reconciler.on_applied.append(Refusals(self._facts.engine.policies_using, self._cluster.warn))
        self._cluster.start()
        self._stack.push_async_callback(self._cluster.stop)

    def _on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            try:
                self._on_event(event)
            except MemoryError:
                raise
            except Exception:
                # A defect of ours over one object must not cost the others of its batch.
                self._log.exception("cannot take over an object", what=repr(event)[:500])

    def _on_event(self, event: Event) -> None:
        match event:
            case Upserted(record, _):
                self._facts.upsert(record)
                if isinstance(record, Pod):
                    self._network.pod_seen(record, self._config.node_name)
            case Deleted(record):
                self._facts.delete(record)
                if isinstance(record, Pod):
                    self._network.pod_gone(record)

    def _hold(self, base: Update) -> None:
        """What is in force now stays so until the cluster is known, whoever changes it."""
        missing = self._kernel.hold(base)
        self._reconciler.hold()
        if missing:
            self._log.warning(
                "rules were changed while no agent ran; until the cluster is known, what depends on it is shut",
                missing=missing[:_MOST_NAMED],
            )

    async def work(self) -> None:
        """Steps 4 and 5, then until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._serve_health())
            tasks.create_task(self._reconciler.run())
            await self._wait_for_sync()
            if self._revoker:
                tasks.create_task(self._revoker.run())
            await self._first_apply()
            self._network.set_ready()
            self._in_force.set()
            self._metrics.in_sync.set(1)
            self._log.info("in sync: policy is in force", endpoints=self._facts.endpoints)
            tasks.create_task(self._deny_log.run())
            # What comes later is counted from here.
            tasks.create_task(self._counters.refresh())
            tasks.create_task(self._tell_the_world())
            tasks.create_task(self._pods.run(self._facts.node_addresses))
            tasks.create_task(Connections(self._notices).run())
            tasks.create_task(Identity(lambda: self._facts.node, self._notices).run())
            tasks.create_task(self._bgp.run())
            await self._bgp.wait_in_sync()
            self._reconciler.sweep()  # learned routes, too

    async def _wait_for_sync(self) -> None:
        synced = asyncio.create_task(self._cluster.in_sync())
        while not (await asyncio.wait((synced,), timeout=_SYNC_NOTICE))[0]:
            self._log.warning("still waiting for the API server", kinds=self._cluster.store.not_listed)

    async def _first_apply(self) -> None:
        """Until policy is in force, and nothing beside it. What cannot be written is logged and tried again."""
        self._reconciler.begin()
        self._reconciler.sweep(keep_learned=True)
        await self._reconciler.clean()
        await self._leave_other_backend()

    async def _leave_other_backend(self) -> None:
        """The rules are complete in the backend in use: those of ours in the other one go."""
        name = self._other.backend.value
        if reason := self._other.unreadable:
            text = f"the {name} tables cannot be read ({reason}): rules of ours may be in force there, too"
            self._notices.say(NoticeKind.RULES_IN_OTHER_BACKEND, name, text)
        if not (found := self._other.owned):
            return
        while failures := await self._reconciler.call(self._other.take_out):
            text = (
                f"rules of ours are in force in the {name} tables as well, and cannot be taken out: "
                f"{failures[0].what}: {failures[0].reason}"
            )
            self._network.hindrance = text
            self._notices.say(NoticeKind.RULES_IN_OTHER_BACKEND, name, text)
            await asyncio.sleep(_OTHER_RETRY)
        self._network.hindrance = ""
        if not self._other.unreadable:
            self._notices.clear(NoticeKind.RULES_IN_OTHER_BACKEND, name)
        self._log.warning(
            "this node's programs use another iptables backend now; took our rules out of the old one",
            old=name,
            objects=len(found),
        )
        self._reconciler.retry()  # sets that only those rules used

    def _listen_to_the_kernel(self) -> None:
        """Before it is read, so that nothing is missed between. Called back is once the event loop gets to it."""
        try:
            monitor = Monitor(
                self._kernel,
                lambda name: self._facts.has_interface(name),
                lambda parts: self._reconciler.look(parts),
                lambda: self._reconciler.retry(),
            )
        except OSError as error:
            self._log.warning("changes by others are found at the refresh only", reason=str(error))
            return
        self._stack.callback(monitor.close)
        monitor.start()

    async def _tell_the_world(self) -> None:
        """The runtime may start pods here, and the scheduler may send some."""
        await self._pods.tell_the_runtime()
        await self._set_network_available()

    async def _set_network_available(self) -> None:
        while True:
            try:
                return await self._cluster.set_network_available(self._config.node_name)
            except (ApiError, Unreachable) as error:
                self._log.warning("cannot set the node's NetworkUnavailable condition", reason=str(error))
            await asyncio.sleep(_CONDITION_RETRY)

    # --- what people see -----------------------------------------------------------------------------

    async def _refresh_metrics(self) -> None:
        await self._counters.refresh()
        lost = log.lost()
        for reason, lines in lost.items():
            self._metrics.log_lost.labels(reason).inc(lines - self._log_lost.get(reason, 0))
        self._log_lost = lost
        self._metrics.endpoints.set(self._facts.endpoints)
        self._metrics.compared_age.set(self._reconciler.compared_age)
        for kind, age in self._cluster.ages().items():
            self._metrics.watch_age.labels(kind).set(age)
        self._bgp.refresh_metrics()

    def status(self) -> dict[str, Any]:
        """The agent's state, as ``/status`` shows it."""
        return {
            "node": self._config.node_name,
            "uptimeSeconds": round(time.monotonic() - self._born, 1),
            "unready": self._unready(),
            "configuration": self._configuration,
            "podCIDRs": list(self._facts.pod_cidrs),
            "endpoints": self._facts.endpoints,
            "denyLog": self._deny_log.state(),
            "notices": [notice._asdict() for notice in self._notices.all()],
            **status.of_reconciler(self._reconciler),
            **status.of_cluster(self._cluster),
            **status.of_bgp(self._bgp),
        }
