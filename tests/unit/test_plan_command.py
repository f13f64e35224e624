"""``felix-py plan`` against an API server: what it prints, how it ends, and that it only ever asks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from felix_py.cli.main import app
from lab.build import EXAMPLES
from tests.support.fakeapi import CLUSTER_POLICIES, NAMESPACES, NODES, PODS, POLICIES, FakeApi

PLACES = {"Namespace": NAMESPACES, "Pod": PODS, "NetworkPolicy": POLICIES}


def example(number: str) -> str:
    (found,) = EXAMPLES.glob(f"{number}-*.yaml")
    return str(found)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """The example pods on two nodes, dual stack."""
    with FakeApi() as server:
        number = 0
        for obj in yaml.safe_load_all(Path(example("00")).read_text()):
            if obj["kind"] == "Pod":
                number += 1
                obj["spec"]["nodeName"] = f"node-{number % 2}"
                obj["status"] = {
                    "phase": "Running",
                    "podIPs": [{"ip": f"10.0.0.{number}"}, {"ip": f"fd00::{number}"}],
                }
            server.put(PLACES[obj["kind"]], obj)
        for name in ("node-0", "node-1"):
            address = {"type": "InternalIP", "address": f"192.168.0.{name[-1]}"}
            server.put(NODES, {"metadata": {"name": name}, "status": {"addresses": [address]}})
        yield server


class Caller:
    """Calls the command with a kubeconfig of two contexts."""

    def __init__(self, api: FakeApi, folder: Path) -> None:
        def context(name: str, **more: str) -> dict[str, Any]:
            return {"name": name, "context": {"cluster": "c", "user": "u", **more}}

        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": api.url}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [context("plain"), context("shopkeeper", namespace="shop")],
            "current-context": "plain",
        }
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self.folder = folder

    def __call__(self, *words: str, stdin: str = "", flows: bool = False) -> Result:
        argv = ["plan", "--kubeconfig", str(self.kubeconfig), *words, *([] if flows else ["--no-flows"])]
        result = CliRunner().invoke(app, argv, input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def json(self, *words: str, stdin: str = "", flows: bool = False) -> Any:
        return json.loads(self(*words, "-o", "json", stdin=stdin, flows=flows).stdout)


@pytest.fixture
def plan(api: FakeApi, tmp_path: Path) -> Iterator[Caller]:
    """The command; in the end, the server must have been asked and nothing else."""
    yield Caller(api, tmp_path)
    assert {request.verb for request in api.requests} <= {"list", "page"}


def policy(spec: str, name: str = "p", namespace: str | None = "shop") -> str:
    own = f", namespace: {namespace}" if namespace else ""
    return (
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
        f"metadata: {{name: {name}{own}}}\nspec: {{{spec}}}\n"
    )


def cluster_policy(spec: str) -> str:
    return (
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n"
        f"metadata: {{name: guard}}\nspec: {{{spec}}}\n"
    )


# --- what it prints -------------------------------------------------------------------------------------------


def test_a_default_deny(plan: Caller) -> None:
    result = plan("-f", example("10"))
    assert result.exit_code == 1
    assert result.stderr == ""
    assert result.stdout == (
        f"NetworkPolicy shop/default-deny-ingress: created ({example('10')})\n"
        "\n"
        "Newly denied\n"
        "  every pod (12 pods), every node (2), the world -> shop/* (6 pods)  every port  allowed -> DENIED\n"
        "      by ingress of NetworkPolicy shop/default-deny-ingress: no rule allows it; "
        "before: no policy decides ingress\n"
        "\n"
        "66 pod pairs, 6 node/pod pairs and 6 pods with the world lose every port; nothing else changes\n"
    )


def test_an_edited_policy_takes_and_gives(plan: Caller, api: FakeApi) -> None:
    api.put(POLICIES, yaml.safe_load(Path(example("20")).read_text()))
    edited = Path(example("20")).read_text().replace("port: 5432", "port: 5433")
    result = plan("-f", "-", stdin=edited)
    assert result.exit_code == 1
    assert "  shop/api (2 pods) -> shop/db-1  5432/TCP  allowed -> DENIED\n" in result.stdout
    assert "  shop/api (2 pods) -> shop/db-1  5433/TCP  denied -> ALLOWED\n" in result.stdout
    assert "2 pod pairs lose 5432/TCP; 2 pod pairs gain 5433/TCP; nothing else changes\n" in result.stdout


def test_the_same_policy_again_changes_nothing(plan: Caller, api: FakeApi) -> None:
    for obj in yaml.safe_load_all(Path(example("20")).read_text()):
        obj["metadata"] |= {"uid": "made-by-the-server", "labels": {"a": "b"}}
        api.put(POLICIES, obj)
    result = plan("-f", example("20"))
    assert result.exit_code == 0
    assert result.stdout == (
        f"NetworkPolicy shop/db-from-api: unchanged ({example('20')})\n\nNothing would change\n"
    )


def test_a_change_that_nobody_feels_is_none(plan: Caller) -> None:
    result = plan(
        "-f", "-", stdin=policy("podSelector: {}, ingress: [{}], policyTypes: [Ingress, Egress], egress: [{}]")
    )
    assert result.exit_code == 0
    assert "NetworkPolicy shop/p: created (stdin)\n" in result.stdout
    assert "Nothing would change\n" in result.stdout


def test_delete(plan: Caller, api: FakeApi) -> None:
    api.put(POLICIES, yaml.safe_load(Path(example("10")).read_text()))
    result = plan("-f", example("10"), "-f", example("20"), "--delete")
    assert result.exit_code == 1
    assert f"NetworkPolicy shop/default-deny-ingress: deleted ({example('10')})\n" in result.stdout
    assert f"NetworkPolicy shop/db-from-api: absent ({example('20')})\n" in result.stdout
    assert "Newly denied" not in result.stdout
    assert "66 pod pairs, 6 node/pod pairs and 6 pods with the world gain every port" in result.stdout


def test_lists_end_at_the_limit(plan: Caller) -> None:
    every = plan("-f", str(EXAMPLES), "--all").stdout
    some = plan("-f", str(EXAMPLES), "--limit", "3").stdout
    groups = every.count(" -> DENIED")
    assert some.count(" -> DENIED") == 3
    assert f"  and {groups - 3} more; --all shows them\n" in some
    assert some.splitlines()[-1] == every.splitlines()[-1]


def test_cluster_policies(plan: Caller, api: FakeApi) -> None:
    rule = "{name: no-dev, action: Deny, from: [{namespaces: {matchLabels: {team: dev}}}]}"
    deny = f"tier: Admin, priority: 5, subject: {{namespaces: {{}}}}, ingress: [{rule}]"
    absent = plan("-f", "-", stdin=cluster_policy(deny))
    assert "the cluster does not have this kind: install its CRD first" in absent.stderr
    api.install(CLUSTER_POLICIES)
    result = plan("-f", "-", stdin=cluster_policy(deny))
    assert result.exit_code == 1
    assert result.stderr == ""
    assert 'by ClusterNetworkPolicy guard ingress[0] "no-dev"; before: no policy decides ingress' in result.stdout
    assert "44 pod pairs lose every port; nothing else changes" in result.stdout


# --- notes ----------------------------------------------------------------------------------------------------


def test_parts_that_are_not_understood_are_planned_as_they_would_be_enforced(plan: Caller) -> None:
    text = policy("podSelector: {matchLabels: {tier: db}}, ingress: [{form: []}]")
    result = plan("-f", "-", stdin=text)
    assert result.exit_code == 1
    assert (
        "NetworkPolicy shop/p (stdin): would allow nothing: spec.ingress[0]: unknown field 'form'"
        in result.stderr
    )
    assert "11 pod pairs, 1 node/pod pair and 1 pod with the world lose every port" in result.stdout


def test_objects_that_do_not_exist_yet_are_named(plan: Caller) -> None:
    text = "---\n".join(
        (
            policy("podSelector: {}", namespace="new"),
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: new}\n",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: dev, labels: {team: other}}\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: fresh, namespace: shop}\n",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n",
        )
    )
    result = plan("-f", "-", stdin=text)
    assert result.exit_code == 0
    not_yet = "it does not exist yet; policies may mean something else once it does"
    assert [line.removeprefix("felix-py plan: note: ") for line in result.stderr.splitlines()] == [
        "NetworkPolicy new/p (stdin, document 1): the namespace does not exist, so it selects nobody",
        f"stdin, document 2: skipped Namespace new: {not_yet}",
        "stdin, document 3: skipped Namespace dev: its labels would change; those that it has now are looked at",
        f"stdin, document 4: skipped Pod fresh: {not_yet}",
        "skipped what is no policy: 1 Deployment",
    ]


def test_what_of_the_cluster_could_not_be_looked_at_is_named(plan: Caller, api: FakeApi) -> None:
    api.put(PODS, {"metadata": {"name": "late", "namespace": "dev"}, "spec": {}, "status": {"phase": "Pending"}})
    api.put(PODS, {"metadata": {"name": "odd", "namespace": "dev"}, "status": {"podIP": "10.0.0.300"}})
    stderr = plan("-f", example("10")).stderr
    assert "note: pods without an address yet are not looked at: 1\n" in stderr
    assert "note: Pod dev/odd in the cluster is not, or not wholly, understood: " in stderr


# --- namespaces -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "namespace"),
    [((), "default"), (("-n", "dev"), "dev"), (("--context", "shopkeeper"), "shop")],
    ids=["default", "option", "context"],
)
def test_namespace_of_a_policy_that_names_none(plan: Caller, words: tuple[str, ...], namespace: str) -> None:
    found = plan.json("-f", "-", *words, stdin=policy("podSelector: {}", namespace=None))
    assert [change["namespace"] for change in found["changes"]] == [namespace]


# --- JSON -----------------------------------------------------------------------------------------------------


def test_json_is_complete(plan: Caller) -> None:
    found = plan.json("-f", example("20"), "--limit", "1")
    assert found["changes"] == [
        {
            "kind": "NetworkPolicy",
            "namespace": "shop",
            "name": "db-from-api",
            "change": "created",
            "file": example("20"),
            "problems": [],
        }
    ]
    assert [group["ports"] for group in found["groups"]] == [
        [{"protocol": p, "first": 1, "last": 65535} for p in ("TCP", "UDP", "SCTP")],
        [
            {"protocol": "TCP", "first": 1, "last": 5431},
            {"protocol": "TCP", "first": 5433, "last": 65535},
            {"protocol": "UDP", "first": 1, "last": 65535},
            {"protocol": "SCTP", "first": 1, "last": 65535},
        ],
    ]
    wide, narrow = found["groups"]
    assert len(wide["sources"]["pods"]) == 9
    # node-0 is the database's own node: it reaches its pods always.
    assert wide["sources"]["nodes"] == ["node-1"]
    assert wide["sources"]["world"] == [{"cidr": "0.0.0.0/0", "except": []}, {"cidr": "::/0", "except": []}]
    assert narrow["sources"]["pods"] == ["shop/api-1", "shop/api-2"]
    assert narrow["destinations"] == {"pods": ["shop/db-1"], "nodes": [], "world": []}
    assert (narrow["effect"], narrow["family"]) == ("denied", None)
    own = {"kind": "NetworkPolicy", "namespace": "shop", "name": "db-from-api"}
    assert narrow["decided"] == [
        {
            "direction": "Ingress",
            "before": {"allowed": True, "tier": None, "rule": None, "isolatedBy": []},
            "after": {"allowed": False, "tier": "NetworkPolicy", "rule": None, "isolatedBy": [own]},
        }
    ]
    assert found["summary"] == {
        "denied": {"podPairs": 11, "nodePairs": 1, "podsWithWorld": 1},
        "allowed": {"podPairs": 0, "nodePairs": 0, "podsWithWorld": 0},
    }
    assert (found["flows"], found["notes"]) == (None, [])


def test_json_is_stable(plan: Caller, api: FakeApi) -> None:
    """The same cluster in another order is the same answer."""
    first = plan.json("-f", str(EXAMPLES))
    api.objects = dict(reversed(api.objects.items()))
    assert plan.json("-f", str(EXAMPLES)) == first


# --- flows ----------------------------------------------------------------------------------------------------


@contextmanager
def agent(answer: Any, status: int = 200) -> Iterator[str]:
    """Something that answers as an agent does; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = status if self.path == "/flows" else 404
            self.send_response(found)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def flow(source: str, destination: str, port: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"source": source, "destination": destination, "protocol": protocol, "port": port, "replied": True}


