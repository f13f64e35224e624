"""NodeNetworkStatus: what each state of the agent becomes, and that it is small and as its definition says."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from bgp.services import Drain, Drained
from bgp.session import LimitState, PeerStatus
from felix_py.failures import Failures
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from felix_py.observe.network_status import offered
from felix_py.observe.status import Status
from felix_py.records import Failure
from felix_py.refs import ChainRef, RouteRef
from lab.apiserver.crd import resource_of
from lab.apiserver.structural import Structural
from policy.model import Family

CRD = Path(__file__).parents[2] / "manifests" / "crds" / "felixpy.io_nodenetworkstatuses.yaml"
CHAIN = Failure(ChainRef(Family.V4, "filter", "FELIX-PE-x"), "refused")
ROUTE = Failure(RouteRef("10.1.0.5/32", 1), "no such device")


@dataclass
class Node:
    """The parts of an agent, as far as its status asks them."""

    unready: str | None = None
    network: str | None = None
    unread: str = ""
    failures: Failures = field(default_factory=Failures)
    peers: list[PeerStatus] = field(default_factory=list)
    in_sync: bool = True
    restart_due: tuple[str, ...] = ()
    drained: Drained = field(default_factory=Drained)

    def __post_init__(self) -> None:
        self.notices = Notices(Metrics())

    def status(self) -> dict[str, Any]:
        """What would be written."""
        return dict(self.offer().status)

    def offer(self) -> Any:
        synced = asyncio.Event()
        if self.in_sync:
            synced.set()
        running = {"backend": "nft", "families": [4, 6], "rules": {}}
        unenforced = next((one for one in self.failures if one is not ROUTE), None)
        parts = SimpleNamespace(
            unready=lambda: self.unready,
            network=SimpleNamespace(unready=lambda: self.network),
            reconciler=SimpleNamespace(unread=self.unread, unenforced=unenforced, failures=self.failures),
            bgp=SimpleNamespace(
                peers=lambda: self.peers,
                drained=lambda: self.drained,
            ),
            cluster=SimpleNamespace(store=SimpleNamespace(in_sync=synced)),
            configured=SimpleNamespace(restart_due=self.restart_due),
            facts=SimpleNamespace(held=range(7), remote=SimpleNamespace(number=1)),
            notices=self.notices,
            running={"configuration": running},
        )
        return offered(cast(Status, parts), "uid")

    def condition(self, kind: str) -> tuple[str, str, str]:
        found = next(one for one in self.status()["conditions"] if one["type"] == kind)
        return found["status"], found["reason"], found["message"]


def peer(number: int, error: str = "", *, up: bool = False) -> PeerStatus:
    return PeerStatus(f"192.0.2.{number}", 64512 + number, up, 1.0, 5, ("ipv4 unicast",), error)


def test_limits_of_prefixes() -> None:
    near = replace(peer(1, up=True), limit=10, limit_state=LimitState.NEAR)
    held = replace(peer(2, "too many"), limit=20, limit_state=LimitState.HELD_DOWN)
    kind = "PrefixLimitsKept"
    assert Node(peers=[near]).condition(kind) == ("True", "Near", "192.0.2.1 is near its limit of 10")
    text = "192.0.2.2 was over its limit of 20; 192.0.2.1 is near its limit of 10"
    assert Node(peers=[near, held]).condition(kind) == ("False", "HeldDown", text)


def test_what_a_session_cannot_carry() -> None:
    refused = replace(peer(1, up=True), refused=2, refusal="IPv4 is not agreed on")
    text = "192.0.2.1: 2 are not, IPv4 is not agreed on"
    assert Node(peers=[refused, peer(2, up=True)]).condition("PrefixesAnnounced") == ("False", "NotAgreed", text)


def test_all_is_well() -> None:
    node = Node(peers=[peer(1, up=True), peer(2, up=True)])
    status = node.status()
    assert [(one["type"], one["status"]) for one in status["conditions"]] == [
        ("Ready", "True"),
        ("PolicyInForce", "True"),
        ("RoutesInstalled", "True"),
        ("PeersUp", "True"),
        ("PrefixLimitsKept", "True"),
        ("PrefixesAnnounced", "True"),
        ("BGPInForce", "True"),
        ("SettingsInForce", "True"),
        ("Drained", "False"),
    ]
    assert (status["peers"], status["endpoints"], status["routes"], status["families"]) == (
        "2/2",
        7,
        1,
        ["ipv4", "ipv6"],
    )


def test_before_the_cluster_is_known() -> None:
    node = Node(unready="the agent has not yet seen it", network="the agent has not yet seen it", in_sync=False)
    assert node.condition("Ready") == ("False", "NotInSync", "the agent has not yet seen it")
    assert node.condition("PolicyInForce")[:2] == ("False", "NotYet")
    assert node.condition("RoutesInstalled")[:2] == ("Unknown", "NotYet")


def test_a_chain_that_cannot_be_written() -> None:
    node = Node(unready="policy is not wholly in force", failures=Failures([CHAIN]))
    assert node.condition("Ready")[:2] == ("False", "NotReady")
    assert node.condition("PolicyInForce") == ("False", "WriteFailed", str(CHAIN))
    assert node.condition("RoutesInstalled")[0] == "True"


def test_a_route_that_cannot_be_written() -> None:
    node = Node(failures=Failures([ROUTE]))
    assert node.condition("Ready")[0] == "True"
    assert node.condition("PolicyInForce")[0] == "True"
    assert node.condition("RoutesInstalled") == (
        "False",
        "WriteFailed",
        "1 missing; route 10.1.0.5/32: no such device",
    )


def test_a_kernel_that_cannot_be_read() -> None:
    assert Node(unread="the tool timed out").condition("PolicyInForce")[:2] == ("Unknown", "KernelUnread")


def test_peers_one_by_one() -> None:
    down = PeerStatus("192.0.2.9", 65000, False, 1.0, 0, (), "hold timer", name="tor")
    [first, second] = Node(peers=[peer(1, up=True), down]).status()["bgpPeers"]
    assert first == {
        "name": "tor",
        "address": "192.0.2.9",
        "asNumber": 65000,
        "state": "Down",
        "prefixesReceived": 0,
        "prefixesAnnounced": 0,
        "lastError": "hold timer",
    }
    assert (second["state"], second["prefixesReceived"], second["lastError"]) == ("Established", 5, "")


def test_bgp_that_is_not_as_declared() -> None:
    node = Node()
    node.notices.say(
        NoticeKind.BGP_RESOURCES, "BGPPeer tor", "BGPPeer tor: asNumber: 0 is not in 1 to 4294967295"
    )
    assert node.condition("BGPInForce") == (
        "False",
        "NotUsable",
        "BGPPeer tor: asNumber: 0 is not in 1 to 4294967295",
    )


def test_peers_that_are_down_are_named() -> None:
    node = Node(peers=[peer(1, up=True), *(peer(number, "hold timer") for number in range(2, 10))])
    status, reason, message = node.condition("PeersUp")
    assert (status, reason) == ("False", "PeersDown")
    assert message.startswith("192.0.2.2 (AS 64514): hold timer; ")
    assert message.endswith("; and 3 more")
    assert node.status()["peers"] == "1/9"


def test_settings_that_are_not_in_force() -> None:
    node = Node(restart_due=("backend", "ipFamilies"))
    assert node.condition("SettingsInForce") == (
        "False",
        "RestartRequired",
        "the agent must start again for backend, ipFamilies",
    )
    node.notices.say(NoticeKind.CONFIGURATION, "default backend", "not on this node")
    assert node.condition("SettingsInForce") == ("False", "NotUsable", "not on this node")


def test_how_far_a_drain_is() -> None:
    peers = [peer(1, up=True)]
    assert Node(peers=peers).condition("Drained")[:2] == ("False", "NotAsked")
    assert Node(drained=Drained("true")).condition("Drained")[:2] == ("True", "NoPeers")
    for stage, sent, verdict in (
        (Drain.GRACEFUL, True, ("False", "AskingRouters")),
        (Drain.WITHDRAWN, False, ("False", "Withdrawing")),
        (Drain.WITHDRAWN, True, ("True", "Withdrawn")),
    ):
        node = Node(peers=peers, drained=Drained("true", stage, sent=sent))
        assert node.condition("Drained")[:2] == verdict
        assert node.status()["drain"] == "true"
    kept = tuple(f"192.0.2.{number}/32" for number in range(7))
    words = Node(peers=peers, drained=Drained("true", Drain.WITHDRAWN, kept, True)).condition("Drained")[2]
    assert "So do 192.0.2.0/32, " in words
    assert " and 2 more, until another node" in words


def validated(status: dict[str, Any]) -> list[str]:
    """What the definition has against it."""
    (version,) = resource_of(yaml.safe_load(CRD.read_text())).versions
    now = "2026-01-01T00:00:00Z"
    conditions = [{**one, "lastTransitionTime": now} for one in status["conditions"]]
    obj = {
        "apiVersion": "felixpy.io/v1alpha1",
        "kind": "NodeNetworkStatus",
        "metadata": {"name": "n1"},
        "status": {**status, "conditions": conditions},
    }
    return [str(error) for error in Structural(version).validate(obj)]


@pytest.mark.parametrize("many", [0, 500])
def test_it_is_small_and_as_its_definition_says(many: int) -> None:
    words = "x" * 5000 * bool(many)
    failures = Failures([Failure(RouteRef(f"10.1.{n}.0/24", 1), words) for n in range(many)])
    node = Node(
        unready=f"because {words}",
        failures=failures,
        peers=[peer(n % 250, words) for n in range(many)],
        restart_due=("natOutgoing", "dropInvalid"),
        drained=Drained(words, Drain.WITHDRAWN, ("192.0.2.7/32",) * many, True),
    )
    for number in range(many):
        node.notices.say(NoticeKind.NEXT_HOP, f"{number:03}{words}", f"{number} {words}")
    status = node.status()
    assert validated(status) == []
    assert validated({**status, "peers": "x" * 33}), "the definition is asked"
    assert len(status["notices"]) == min(many, 20)
    assert len(json.dumps(status, ensure_ascii=False).encode()) < 35_000


def test_what_is_urgent_and_what_is_not() -> None:
    node, before = Node(peers=[peer(1, "retry 1")]), Node(peers=[peer(1, "retry 2")])
    assert node.offer().gist == before.offer().gist, "words"
    assert node.offer().status != before.offer().status
    asked = Node(peers=[peer(1, "retry 1")], drained=Drained("true"))
    for other in (Node(peers=[peer(1, up=True)]), Node(restart_due=("mtu",)), Node(unready="no"), asked):
        assert other.offer().gist != node.offer().gist
    noticed = Node(peers=[peer(1, "retry 1")])
    noticed.notices.say(NoticeKind.IPVS, "kube-ipvs0", "words")
    assert noticed.offer().gist != node.offer().gist
