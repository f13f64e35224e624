"""Alerts, dashboard and the way of the figures to Prometheus: each alert is fired by its cause, and it alone."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from felix_py.notices import NoticeKind
from felix_py.observe.listener import parse_address
from tests.support.metric_names import sample_names
from tests.support.promtool import MONITORING, STEP, Node, firing, rules, run, unknown

ROOT = MONITORING.parents[1]
RUNBOOKS = ROOT / "docs" / "alerts.md"

MINUTE = 60 // STEP
WELL = 35 * MINUTE
"""Scrapes of a node on which all is well, before the cause."""

Cause = Callable[[Node, int], None]
"""Called before each scrape from the beginning of the trouble, with its number."""


def again(cause: Callable[[Node], object]) -> Cause:
    """At every scrape."""
    return lambda node, _number: (cause(node), None)[1]


def silent(node: Node, number: int) -> None:
    for kind in ("Pod", "Node", "NetworkPolicy"):
        node.metrics.watch_age.labels(kind).set(20 + STEP * number)


def no_calls(node: Node, command: str) -> None:
    for _ in range(3):
        node.metrics.cni_seconds.labels(command, "error").observe(0.01)


def late(node: Node) -> None:
    for _ in range(3):
        node.metrics.event_seconds.observe(4.0)


def slow(node: Node) -> None:
    for _ in range(3):
        node.metrics.cni_seconds.labels("ADD", "ok").observe(4.0)


def stalls(node: Node) -> None:
    for _ in range(10):
        node.metrics.loop_stalls.observe(0.3)


def full(node: Node) -> None:
    node.metrics.addresses_used.labels("10.1.0.0/24").set(230)
    node.metrics.addresses_free.labels("10.1.0.0/24").set(24)


def near_limit(node: Node) -> None:
    node.metrics.bgp_peer_received.labels("10.0.0.1").set(40_000)
    node.metrics.bgp_peer_limit.labels("10.0.0.1").set(50_000)


def restarts(node: Node, number: int) -> None:
    node.instead["process_start_time_seconds"] = 1e9 + number // (5 * MINUTE)


CAUSES: dict[str, tuple[Cause, int]] = {
    "FelixPyAgentDown": (again(lambda n: setattr(n, "up", False)), 6),
    "FelixPyAgentRestarts": (restarts, 26),
    "FelixPyNotReady": (again(lambda n: n.metrics.ready.labels("policy").set(0)), 6),
    "FelixPyNeverInSync": (again(lambda n: n.metrics.in_sync.set(0)), 11),
    "FelixPyApiServerSilent": (silent, 8),
    "FelixPyKindSilent": (lambda n, at: n.metrics.watch_age.labels("NetworkPolicy").set(STEP * at), 22),
    "FelixPyLoopStalls": (again(stalls), 25),
    "FelixPyNotice": (again(lambda n: n.notices.say(NoticeKind.IPVS, "x", "y")), 6),
    "FelixPyObjectsMisunderstood": (again(lambda n: n.metrics.misunderstood.labels("NetworkPolicy").set(1)), 6),
    "FelixPyLogIncomplete": (again(lambda n: n.metrics.log_lost.labels("reader").inc()), 18),
    "FelixPyApplyFailures": (again(lambda n: n.metrics.failures.set(2)), 3),
    "FelixPyPolicyLate": (again(late), 14),
    "FelixPyDrift": (again(lambda n: n.metrics.drift.labels("chain").inc()), 23),
    "FelixPyNotCompared": (lambda n, at: n.metrics.compared_age.set(STEP * at), 12),
    "FelixPyXtablesLock": (again(lambda n: n.metrics.lock_seconds.inc(6)), 18),
    "FelixPyRevocationFails": (again(lambda n: n.metrics.flow_errors.inc()), 12),
    "FelixPyPodsDoNotStart": (again(lambda n: no_calls(n, "ADD")), 22),
    "FelixPyPodsDoNotEnd": (again(lambda n: no_calls(n, "DEL")), 28),
    "FelixPyPodsStartSlowly": (again(slow), 14),
    "FelixPyAddressesShort": (again(full), 16),
    "FelixPyBgpIsolated": (again(lambda n: n.metrics.bgp_established.set(0)), 3),
    "FelixPyBgpPeerDown": (again(lambda n: n.metrics.bgp_established.set(1)), 6),
    "FelixPyBgpHangs": (again(lambda n: n.metrics.bgp_hangs.inc()), 2),
    "FelixPyBgpPeerHeldDown": (again(lambda n: n.metrics.bgp_peer_held_down.labels("10.0.0.1").set(1)), 2),
    "FelixPyBgpPeerNearLimit": (again(near_limit), 6),
    "FelixPyNextHopUnusable": (again(lambda n: n.metrics.bgp_unresolved.set(7)), 6),
}
"""Name -> what is done, and minutes until the alert must have come."""


def alive(node: Node, scrapes: int) -> Iterator[dict[str, float]]:
    for _ in range(scrapes):
        node.lives()
        yield node.scrape()


def both(node: Node, other: Node) -> dict[str, float]:
    return next(alive(node, 1)) | next(alive(other, 1))


@cache
def well() -> list[dict[str, float]]:
    """What is scraped of two nodes before the cause: the same in each test."""
    node, other = Node("n1"), Node("n2")
    return [both(node, other) for _ in range(WELL + 1)]


@pytest.mark.parametrize("alert", CAUSES)
def test_each_alert_is_fired_by_its_cause_and_alone(tmp_path: Path, alert: str) -> None:
    cause, minutes = CAUSES[alert]
    node, other = Node("n1"), Node("n2")
    scrapes = list(well())
    for one in (node, other):
        for _ in scrapes:
            one.lives()
    for number in range(1, minutes * MINUTE + 1):
        cause(node, number)
        scrapes.append(both(node, other))
    firing(tmp_path, scrapes, {WELL: [], len(scrapes) - 1: [alert]})


def test_versions_that_differ_for_long(tmp_path: Path) -> None:
    """Not so at an upgrade that goes on."""
    old, new = Node("n1"), Node("n2")
    new.metrics.build.clear()
    new.metrics.build.labels("1.1", "3.11", "6.1", "nft").set(1)
    scrapes = [one | other for one, other in zip(alive(old, 260), alive(new, 260), strict=True)]
    firing(tmp_path, scrapes, {100: [], 250: ["FelixPyVersionsDiffer"]})


def test_an_alert_is_over_once_its_cause_is(tmp_path: Path) -> None:
    node = Node()
    scrapes = list(alive(node, 10))
    node.metrics.failures.set(3)
    scrapes += alive(node, 10)
    node.metrics.failures.set(0)
    scrapes += alive(node, 10)
    firing(tmp_path, scrapes, {9: [], 19: ["FelixPyApplyFailures"], 29: []})


def test_every_alert_has_a_cause_and_a_runbook_and_says_what_it_is() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    assert set(names) == {*CAUSES, "FelixPyVersionsDiffer"}
    headings = re.findall(r"^### (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert headings == names
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{rule['alert'].lower()}"


def test_rules_use_only_what_an_agent_has() -> None:
    assert {rule["alert"]: found for rule in rules() if (found := unknown(rule["expr"]))} == {}


def test_what_is_not_there_would_be_found() -> None:
    assert unknown('sum by (nod) (rate(felix_py_nothing_total{job="x", knd="y"}[5m]))') >= {
        "felix_py_nothing_total",
        "felix_py_nothing_total{knd}",
        "nod",
    }
    assert unknown('felix_py_drift_total{kid="x"}') == {"felix_py_drift_total{kid}"}
    assert unknown('histogram_quantile(0.9, sum by (le) (felix_py_apply_seconds_bucket{job="x"}))') == set()


# --- the dashboard -----------------------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    found = json.loads((MONITORING / "dashboard.json").read_text())
    assert isinstance(found, dict)
    return found


def queries() -> list[tuple[str, str]]:
    """(panel, expression) with the variables as Grafana fills them in."""
    found = []
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$node", "n1|n2")
            assert "$" not in expression
            found.append((panel["title"], expression))
    return found


def test_every_query_of_the_dashboard_uses_only_what_an_agent_has() -> None:
    assert [(title, found) for title, query in queries() if (found := unknown(query))] == []
    assert len(queries()) > 20


def test_every_query_of_the_dashboard_is_one(tmp_path: Path) -> None:
    recorded = [{"record": f"panel:{number}", "expr": query} for number, (_, query) in enumerate(queries())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))
    run("check", "rules", str(tmp_path / "rules.yaml"))


def test_the_dashboard_can_be_imported() -> None:
    board = dashboard()
    assert board["id"] is None
    assert board["uid"] == "felix-py"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"]


def test_what_matters_is_on_it() -> None:
    """Every metric that an alert uses, and most of the others."""
    shown = " ".join(query for _, query in queries())
    alerted = {name for rule in rules() for name in re.findall(r"\bfelix_py_\w+", rule["expr"])}
    assert {name for name in alerted if name not in shown} == set()
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in sample_names() if name.startswith("felix_py")}
    assert len([name for name in ours if name in shown]) > 0.7 * len(ours)


# --- how Prometheus gets there -----------------------------------------------------------------------

DAEMONSET = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: felix-py, namespace: kube-system}
spec:
  selector: {matchLabels: {app.kubernetes.io/name: felix-py}}
  template:
    metadata: {labels: {app.kubernetes.io/name: felix-py}}
    spec:
      hostNetwork: true
      containers:
        - name: agent
          image: felix-py
          env: [{name: FELIX_PY_NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
          startupProbe: {httpGet: {host: 127.0.0.1, port: 9099, path: /livez}}
          livenessProbe: {httpGet: {host: 127.0.0.1, port: 9099, path: /livez}}
          readinessProbe: {httpGet: {host: 127.0.0.1, port: 9099, path: /readyz}}
        - name: bgp
          image: felix-py
"""