FLOWS = [
    flow("10.0.0.1", "10.0.0.6", 5432),  # web-1 to db-1
    flow("fd00::1", "fd00::6", 5432),
    flow("10.0.0.4", "10.0.0.6", 5432),  # api-1 to db-1: the policy allows it
    flow("192.168.0.0", "10.0.0.6", 9187),  # the database's own node
    flow("192.168.0.1", "10.0.0.6", 9187),
    flow("198.51.100.7", "10.0.0.6", 5432),
    flow("10.0.0.6", "10.0.0.1", 80),  # not what the policy speaks of
    flow("10.0.0.1", "10.0.0.6", 0, "ICMP"),
    {"source": "nonsense"},
]


def test_flows_seen_lately_that_would_be_denied(plan: Caller) -> None:
    with agent(FLOWS) as url:
        result = plan("-f", example("20"), "--agent", url, flows=True)
    _, _, told = result.stdout.partition(f"Of 7 flows seen lately by {url}, these would be denied\n")
    why = "by ingress of NetworkPolicy shop/db-from-api: no rule allows it"
    assert told.partition("\n\n")[0].splitlines() == [
        f"  198.51.100.7 -> shop/db-1  5432/TCP  {why}",
        f"  node node-1 -> shop/db-1  9187/TCP  {why}",
        f"  shop/web-1 -> shop/db-1  5432/TCP  {why}",
    ]


