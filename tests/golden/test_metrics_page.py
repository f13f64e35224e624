"""``docs/metrics.md`` is what the registry of metrics gives.

``UPDATE_GOLDEN=1 pytest tests/golden`` writes it anew; the diff is then the review.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from prometheus_client.metrics_core import Metric

from tests.support.metric_names import every_metric, meaning, sample_names

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "metrics.md"

HEAD = """\
# Metrics of `felix-py agent`

Made from `felix_py/metrics.py` (`UPDATE_GOLDEN=1 make test TESTS=tests/golden`).

`/metrics` of the health address ([Who may ask](operations.md#who-may-ask)). Alerts, a dashboard and how to
have Prometheus scrape every node: [alerts.md](alerts.md). A histogram has `_bucket`, `_sum` and `_count`. A
scrape is cheap: it walks over no pods, members or routes of the cluster, reads the counters of rules every 5
seconds at most, and is served from memory for ten times as long as it took.

| name | what | what it says |
|---|---|---|
"""

TAIL = """
`process_*` are those of every Prometheus client, of the agent's process: `process_resident_memory_bytes`,
`process_cpu_seconds_total`, `process_open_fds`, `process_start_time_seconds` and so on.

**Counters of policies.** Packets of a connection that was allowed do not pass these rules again, so they count
*new connections*, more or less: their first packets, and each packet of what is denied. Only policies that
select a pod of the node have series; beyond 500 they are summed up as `policy="other"`, and the series of a
policy that is gone goes. A rewritten chain begins at zero in the kernel, not here; what it counted between the
last scrape and the rewrite is missing.
"""


def page() -> str:
    ours = [metric for metric in every_metric() if metric.name.startswith("felix_py_")]
    return HEAD + "".join(map(row, sorted(ours, key=lambda metric: metric.name))) + TAIL


def row(metric: Metric) -> str:
    name = metric.name + ("_total" if metric.type == "counter" else "")
    labels = sorted(label for label in sample_names()[name if metric.type != "histogram" else f"{name}_count"])
    shown = f"`{name}{{{','.join(labels)}}}`" if labels else f"`{name}`"
    what = metric.documentation + (" (histogram)" if metric.type == "histogram" else "")
    return f"| {shown} | {what} | {meaning(metric.name)} |\n"


def test_page_is_what_the_registry_gives() -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(page())
    assert page() == PAGE.read_text()


def test_every_metric_says_what_it_means_to_an_operator() -> None:
    assert not [m.name for m in every_metric() if m.name.startswith("felix_py_") and not meaning(m.name)]


def test_documents_name_only_metrics_that_exist() -> None:
    known = set(sample_names()) | {metric.name for metric in every_metric()}
    for document in DOCS.glob("*.md"):
        named = re.findall(r"\bfelix_py_[a-z0-9_]*[a-z0-9]\b(?![*/.])", document.read_text())
        assert {name for name in named if name not in known} - _NO_METRICS == set(), document


_NO_METRICS = {"felix_py_tests"}
