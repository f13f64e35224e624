"""The agent: starts the parts in the order in which they need each other, and stops them the other way round.

Order of a start, and why:

0. FelixConfigurations are read, for three seconds at most (:mod:`felix_py.agent.starting`).
1. Leases and kernel are read: a restarted agent knows its endpoints before the first call. The kernel's rules are
   held from here on, and drift is repaired, whether the API server answers or not.
2. The CNI server listens: a DEL must work whatever else is missing. An ADD waits for step 4, or is to be tried
   again.
3. The informers run until every kind is in sync. Until then the kernel is written only to repair drift.
4. The first apply: the kernel is read again, written and swept. Nothing stale is in force any more, so ADD works,
   and only then does the runtime get its network list.
   Without BGP, routes to other nodes are complete by then, too: for those from Node objects the links are read
   before.
5. BGP: the announced prefixes are reachable by now. Once learned routes are complete again, or the deferral timer
   has expired, those that no peer has announced are swept.

Order of an end: no more CNI calls; running ones end, or are told to try again (ADDs: with the next agent). Then
the applies end, and their waiters are told. Then all else, in reverse order of the start. The kernel's state
stays. :mod:`felix_py.agent.stopping` bounds this to ten seconds.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import resource
import socket
from collections.abc import Collection, Iterable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import NoReturn

from felix_py import log
from felix_py.agent import memory
from felix_py.agent.build import Agent, build
from felix_py.agent.configured import StartAnew
from felix_py.agent.starting import start
from felix_py.agent.stopping import Stopping
from felix_py.agent.unseen_kinds import UnseenKinds
from felix_py.cni.server import SocketInUse
from felix_py.config import AgentConfig, ConfigError
from felix_py.dataplane.backend import ToolError, end_tools
from felix_py.datastore.client import ApiError, Unreachable
from felix_py.ipam.store import StoreError
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind
from felix_py.observe.connections import Connections
from felix_py.observe.identity import Identity
from felix_py.observe.listener import keep, listen_for, remove
from felix_py.observe.network_status import Telling
from felix_py.observe.peer_events import PeerEvents
from felix_py.observe.stalls import Stalls, WatchedSelector
from felix_py.observe.watchdog import Watchdog
from policy.model import Pod

FATAL = (ConfigError, StoreError, ToolError, SocketInUse, PermissionError)
"""Errors that a retry does not mend: the message says what to do."""

_SYNC_NOTICE = 10.0
"""Seconds between two log lines about the kinds that are not in sync yet."""

_HEALTH_WAITS = 1.0
_HEALTH_WAITS_MOST = 5
"""Seconds without news of the cluster after which the health endpoint is served although policy is not in force
yet, and how often it waits for so long. Probes have five seconds for an answer.
"""

_OTHER_RETRY = 5.0
"""Seconds until the removal of rules from the other backend is retried."""

_DESCRIPTORS = 16384

_CONDITION_RETRY = 60.0
"""Seconds until the write of the Node's condition is retried."""


ANEW = 4
"""Exit code of an agent that must be started again, with settings that it could not read at its start."""


def main(config: AgentConfig, given: Collection[str] = ()) -> NoReturn:
    """Run the agent until SIGTERM or SIGINT, then end the process.

    ``given``: the settings that command line and environment set; FelixConfigurations may set the others.

    Exit codes: 0 stopped, 1 could not start or has failed, :data:`~felix_py.agent.stopping.HUNG`, :data:`ANEW`,
    :data:`~felix_py.observe.watchdog.STUCK`.
    """
    _raise_descriptor_limit()
    memory.guard()
    metrics = Metrics()
    selector = WatchedSelector(Stalls(metrics.loop_stalls.observe, log.get("loop").warning))
    Watchdog(selector.turn).start()
    runner = asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector))
    code = runner.run(run(config, given, metrics))
    # All resources are closed. Threads that wait for a peer or the kernel must not keep the process alive.
    log.flush()
    os._exit(code)