def test_an_agent_that_does_not_answer_is_named_and_the_others_count(plan: Caller) -> None:
    with agent(FLOWS) as good, agent([], status=503) as broken, agent({"a": 1}) as odd:
        found = plan.json("-f", example("20"), *(f"--agent={url}" for url in (broken, good, odd)), flows=True)
    flows = found["flows"]
    assert flows["agents"] == [good]
    assert list(flows["silent"]) == [broken, odd]
    assert flows["silent"][odd] == "its answer is no list of flows"
    assert [(f["sourceName"], f["port"]) for f in flows["denied"]] == [
        ("shop/web-1", 5432),
        ("shop/web-1", 5432),
        ("node node-1", 9187),
        ("198.51.100.7", 5432),
    ]
    silent = plan("-f", example("20"), "--agent", good, flows=True)
    assert f"note: no flows from {good}: Connection refused; see --agent-socket and --no-flows" in silent.stderr
    assert "flows seen lately" not in silent.stdout


# --- errors ---------------------------------------------------------------------------------------------------


def test_errors_exit_2(plan: Caller, api: FakeApi, tmp_path: Path) -> None:
    def failed(*words: str, stdin: str = "") -> str:
        result = plan(*words, stdin=stdin)
        assert (result.exit_code, result.stdout) == (2, "")
        return result.stderr

    assert "Missing option '--filename' / '-f'" in failed()
    assert failed("-f", "-", stdin="a: [").startswith("felix-py plan: stdin: line 1, column 5: ")
    assert failed("-f", example("00")) == f"felix-py plan: no policy in {example('00')}\n"
    assert "must be the path of an agent's socket, or http://ADDRESS:PORT" in failed(
        "-f", example("10"), "--agent", "localhost"
    )
    assert "no such context" in failed("-f", example("10"), "--context", "none")
    two = failed("-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.yaml"))
    assert [line.rpartition("/")[2] for line in two.splitlines()] == [
        f"{name}.yaml: No such file or directory" for name in "ab"
    ]
    api.fault(
        "list", lambda exchange: exchange.refuse(403, "Forbidden", "you may not list pods") or True, path=PODS
    )
    assert failed("-f", example("10")) == "felix-py plan: 403 Forbidden: you may not list pods\n"
    api.refuse()
    try:
        assert "Connection refused" in failed("-f", example("10"))
    finally:
        api.listen()


def test_a_long_step_says_what_it_does(plan: Caller, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felix_py.cli.options._PATIENCE", 0.01)
    said = threading.Event()
    echo = typer.echo

    def notice(text: str, *, err: bool = False) -> None:
        if err and "listing the cluster's objects" in text:
            said.set()
        else:
            echo(text, err=err)

    def slow(_: object) -> bool:
        assert said.wait(10)
        return False

    monkeypatch.setattr("typer.echo", notice)
    api.fault("list", slow, path=PODS)
    assert plan("-f", example("10")).exit_code == 1


def test_names_that_policies_bring_cannot_play_with_the_terminal(plan: Caller, api: FakeApi) -> None:
    api.install(CLUSTER_POLICIES)
    rule = '{name: "\\e[31mred", action: Deny, from: [{namespaces: {}}]}'
    text = cluster_policy(f"tier: Admin, priority: 5, subject: {{namespaces: {{}}}}, ingress: [{rule}]")
    stdout = plan("-f", "-", stdin=text).stdout
    assert "\x1b" not in stdout
    assert "[31mred" in stdout
