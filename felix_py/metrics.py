"""The agent's Prometheus metrics, all in one place so that their names stay one scheme."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from felix_py.refs import KINDS

disable_created_metrics()  # type: ignore[no-untyped-call] # a series more a counter that nobody reads

_APPLY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """One set of metrics on a registry of its own, so that two agents in one test do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.build = gauge(
            "felix_py_build_info", "1; what runs here", ["version", "python", "kernel", "backend"]
        )
        self.apply_seconds = histogram(
            "felix_py_apply_seconds", "Time to bring the kernel to the desired state", buckets=_APPLY_BUCKETS
        )
        self.event_seconds = histogram(
            "felix_py_event_to_kernel_seconds",
            "Time from the first event of a change (API object, CNI call, BGP route) until the kernel had it all",
            buckets=_APPLY_BUCKETS,
        )
        self.retries = counter("felix_py_apply_retries", "Applies that tried again what could not be written before")
        self.lock_waits = counter(
            "felix_py_xtables_lock_waits", "iptables-restore runs that found the xtables lock held by another program"
        )
        self.lock_seconds = counter(
            "felix_py_xtables_lock_wait_seconds", "Seconds that the runs took which found the xtables lock held"
        )
        self.objects = gauge(
            "felix_py_kernel_objects",
            "Objects wanted in the kernel: chain, set, member (of all sets), route; class: policy classes in use",
            ["kind"],
        )
        self.restores = counter("felix_py_iptables_restores", "iptables-restore transactions run")
        self.writes = counter("felix_py_kernel_writes", "Objects written to or removed from the kernel")
        self.failures = gauge("felix_py_apply_failures", "Objects that could not be written at the last try")
        self.drift = counter(
            "felix_py_drift", "Objects of ours in the kernel that somebody else had changed", ["kind"]
        )
        for kind in KINDS:
            self.drift.labels(kind)  # there from the start, so that a first change is an increase
        self.notices = gauge(
            "felix_py_notices", "Things that are not as they should be and need a person", ["kind"]
        )
        self.compared_age = gauge(
            "felix_py_compared_age_seconds",
            "Seconds since everything of ours in the kernel was last compared with what is wanted",
        )
        self.loop_stalls = histogram(
            "felix_py_loop_stall_seconds",
            "Turns of the event loop that took longer than 100 ms, during which nobody was served",
            buckets=(0.2, 0.5, 1, 2, 5, 10),
        )
        self.log_lost = counter(
            "felix_py_log_lines_lost",
            "Log lines left out: too many of one kind (rate), or not taken by the log's reader in time (reader)",
            ["reason"],
        )
        for reason in ("rate", "reader"):
            self.log_lost.labels(reason)
        self.in_sync = gauge("felix_py_in_sync", "1 once every watched kind was listed and written")
        self.ready = gauge("felix_py_ready", "1 while a part of /readyz is well", ["part"])
        self.endpoints = gauge("felix_py_endpoints", "Pod interfaces on this node")
        self.addresses_used = gauge(
            "felix_py_ipam_addresses_in_use", "Addresses of a pod CIDR of this node that pods have", ["cidr"]
        )
        self.addresses_free = gauge(
            "felix_py_ipam_addresses_free", "Addresses of a pod CIDR of this node that no pod has", ["cidr"]
        )
        self.rejected = counter("felix_py_objects_rejected", "Objects that could not be understood", ["kind"])
        self.watch_age = gauge(
            "felix_py_watch_age_seconds",
            "Seconds since the API server last said anything about a kind, or that it is there",
            ["kind"],
        )
        self.bgp_established = gauge("felix_py_bgp_peers_established", "BGP sessions that are up")
        self.bgp_peers = gauge("felix_py_bgp_peers", "BGP peers that are configured")
        self.bgp_routes = gauge("felix_py_bgp_routes", "Best routes learned from peers")
        self.bgp_ignored = counter("felix_py_bgp_lines_ignored", "Lines from ExaBGP that made no sense")
        self.bgp_unresolved = gauge(
            "felix_py_bgp_prefixes_unresolved",
            "Prefixes that peers announce and that are not installed because no next hop of theirs can be used",
        )
        self.deny_packets = counter("felix_py_deny_log_packets", "Dropped packets read from the deny log")
        self.deny_lost = counter(
            "felix_py_deny_log_lost", "Dropped packets that the kernel logged and the agent did not get"
        )
        self.deny_overruns = counter("felix_py_deny_log_overruns", "Times that the deny log's socket was full")
        self.deny_suppressed = counter(
            "felix_py_deny_log_suppressed",
            "Dropped packets of which no event was made because there were too many different ones",
        )
        self.cni_seconds = histogram(
            "felix_py_cni_seconds", "Time to answer a CNI call", ["command", "result"], buckets=_APPLY_BUCKETS
        )
        self.flows_revoked = counter(
            "felix_py_flows_revoked", "Established connections ended because a change of policy denies them"
        )
        self.flows_released = counter(
            "felix_py_flows_released", "Conntrack entries deleted because their pod's address was released"
        )
        self.flow_pass_seconds = histogram(
            "felix_py_flow_pass_seconds",
            "Time to look for established connections that policy denies now",
            buckets=_APPLY_BUCKETS,
        )
        self.flow_errors = counter(
            "felix_py_flow_errors", "Failed attempts to read or change the kernel's table of connections"
        )
