"""``felix-py lab status``, ``explain``, ``denies``, ``verify`` and ``plan``: the whole lab at once."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.topology import TOR
from tests.e2e.test_lab_command import FELIX_PY, felix
from tests.support.lab import LabUnderTest, example, manifest
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

_PATIENCE = 60.0


def command(lab: LabUnderTest, *argv: str) -> subprocess.CompletedProcess[str]:
    """``felix-py lab …`` for this lab."""
    return felix(*argv, folder=lab.lab.state.root, check=False, FELIX_PY_LAB=lab.lab.name)


def status(lab: LabUnderTest, *, verify: bool = False) -> tuple[list[str], dict[str, Any]]:
    """What is wrong, and all of it; the exit code must say whether something is."""
    done = command(lab, "status", "-o", "json", *([] if verify else ["--no-verify"]))
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    problems = [problem["what"] for problem in found["problems"]]
    assert done.returncode == (1 if problems else 0)
    assert found["healthy"] is (not problems)
    return problems, found


def wait_until_fine(lab: LabUnderTest) -> None:
    told: list[str] = []

    def fine() -> bool:
        told[:] = status(lab)[0]
        return not told

    try:
        eventually(fine, _PATIENCE)
    except AssertionError:
        raise AssertionError(told) from None


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_lab_that_is_well(plain_lab: LabUnderTest) -> None:
    wait_until_fine(plain_lab)
    problems, found = status(plain_lab, verify=True)
    assert problems == []
    for node in found["nodes"]:
        assert node["agent"]["node"] == node["name"]
        assert node["kernel"]["equal"]
    assert set(found["sessions"].values()) == {"Established"}
    assert len(found["sessions"]) == len(plain_lab.nodes) * len(plain_lab.families)
    pods = plain_lab.get("pods")["items"]
    assert {pod["name"] for pod in found["pods"]} == {
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in pods
    }
    text = command(plain_lab, "status").stdout
    assert "fine" in text, text
    assert f"lab {plain_lab.lab.name!r}, 2 nodes, IPv4, backend nft: fine" in text
    for node in plain_lab.node_names:
        (line,) = [line for line in text.splitlines() if line.split()[:2] == [node, "ready"]]
        assert "as it should be" in line
        assert "IPv4 established" in line


def test_stopped_agent(plain_lab: LabUnderTest) -> None:
    with stopped(plain_lab.lab.programs("node1")["agent"].pid):
        problems, found = status(plain_lab)
        assert "node1: agent is stopped (SIGSTOP)" in problems
        assert found["nodes"][0]["agent"] is None
        assert found["nodes"][0]["silent"] == "nothing for 10 s"
        assert not [problem for problem in problems if problem.startswith("node2")]
        assert "silent" in command(plain_lab, "status", "--no-verify").stdout
    wait_until_fine(plain_lab)


@pytest.mark.heavy
def test_agent_that_keeps_dying(plain_lab: LabUnderTest) -> None:
    """With its last words, which say why."""
    config = plain_lab.lab.state.machine("node2") / "config" / "bgp.yaml"
    text = config.read_text()
    config.write_text(text.replace("asNumber", "asNumbr"))
    try:
        os.kill(plain_lab.lab.programs("node2")["agent"].pid, signal.SIGTERM)

        def dying() -> list[str]:
            return [one for one in status(plain_lab)[0] if one.startswith("node2: agent keeps dying: ")]

        (said,) = eventually(dying, _PATIENCE)
        assert "last words: cannot start: --bgp-config /etc/felix-py/bgp.yaml: asNumbr: unknown field" in said
    finally:
        config.write_text(text)
    eventually(lambda: plain_lab.agent("node2", "/readyz")[0] == 200, _PATIENCE)
    wait_until_fine(plain_lab)


@pytest.mark.heavy
def test_api_server_that_cannot_start(plain_lab: LabUnderTest) -> None:
    """Its objects are damaged: it says so, and so does the status, which cannot list pods."""
    journal = plain_lab.lab.state.apiserver / "objects.jsonl"
    server = plain_lab.lab.processes()["apiserver"]
    assert server is not None
    os.kill(server.pid, signal.SIGSTOP)
    text = journal.read_bytes()
    journal.write_bytes(b"damaged\n" + text)
    os.kill(server.pid, signal.SIGKILL)
    try:

        def dying() -> list[str]:
            return [one for one in status(plain_lab)[0] if one.startswith("lab: apiserver keeps dying: ")]

        (said,) = eventually(dying, _PATIENCE)
        assert "objects.jsonl:1: " in said
        assert any(one.startswith("the API server does not answer: ") for one in status(plain_lab)[0])
    finally:
        journal.write_bytes(text)
    wait_until_fine(plain_lab)


def test_hung_bird(plain_lab: LabUnderTest) -> None:
    with stopped(plain_lab.lab.programs(TOR)["bird"].pid):
        problems, found = status(plain_lab)
        assert "tor: bird is stopped (SIGSTOP)" in problems
        assert set(found["sessions"].values()) == {"unknown"}
        assert found["router"] == "tor: bird does not answer: nothing for 10 s"
    wait_until_fine(plain_lab)


def test_session_that_is_down(plain_lab: LabUnderTest) -> None:
    plain_lab.sh(TOR, "birdc", "disable", "node1_ipv4")
    try:
        eventually(lambda: any("node1 IPv4: BGP with tor is" in one for one in status(plain_lab)[0]), _PATIENCE)
    finally:
        plain_lab.sh(TOR, "birdc", "enable", "node1_ipv4")
    wait_until_fine(plain_lab)


def test_pods_that_are_not_as_the_api_says(plain_lab: LabUnderTest) -> None:
    """Without its interface, with one that is down, without its address, on no node, without a network at all."""
    head = {"apiVersion": "v1", "kind": "Pod"}
    names = ("bare", "dark", "lost", "gone", "never")
    made = [
        {
            **head,
            "metadata": {"namespace": "dev", "name": name},
            "spec": {
                "containers": [{"name": "c", "image": "i"}],
                "nodeSelector": {"no": "such"} if name == "never" else {},
            },
        }
        for name in names
    ]
    with plain_lab.applied("-f", "-", stdin=manifest(*made)):
        plain_lab.kubectl(
            "wait", "-n", "dev", "--for=condition=Ready", "--timeout=60s", *(f"pod/{name}" for name in names[:4])
        )
        address = next(iter(plain_lab.addresses("dev", "lost").values()))
        plain_lab.sh("dev/bare", "ip", "link", "del", "eth0")
        plain_lab.sh("dev/dark", "ip", "link", "set", "eth0", "down")
        plain_lab.sh("dev/lost", "ip", "address", "flush", "to", address)
        subprocess.run(["ip", "netns", "del", plain_lab.lab.pod_netns("dev/gone").name], check=True)
        problems, found = status(plain_lab)
        said = {pod["name"]: pod["problem"] for pod in found["pods"] if pod["problem"]}
        assert said == {
            "dev/bare": "has no interface eth0",
            "dev/dark": "has an interface eth0 that is down",
            "dev/lost": f"lacks its address {address}",
            "dev/gone": "has no network namespace",
            "dev/never": "is Pending, on no node",
        }
        for name, words in said.items():
            assert any(problem.startswith(name) and words in problem for problem in problems)
    wait_until_fine(plain_lab)


def test_kernel_that_differs(plain_lab: LabUnderTest) -> None:
    """While nobody puts it right. What differs, on either backend: ``test_diagnose.py``."""
    with stopped(plain_lab.lab.programs("node1")["agent"].pid):
        plain_lab.sh("node1", f"iptables-{plain_lab.backend}", "-D", "FORWARD", "1")
        problems, found = status(plain_lab, verify=True)
        assert any("node1: the kernel is not as it should be" in one for one in problems), problems
        assert [node["kernel"]["equal"] for node in found["nodes"]] == [False, True]
        done = command(plain_lab, "verify")
        assert done.returncode == 1
        assert "node2: the kernel holds what it should" in done.stdout
        assert "node1: " in done.stderr
        done = command(plain_lab, "verify", "node2", "-o", "json")
        assert done.returncode == 0
        assert [(one["node"], one["equal"]) for one in json.loads(done.stdout)] == [("node2", True)]
    wait_until_fine(plain_lab)
    assert command(plain_lab, "verify").returncode == 0


def on_two_nodes(lab: LabUnderTest) -> tuple[str, str]:
    """A web pod and an api pod, on different nodes."""
    places = {
        pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in lab.get("pods", namespace="shop")["items"]
    }
    return next(
        (web, api)
        for web in sorted(places)
        for api in sorted(places)
        if web.startswith("web") and api.startswith("api") and places[web] != places[api]
    )


def test_explain_asks_the_kernels_of_both_ends(lab: LabUnderTest) -> None:
    web, api = on_two_nodes(lab)
    allowed = command(lab, "explain", "-n", "shop", web, api, "--port", "8000")
    assert allowed.returncode == 0, allowed.stderr
    for node in lab.node_names:
        assert allowed.stdout.count(f"{node} lets it pass, as policy says") == len(lab.families)
    assert "run the same there" not in allowed.stdout
    with lab.applied("-f", example("10")):
        lab.settle(patience=_PATIENCE)
        denied = command(lab, "explain", "-n", "shop", web, api, "--port", "8000", "-o", "json")
        assert denied.returncode == 1, denied.stderr
        for packet in json.loads(denied.stdout):
            assert not packet["allowed"]
            assert {view["node"]: view["agreement"] for view in packet["nodes"]} == dict.fromkeys(
                lab.node_names, "agrees"
            )
    assert command(lab, "explain", "shop/nobody", web).returncode == 2


def denied(lab: LabUnderTest, source: str, address: str, port: int) -> None:
    """A packet that policy drops."""
    done = lab.lab.run(source, "curl", "-s", "-m", "1", f"http://{address}:{port}/", check=False)
    assert done.returncode == 28


def test_denies_of_all_nodes(plain_lab: LabUnderTest) -> None:
    """Those of either node, by pair, in order, and as they happen."""
    with plain_lab.applied("-f", example("10")):
        plain_lab.settle(patience=_PATIENCE)
        targets = {
            plain_lab.node_of("shop", name): next(iter(plain_lab.addresses("shop", name).values()))
            for name in ("web-1", "web-2", "web-3")
        }
        assert set(targets) == set(plain_lab.node_names)
        argv = [FELIX_PY, "lab", "denies", "-f", "--limit", "0", "-o", "json", "--pod", "dev/client-1"]
        env = {
            **os.environ,
            "FELIX_PY_LAB": plain_lab.lab.name,
            "FELIX_PY_LAB_STATE_ROOT": str(plain_lab.lab.state.root),
        }
        with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True, bufsize=1) as following:
            try:
                assert following.stdout is not None
                seen: set[str] = set()

                def provoke(reader: Any, addresses: Iterator[str] | Any) -> bool:
                    for address in addresses:
                        denied(plain_lab, "dev/client-1", address, 80)
                    while select.select([reader], [], [], 1)[0]:
                        seen.add(json.loads(reader.readline())["destination"]["address"])
                    return set(targets.values()) <= seen

                eventually(partial(provoke, following.stdout, targets.values()), _PATIENCE)
            finally:
                following.send_signal(signal.SIGINT)
            assert following.wait(20) == 0
    done = command(plain_lab, "denies", "-o", "json", "--pod", "dev/client-1")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["destination"]["address"] for event in events} >= set(targets.values())
    assert [event["until"] for event in events] == sorted(event["until"] for event in events)
    text = command(plain_lab, "denies", "--since", "10m").stdout
    assert "dev/client-1" in text
    assert len(command(plain_lab, "denies", "-o", "json", "--limit", "1").stdout.splitlines()) == 1
    assert command(plain_lab, "denies", "--since", "soon").returncode == 2


def test_plan_knows_the_flows_of_all_nodes(plain_lab: LabUnderTest, tmp_path: Path) -> None:
    """A connection that is there now, on either node, is told of; nothing is written."""
    web, api = on_two_nodes(plain_lab)
    places = {name: plain_lab.node_of("shop", name) for name in ("web-1", "web-2", "web-3", "api-1", "api-2")}
    back = next(
        (one, other)
        for one in places
        for other in places
        if one.startswith("web")
        and other.startswith("api")
        and (places[one], places[other]) == (places[api], places[web])
    )
    for source, destination in ((web, api), back):
        address = next(iter(plain_lab.addresses("shop", destination).values()))
        plain_lab.sh(f"shop/{source}", "curl", "-sS", "-m", "10", f"http://{address}:8000/")
    pods = {f"shop/{name}" for name in (web, api, *back)}

    def foretold() -> bool:
        done = command(plain_lab, "plan", "-f", example("10"), "-o", "json")
        assert done.returncode == 1, done.stderr
        flows = json.loads(done.stdout)["flows"]
        assert flows["silent"] == {} or not flows["silent"]
        text = json.dumps(flows["denied"])
        return all(pod in text for pod in pods)

    eventually(foretold, 30)
    assert plain_lab.get("networkpolicies", namespace="shop")["items"] == []
    there = command(plain_lab, "plan", "-f", example("10"), "--delete", "--no-flows")
    assert there.returncode == 0
