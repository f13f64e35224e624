"""The whole cluster's health from the API server alone: what is said of each node, and how the command ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from felix_py.diagnose.cluster_read import STATUSES
from felix_py.diagnose.cluster_status import ClusterStatus, Seen, as_json, read, text
from lab.apiserver.kubeconfig import write_kubeconfig
from tests.support import fakeapi
from tests.support.fakeapi import FakeApi

Json = dict[str, Any]
NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
FELIX_PY = str(Path(sys.executable).with_name("felix-py"))


def ago(**spell: float) -> str:
    return (NOW - timedelta(**spell)).isoformat().replace("+00:00", "Z")


def node(name: str = "n1", ready: str = "True") -> Json:
    condition = {
        "type": "Ready",
        "status": ready,
        "reason": "KubeletReady" if ready == "True" else "NodeStatusUnknown",
    }
    return {"metadata": {"name": name, "uid": f"uid-{name}"}, "status": {"conditions": [condition]}}


def status(name: str = "n1", **more: Any) -> Json:
    kinds = ("Ready", "PolicyInForce", "RoutesInstalled", "PeersUp")
    conditions = [{"type": kind, "status": "True", "reason": "AsExpected", "message": ""} for kind in kinds]
    return {
        "metadata": {"name": name, "ownerReferences": [{"kind": "Node", "name": name, "uid": f"uid-{name}"}]},
        "status": {
            "conditions": conditions,
            "endpoints": 12,
            "peers": "2/2",
            "peersEstablished": 2,
            "peersConfigured": 2,
            "routes": 62,
            "backend": "nft",
            "families": ["ipv4"],
            "version": "0.2.0",
            **more,
        },
    }


def unlike(kind: str, reason: str, message: str = "", value: str = "False") -> list[Json]:
    """The conditions of a node on which one is not True."""
    return [
        {"type": kind, "status": value, "reason": reason, "message": message} if one["type"] == kind else one
        for one in status()["status"]["conditions"]
    ]


RUNS: Json = {"state": {"running": {"startedAt": ago(hours=9)}}, "ready": True, "restartCount": 0}


def pod(name: str = "felix-py-aaaaa", on: str = "n1", phase: str = "Running", **agent: Any) -> Json:
    containers = [{"name": "agent", **RUNS, **agent}, {"name": "bgp", **RUNS}]
    return {
        "metadata": {
            "namespace": "kube-system",
            "name": name,
            "creationTimestamp": ago(hours=9),
            "labels": {"app.kubernetes.io/name": "felix-py"},
        },
        "spec": {"nodeName": on},
        "status": {"phase": phase, "containerStatuses": containers},
    }


def judged(*, nodes: Any = None, statuses: Any = None, pods: Any = None, **more: Any) -> ClusterStatus:
    """By default all that n1 has."""
    return read(
        Seen(
            [node()] if nodes is None else nodes,
            [status()] if statuses is None else statuses,
            [pod()] if pods is None else pods,
            **more,
        ),
        NOW,
    )


def said(found: ClusterStatus) -> list[tuple[str, str]]:
    assert len(found.lines) == 1
    return [(problem.what, problem.todo) for problem in found.lines[0].problems]


def test_a_cluster_that_is_well_fits_a_line_a_node() -> None:
    found = judged()
    assert found.fine
    assert text(found) == [
        "NODE  STATE  ENDPOINTS  PEERS  ROUTES  BACKEND  VERSION  AGENT",
        "n1    fine   12         2/2    62      nft      0.2.0    ready",
        "1 node: all fine",
    ]


BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}}
ENDED = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": ago(minutes=3)}}
STUCK = {"terminated": {"exitCode": 5, "reason": "Error", "finishedAt": ago(minutes=3)}}
OOM = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": ago(minutes=3)}}
PULL = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "localhost/felix-py:0.2"'}}
KUBECTL = "kubectl -n kube-system"
ON_NODE = f"`{KUBECTL} exec felix-py-aaaaa -c agent -- felix-py status`"


@pytest.mark.parametrize(
    ("given", "what", "todo"),
    [
        pytest.param({"statuses": []}, "the agent has written no status", "May the agent", id="no object"),
        pytest.param(
            {"pods": [pod("felix-py-bbbbb", on="n2")]},
            "felix-py does not run here; its status is that of an agent which is gone",
            f"{KUBECTL} describe daemonset felix-py",
            id="no pod: the object is stale",
        ),
        pytest.param(
            {"pods": [pod("felix-py-bbbbb", on="n2")], "statuses": []},
            "felix-py does not run here",
            f"{KUBECTL} describe daemonset felix-py",
            id="nothing at all",
        ),
        pytest.param(
            {"pods": [pod(state=BACK_OFF, lastState=ENDED, ready=False, restartCount=7)]},
            "container agent waits: CrashLoopBackOff (7 restarts, ended with exit code 1)",
            f"{KUBECTL} logs felix-py-aaaaa -c agent --previous",
            id="crash loop",
        ),
        pytest.param(
            {"pods": [pod(lastState=STUCK, restartCount=1)]},
            "container agent has ended with exit code 5 (its event loop stood still) 3 min ago (1 restart)",
            f"{KUBECTL} logs felix-py-aaaaa -c agent --previous",
            id="watchdog",
        ),
        pytest.param(
            {"pods": [pod(lastState=OOM, restartCount=2)]},
            "container agent has ended with exit code 137 (OOMKilled) 3 min ago (2 restarts)",
            "--previous",
            id="out of memory",
        ),
        pytest.param(
            {"pods": [pod(state=PULL, ready=False, phase="Pending")]},
            'container agent waits: ImagePullBackOff (Back-off pulling image "localhost/felix-py:0.2")',
            "Is the image on the node",
            id="image",
        ),
        pytest.param(
            {"statuses": [status(conditions=unlike("Ready", "NotSynced", "this node has no podCIDRs yet"))]},
            "not ready: this node has no podCIDRs yet",
            f"No pod starts there until it is; {ON_NODE} says more.",
            id="not ready",
        ),
        pytest.param(
            {"statuses": [status(conditions=unlike("PeersUp", "Down", "192.0.2.1 (AS 65000): refused"))]},
            "BGP peers are down: 192.0.2.1 (AS 65000): refused",
            f"{KUBECTL} logs felix-py-aaaaa -c bgp",
            id="peers",
        ),
        pytest.param(
            {"statuses": [status(conditions=unlike("RoutesInstalled", "Unwritten", value="Unknown"))]},
            "routes are missing: Unwritten",
            "tried again",
            id="unknown is not well",
        ),
        pytest.param(
            {"statuses": [status(conditions=[])]},
            "the status says nothing of whether the agent is ready",
            ON_NODE,
            id="without conditions",
        ),
        pytest.param(
            {"statuses": [status(restartRequired=["mtu", "backend"])]},
            "changed settings wait for a restart: mtu, backend",
            f"{KUBECTL} delete pod felix-py-aaaaa",
            id="restart due",
        ),
        pytest.param(
            {"statuses": [status(notices=[{"kind": "ipvs", "subject": "x", "message": "Do\nthis."}])]},
            "Do this.",
            "",
            id="notice",
        ),
        pytest.param(
            {"nodes": [node(ready="Unknown")]},
            "the Node is not Ready (NodeStatusUnknown)",
            "kubectl describe node n1",
            id="node",
        ),
        pytest.param(
            {"nodes": [], "pods": [pod(on="n9")]},
            "a status is left of a Node that is not there any more",
            "kubectl delete nodenetworkstatus n1",
            id="node gone",
        ),
        pytest.param(
            {"nodes": [{**node(), "metadata": {"name": "n1", "uid": "another"}}]},
            "the status is of an earlier Node of this name",
            "kubectl delete nns n1",
            id="node made anew",
        ),
        pytest.param(
            {"pods": [{**pod(), "metadata": {**pod()["metadata"], "deletionTimestamp": ago(minutes=1)}}]},
            "its agent ends, and no other has started",
            "describe pod",
            id="ending",
        ),
        pytest.param(
            {"pods": [{**pod(phase="Pending"), "status": {"phase": "Pending"}}]},
            "its agent does not run (Pending)",
            "describe pod",
            id="pending",
        ),
        pytest.param({"pods": [pod(ready=False)]}, "its agent is not ready", ON_NODE, id="probe fails"),
    ],
)  # fmt: skip
def test_each_case_is_one_problem_with_what_to_do(given: Json, what: str, todo: str) -> None:
    found = judged(**given)
    assert not found.fine
    [(told, remedy)] = said(found)
    assert told == what
    assert todo in remedy
    assert text(found)[-1] == "1 node: 0 fine, 1 with problems"


def test_a_status_that_nobody_keeps_is_not_believed() -> None:
    """Its conditions are those of the moment at which its agent ended."""
    down = [status(conditions=unlike("PeersUp", "Down", "refused"))]
    crashing = pod(state=BACK_OFF, lastState=ENDED, ready=False, restartCount=7)
    assert "CrashLoop" in said(judged(statuses=down, pods=[crashing]))[0][0]
    assert len(said(judged(statuses=down, pods=[crashing]))) == 1


def test_an_init_container_that_fails_is_the_cause_and_its_followers_are_not() -> None:
    waits: Json = {"state": {"waiting": {"reason": "PodInitializing"}}, "ready": False}
    failing = pod(phase="Pending", **waits)
    failing["status"]["initContainerStatuses"] = [
        {"name": "install-cni", "state": BACK_OFF, "lastState": ENDED, "restartCount": 3}
    ]
    [(what, todo)] = said(judged(pods=[failing]))
    assert what.startswith("container install-cni waits: CrashLoopBackOff (3 restarts")
    assert "-c install-cni --previous" in todo


def test_a_pod_that_cannot_be_scheduled_belongs_to_the_node_it_was_made_for() -> None:
    lost = pod(phase="Pending")
    del lost["spec"]["nodeName"]
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
    lost["spec"]["affinity"] = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    }
    message = "0/1 nodes are available: 1 Insufficient memory"
    lost["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "message": message}],
    }
    assert said(judged(pods=[lost], statuses=[]))[0][0] == f"its agent does not run ({message})"


def test_during_a_rolling_update_the_new_pod_counts() -> None:
    old = pod("felix-py-old")
    old["metadata"] |= {"deletionTimestamp": ago(seconds=5), "creationTimestamp": ago(days=9)}
    assert judged(pods=[old, pod()]).fine
    assert judged(pods=[pod(), old]).fine


def test_agents_that_run_by_hand_are_judged_by_what_they_write() -> None:
    found = judged(pods=[])
    assert found.fine
    assert "agents run by hand" in found.notes[0]
    assert said(judged(pods=[], statuses=[]))[0][0] == "the agent has written no status"


def test_without_the_definition_it_is_said_once_and_pods_still_count() -> None:
    found = read(Seen([node("n1"), node("n2")], None, [pod(), pod("felix-py-b", on="n2", ready=False)]), NOW)
    assert [line.node for line in found.lines if not line.fine] == ["n2"]
    assert "NodeNetworkStatus (felixpy.io/v1alpha1) is not served" in found.problems[0].what
    assert "kubectl apply" in text(found)[0]


def test_who_leads_is_said() -> None:
    seen = Seen([node("n1")], [status("n1")], [pod()], leader="n1")
    found = read(seen, NOW)
    assert found.fine
    assert "The agent of n1 leads: addresses of load balancers, blocks of lost nodes" in text(found)
    assert as_json(found)["leader"] == "n1"
    assert not any("leads" in line for line in text(judged()))


def test_nodes_with_problems_come_first() -> None:
    nodes = [node(f"n{number}") for number in range(5)]
    statuses = [status(f"n{number}") for number in range(5) if number != 3]
    pods = [pod(f"felix-py-{number}", on=f"n{number}") for number in range(5)]
    found = judged(nodes=nodes, statuses=statuses, pods=pods)
    assert [line.node for line in found.lines] == ["n3", "n0", "n1", "n2", "n4"]
    assert [one["node"] for one in as_json(found)["nodes"] if not one["fine"]] == ["n3"]


NONSENSE: list[Any] = [None, [], {}, 7, "x", [None], [7], {"a": 1}, True]


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
def test_objects_that_are_nonsense_hide_no_others(value: Any) -> None:
    odd_node = {"metadata": {"name": "odd", "uid": value}, "status": {"conditions": value}}
    odd_status = {"metadata": {"name": "odd", "ownerReferences": value}, "status": value}
    fields = dict.fromkeys((*status()["status"], "restartRequired", "notices"), value)
    odd_fields = [{"metadata": {"name": one}, "status": fields} for one in ("odd2", "odd3")]
    odd_pod = pod("felix-py-odd", on="odd", state=value, lastState=value, restartCount=value)
    odder_pod = {**pod("felix-py-odder", on="odd2"), "status": {"phase": value, "containerStatuses": value}}
    found = judged(
        nodes=[node(), odd_node, node("odd2"), node("odd3")],
        statuses=[status(), odd_status, *odd_fields],
        pods=[pod(), odd_pod, odder_pod, pod("felix-py-3", on="odd3"), {"metadata": value, "spec": value}],
    )
    assert [line.node for line in found.lines if line.fine] == ["n1"]
    text(found)


# --- the command -------------------------------------------------------------------------------------


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as server:
        server.install(STATUSES)
        yield server


def fill(api: FakeApi, count: int) -> None:
    for number in range(count):
        name = f"n{number:04}"
        api.put(fakeapi.NODES, node(name))
        api.put(STATUSES, status(name))
        api.put(fakeapi.PODS, pod(f"felix-py-{number:04}", on=name))
    other = pod("coredns", on="n0000", ready=False)
    other["metadata"]["labels"] = {"k8s-app": "kube-dns"}
    api.put(fakeapi.PODS, other)


def command(api_url: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    kubeconfig = folder / "kubeconfig"
    write_kubeconfig(kubeconfig, api_url)
    return subprocess.run(
        [FELIX_PY, "status", "--all", f"--kubeconfig={kubeconfig}", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_all_pages_are_read_and_the_exit_code_says_whether_all_is_well(api: FakeApi, tmp_path: Path) -> None:
    fill(api, 1100)
    done = command(api.url, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "1,100 nodes: all fine"
    assert "page" in api.verbs(STATUSES)
    api.delete(STATUSES, "", "n0777")
    done = command(api.url, tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[1].startswith("n0777  1 problem")
    for form in (["--json"], ["-o", "json"]):
        done = command(api.url, tmp_path, *form)
        assert done.returncode == 1
        found = json.loads(done.stdout)
        assert [one["node"] for one in found["nodes"] if not one["fine"]] == ["n0777"]


def test_who_may_not_read_pods_gets_the_rest_and_a_note(api: FakeApi, tmp_path: Path) -> None:
    fill(api, 2)
    path = "/api/v1/namespaces/kube-system/pods"
    api.fault("list", lambda exchange: exchange.refuse(403, "Forbidden", "no") or True, path=path)
    done = command(api.url, tmp_path)
    assert done.returncode == 0
    assert "pods of kube-system cannot be read (forbidden)" in done.stdout


def test_a_page_that_has_expired_is_read_anew(api: FakeApi, tmp_path: Path) -> None:
    fill(api, 1100)
    api.fault("page", lambda exchange: exchange.refuse(410, "Expired", "too old") or True, path=STATUSES)
    done = command(api.url, tmp_path)
    assert done.stdout.splitlines()[-1] == "1,100 nodes: all fine"


def test_a_server_that_refuses_or_lies_or_is_not_there(api: FakeApi, tmp_path: Path) -> None:
    refused = command(api.url, tmp_path, "--context=nope")
    assert (refused.returncode, refused.stdout) == (2, "")
    api.fault("list", lambda exchange: exchange.refuse(403, "Forbidden", "not you") or True, path=fakeapi.NODES)
    done = command(api.url, tmp_path)
    assert done.returncode == 2
    assert "not you" in done.stderr
    api.fault("list", lambda exchange: exchange.send(200, {"items": [7]}) or True, path=fakeapi.NODES)
    done = command(api.url, tmp_path)
    assert done.returncode == 2
    assert "not a list" in done.stderr
    api.refuse()
    done = command(api.url, tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    api.listen()


def test_the_terminal_is_safe_from_what_objects_say(api: FakeApi, tmp_path: Path) -> None:
    fill(api, 1)
    api.put(STATUSES, status("n0000", notices=[{"kind": "x", "subject": "y", "message": "red \x1b[31m"}]))
    done = command(api.url, tmp_path)
    assert "\x1b" not in done.stdout
    assert "red ?[31m" in done.stdout
