"""Every verb of CNI with good and bad input, as one table: exit and error of our plugin, through its client, and
of Debian's ptp where they apply. The codes are the specification's; the words are each one's own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from felix_py.cni.errors import SUPPORTED_VERSIONS
from tests.support.cni import STANDARD_PLUGINS, Node, host_interfaces
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]

FINE = 0
NOT_PTP = -1
"""What ptp 1.1 does not know, or does otherwise than the specification says."""


@dataclass(frozen=True)
class Row:
    """A call that differs from a right one by these variables (None: absent) and members of its configuration.

    ``code``: of our error, or FINE. ``ptp``: of ptp's, FINE, or NOT_PTP.
    """

    verb: str
    code: int
    ptp: int
    words: str = ""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    stdin: bytes | None = None


def env(verb: str, code: int, ptp: int, words: str, **environment: str | None) -> Row:
    return Row(verb, code, ptp, words, environment)


def conf(verb: str, code: int, ptp: int, words: str, **config: Any) -> Row:
    return Row(verb, code, ptp, words, config=config)


VALID: dict[str, Any] = {"cni.dev/valid-attachments": []}
NEW = {"cniVersion": "1.1.0"}

TABLE = {
    # --- the environment ---
    "ADD without id": env("ADD", 4, 4, "CNI_CONTAINERID", CNI_CONTAINERID=None),
    "ADD without namespace": env("ADD", 4, 4, "CNI_NETNS", CNI_NETNS=None),
    "ADD without interface": env("ADD", 4, 4, "CNI_IFNAME", CNI_IFNAME=None),
    "ADD without path": env("ADD", 4, 4, "CNI_PATH", CNI_PATH=None),
    "ADD without all of them": env(
        "ADD",
        4,
        4,
        "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_PATH",
        CNI_CONTAINERID=None,
        CNI_NETNS=None,
        CNI_IFNAME=None,
        CNI_PATH=None,
    ),
    "CHECK without namespace": env("CHECK", 4, 4, "CNI_NETNS", CNI_NETNS=None),
    "DEL without id": env("DEL", 4, 4, "CNI_CONTAINERID", CNI_CONTAINERID=None),
    "DEL without interface": env("DEL", 4, 4, "CNI_IFNAME", CNI_IFNAME=None),
    "DEL without namespace": env("DEL", FINE, FINE, "", CNI_NETNS=None),
    "GC without path": Row("GC", 4, NOT_PTP, "CNI_PATH", {"CNI_PATH": None}, {**NEW, **VALID}),
    "STATUS without path": Row("STATUS", 4, NOT_PTP, "CNI_PATH", {"CNI_PATH": None}, NEW),
    "no such verb": env("MEND", 4, 4, "MEND"),
    "id with a blank": env("ADD", 4, 4, "CNI_CONTAINERID", CNI_CONTAINERID="a b"),
    "id that is a path": env("DEL", 4, 4, "CNI_CONTAINERID", CNI_CONTAINERID="../x"),
    "interface with a slash": env("ADD", 4, 4, "CNI_IFNAME", CNI_IFNAME="a/b"),
    "interface too long": env("ADD", 4, 4, "CNI_IFNAME", CNI_IFNAME="e" * 16),
    "interface ..": env("ADD", 4, 4, "CNI_IFNAME", CNI_IFNAME=".."),
    "args that are none": env("ADD", 4, NOT_PTP, "is not NAME=value", CNI_ARGS="nonsense"),
    "args nobody knows": env("ADD", 4, NOT_PTP, "COLOUR not known", CNI_ARGS="COLOUR=red"),
    "args of no pod": env("ADD", 7, NOT_PTP, "K8S_POD_NAME", CNI_ARGS="IgnoreUnknown=1"),
    "namespace that is gone": env("ADD", 4, NOT_PTP, "/nowhere", CNI_NETNS="/nowhere"),
    "namespace that is a file": env("ADD", 4, NOT_PTP, "not a namespace", CNI_NETNS="/dev/null"),
    # --- the configuration ---
    "no configuration": Row("ADD", 6, NOT_PTP, "not JSON", stdin=b""),
    "half of a configuration": Row("ADD", 6, 6, "not JSON", stdin=b'{"cniVersion": "1.0.0", "na'),
    "a list": Row("ADD", 7, NOT_PTP, "object", stdin=b"[]"),
    "half of a configuration to DEL": Row("DEL", 6, 6, "not a JSON object", stdin=b'{"cniVersion": "1.0'),
    "no version": conf("ADD", 1, NOT_PTP, "''", cniVersion=""),
    "a version to come": conf("ADD", 1, 1, "'2.0.0' is not supported", cniVersion="2.0.0"),
    "a name with a blank": conf("ADD", 7, 7, "name 'a b'", name="a b"),
    "no name": conf("ADD", 7, 7, "name ''", name=""),
    "a number for a name": conf("ADD", 7, NOT_PTP, "name", name=7),
    "a wish nobody grants": conf("ADD", 2, NOT_PTP, "runtimeConfig.aliases", runtimeConfig={"aliases": ["x"]}),
    "a port without portmap": conf(
        "ADD", 2, NOT_PTP, "portmap's, which is not installed", runtimeConfig={"portMappings": [{"hostPort": 1}]}
    ),
    "ranges without an IPAM plugin": conf("ADD", 2, NOT_PTP, "ipRanges", runtimeConfig={"ipRanges": [["x"]]}),
    "an address that is none": conf("ADD", 7, NOT_PTP, "'x'", runtimeConfig={"ips": ["x"]}),
    "an address of elsewhere": conf("ADD", 101, NOT_PTP, "192.0.2.9", runtimeConfig={"ips": ["192.0.2.9"]}),
    "two addresses of a family": conf(
        "ADD", 101, NOT_PTP, "second IPv4", runtimeConfig={"ips": ["10.65.0.8", "10.65.0.9"]}
    ),
    "a MAC of many": conf("ADD", 7, NOT_PTP, "unicast MAC", runtimeConfig={"mac": "01:00:00:00:00:01"}),
    "an IPAM plugin that is not there": conf("ADD", 7, NOT_PTP, "no-such", ipam={"type": "no-such"}),
    "an IPAM plugin that is a path": conf("ADD", 7, NOT_PTP, "'../x'", ipam={"type": "../x"}),
    "a wrong prevResult": conf("ADD", 7, NOT_PTP, "prevResult.ips", prevResult={"ips": [{"address": "x"}]}),
    # --- the verbs ---
    "CHECK before 0.4.0": conf("CHECK", 1, 1, "CHECK needs cniVersion 0.4.0", cniVersion="0.3.1"),
    "CHECK without prevResult": conf("CHECK", 7, NOT_PTP, "needs prevResult"),
    "CHECK of what was never added": Row(
        "CHECK", 3, NOT_PTP, "has no eth0 of ours", config={"prevResult": {"cniVersion": "1.0.0", "ips": []}}
    ),
    "DEL of what was never added": Row("DEL", FINE, FINE),
    "DEL of no known version": conf("DEL", FINE, NOT_PTP, "", cniVersion="9.9.9"),
    "DEL without a name": conf("DEL", FINE, NOT_PTP, "", name=""),
    "GC before 1.1.0": Row("GC", 1, NOT_PTP, "GC needs cniVersion 1.1.0", config=VALID),
    "GC without a list": Row("GC", 7, NOT_PTP, "cni.dev/valid-attachments", config=NEW),
    "GC": Row("GC", FINE, NOT_PTP, config={**NEW, **VALID, "name": "another"}),
    "STATUS before 1.1.0": Row("STATUS", 1, NOT_PTP, "STATUS needs cniVersion 1.1.0"),
    "STATUS": Row("STATUS", FINE, NOT_PTP, config=NEW),
}


@dataclass(frozen=True)
class Plugin:
    """A program, and what a right call of it has."""

    program: Path
    environment: Mapping[str, str]
    config: Mapping[str, Any]

    def call(
        self,
        verb: str,
        environment: Mapping[str, str | None] | None = None,
        config: Mapping[str, Any] | None = None,
        stdin: bytes | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Exit code, and what it printed."""
        variables = {**self.environment, "CNI_COMMAND": verb, **(environment or {})}
        done = subprocess.run(
            [self.program],
            env={name: value for name, value in variables.items() if value is not None},
            input=json.dumps({**self.config, **(config or {})}).encode() if stdin is None else stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}


