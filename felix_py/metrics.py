"""The agent's Prometheus metrics, all in one place so that their names stay one scheme."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from felix_py.refs import KINDS

disable_created_metrics()  # type: ignore[no-untyped-call] # a series more a counter that nobody reads

_APPLY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """One set of metrics on a registry of its own, so that two agents in one test do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.apply_seconds = Histogram(
            "felix_py_apply_seconds",
            "Time to bring the kernel to the desired state",
            buckets=_APPLY_BUCKETS,
            registry=self.registry,
        )
        self.restores = Counter(
            "felix_py_iptables_restores", "iptables-restore transactions run", registry=self.registry
        )
        self.writes = Counter(
            "felix_py_kernel_writes", "Objects written to or removed from the kernel", registry=self.registry
        )
        self.failures = Gauge(
            "felix_py_apply_failures",
            "Objects that could not be written at the last try",
            registry=self.registry,
        )
        self.drift = Counter(
            "felix_py_drift",
            "Objects of ours in the kernel that somebody else had changed",
            ["kind"],
            registry=self.registry,
        )
        for kind in KINDS:
            self.drift.labels(kind)  # there from the start, so that a first change is an increase
        self.notices = Gauge(
            "felix_py_notices",
            "Things that are not as they should be and need a person",
            ["kind"],
            registry=self.registry,
        )
        self.compared_age = Gauge(
            "felix_py_compared_age_seconds",
            "Seconds since everything of ours in the kernel was last compared with what is wanted",
            registry=self.registry,
        )
        self.loop_stalls = Histogram(
            "felix_py_loop_stall_seconds",
            "Turns of the event loop that took longer than 100 ms, during which nobody was served",
            buckets=(0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )
        self.log_lost = Counter(
            "felix_py_log_lines_lost",
            "Log lines left out: too many of one kind (rate), or not taken by the log's reader in time (reader)",
            ["reason"],
            registry=self.registry,
        )
        for reason in ("rate", "reader"):
            self.log_lost.labels(reason)
        self.in_sync = Gauge(
            "felix_py_in_sync", "1 once every watched kind was listed and written", registry=self.registry
        )
        self.endpoints = Gauge("felix_py_endpoints", "Pod interfaces on this node", registry=self.registry)
        self.rejected = Counter(
            "felix_py_objects_rejected",
            "Objects that could not be understood",
            ["kind"],
            registry=self.registry,
        )
        self.watch_age = Gauge(
            "felix_py_watch_age_seconds",
            "Seconds since the API server last said anything about a kind, or that it is there",
            ["kind"],
            registry=self.registry,
        )
        self.bgp_established = Gauge(
            "felix_py_bgp_peers_established", "BGP sessions that are up", registry=self.registry
        )
        self.bgp_peers = Gauge("felix_py_bgp_peers", "BGP peers that are configured", registry=self.registry)
        self.bgp_routes = Gauge("felix_py_bgp_routes", "Best routes learned from peers", registry=self.registry)
        self.bgp_ignored = Counter(
            "felix_py_bgp_lines_ignored", "Lines from ExaBGP that made no sense", registry=self.registry
        )
        self.bgp_unresolved = Gauge(
            "felix_py_bgp_prefixes_unresolved",
            "Prefixes that peers announce and that are not installed because no next hop of theirs can be used",
            registry=self.registry,
        )
        self.deny_packets = Counter(
            "felix_py_deny_log_packets", "Dropped packets read from the deny log", registry=self.registry
        )
        self.deny_lost = Counter(
            "felix_py_deny_log_lost",
            "Dropped packets that the kernel logged and the agent did not get",
            registry=self.registry,
        )
        self.deny_overruns = Counter(
            "felix_py_deny_log_overruns", "Times that the deny log's socket was full", registry=self.registry
        )
        self.deny_suppressed = Counter(
            "felix_py_deny_log_suppressed",
            "Dropped packets of which no event was made because there were too many different ones",
            registry=self.registry,
        )
        self.cni_seconds = Histogram(
            "felix_py_cni_seconds",
            "Time to answer a CNI call",
            ["command", "result"],
            buckets=_APPLY_BUCKETS,
            registry=self.registry,
        )
        self.flows_revoked = Counter(
            "felix_py_flows_revoked",
            "Established connections ended because a change of policy denies them",
            registry=self.registry,
        )
        self.flows_released = Counter(
            "felix_py_flows_released",
            "Conntrack entries deleted because their pod's address was released",
            registry=self.registry,
        )
        self.flow_pass_seconds = Histogram(
            "felix_py_flow_pass_seconds",
            "Time to look for established connections that policy denies now",
            buckets=_APPLY_BUCKETS,
            registry=self.registry,
        )
        self.flow_errors = Counter(
            "felix_py_flow_errors",
            "Failed attempts to read or change the kernel's table of connections",
            registry=self.registry,
        )
