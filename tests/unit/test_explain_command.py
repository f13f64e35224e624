"""``felix-py explain`` and ``verify`` from the outside: what they print and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from felix_py.cli.main import app
from felix_py.cli.options import printable
from tests.support import fakeapi
from tests.support.fakeapi import FakeApi

# Another user who may read everything: Python itself may be in root's home.
NOBODY = (
    "setpriv",
    "--reuid=65534",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
)
FELIX_PY = str(Path(sys.executable).with_name("felix-py"))
NO_PEER = "peer does not match (pods app=web of its own namespace)"
ALLOWED, DENIED, WRONG, UNKNOWN = range(4)


def pod(name: str, address: str, *ports: tuple[str, int], **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "shop", "name": name, "uid": name, "labels": labels},
        "spec": {
            "nodeName": "node1",
            "containers": [
                {"ports": [{"name": n, "containerPort": number, "protocol": "TCP"} for n, number in ports]}
            ],
        },
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }


POLICY = {
    "metadata": {"namespace": "shop", "name": "db", "uid": "p"},
    "spec": {
        "podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 5432}]}],
    },
}


class Shop:
    """An API server with two pods and a policy, and ways to ask about them."""

    def __init__(self, api: FakeApi, folder: Path) -> None:
        self.api = api
        self.kubeconfig = folder / "config"
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": {"server": api.url}}],
                    "users": [{"name": "u", "user": {}}],
                }
            )
        )
        web = pod("web", "10.1.0.2", ("http", 80), app="web")
        for one in (web, pod("db", "10.1.0.3", ("pg", 5432), ("", 9187), app="db")):
            api.put(fakeapi.PODS, one)
        api.put(fakeapi.NAMESPACES, {"metadata": {"name": "shop"}})
        api.put(fakeapi.POLICIES, POLICY)
        addresses = [{"type": "InternalIP", "address": "192.0.2.1"}]
        api.put(
            fakeapi.NODES,
            {
                "metadata": {"name": "node1"},
                "spec": {"podCIDR": "10.1.0.0/24"},
                "status": {"addresses": addresses},
            },
        )

    def run(self, *words: str, **environment: str) -> Result:
        env: dict[str, str | None] = {"HOME": str(self.kubeconfig.parent), "KUBECONFIG": str(self.kubeconfig)}
        env |= {"FELIX_PY_NODE_NAME": "elsewhere", **environment}
        done = CliRunner().invoke(app, words, env=env)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with FakeApi() as api:
        yield Shop(api, tmp_path)


def test_allowed(shop: Shop) -> None:
    done = shop.run("explain", "-n", "shop", "web", "db", "--port", "5432")
    assert done.exit_code == ALLOWED, done.stderr
    assert done.stdout.splitlines() == [
        "ALLOWED shop/web (10.1.0.2) -> shop/db (10.1.0.3) 5432/TCP",
        "  egress   allowed: no policy selects shop/web in this direction",
        "  ingress  allowed by NetworkPolicy shop/db ingress[0] (NetworkPolicy tier)",
        "  kernel   shop/web and shop/db: on node node1; run the same there",
    ]


def test_a_policy_that_is_not_understood_is_not_said_to_have_no_rules(shop: Shop) -> None:
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": "all"}
    shop.api.put(fakeapi.POLICIES, {"metadata": {"namespace": "shop", "name": "bad", "uid": "b"}, "spec": spec})
    problem = "spec.ingress: must be a list, not 'all'"
    done = shop.run("explain", "198.51.100.9", "shop/db", "--port", "22/tcp")
    assert done.exit_code == DENIED
    assert f"           NetworkPolicy shop/bad: not understood: {problem}\n" in done.stdout
    assert "has no rules" not in done.stdout
    # Also where another policy allows: the malformed one may have been meant to allow more.
    done = shop.run("explain", "shop/web", "shop/db", "--port", "5432", "-o", "json")
    (found,) = json.loads(done.stdout)
    assert found["allowed"]
    assert found["ingress"]["notUnderstood"] == {"NetworkPolicy shop/bad": [problem]}


def test_a_pod_that_is_not_understood_is_not_said_not_to_be_there(shop: Shop) -> None:
    shop.api.put(fakeapi.PODS, {"metadata": {"namespace": "shop", "name": "odd", "uid": "o"}, "spec": 7})
    done = shop.run("explain", "shop/web", "shop/odd", "--port", "1")
    assert (done.exit_code, done.stdout) == (WRONG, "")
    assert "pod shop/odd is not understood: " in done.stderr


def test_denied(shop: Shop) -> None:
    done = shop.run("explain", "198.51.100.9", "shop/db", "--port", "22/tcp")
    assert done.exit_code == DENIED, done.stderr
    assert done.stdout.splitlines()[3:] == [
        "  ingress  denied: NetworkPolicies isolate shop/db, and none of them allows this",
        f"           NetworkPolicy shop/db ingress[0]: {NO_PEER}; port does not match (5432/TCP)",
        "  kernel   shop/db: on node node1; run the same there",
    ]


def test_the_ports_that_containers_list_are_the_default(shop: Shop) -> None:
    done = shop.run("explain", "shop/web", "shop/db", "-o", "json")
    assert done.exit_code == DENIED, done.stderr
    assert [(one["port"], one["allowed"]) for one in json.loads(done.stdout)] == [(5432, True), (9187, False)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shop/web", "shop/dbs"], "there is no pod shop/dbs"),
        (["web", "shop/db"], "there is no pod default/web; there is shop/web"),
        (["shop/web", "world"], "world is not a pod: say which --port"),
        (["shop/web", "shop/db", "--port", "http"], "has no such port; it has pg/tcp"),
        (["shop/web", "shop/db", "--ipv6"], "do not both have an IPv6 address"),
        (["shop/web", "shop/db", "--ipv4", "--ipv6"], "exclude each other"),
        (["shop/web", "shop/db", "--backend", "bpf"], "must be auto, legacy or nft"),
        (["shop/web", "shop/db", "--kubeconfig", "/no/such"], "no such file"),
        (["shop/web", "shop/db", "--context", "other"], "Expected object with name other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_calls(shop: Shop, words: list[str], message: str) -> None:
    done = shop.run("explain", *words)
    assert (done.exit_code, message in done.stderr) == (WRONG, True), done.stderr
    assert done.stdout == ""


def test_the_usual_place_of_credentials(shop: Shop) -> None:
    usual = shop.kubeconfig.parent / ".kube" / "config"
    usual.parent.mkdir()
    shop.kubeconfig.rename(usual)
    done = shop.run("explain", "shop/web", "shop/db", "--port", "5432", KUBECONFIG="")
    assert done.exit_code == ALLOWED, done.stderr


def test_nothing_that_a_terminal_obeys_gets_to_it() -> None:
    assert printable("a\x1b[2Jb\x07\x9b\x7f\tü漢 \nc\rd\u2028e") == "a?[2Jb????ü漢 \nc?d?e"


@pytest.mark.parametrize("command", [["explain", "shop/web", "shop/db"], ["verify"]], ids=["explain", "verify"])
def test_an_api_server_that_does_not_answer(shop: Shop, command: list[str]) -> None:
    shop.api.refuse()
    done = shop.run(*command)
    assert done.exit_code == (UNKNOWN if command[0] == "explain" else WRONG)
    assert done.stdout == ""
    assert f"felix-py {command[0]}: " in done.stderr
    shop.api.listen()


@pytest.mark.root
def test_a_kernel_that_cannot_be_read(shop: Shop) -> None:
    """As somebody who is not root, on the pod's own node."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        config = Path(folder, "config")
        config.write_bytes(shop.kubeconfig.read_bytes())
        words = ("explain", "shop/web", "shop/db", "--port", "5432", "--node-name", "node1")
        env = {"PATH": "/usr/sbin:/usr/bin:/bin", "KUBECONFIG": str(config)}
        argv = [*NOBODY, FELIX_PY, *words]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == UNKNOWN, done.stderr
        assert done.stdout.startswith("ALLOWED ")
        assert "node1's kernel cannot be read" in done.stderr
        done = subprocess.run([*argv, "--no-kernel"], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == ALLOWED, done.stderr


@pytest.mark.root
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--node-name", "node7"], "there is no node node7 in the cluster"),
        (["--node-name", "node1"], "cannot read the address store"),
        (["--mark-mask", "0xff"], "--mark-mask"),
        (["--agent-socket", "nowhere"], "must be the path of an agent's socket"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_verify_says_why_it_cannot_look(shop: Shop, words: list[str], message: str, tmp_path: Path) -> None:
    done = shop.run("verify", "--state-dir", str(tmp_path), *words)
    assert (done.exit_code, message in done.stderr) == (WRONG, True), done.stderr
    assert done.stdout == ""
