"""The agent's Prometheus metrics, all in one place so that their names stay one scheme.

Each has its meaning to an operator beside it, of which docs/metrics.md is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from felix_py.refs import KINDS

disable_created_metrics()  # type: ignore[no-untyped-call] # a series more a counter that nobody reads

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """One set of metrics on a registry of its own, so that two agents in one test do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.meanings: dict[str, str] = {}
        """What each says to an operator, by the name without suffix; Markdown."""
        self._make_general()
        self._make_kernel()
        self._make_cluster()
        self._make_pods()
        self._make_bgp()
        self._make_connections()
        self._make_denies()
        self._make_controllers()

    def _counter(self, name: str, text: str, labels: Sequence[str] = (), *, means: str = "") -> Counter:
        self.meanings[name] = means
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = (), *, means: str = "") -> Gauge:
        self.meanings[name] = means
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = _SECONDS,
        means: str = "",
    ) -> Histogram:
        self.meanings[name] = means
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _make_general(self) -> None:
        ProcessCollector(registry=self.registry)
        self.build = self._gauge(
            "felix_py_build_info",
            "1; what runs here",
            ["version", "python", "kernel", "backend"],
            means="more than one `version` in the cluster: an upgrade is under way, or stuck",
        )
        self.in_sync = self._gauge(
            "felix_py_in_sync",
            "1 once every watched kind was listed and written",
            means="0 for minutes: the agent has not seen the cluster since its start; new pods wait, and what "
            "was in force stays",
        )
        self.ready = self._gauge(
            "felix_py_ready",
            "1 while a part of /readyz is well",
            ["part"],
            means="which part is not well; `curl 127.0.0.1:9099/readyz?verbose` on the node says why",
        )
        self.notices = self._gauge(
            "felix_py_notices",
            "Things that are not as they should be and need a person",
            ["kind"],
            means="what to do is in [Notices](operations.md#notices), by `kind`",
        )
        self.loop_stalls = self._histogram(
            "felix_py_loop_stall_seconds",
            "Turns of the event loop that took longer than 100 ms, during which nobody was served",
            buckets=(0.2, 0.5, 1, 2, 5, 10),
            means="many: the node lacks CPU, or the agent has more to do than it can; CNI calls and probes wait",
        )
        self.log_lost = self._counter(
            "felix_py_log_lines_lost",
            "Log lines left out: too many of one kind (rate), or not taken by the log's reader in time (reader)",
            ["reason"],
            means="the log is not complete: see [Logs](operations.md#logs)",
        )
        for reason in ("rate", "reader"):
            self.log_lost.labels(reason)

    def _make_kernel(self) -> None:
        self.event_seconds = self._histogram(
            "felix_py_event_to_kernel_seconds",
            "Time from the first event of a change (API object, CNI call, BGP route) until the kernel had it all",
            means="how late policy is: of changes that made the kernel differ, the oldest event of each apply",
        )
        self.apply_seconds = self._histogram(
            "felix_py_apply_seconds",
            "Time to bring the kernel to the desired state",
            means="what one apply takes, without the time that changes waited for it",
        )
        self.failures = self._gauge(
            "felix_py_apply_failures",
            "Objects that could not be written at the last try",
            means="above 0: part of policy, a route or an interface is not as wanted; `felix-py status` names it",
        )
        self.retries = self._counter(
            "felix_py_apply_retries",
            "Applies that tried again what could not be written before",
            means="grows while something cannot be written",
        )
        self.restores = self._counter(
            "felix_py_iptables_restores",
            "iptables-restore transactions run",
            means="how often rules change: seldom, since pods that join a class change none",
        )
        self.writes = self._counter(
            "felix_py_kernel_writes",
            "Objects written to or removed from the kernel",
            means="rules' chains, sets, members, routes: steady growth without changes in the cluster is a fight "
            "with another program (see drift)",
        )
        self.lock_waits = self._counter(
            "felix_py_xtables_lock_waits",
            "iptables-restore runs that found the xtables lock held by another program",
            means="legacy backend only: who else writes rules, and how often",
        )
        self.lock_seconds = self._counter(
            "felix_py_xtables_lock_wait_seconds",
            "Seconds that the runs took which found the xtables lock held",
            means="time that policy was late by other programs (with the few milliseconds of the write itself)",
        )
        self.drift = self._counter(
            "felix_py_drift",
            "Objects of ours in the kernel that somebody else had changed",
            ["kind"],
            means="another program, or a person, writes to what is ours: [Drift](operations.md#drift)",
        )
        for kind in KINDS:
            self.drift.labels(kind)  # there from the start, so that a first change is an increase
        self.compared_age = self._gauge(
            "felix_py_compared_age_seconds",
            "Seconds since everything of ours in the kernel was last compared with what is wanted",
            means="above three refresh intervals: drift of IP sets is not noticed; the log says why the kernel "
            "cannot be read",
        )
        self.objects = self._gauge(
            "felix_py_kernel_objects",
            "Objects wanted in the kernel: chain, set, member (of all sets), route; class: policy classes in use",
            ["kind"],
            means="how much the node holds; above 126 classes of one direction and family, packets cost more",
        )

    def _make_cluster(self) -> None:
        self.watch_age = self._gauge(
            "felix_py_watch_age_seconds",
            "Seconds since a kind was last known to be as the API server has it",
            ["kind"],
            means="above 300 for all kinds: the API server is not reached; for one kind: the right to watch it "
            "is gone, or the server does not get a list or watch of it done. What was in force stays in force",
        )
        self.misunderstood = self._gauge(
            "felix_py_objects_misunderstood",
            "Objects that are there and that cannot be understood, or not wholly",
            ["kind"],
            means="what cannot be understood allows nothing; `felix-py status` names the objects",
        )
        self.rejected = self._counter(
            "felix_py_objects_rejected",
            "Objects that could not be understood",
            ["kind"],
            means="how often one came, or was changed into one",
        )

    def _make_pods(self) -> None:
        self.endpoints = self._gauge(
            "felix_py_endpoints", "Pod interfaces on this node", means="pods of this node"
        )
        self.cni_seconds = self._histogram(
            "felix_py_cni_seconds",
            "Time to answer a CNI call",
            ["command", "result"],
            means='how fast pods start and end, and by `result="error"` which calls fail; the log says why',
        )
        self.addresses_used = self._gauge(
            "felix_py_ipam_addresses_in_use",
            "Addresses of a pod CIDR of this node that pods have",
            ["cidr"],
            means="how full the node's range is",
        )
        self.addresses_free = self._gauge(
            "felix_py_ipam_addresses_free",
            "Addresses of a pod CIDR of this node that no pod has",
            ["cidr"],
            means="0: no pod starts here; addresses that something else on the node uses count as free",
        )
        self.addresses_borrowed = self._gauge(
            "felix_py_ipam_addresses_borrowed",
            "Addresses of other nodes' blocks that this node has borrowed",
            means="above 0: pools have no block left; each one is a prefix of its own in the network",
        )
        self.addresses_lent = self._gauge(
            "felix_py_ipam_addresses_lent",
            "Addresses of this node's blocks that it has lent to other nodes",
            means="they count as free above, and pods of this node do not get them",
        )
        self.addresses_resting = self._gauge(
            "felix_py_ipam_addresses_resting",
            "Free addresses of a pod CIDR of this node that were released less than `--address-cooldown` ago",
            ["cidr"],
            means="as many as are free: the next pod gets an address that peers may still know as another pod's",
        )

    def _make_bgp(self) -> None:
        self.bgp_peers = self._gauge(
            "felix_py_bgp_peers", "BGP peers that are configured", means="sessions wanted"
        )
        self.bgp_established = self._gauge(
            "felix_py_bgp_peers_established",
            "BGP sessions that are up",
            means="fewer than configured: `felix-py status` has the reason of each",
        )
        self.bgp_peer_up = self._gauge(
            "felix_py_bgp_peer_up",
            "Whether the session with this peer is up",
            ["peer"],
            means="0: `felix-py bgp peers` has the reason",
        )
        self.bgp_peer_received = self._gauge(
            "felix_py_bgp_peer_prefixes_received",
            "Prefixes of this peer, before any filter",
            ["peer"],
            means="near its limit: the session is held down once it is over",
        )
        self.bgp_peer_limit = self._gauge(
            "felix_py_bgp_peer_prefixes_limit",
            "Prefixes of this peer that are taken at most",
            ["peer"],
            means="its `prefixLimit`, else 50,000",
        )
        self.bgp_peer_held_down = self._gauge(
            "felix_py_bgp_peer_held_down",
            "Whether this peer's session is held down since it was over its limit",
            ["peer"],
            means="1: for five minutes none of its routes is used",
        )
        self.bgp_peer_announced = self._gauge(
            "felix_py_bgp_peer_prefixes_announced",
            "Prefixes that this peer is told",
            ["peer"],
            means="0 while the session is up: nothing is announced, or filters reject all",
        )
        self.bgp_routes = self._gauge(
            "felix_py_bgp_routes", "Best routes learned from peers", means="routes to other nodes, in the kernel"
        )
        self.bgp_unresolved = self._gauge(
            "felix_py_bgp_prefixes_unresolved",
            "Prefixes that peers announce and that are not installed because no next hop of theirs can be used",
            means="above 0: a part of the cluster is not reached; see the notice `next-hop`",
        )
        self.bgp_ignored = self._counter(
            "felix_py_bgp_lines_ignored",
            "Lines from ExaBGP that made no sense",
            means="a version of ExaBGP that this felix-py does not know",
        )
        self.bgp_hangs = self._counter(
            "felix_py_bgp_hangs",
            "Times that ExaBGP came to answer nothing for half a minute",
            means="the sidecar starts one that hangs anew after a minute, and its log says so",
        )

    def _make_connections(self) -> None:
        self.flows_revoked = self._counter(
            "felix_py_flows_revoked",
            "Established connections ended because a change of policy denies them",
            means="the proof that a denial reached connections, too",
        )
        self.flows_released = self._counter(
            "felix_py_flows_released",
            "Conntrack entries deleted because their pod's address was released",
            means="goes with pods that end",
        )
        self.flow_pass_seconds = self._histogram(
            "felix_py_flow_pass_seconds",
            "Time to look for established connections that policy denies now",
            means="how long a denied connection may go on after the rules have changed",
        )
        self.flow_errors = self._counter(
            "felix_py_flow_errors",
            "Failed attempts to read or change the kernel's table of connections",
            means="growing: connections that policy denies may go on; each attempt is repeated",
        )

    def _make_denies(self) -> None:
        self.deny_packets = self._counter(
            "felix_py_deny_log_packets",
            "Dropped packets read from the deny log",
            means="what `felix-py denies` is made of; `felix_py_denied_packets_total` counts all",
        )
        self.deny_lost = self._counter(
            "felix_py_deny_log_lost",
            "Dropped packets that the kernel logged and the agent did not get",
            means="the deny log has gaps; counts of dropped packets are complete all the same",
        )
        self.deny_overruns = self._counter(
            "felix_py_deny_log_overruns",
            "Times that the deny log's socket was full",
            means="each is a gap in the deny log",
        )
        self.deny_suppressed = self._counter(
            "felix_py_deny_log_suppressed",
            "Dropped packets of which no event was made because there were too many different ones",
            means="a port scan, mostly",
        )

    def _make_controllers(self) -> None:
        self.leader = self._gauge(
            "felix_py_leader",
            "1 while this agent does what one does for the cluster",
            means="its sum over all agents is 1 while there is an IPPool; 0 for minutes: no load balancer gets "
            "an address, and no block of a node that is gone is freed; the log says why",
        )
        self.load_balancer_addresses = self._gauge(
            "felix_py_load_balancer_addresses",
            "Addresses of IPPools for load balancers; of the agent that leads",
            ["pool", "state"],
            means="`free` near 0: further Services of type LoadBalancer will wait; add an IPPool",
        )
        self.load_balancers_refused = self._gauge(
            "felix_py_load_balancers_refused",
            "Services that lack an address, or do not get the one they ask for; of the agent that leads",
            means="`kubectl describe service` says why",
        )