def differences(plugin: Plugin, code_of: Callable[[Row], int], *, words: bool) -> list[str]:
    """Rows that the plugin does not answer as it should."""
    wrong = []
    for name, row in TABLE.items():
        wanted = code_of(row)
        if wanted == NOT_PTP:
            continue
        code, answer = plugin.call(row.verb, row.environment, row.config, row.stdin)
        told = f"{name}: exit {code}, {answer}"
        if wanted == FINE:
            right = code == 0 and not answer
        else:
            right = code == 1 and answer.get("code") == wanted and bool(answer.get("msg"))
            right = right and (not words or row.words in answer["msg"] or row.words in answer.get("details", ""))
        if not right:
            wrong.append(told)
    return wrong


def ours(node: Node, netns: str) -> Plugin:
    config = {"cniVersion": "1.0.0", "name": "felix-py", "type": "felix-py-cni"}
    return Plugin(node.client, node.environment("ADD", "c1", netns), config)


async def test_our_plugin_answers_as_the_table_says(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        before = pod.run("ip", "-o", "link")
        wrong = await asyncio.to_thread(differences, ours(node, pod.path), lambda row: row.code, words=True)
        assert not wrong, "\n".join(wrong)
        # Nothing is left of what was refused.
        assert not node.store.all()
        assert not host_interfaces()
        assert pod.run("ip", "-o", "link") == before


def reference(tmp_path: Path, netns: str) -> Plugin:
    if not (STANDARD_PLUGINS / "ptp").exists():
        pytest.skip("no containernetworking-plugins")
    environment = {
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(STANDARD_PLUGINS),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    ipam = {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": str(tmp_path / "host-local")}
    return Plugin(
        STANDARD_PLUGINS / "ptp", environment, {"cniVersion": "1.0.0", "name": "net", "type": "ptp", "ipam": ipam}
    )


def test_ptp_answers_the_same(tmp_path: Path, make_netns: MakeNetns) -> None:
    wrong = differences(reference(tmp_path, make_netns("pod").path), lambda row: row.ptp, words=False)
    assert not wrong, "\n".join(wrong)


PTPS = SUPPORTED_VERSIONS[:-1]
"""Debian 12's ptp knows CNI 1.0.0 at most."""


def life(plugin: Plugin, version: str) -> list[tuple[str, ...]]:
    """A pod's life with one version: what is told of addresses and routes, and how each call ends."""
    told: list[tuple[str, ...]] = []
    asked = {"cniVersion": version}
    code, result = plugin.call("ADD", config=asked)
    assert code == 0, result
    assert result["cniVersion"] == version
    families = {entry.get("version", "-") for entry in result["ips"] if entry["address"].count(".") == 3}
    told.append(("ADD", *sorted(families)))
    told.append(("ADD again", str(plugin.call("ADD", config=asked)[0])))
    if version >= "0.4.0":
        told.append(("CHECK", str(plugin.call("CHECK", config={**asked, "prevResult": result})[0])))
    for again in ("DEL", "DEL again"):
        code, answer = plugin.call("DEL", config={**asked, "prevResult": result})
        assert not answer
        told.append((again, str(code)))
    # The container's id can be used again at once.
    code, result = plugin.call("ADD", config=asked)
    told.append(("ADD after DEL", str(code)))
    plugin.call("DEL", config=asked)
    return told


async def test_a_life_in_every_version(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod, other = Node(tmp_path), make_netns("pod"), make_netns("other")
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    async with node:
        for version in SUPPORTED_VERSIONS:
            told = await asyncio.to_thread(life, ours(node, pod.path), version)
            assert told[0] == ("ADD", "4" if version < "1.0.0" else "-")
            assert not node.store.all()
            assert not host_interfaces()
            if version in PTPS:
                theirs = await asyncio.to_thread(life, reference(tmp_path, other.path), version)
                assert told == theirs, version


def test_version_is_answered_before_an_agent_ever_ran_and_in_one_way_by_both(
    tmp_path: Path, make_netns: MakeNetns
) -> None:
    node = Node(tmp_path)
    for version in (*SUPPORTED_VERSIONS, "0.1.0", "9.9.9"):
        code, told = ours(node, "").call("VERSION", config={"cniVersion": version})
        assert (code, told["supportedVersions"]) == (0, list(SUPPORTED_VERSIONS))
        code, theirs = reference(tmp_path, "").call("VERSION", config={"cniVersion": version})
        assert code == 0
        assert set(told) == set(theirs) == {"cniVersion", "supportedVersions"}
        assert set(PTPS) <= set(theirs["supportedVersions"])