def _raise_descriptor_limit() -> None:
    """Services get 1,024 by default. HTTP clients get a fraction of them; the rest is for enforcement."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def run(config: AgentConfig, given: Collection[str], metrics: Metrics) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code. Call it in the main thread, once a process."""
    logger = log.get("agent")
    stopping = Stopping(end_tools, lambda text: logger.error(text))
    asyncio.get_running_loop().set_exception_handler(memory.unhandled)
    told = True
    try:
        async with AsyncExitStack() as stack:
            life = Life(config, given, metrics, stack)
            work = asyncio.create_task(life.run())
            asked = asyncio.create_task(stopping.asked.wait())
            await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                told = stopping.asked.is_set()
                stopping.begin()
            else:
                logger.info("stopping")
            await life.stop_calls()
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
    except StartAnew as error:
        logger.warning("ends, to be started again", reason=str(error))
        return ANEW
    except FATAL as error:
        if not told:  # else the cause may be that the tools were killed
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


class Life:
    """One run of an agent. ``stack`` closes its resources, in reverse order."""

    def __init__(
        self, config: AgentConfig, given: Collection[str], metrics: Metrics, stack: AsyncExitStack
    ) -> None:
        self._config = config
        self._given = given
        self._metrics = metrics
        self._stack = stack
        self._agent: Agent | None = None
        self._in_force = asyncio.Event()
        self._log = log.get("agent")

    async def run(self) -> None:
        """Run until cancelled. Raises StartAnew and the errors of :data:`FATAL`."""
        begun = await asyncio.to_thread(start, self._config, self._given)
        log.set_level(begun.config.log_level)
        agent = self._agent = build(begun, self._metrics, self._stack)
        await self._start(agent)
        try:
            await self._work(agent)
        except BaseExceptionGroup as errors:
            if anew := errors.subgroup(StartAnew):
                raise StartAnew(str(anew.exceptions[0])) from None
            raise

    async def stop_calls(self) -> None:
        """The first step of the end: no more CNI calls, while the parts that running ones need still work."""
        if self._agent is not None:
            await self._agent.pods.stop_calls()

    async def _start(self, agent: Agent) -> None:
        """Steps 1 to 3, as far as :func:`felix_py.agent.build.build` has not done them."""
        if agent.monitor is not None:
            agent.monitor.start()
        await agent.pods.start(agent.facts.attach)
        agent.cluster.store.subscribe(agent.intake)
        agent.cluster.start()
        self._stack.push_async_callback(agent.cluster.stop)

    async def _work(self, agent: Agent) -> None:
        """Steps 4 and 5, then until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._serve_health(agent))
            tasks.create_task(agent.reconciler.run())
            tasks.create_task(agent.configured.run())
            events = PeerEvents(agent.cluster.tell_node)
            told = Telling(agent.status, lambda: agent.facts.node, agent.cluster.statuses, events)
            tasks.create_task(told.run())
            tasks.create_task(agent.links.run())
            await self._wait_for_sync(agent)
            self._log.debug("the cluster is known")
            await agent.configured.settled()
            tasks.create_task(agent.bgp.follow_declared())
            tasks.create_task(agent.claims.run())
            # Else masquerading and routes of blocks would be taken for leftovers.
            await agent.pooling.settled()
            if agent.revoker:
                tasks.create_task(agent.revoker.run())
            await self._first_apply(agent)
            agent.network.set_ready()
            self._in_force.set()
            self._metrics.in_sync.set(1)
            self._log.info("in sync: policy is in force", endpoints=len(agent.facts.held))
            tasks.create_task(agent.deny_log.run())
            # Later counts are relative to this reading.
            tasks.create_task(agent.counters.refresh())
            tasks.create_task(self._tell_the_world(agent))
            tasks.create_task(agent.pods.run(agent.facts.node_addresses))
            tasks.create_task(Connections(agent.notices).run())
            tasks.create_task(UnseenKinds(agent.cluster.refused_kinds, agent.notices).run())
            tasks.create_task(Identity(lambda: agent.facts.node, agent.notices).run())
            tasks.create_task(agent.shadowed.run())
            tasks.create_task(agent.elected.run())
            tasks.create_task(agent.bgp.run())
            await agent.bgp.wait_in_sync()
            agent.reconciler.sweep()  # learned routes, too
            if agent.host_gateway:
                await agent.host_gateway.keep_telling(agent.facts.remote)

    async def _serve_health(self, agent: Agent) -> None:
        """Serve the health endpoint, but after policy is in force while there is progress: the server's modules
        take longer to load than all that pods wait for.
        """
        store, seen = agent.cluster.store, 0
        for _ in range(_HEALTH_WAITS_MOST):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._in_force.wait(), _HEALTH_WAITS)
            if self._in_force.is_set() or (store.not_listed and store.size == seen):
                break
            seen = store.size
        await asyncio.to_thread(importlib.import_module, "felix_py.observe.health")
        from felix_py.observe.bgp_http import BgpRoutes
        from felix_py.observe.bgp_trace import BgpTrace
        from felix_py.observe.flows_http import flows_route
        from felix_py.observe.health import HealthServer
        from felix_py.observe.ipam_http import IpamRoutes
        from felix_py.observe.log_http import log_route

        def pods() -> Iterable[Pod] | None:
            return agent.facts.pods_here() if agent.cluster.store.in_sync.is_set() else None

        status = agent.status
        health = HealthServer(
            self._metrics.registry,
            status.parts,
            status.state,
            status.refresh_metrics,
            [
                *agent.deny_log.routes(),
                *BgpRoutes(agent.bgp).routes(),
                *IpamRoutes(agent.pods.holdings(pods)).routes(),
                BgpTrace(agent.bgp.trace).route(),
                flows_route(agent.flows, agent.facts.view.endpoint_addresses),
                log_route(),
            ],
        )
        await health.start(agent.public, agent.private)
        self._stack.push_async_callback(health.stop)
        path = self._config.agent_socket

        async def serve(listener: socket.socket) -> None:
            self._stack.callback(remove, path, path.stat().st_ino)
            await health.serve_instead(listener)

        await keep(path, partial(listen_for, self._config.socket_group, path), serve)

    async def _wait_for_sync(self, agent: Agent) -> None:
        synced = asyncio.create_task(agent.cluster.in_sync())
        while not (await asyncio.wait((synced,), timeout=_SYNC_NOTICE))[0]:
            self._log.warning("still waiting for the API server", kinds=agent.cluster.store.not_listed)

    async def _first_apply(self, agent: Agent) -> None:
        """Return once policy is in force and nothing stale is. Failures are logged and retried."""
        keep_learned = True
        if agent.host_gateway:
            await agent.host_gateway.linked()
            keep_learned = await agent.bgp.expected()
        agent.reconciler.begin()
        agent.reconciler.sweep(keep_learned=keep_learned)
        await agent.reconciler.clean()
        await self._leave_other_backend(agent)

    async def _leave_other_backend(self, agent: Agent) -> None:
        """Remove our rules from the other backend, since those in the backend in use are complete."""
        other, notices = agent.other, agent.notices
        name = other.backend.value
        if reason := other.unreadable:
            text = f"the {name} tables cannot be read ({reason}): rules of ours may be in force there, too"
            notices.say(NoticeKind.RULES_IN_OTHER_BACKEND, name, text)
        if not (found := other.owned):
            return
        while failures := await agent.reconciler.call(other.take_out):
            text = (
                f"rules of ours are in force in the {name} tables as well, and cannot be taken out: {failures[0]}"
            )
            agent.network.hinder(text)
            notices.say(NoticeKind.RULES_IN_OTHER_BACKEND, name, text)
            await asyncio.sleep(_OTHER_RETRY)
        agent.network.hinder("")
        if not other.unreadable:
            notices.clear(NoticeKind.RULES_IN_OTHER_BACKEND, name)
        self._log.warning(
            "this node's programs use another iptables backend now; took our rules out of the old one",
            old=name,
            objects=len(found),
        )
        agent.pending.retry()  # sets that only those rules used

    async def _tell_the_world(self, agent: Agent) -> None:
        """Give the runtime its network list and set the Node's condition, so that pods are started here."""
        await agent.pods.tell_the_runtime()
        while True:
            try:
                return await agent.cluster.set_network_available(self._config.node_name)
            except (ApiError, Unreachable) as error:
                self._log.warning("cannot set the node's NetworkUnavailable condition", reason=str(error))
            await asyncio.sleep(_CONDITION_RETRY)
