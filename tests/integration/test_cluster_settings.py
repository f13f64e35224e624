"""FelixConfiguration and NodeNetworkStatus with the real agent: live, across restarts, without an API server."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from felix_py.config import FIELDS
from felix_py.observe import ask
from tests.support import faults
from tests.support.agent_process import NODE, AgentProcess
from tests.support.configurations import EVERYTHING
from tests.support.fakeapi import CONFIGURATIONS, NODE_STATUSES, NODES, FakeApi, Json

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]


class Agent(AgentProcess):
    """With what it says of itself, here and in the API server."""

    def configuration(self) -> Json:
        with closing(ask.connection(str(self.run_dir / "agent.sock"), 10)) as asked:
            asked.request("GET", "/status")
            found: Json = json.loads(asked.getresponse().read())["configuration"]
        return found

    def settings(self) -> Json:
        found: Json = self.configuration()["settings"]
        return found

    def say(self, name: str = "default", **spec: Any) -> None:
        self.api.put(CONFIGURATIONS, {"metadata": {"name": name, "uid": f"uid-{name}"}, "spec": spec})

    def told(self) -> Json:
        with self.api.changed:
            found: Json = self.api.objects.get((NODE_STATUSES, "", NODE), {}).get("status", {})
        return found

    def condition(self, kind: str = "Ready") -> tuple[str, str]:
        found = {one["type"]: (one["status"], one["reason"]) for one in self.told().get("conditions", ())}
        return found.get(kind, ("", ""))

    def compared_age(self) -> float:
        with closing(ask.connection(str(self.run_dir / "agent.sock"), 10)) as asked:
            asked.request("GET", "/status")
            return float(json.loads(asked.getresponse().read())["comparedAgeSeconds"])

    def run(self) -> None:
        self.start()
        self.wait_ready()


class WithoutNft(Agent):
    """On a node that has the legacy tools alone."""

    @property
    def argv(self) -> list[str]:
        hidden = 'mount --bind /dev/null /usr/sbin/xtables-nft-multi && exec "$@"'
        return ["unshare", "-m", "sh", "-c", hidden, "sh", *super().argv]


@contextmanager
def agents(folder: Path, *options: str, kind: type[Agent] = Agent, installed: bool = True) -> Iterator[Agent]:
    with FakeApi() as api:
        if installed:
            api.install(CONFIGURATIONS)
            api.install(NODE_STATUSES)
        agent = kind(folder, api, options=options)
        node = api.objects[NODES, "", NODE]
        api.put(NODES, {**node, "metadata": {"name": NODE, "uid": "uid-node"}})
        try:
            yield agent
        finally:
            agent.close()


def test_what_is_live_changes_at_once_and_the_rest_at_the_restart(tmp_path: Path) -> None:
    with agents(tmp_path, "--no-deny-log", "--deny-log-rate=5") as agent:
        agent.say(mtu=1400, logSeverityScreen="Warning")
        agent.run()
        assert agent.settings()["mtu"] == 1400
        assert agent.configuration()["sources"] == {"mtu": "default", "logLevel": "default"}
        assert [line for line in agent.logged() if line["level"] == "info" and "starting" in line["event"]] == []
        agent.say(mtu=1300, logSeverityScreen="Debug", refreshIntervalSeconds=1, natOutgoing=False, denyLogRate=7)
        agent.until(lambda: agent.settings()["refreshInterval"] == 1)
        agent.until(lambda: any(line["level"] == "info" for line in agent.logged()), "lines of the new level")
        settings = agent.settings()
        assert (settings["mtu"], settings["natOutgoing"], settings["denyLogRate"]) == (1300, True, 5)
        agent.until(lambda: agent.configuration()["restartRequired"] == ["natOutgoing"])
        agent.until(lambda: agent.told().get("restartRequired") == ["natOutgoing"], "told")
        assert agent.condition("SettingsInForce") == ("False", "RestartRequired")
        assert "restart-due" in [one["kind"] for one in agent.told()["notices"]]
        agent.stop(signal.SIGKILL)
        agent.run()
        assert agent.settings()["natOutgoing"] is False
        assert agent.configuration()["restartRequired"] == []
        agent.say("node." + NODE, mtu=1200)
        agent.until(lambda: agent.settings()["mtu"] == 1200)


def test_every_live_setting_changes(tmp_path: Path) -> None:
    live = {name: it for name, it in FIELDS.items() if it.live}
    with agents(tmp_path) as agent:
        agent.run()
        agent.say(**{name: EVERYTHING[name] for name in live} | {"refreshIntervalSeconds": 2})
        agent.until(lambda: agent.configuration()["sources"].keys() == {it.json_name for it in live.values()})
        assert agent.configuration()["restartRequired"] == []
        ages: list[float] = []
        # Without the change, the next comparison would be 90 seconds after the start.
        agent.until(lambda: ages.append(agent.compared_age()) or ages[-1] < max(ages), "a comparison")


def test_without_the_api_server_the_last_good_settings_count(tmp_path: Path) -> None:
    with agents(tmp_path) as agent:
        agent.say(mtu=1400, defaultEndpointToHostAction="Drop")
        agent.run()
        agent.say(mtu=1300, defaultEndpointToHostAction="Drop")
        agent.until(lambda: b"1300" in (tmp_path / "lib" / "configuration.json").read_bytes(), "the copy")
        agent.stop(signal.SIGKILL)
        agent.api.refuse()
        agent.start()
        agent.until(lambda: agent.get("/readyz")[0] == 503, "it answers")
        assert (agent.settings()["mtu"], agent.settings()["endpointToHost"]) == (1300, "drop")
        agent.api.listen()
        agent.wait_ready()
        assert (agent.settings()["mtu"], agent.settings()["endpointToHost"]) == (1300, "drop")
        assert agent.configuration()["restartRequired"] == []


def test_a_server_that_only_says_404_takes_no_setting_back(tmp_path: Path) -> None:
    with agents(tmp_path) as agent:
        agent.say(defaultEndpointToHostAction="Drop")
        agent.run()
        agent.until((tmp_path / "lib" / "configuration.json").exists, "the copy")
        agent.stop(signal.SIGKILL)
        agent.api.fault("*", faults.refuse(404, "NotFound"), path=CONFIGURATIONS, times=3)
        agent.run()
        assert agent.settings()["endpointToHost"] == "drop"
        agent.until(lambda: agent.configuration()["sources"] == {"endpointToHost": "default"})
        assert agent.configuration()["restartRequired"] == []


def test_without_api_server_and_copy_it_begins_anew_with_what_it_then_reads(tmp_path: Path) -> None:
    with agents(tmp_path) as agent:
        agent.say(defaultEndpointToHostAction="Drop")
        agent.api.refuse()
        agent.start()
        agent.until(lambda: agent.get("/readyz")[0] == 503, "it answers")
        agent.api.listen()
        assert agent.wait() == 4
        # The disk loses its copy while the server is away again: the same once more.
        agent.api.refuse()
        (tmp_path / "lib" / "configuration.json").write_text("rubbish")
        agent.start()
        agent.until(lambda: agent.get("/readyz")[0] == 503, "it answers")
        agent.api.listen()
        assert agent.wait() == 4
        agent.run()
        assert agent.settings()["endpointToHost"] == "drop"
        assert "is damaged" in agent.log.read_text()


def test_what_only_the_node_can_judge_leaves_the_last_good_one_and_an_event(tmp_path: Path) -> None:
    with agents(tmp_path, kind=WithoutNft) as agent:
        agent.say(iptablesBackend="Legacy")
        agent.run()
        agent.say(iptablesBackend="NFT", mtu=1400)
        agent.until(lambda: agent.settings()["mtu"] == 1400)
        configuration = agent.configuration()
        assert configuration["backend"] == "legacy"
        assert configuration["sources"]["backend"] == "last good"
        assert configuration["restartRequired"] == []
        agent.until(lambda: agent.api.events, "an Event")
        (event,) = agent.api.events.values()
        assert event["involvedObject"]["kind"] == "FelixConfiguration"
        assert event["involvedObject"]["name"] == "default"
        assert (event["reason"], event["type"]) == ("InvalidConfiguration", "Warning")
        assert "iptables-nft-restore is not installed" in event["message"]
        agent.until(lambda: "configuration" in [one["kind"] for one in agent.told().get("notices", ())], "told")
        assert agent.condition("SettingsInForce") == ("False", "NotUsable")
        # A restart in the middle of this goes on with the last good one.
        agent.stop()
        agent.run()
        assert agent.configuration()["backend"] == "legacy"


@pytest.mark.parametrize(
    "spec",
    [
        None,
        5,
        "text",
        [],
        {"mtu": {"a": [1]}, "natOutgoing": "no", "nobody": "knows"},
        {"clusterCIDRs": ["x" * 5000]},
    ],
)
def test_rubbish_takes_no_agent_down(tmp_path: Path, spec: Any) -> None:
    with agents(tmp_path) as agent:
        agent.api.put(CONFIGURATIONS, {"metadata": {"name": "default"}, "spec": spec})
        agent.run()
        agent.say("node." + NODE, mtu=1400)
        if spec is None or isinstance(spec, dict):
            agent.until(lambda: agent.settings()["mtu"] == 1400)
        assert agent.settings()["natOutgoing"] is True
        assert agent.get("/readyz")[0] == 200


def test_a_definition_that_comes_later_is_noticed(tmp_path: Path) -> None:
    with agents(tmp_path, installed=False) as agent:
        agent.run()
        assert agent.settings()["mtu"] == 0
        agent.api.install(CONFIGURATIONS)
        agent.say(mtu=1400)
        agent.until(lambda: agent.settings()["mtu"] == 1400)


def test_a_server_that_refuses_the_kind_alone_keeps_nobody_waiting(tmp_path: Path) -> None:
    """As under the RBAC of an older version."""
    with agents(tmp_path) as agent:
        agent.api.fault("*", faults.refuse(403, "Forbidden"), path=CONFIGURATIONS, times=1000)
        agent.run()
        agent.stop()
        started = time.monotonic()
        agent.run()
        assert time.monotonic() - started < 10, "it knows that there is nothing to wait for"
        agent.api.clear_faults()
        agent.say(mtu=1400)
        agent.until(lambda: agent.settings()["mtu"] == 1400)


def test_what_the_agent_tells_of_its_node(tmp_path: Path) -> None:
    with agents(tmp_path, "--backend=nft", "--ip-families=ipv4") as agent:
        agent.run()
        agent.until(lambda: agent.condition() == ("True", "Ready"), "Ready")
        told = agent.told()
        assert {one["type"]: one["reason"] for one in told["conditions"]} == {
            "Ready": "Ready",
            "PolicyInForce": "InForce",
            "RoutesInstalled": "Installed",
            "PeersUp": "NoPeers",
            "PrefixLimitsKept": "Within",
            "PrefixesAnnounced": "Announced",
            "BGPInForce": "InForce",
            "SettingsInForce": "InForce",
            "Drained": "NotAsked",
        }
        assert (told["backend"], told["families"], told["peers"], told["routes"]) == ("nft", ["ipv4"], "0/0", 0)
        assert (told["endpoints"], told["peersConfigured"], told["restartRequired"]) == (0, 0, [])
        owner = agent.api.objects[NODE_STATUSES, "", NODE]["metadata"]["ownerReferences"]
        assert [(one["kind"], one["uid"]) for one in owner] == [("Node", "uid-node")]
        assert agent.stop()[0] == 0
        assert agent.condition() == ("Unknown", "AgentStopped")
        assert agent.condition("PolicyInForce")[0] == "True", "it stays in the kernel"


def test_a_write_that_never_comes_to_an_end_holds_up_neither_work_nor_end(tmp_path: Path) -> None:
    with agents(tmp_path, "--backend=nft") as agent:
        agent.api.fault("patch", faults.hang, path=f"{NODE_STATUSES}/{NODE}", times=10)
        agent.run()
        agent.api.wait_for(lambda: any(r.path == f"{NODE_STATUSES}/{NODE}" for r in agent.api.requests))
        agent.say(mtu=1400)
        agent.until(lambda: agent.settings()["mtu"] == 1400)
        code, seconds = agent.stop()
        assert code == 0
        assert seconds < 8