def test_the_component_makes_agents_reachable_for_prometheus(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "daemonset.yaml").write_text(DAEMONSET)
    (tmp_path / "base" / "kustomization.yaml").write_text("resources: [daemonset.yaml]\n")
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (tmp_path / "monitoring").symlink_to(MONITORING)
    (overlay / "kustomization.yaml").write_text("resources: [../base]\ncomponents: [../monitoring]\n")
    done = subprocess.run(
        ["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    made = {found["kind"]: found for found in yaml.safe_load_all(done.stdout)}
    assert set(made) == {"DaemonSet", "PodMonitor", "PrometheusRule"}
    agent, bgp = made["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert bgp == {"name": "bgp", "image": "felix-py"}
    assert all("host" not in agent[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness"))
    # A variable is filled in from those before it.
    names = [variable["name"] for variable in agent["env"]]
    assert names.index("FELIX_PY_HOST_IP") < names.index("FELIX_PY_HEALTH_ADDRESS")
    assert set(names) == {"FELIX_PY_NODE_NAME", "FELIX_PY_HOST_IP", "FELIX_PY_HEALTH_ADDRESS"}
    endpoint = made["PodMonitor"]["spec"]["podMetricsEndpoints"][0]
    assert endpoint["port"] in [port["name"] for port in agent["ports"]]
    address = next(one["value"] for one in agent["env"] if one["name"] == "FELIX_PY_HEALTH_ADDRESS")
    for ip in ("192.0.2.1", "2001:db8::1"):
        assert parse_address(address.replace("$(FELIX_PY_HOST_IP)", ip)) == (ip, 9099)
    selector = made["PodMonitor"]["spec"]["selector"]["matchLabels"]
    assert selector == {"app.kubernetes.io/name": "felix-py"}
