"""Prometheus' own opinion: rules and queries checked, and series of a node's life put through the alert rules."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.samples import Sample

from felix_py.metrics import Metrics
from felix_py.notices import Notices
from tests.support.metric_names import sample_names

MONITORING = Path(__file__).parents[2] / "manifests" / "monitoring"

STEP = 30
"""Seconds between two scrapes."""

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"\b([a-z_][a-z0-9_]*)\s*\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
OF_THE_SCRAPE = {"job", "node", "instance", "le"}
"""Labels that no metric of ours has by itself."""


def run(*argv: str) -> None:
    """promtool must be content."""
    done = subprocess.run(["promtool", *argv], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def rules() -> list[dict[str, Any]]:
    """All alert rules."""
    return [rule for group in spec()["groups"] for rule in group["rules"]]


@cache
def spec() -> dict[str, Any]:
    """The PrometheusRule's groups, as a file of rules has them."""
    found = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())["spec"]
    assert isinstance(found, dict)
    return found


def unknown(expression: str) -> set[str]:
    """Metrics and labels of a query that no agent has."""
    bare = _STRINGS.sub('""', expression)
    known = sample_names()
    wrong = {name for name in re.findall(r"\b(?:felix_py|process)_[a-z0-9_]+", bare) if name not in known}
    for name, matchers in _SELECTOR.findall(bare):
        labels = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers))
        wrong |= {f"{name}{{{label}}}" for label in labels - known.get(name, set()) - OF_THE_SCRAPE}
        if name not in known and name != "up":
            wrong.add(name)
    every = set().union(*known.values(), OF_THE_SCRAPE)
    for grouping in _GROUPING.findall(bare):
        wrong |= {label for label in re.split(r"[\s,]+", grouping.strip()) if label and label not in every}
    return wrong


@dataclass
class Node:
    """A node's agent whose figures are scraped; at first all is well. ``instead``: values of what is not ours."""

    name: str = "n1"
    metrics: Metrics = field(default_factory=Metrics)
    instead: dict[str, float] = field(default_factory=dict)
    up: bool = True

    def __post_init__(self) -> None:
        it = self.metrics
        self.notices = Notices(it)
        it.build.labels("1.0", "3.11", "6.1", "nft").set(1)
        it.in_sync.set(1)
        for part in ("sync", "addresses", "policy", "kernel"):
            it.ready.labels(part).set(1)
        for kind in ("Pod", "Node", "NetworkPolicy"):
            it.watch_age.labels(kind).set(20)
        it.compared_age.set(40)
        it.bgp_peers.set(2)
        it.bgp_established.set(2)
        it.addresses_used.labels("10.1.0.0/24").set(30)
        it.addresses_free.labels("10.1.0.0/24").set(224)

    def lives(self) -> None:
        """What goes on between two scrapes on a node that is well."""
        for command in ("ADD", "DEL"):
            self.metrics.cni_seconds.labels(command, "ok").observe(0.01)
        self.metrics.event_seconds.observe(0.01)
        self.metrics.loop_stalls.observe(0.15)
        self.metrics.writes.inc(3)

    def scrape(self) -> dict[str, float]:
        """Series and values, as Prometheus stores them."""
        added = f'job="felix-py",node="{self.name}"'
        found = {f"up{{{added}}}": float(self.up)}
        if self.up:
            for metric in self.metrics.registry.collect():
                for sample in metric.samples:
                    found[_series(sample, added)] = self.instead.get(sample.name, sample.value)
        return found


def _series(sample: Sample, added: str) -> str:
    labels = "".join(f',{name}="{value}"' for name, value in sample.labels.items())
    return f"{sample.name}{{{added}{labels}}}"


def firing(folder: Path, scrapes: Sequence[Mapping[str, float]], expected: Mapping[int, Iterable[str]]) -> None:
    """Put scrapes through the alert rules. ``expected``: number of a scrape -> alerts that fire."""
    (folder / "rules.yaml").write_text(json.dumps(spec()))
    # What no rule looks at would cost promtool the most.
    asked = {word for rule in rules() for word in re.findall(r"\w+", rule["expr"])}
    names = sorted(name for name in set().union(*scrapes) if name.partition("{")[0] in asked)
    series = [
        {"series": name, "values": " ".join(repr(one[name]) if name in one else "_" for one in scrapes)}
        for name in names
    ]
    tests = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{at * STEP}s",
            "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(set(alerts))],
        }
        for at, alerts in expected.items()
    ]
    unit = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": f"{STEP}s",
        "tests": [{"interval": f"{STEP}s", "input_series": series, "promql_expr_test": tests}],
    }
    # JSON is YAML, and written in a hundredth of the time.
    (folder / "test.yaml").write_text(json.dumps(unit))
    run("test", "rules", str(folder / "test.yaml"))
