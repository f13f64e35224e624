"""The definitions of felixpy.io, with real kubectl: columns, what they refuse and how, what an agent writes.

Against the embedded API server and, where its program is at hand, a real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from felix_py.datastore.client import connect
from felix_py.datastore.fetch import configurations
from felix_py.datastore.informer import Reflector
from felix_py.datastore.kinds import CONFIGURATIONS
from felix_py.datastore.status_writer import Offer, StatusWriter
from felix_py.datastore.store import Store
from felix_py.layers import merge
from tests.conformance.conftest import EXTERNAL, Kubectl, Scenery, embedded_only, emptied, until
from tests.support import waiting
from tests.support.configurations import EVERYTHING, fine
from tests.support.watching import ScriptedClock

FOLDER = Path(__file__).parents[2] / "manifests" / "crds"
FILES = [f"--filename={path}" for path in sorted(FOLDER.glob("felixpy.io_*.yaml"))]
NAMES = ("felixconfigurations", "nodenetworkstatuses")


@pytest.fixture(scope="module", autouse=True)
def definitions(cluster: Kubectl) -> Iterator[None]:
    if EXTERNAL and cluster.run("get", "crd", f"{NAMES[0]}.felixpy.io").returncode == 0:
        pytest.skip("the server has these definitions already: they are not ours to take away")
    cluster("apply", *FILES)
    until(lambda: all(f"{name} " in cluster("api-resources", "--cached=false") for name in NAMES))
    yield
    cluster("delete", *FILES, "--wait=false")


@pytest.fixture
def clean(cluster: Kubectl, scenery: Scenery) -> Iterator[Kubectl]:
    with emptied(cluster, scenery, (f"/apis/felixpy.io/v1alpha1/{name}" for name in NAMES)) as found:
        yield found


def configuration(name: str = "default", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "felixpy.io/v1alpha1",
        "kind": "FelixConfiguration",
        "metadata": {"name": name},
        "spec": spec,
    }


def test_applying_them_again_changes_nothing(cluster: Kubectl) -> None:
    again = cluster("apply", *FILES).splitlines()
    assert len(again) == len(FILES)
    assert all(line.endswith(" unchanged") for line in again), again


def test_everything_can_be_set_and_is_read_as_it_was_written(clean: Kubectl) -> None:
    clean.apply(configuration(**EVERYTHING))
    api = connect(clean.kubeconfig)
    try:
        found = configurations(api)
    finally:
        api.close()
    assert [record.spec for record in found] == [EVERYTHING]
    merged = merge("n1", found, {}, fine)
    assert merged.problems == ()
    assert len(merged.values) == len(EVERYTHING)


def test_columns(clean: Kubectl) -> None:
    clean.apply(configuration(logSeverityScreen="Debug", mtu=1400))
    clean.apply(configuration("node.n1", iptablesBackend="NFT"))
    lines = [line.split() for line in clean("get", "felixconfig").splitlines()]
    assert lines[0] == ["NAME", "LOGSEVERITYSCREEN", "IPTABLESBACKEND", "MTU", "AGE"]
    assert [line[0] for line in lines[1:]] == ["default", "node.n1"]
    assert lines[1][1:3] == ["Debug", "1400"]
    assert lines[2][1] == "NFT"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"clusterCIDRs": ["10.0.0.1/8"]}, "write it as a canonical CIDR: 10.64.0.0/16"),
        ({"clusterCIDRs": ["10.0.0.0"]}, "write it as a canonical CIDR"),
        ({"clusterCIDRs": ["FD00::/8"]}, "write it as a canonical CIDR"),
        ({"clusterCIDRs": ["10.0.0.0/8", "fd00:0::/16"]}, "spec.clusterCIDRs[1]: Invalid value"),
        ({"clusterCIDRs": ["0.0.0.0/0"]}, "everything cannot be the cluster's own"),
        ({"serviceCIDRs": ["::/0"]}, "everything cannot be the cluster's own"),
        ({"serviceCIDRs": ["10.96.0.1/16"]}, "write it as a canonical CIDR"),
        ({"mtu": 67}, "IPv4 needs 68 at least and the kernel takes 65535 at most"),
        ({"mtu": -1}, "IPv4 needs 68 at least"),
        ({"mtu": 65536}, "IPv4 needs 68 at least"),
        ({"mtu": "1400"}, "spec.mtu"),
        ({"chainedPlugins": ["a/b"]}, "the name of a program in the CNI bin folder"),
        ({"chainedPlugins": [""]}, "the name of a program in the CNI bin folder"),
        ({"iptablesBackend": "nft"}, 'supported values: "Auto", "Legacy", "NFT"'),
        ({"logSeverityScreen": "Loud"}, 'supported values: "Debug", "Info", "Warning", "Error"'),
        ({"defaultEndpointToHostAction": "drop"}, 'supported values: "Return", "Accept", "Drop"'),
        ({"ipFamilies": ["ipv5"]}, 'supported values: "ipv4", "ipv6"'),
        ({"ipFamilies": ["ipv4", "ipv4"]}, "Duplicate value"),
        ({"refreshIntervalSeconds": 0}, "should be greater than or equal to 1"),
        ({"refreshIntervalSeconds": 86401}, "should be less than or equal to 86400"),
        ({"cniTimeoutSeconds": 0}, "should be greater than or equal to 1"),
        ({"denyLogGroup": 65536}, "should be less than or equal to 65535"),
        ({"denyLogRate": 0}, "should be greater than or equal to 1"),
        ({"natOutgoing": "yes"}, "spec.natOutgoing"),
    ],
)
def test_what_is_refused_and_why(clean: Kubectl, spec: dict[str, Any], words: str) -> None:
    assert words in clean.fails("apply", "-f", "-", stdin=configuration(**spec))
    # The agent would not take it either.
    api_form = merge("n1", [_record(spec)], {}, fine)
    assert api_form.problems or spec == {"ipFamilies": ["ipv4", "ipv4"]}


def _record(spec: dict[str, Any]) -> Any:
    return CONFIGURATIONS.single(json.dumps(configuration(**spec)).encode())


@pytest.mark.parametrize("name", ["defaults", "n1", "node-n1"])
def test_names(clean: Kubectl, name: str) -> None:
    assert "the name must be default, for all nodes, or node.NAME" in clean.fails(
        "apply", "-f", "-", stdin=configuration(name, mtu=1400)
    )


def test_an_unknown_field_is_told(modern: None, clean: Kubectl) -> None:
    assert 'unknown field "spec.mtuu"' in clean.fails("apply", "-f", "-", stdin=configuration(mtuu=1400))


def test_fields_are_explained(modern: None, cluster: Kubectl) -> None:
    words = " ".join(cluster("explain", "felixconfiguration.spec.mtu").split())
    assert "MTU of pod interfaces" in words
    assert "A change takes effect at once." in words


def test_what_docs_configuration_says_works(modern: None, clean: Kubectl) -> None:
    page = (FOLDER.parents[1] / "docs" / "configuration.md").read_text()
    section = page.partition("## With kubectl")[2].partition("\n## ")[0]
    blocks = [
        textwrap.dedent(block) for block in re.findall(r"(?:^(?: {4}.*)?\n)*^ {4}.*\n", section, re.MULTILINE)
    ]
    works = next(block for block in blocks if "<<EOF" in block)
    (call, answer) = next(block for block in blocks if "$ kubectl" in block).strip().splitlines()

    def shell(script: str) -> subprocess.CompletedProcess[str]:
        place = {
            "PATH": f"{Path(clean.program).parent}:{os.environ['PATH']}",
            "KUBECONFIG": str(clean.kubeconfig),
        }
        return subprocess.run(
            ["bash", "-e", "-c", script],
            env={**clean.environment, **place},
            text=True,
            capture_output=True,
            check=False,
        )

    done = shell(works)
    assert done.returncode == 0, done.stderr
    assert "MTU of pod interfaces" in " ".join(done.stdout.split())
    spec = {"logSeverityScreen": "Warning", "mtu": 1400, "natOutgoing": False}
    assert clean.get("felixconfiguration", "default")["spec"] == spec
    refused = shell(call.removeprefix("$ ")).stderr
    said, meant = (
        re.sub(r"Invalid value: (\S+: )?", "Invalid value: ", text.strip()) for text in (refused, answer)
    )
    assert said == meant


# --- the agent's side ---------------------------------------------------------------------------------


async def test_the_informer_follows_them(clean: Kubectl) -> None:
    api = connect(clean.kubeconfig)
    table = Store().own(CONFIGURATIONS)
    reflector = Reflector(api, CONFIGURATIONS)
    reflector.start(table.apply)
    try:
        await waiting.until(table.listed.is_set)
        await asyncio.to_thread(clean.apply, configuration(mtu=1400))
        await waiting.until(lambda: [one.spec for one in table.records.values()] == [{"mtu": 1400}])
        await asyncio.to_thread(clean, "delete", "felixconfiguration", "default")
        await waiting.until(lambda: not table.records)
    finally:
        await reflector.stop()
        api.close()


CONDITIONS = [
    {"type": kind, "status": "True", "reason": "Because", "message": ""}
    for kind in (
        "Ready",
        "PolicyInForce",
        "RoutesInstalled",
        "PeersUp",
        "BGPInForce",
        "SettingsInForce",
        "Drained",
    )
]
STATUS = {
    "conditions": CONDITIONS,
    "endpoints": 12,
    "peersEstablished": 1,
    "peersConfigured": 2,
    "peers": "1/2",
    "bgpPeers": [
        {
            "name": "tor",
            "address": "192.0.2.1",
            "asNumber": 4294967295,
            "state": "Down",
            "prefixesReceived": 0,
            "prefixesAnnounced": 0,
            "lastError": "x" * 160,
        }
    ]
    * 32,
    "routes": 1234,
    "backend": "legacy",
    "families": ["ipv4", "ipv6"],
    "version": "0.1.0",
    "restartRequired": ["natOutgoing"],
    "drain": "true",
    "notices": [{"kind": "restart-due", "subject": "natOutgoing", "message": "x" * 512}] * 20,
}


@contextmanager
def writing(cluster: Kubectl, clock: ScriptedClock) -> Iterator[tuple[StatusWriter, str]]:
    """The writer of a node, and the node's uid. There must be one: what a node owns that is not there, a real
    server's garbage collector takes.
    """
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})
    api = connect(cluster.kubeconfig)
    writer = StatusWriter(api, node_name="n1", clock=clock)
    writer.start()
    try:
        yield writer, cluster.get("node", "n1")["metadata"]["uid"]
    finally:
        writer.stop()
        api.close()
        cluster("delete", "node", "n1", "--wait=false")


def until_told(cluster: Kubectl, endpoints: int) -> dict[str, Any]:
    """Wait until the status says so; returns the object."""
    words = ("get", "nns", "n1", "-o", "jsonpath={.status.endpoints}")
    until(lambda: cluster.run(*words).stdout == str(endpoints))
    found: dict[str, Any] = cluster.get("nns", "n1")
    return found


def test_what_an_agent_writes_of_its_node(clean: Kubectl) -> None:
    with writing(clean, ScriptedClock()) as (writer, uid):
        writer.offer(Offer(uid, STATUS, 1))
        found = until_told(clean, 12)
        assert {key: value for key, value in found["status"].items() if key != "conditions"} == {
            key: value for key, value in STATUS.items() if key != "conditions"
        }
        assert [one["type"] for one in found["status"]["conditions"]] == [one["type"] for one in CONDITIONS]
        assert [one["uid"] for one in found["metadata"]["ownerReferences"]] == [uid]
        head, row = clean("get", "nns").splitlines()
        assert head.split() == ["NAME", "READY", "ENDPOINTS", "PEERS", "ROUTES", "BACKEND", "VERSION", "AGE"]
        assert row.split()[:7] == ["n1", "True", "12", "1/2", "1234", "legacy", "0.1.0"]
        assert len(head) <= 100
        writer.stop()
        stopped = clean.get("nns", "n1")["status"]["conditions"][0]
        assert (stopped["status"], stopped["reason"]) == ("Unknown", "AgentStopped")


@embedded_only
def test_a_node_that_is_made_anew_owns_what_the_last_one_owned(clean: Kubectl) -> None:
    """Where no garbage collector has been quicker."""
    clock = ScriptedClock()
    with writing(clean, clock) as (writer, uid):
        writer.offer(Offer(uid, STATUS, 1))
        found = until_told(clean, 12)
        clock.advance(1000)
        until(lambda: not writer._due.is_set())
        writer.offer(Offer("another", {**STATUS, "endpoints": 13}, 2))
        now = until_told(clean, 13)
        assert [one["uid"] for one in now["metadata"]["ownerReferences"]] == ["another"]
        times = [[one["lastTransitionTime"] for one in obj["status"]["conditions"]] for obj in (found, now)]
        assert times[0] == times[1]


def test_the_same_status_again_is_not_stored(clean: Kubectl) -> None:
    """So the look at what somebody may have changed costs the store nothing."""
    clock = ScriptedClock()
    with writing(clean, clock) as (writer, uid):
        writer.offer(Offer(uid, STATUS, 1))
        before = until_told(clean, 12)["metadata"]["resourceVersion"]
        until(lambda: not writer._due.is_set())
        clock.advance(4000)
        writer.offer(Offer(uid, STATUS, 1))
        assert writer._due.is_set(), "it is sent"
        until(lambda: not writer._due.is_set())
        assert clean.get("nns", "n1")["metadata"]["resourceVersion"] == before
