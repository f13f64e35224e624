r"""The object graph of one agent. Every part gets its dependencies and listeners as constructor arguments::

    Cluster (Store) ── Intake ──> Facts, PodNetwork       one Change each, which they fold

    Monitor ──> Pending <────── Facts <───────── PodNetwork <──── Pods (Plugin, CNIServer)
                   │             │  ^  \──> HeldLeases, Engine, ClusterView
                   v     collect │  └──────── Bgp <── Speaker (ExaBGP)
               Reconciler <──────┤
                │  │  └──────────┼───> Planner ──> Kernel
     on_applied │  └ on_drift ┐  │ on_policy
      ┌─────────┴──┬──────────┤  ├──> ChainNames ──> DenyLogging, PolicyCounters
      v            v          v  v
    HostNotices  Refusals    Revoker ──> Flows ──> Conntrack
      │            │             ^         │ on_kept
      v            v             └── Due <─┘
    Notices      Cluster (Events on policies)

Two small objects are made before the parts that they connect: :class:`~felix_py.pending.Pending`, which facts
and monitor set and the reconciler waits for, and :class:`~felix_py.agent.concerned.Due`, which collects the
connections to be judged until the revoker takes them. Everything is made in one turn of the event loop, which
also reads the kernel; nothing runs before :mod:`felix_py.agent.main` starts it.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from functools import partial
from typing import Any

from msgspec import Struct

from bgp import resources
from felix_py import log
from felix_py.agent import kernel_features
from felix_py.agent.addressing import Addressing
from felix_py.agent.announced import Announced
from felix_py.agent.bgp import Bgp
from felix_py.agent.bgp_declared import DeclaredBgp
from felix_py.agent.block_notes import BlockNotes
from felix_py.agent.block_writer import BlockWriter
from felix_py.agent.claims import Around, Claims
from felix_py.agent.concerned import Due
from felix_py.agent.configured import Configured, Live
from felix_py.agent.controllers.elected import Elected, elected
from felix_py.agent.declared_pools import DeclaredPools
from felix_py.agent.facts import Facts
from felix_py.agent.families import Families
from felix_py.agent.flows import Flows
from felix_py.agent.forgetting import Forgetting
from felix_py.agent.held import HeldLeases
from felix_py.agent.host_gateway import HostGateway
from felix_py.agent.intake import Intake
from felix_py.agent.keeping import Keeping, LeasedOrKept
from felix_py.agent.network import PodNetwork, concern_everybody
from felix_py.agent.pod_ips import PodIPs
from felix_py.agent.pods import Mtu, Pods
from felix_py.agent.pooling import Pooling
from felix_py.agent.refusals import Refusals
from felix_py.agent.revoke import Revoker
from felix_py.agent.starting import Start, unusable_here
from felix_py.agent.view import ClusterView
from felix_py.config import AgentConfig, EndpointToHost, RouteSource
from felix_py.dataplane import sysctl
from felix_py.dataplane.backend import end_tools, find_backend
from felix_py.dataplane.conntrack import Conntrack
from felix_py.dataplane.counters import read_counters
from felix_py.dataplane.host_addresses import host_addresses
from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.link_watch import LinkWatch
from felix_py.dataplane.monitor import Monitor
from felix_py.dataplane.other_backend import OtherBackend
from felix_py.dataplane.ways import ways
from felix_py.datastore.client import connect
from felix_py.datastore.cluster import Cluster
from felix_py.datastore.informer import Timing
from felix_py.datastore.kinds import BGP_KINDS, CONFIGURATIONS, POOL_KINDS
from felix_py.desired.marks import Marks
from felix_py.desired.names import DISPATCH, TIERS, SetNames
from felix_py.desired.planner import HeldNumbers, Planner, TakenNumbers
from felix_py.desired.render import class_numbers
from felix_py.desired.static import StaticOptions
from felix_py.layers import Problem
from felix_py.metrics import Metrics
from felix_py.notices import Notices
from felix_py.observe.chain_names import ChainNames
from felix_py.observe.deny_log import DenyLogging
from felix_py.observe.host_notices import HostNotices
from felix_py.observe.listener import listen, listen_for, remove
from felix_py.observe.policy_counters import Accounts, PolicyCounters
from felix_py.observe.shadowed import Shadowed
from felix_py.observe.status import Status
from felix_py.pending import Pending
from felix_py.reconcile import Reconciler
from felix_py.records import Backend, Update
from policy.engine.compile import Engine
from policy.model import Direction, Family

_MOST_NAMED = 10
"""Objects named in one log line at most."""


class Agent(Struct, frozen=True, kw_only=True):
    """The parts that :mod:`felix_py.agent.main` starts, in its order."""

    notices: Notices
    pending: Pending
    monitor: Monitor | None
    other: OtherBackend
    facts: Facts
    reconciler: Reconciler
    flows: Flows
    revoker: Revoker | None
    network: PodNetwork
    pods: Pods
    claims: Claims
    pooling: Pooling
    links: LinkWatch
    host_gateway: HostGateway | None
    bgp: Bgp
    cluster: Cluster
    configured: Configured
    elected: Elected
    shadowed: Shadowed
    intake: Intake
    deny_log: DenyLogging
    counters: PolicyCounters
    status: Status
    public: socket.socket
    private: socket.socket


def build(start: Start, metrics: Metrics, stack: AsyncExitStack) -> Agent:
    """Make all parts of one node's agent, on the running event loop. ``stack`` closes them.

    This reads the kernel and the leases, and opens listening sockets, which are not served yet. Raises
    ConfigError, StoreError, ToolError, SocketInUse or OSError if a part cannot be made; the message says why.
    """
    config = start.config
    notices, pending, due = Notices(metrics), Pending(), Due()
    families, backend, kernel = _kernel(config, stack)
    programmed, closed = families.programmed, families.closed
    held, engine, view = HeldLeases(), Engine(programmed), ClusterView()
    chain_names = ChainNames(engine.policies_using)
    flows = _flows(due, metrics, stack)
    revoker = _revoker(config, engine, view, flows, due, metrics)
    # The monitor subscribes before the kernel is read, so that no change in between is missed.
    monitor = _monitor(kernel, held, pending, stack)
    kernel.load()
    off = {"switched_off": [int(family) for family in closed]} if closed else {}
    log.get("agent").info("starting", backend=backend.value, families=[int(f) for f in programmed], **off)
    other = OtherBackend((*programmed, *closed), backend, kernel.own_processes)
    tiers_in_force = _has_tiers(kernel) or _has_tiers(other)
    notes = BlockNotes(config.state_dir)
    cluster = _cluster(start, metrics, tiers_in_force=tiers_in_force, pooled=bool(notes.own))
    host_gateway = _host_gateway(config, notices, pending)
    announced = Announced(config.node_name, cluster.store.nodes.records) if config.announce_pod_ips else None
    facts = Facts(
        config.node_name,
        cluster.store.pods.records,
        cluster.store.nodes.records,
        held,
        engine,
        view,
        config.cluster_cidrs,
        changed=pending.note,
        tell=notices.replace,
        on_policy=[chain_names.note, *([revoker.collected] if revoker else [])],
        host_gateway=host_gateway,
        pooled=None,
        announced=announced,
    )
    deny_log = DenyLogging(config, programmed, backend, chain_names, held.pod_of, view, metrics)
    counters = _counters(programmed, backend, Accounts(chain_names, view.cluster_policies), metrics, stack)
    options = StaticOptions.of(config, deny_log.rules, kernel_features.missing(programmed, backend, notices))
    refusals = Refusals(engine.policies_using, cluster.warn)
    host = HostNotices(notices, kernel, held.pod_of)
    numbers, before = (_held_numbers(tables, programmed, options.marks) for tables in (kernel, other))
    taken = _taken_numbers(kernel, programmed, options.marks)
    reconciler = Reconciler(
        pending,
        Planner(programmed, options, numbers, taken, before, closed),
        kernel,
        facts.collect,
        metrics,
        refresh_interval=config.refresh_interval,
        abandon=end_tools,
        everybodys=partial(concern_everybody, facts),
        is_leaving=facts.is_leaving,
        on_drift=[revoker.mended] if revoker else [],
        on_applied=[host.look, *([revoker.applied] if revoker else []), refusals],
    )
    # Where the other backend's rules are in force, an incomplete set of ours beside them would only disturb them.
    _hold(kernel, Update() if other.owned else Planner(programmed, options, numbers).take(), reconciler)
    mtu = Mtu(config.mtu)
    namespaces = cluster.store.namespaces.records
    addressing = Addressing(facts, namespaces, foreign=config.bgp_foreign_annotations)
    pod_ips = _pod_ips(config, cluster, facts)
    network = PodNetwork(facts, reconciler, mtu, Forgetting(flows), pod_ips, addressing)
    stack.push_async_callback(network.close)
    declared = DeclaredBgp(config, cluster.store, cluster.secrets, notices, partial(_warn_declared, cluster))
    pools = DeclaredPools(cluster.store, config.state_dir)
    bgp = Bgp(config, facts, programmed, notices, metrics, cluster.services, declared, pools)
    links = LinkWatch(programmed, bgp.on_links, *([host_gateway.on_links] if host_gateway else []))
    public, private = _listeners(config, stack)
    pods = Pods(config, stack, network, mtu, notices, metrics, partial(cluster.tell_node, True))
    keeping = pods.keep(facts.pod, namespaces)
    claims = _claims(config, notes, cluster, keeping, pods, pools, facts, programmed, notices)
    addressing.follow(claims, keeping)
    pooling = _pooling(config, cluster, claims, facts, pods, notices)
    live: Live = {
        "log_level": log.set_level,
        "refresh_interval": reconciler.set_refresh_interval,
        "cni_timeout": partial(_set_timeout, pods, claims),
        "address_cooldown": pods.set_cooldown,
        "strict_affinity": claims.set_strict,
        "mtu": mtu.set,
        "deny_log_lines": deny_log.set_lines,
    }
    table, warn = cluster.store.own(CONFIGURATIONS), partial(_warn, cluster)
    configured = Configured(start, table, live, unusable_here, notices, warn)
    running = _running(config, families, backend, options)
    status = Status(
        running, configured, facts, network, pods, reconciler, cluster, bgp, deny_log, notices, counters, metrics
    )
    return Agent(
        notices=notices,
        pending=pending,
        monitor=monitor,
        other=other,
        facts=facts,
        reconciler=reconciler,
        flows=flows,
        revoker=revoker,
        network=network,
        pods=pods,
        claims=claims,
        pooling=pooling,
        links=links,
        host_gateway=host_gateway,
        bgp=bgp,
        cluster=cluster,
        configured=configured,
        elected=elected(config, cluster, pools, metrics),
        shadowed=Shadowed(held.standing, programmed, ways, lambda: kernel.gone_interfaces, notices),
        intake=Intake(facts, network, announced),
        deny_log=deny_log,
        counters=counters,
        status=status,
        public=public,
        private=private,
    )


def _kernel(config: AgentConfig, stack: AsyncExitStack) -> tuple[Families, Backend, Kernel]:
    families = Families.of_this_node(config.ip_families)
    for failure in sysctl.set_up_host(families.programmed):
        log.get("agent").warning("cannot set a kernel setting", what=str(failure.ref), reason=failure.reason)
    backend = find_backend(config.backend)
    return families, backend, stack.enter_context(Kernel(families.programmed, backend, families.closed))


def _flows(due: Due, metrics: Metrics, stack: AsyncExitStack) -> Flows:
    table, releasing = stack.enter_context(Conntrack()), stack.enter_context(Conntrack())
    return stack.enter_context(closing(Flows(table, releasing, metrics, on_kept=due.suspect)))


def _revoker(
    config: AgentConfig, engine: Engine, view: ClusterView, flows: Flows, due: Due, metrics: Metrics
) -> Revoker | None:
    if not config.revoke_established:
        return None
    closed = config.endpoint_to_host is EndpointToHost.DROP
    return Revoker(view, engine.chains_of, flows, due, host_addresses, metrics, host_closed=closed)


def _pod_ips(config: AgentConfig, cluster: Cluster, facts: Facts) -> PodIPs | None:
    if not config.announce_pod_ips:
        return None
    return PodIPs(cluster.announcements, facts.held, facts.pods_here, lambda: facts.address_cidrs)


def _host_gateway(config: AgentConfig, notices: Notices, pending: Pending) -> HostGateway | None:
    if config.route_source is not RouteSource.KUBERNETES:
        return None
    return HostGateway(config.node_name, config.service_cidrs, notices, pending.note)


def _monitor(kernel: Kernel, held: HeldLeases, pending: Pending, stack: AsyncExitStack) -> Monitor | None:
    try:
        return stack.enter_context(closing(Monitor(kernel, held.has_interface, pending.look, pending.retry)))
    except OSError as error:
        log.get("agent").warning("changes by others are found at the refresh only", reason=str(error))
        return None


def _counters(
    families: Sequence[Family], backend: Backend, accounts: Accounts, metrics: Metrics, stack: AsyncExitStack
) -> PolicyCounters:
    counters = PolicyCounters(accounts, families, lambda family: read_counters(family, backend))
    stack.callback(counters.close)
    metrics.registry.register(counters)
    return counters


def _warn(cluster: Cluster, problem: Problem) -> None:
    # The node is not named: nodes that agree write one Event.
    cluster.warn_own(CONFIGURATIONS, problem.name, problem.uid, "InvalidConfiguration", str(problem))


def _warn_declared(cluster: Cluster, problem: resources.Problem, uid: str) -> None:
    kind = next(kind for kind in (*BGP_KINDS, *POOL_KINDS) if kind.name == problem.kind)
    text = f"{problem.field}: {problem.reason}"
    cluster.warn_own(kind, problem.name, uid, f"Invalid{kind.name}", text)


def _claims(
    config: AgentConfig,
    notes: BlockNotes,
    cluster: Cluster,
    keeping: Keeping,
    pods: Pods,
    pools: DeclaredPools,
    facts: Facts,
    families: Sequence[Family],
    notices: Notices,
) -> Claims:
    return Claims(
        config.node_name,
        notes,
        cluster.store,
        pools,
        cluster.block_objects,
        LeasedOrKept(pods.leases, keeping),
        BlockWriter(cluster.api, config.node_name),
        pods.loan_book(),
        Around(lambda: facts.pod_cidrs, families, facts.view.pod_at),
        notices,
        partial(_warn_declared, cluster),
        timeout=config.cni_timeout,
        strict=config.strict_affinity,
    )


def _set_timeout(pods: Pods, claims: Claims, seconds: float) -> None:
    pods.set_timeout(seconds)
    claims.timeout = seconds


def _pooling(
    config: AgentConfig, cluster: Cluster, claims: Claims, facts: Facts, pods: Pods, notices: Notices
) -> Pooling:
    pooling = Pooling(config.node_name, claims, facts, pods.reserved, cluster.refuses_pools, notices)
    claims.on_change = pooling.take_over
    return pooling


def _cluster(start: Start, metrics: Metrics, *, tiers_in_force: bool, pooled: bool) -> Cluster:
    config = start.config
    return Cluster(
        connect(config.kubeconfig),
        node_name=config.node_name,
        timing=Timing(absent=config.discovery_interval),
        on_invalid=lambda kind, _key, _reason: metrics.rejected.labels(kind).inc(),
        tiers_in_force=tiers_in_force,
        configured=bool(start.values),
        pooled=pooled,
        namespace=config.namespace,
    )


def _has_tiers(tables: Kernel | OtherBackend) -> bool:
    return any(tables.rules(family, "filter", TIERS) for family in Family)


def _held_numbers(tables: Kernel | OtherBackend, families: Sequence[Family], marks: Marks) -> HeldNumbers:
    return {
        (family, direction): class_numbers(tables.rules(family, "filter", DISPATCH[direction]), direction, marks)
        for family in families
        for direction in Direction
    }


def _taken_numbers(kernel: Kernel, families: Sequence[Family], marks: Marks) -> TakenNumbers:
    return {
        (family, direction): {
            marks.number(direction, mark) for mark in kernel.marks(SetNames.of(family).class_map(direction))
        }
        for family in families
        for direction in Direction
    }


def _hold(kernel: Kernel, base: Update, reconciler: Reconciler) -> None:
    """Keep the rules that are in force, and repair drift of them, until the cluster is known."""
    missing = kernel.hold(base)
    reconciler.hold()
    if missing:
        log.get("agent").warning(
            "rules were changed while no agent ran; until the cluster is known, what depends on it is shut",
            missing=list(map(str, missing[:_MOST_NAMED])),
        )


def _listeners(config: AgentConfig, stack: AsyncExitStack) -> tuple[socket.socket, socket.socket]:
    """Open the HTTP sockets. Early clients wait in the backlog until the server's modules are loaded."""
    public = stack.enter_context(listen(config.health_address))
    private = stack.enter_context(listen_for(config.socket_group, config.agent_socket))
    stack.callback(remove, config.agent_socket, config.agent_socket.stat().st_ino)
    return public, private


def _running(config: AgentConfig, families: Families, backend: Backend, options: StaticOptions) -> dict[str, Any]:
    return {
        "node": config.node_name,
        "configuration": {
            "backend": backend.value,
            "families": [int(family) for family in families.programmed],
            "clusterCidrs": list(config.cluster_cidrs),
            "rules": dataclasses.asdict(options),
            "announced": config.announce_pod_ips,
        },
    }
