"""Every metric that an agent can have: names of samples with their labels."""

from __future__ import annotations

from functools import cache

from prometheus_client.metrics_core import Metric

from felix_py.metrics import Metrics
from felix_py.observe.chain_names import ChainNames
from felix_py.observe.policy_counters import MEANINGS, Accounts, PolicyCounters


@cache
def metrics() -> Metrics:
    """With each label once, so that each metric has a sample."""
    made = Metrics()
    counters = PolicyCounters(Accounts(ChainNames(lambda _chain: ())), (), lambda _family: [])
    made.registry.register(counters)
    counters.close()
    return made


def every_metric() -> list[Metric]:
    """What the registry collects, by metric, also those without a sample so far."""
    return list(metrics().registry.collect())


def meaning(name: str) -> str:
    """What the metric of this name, without suffix, says to an operator."""
    return metrics().meanings.get(name) or MEANINGS.get(name, "")


@cache
def sample_names() -> dict[str, set[str]]:
    """Names as Prometheus stores them -> their labels, without ``le``."""
    found: dict[str, set[str]] = {}
    labels = _labels()
    for metric in every_metric():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""])
        for suffix in suffixes:
            found[metric.name + suffix] = labels.get(metric.name, set())
    return found


def _labels() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for collector in metrics().registry._collector_to_names:
        for named in (collector, *collector.collect()):
            if hasattr(named, "_labelnames"):
                name = getattr(named, "_name", None) or getattr(named, "name", "")
                found[str(name)] = set(named._labelnames)
    return found
