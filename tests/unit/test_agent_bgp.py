"""BGP in the agent: what it says where it cannot start, and how it starts after all."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from bgp.model import parse_bgp_config
from bgp.sidecar import CONFIG
from felix_py import speaker as speaker_module
from felix_py.agent.bgp import Bgp
from felix_py.config import AgentConfig, ConfigError
from felix_py.dataplane.reach import Links
from felix_py.files import replace_private
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from felix_py.records import NodeRecord
from felix_py.speaker import Speaker
from policy.model import Family
from tests.support.services import Objects
from tests.support.told import ToldFacts
from tests.support.waiting import running, until

CIDRS = ("10.1.0.0/24", "fd00:1::/64")
ONLY6 = NodeRecord("n1", "", ("fd09::1",), CIDRS)
BOTH = NodeRecord("n1", "", ("fd09::1", "10.9.0.1"), CIDRS)


NO_LINKS = Links({}, (), (), ())


class Rig:
    def __init__(self, folder: Path, text: str) -> None:
        file = folder / "bgp.yaml"
        file.write_text(text)
        self.metrics = Metrics()
        self.notices = Notices(self.metrics)
        self.facts = ToldFacts()
        config = AgentConfig(node_name="n1", run_dir=folder, bgp_config=file)
        self.bgp = Bgp(config, self.facts, tuple(Family), self.notices, self.metrics, Objects())
        self.bgp.on_links(NO_LINKS)

    def metric(self, name: str, **labels: str) -> float | None:
        self.bgp.refresh_metrics()
        return self.metrics.registry.get_sample_value(f"felix_py_{name}", labels)


PEERS = "asNumber: 65001\npeers: [{peerIP: 'fd09::2', asNumber: 65000}, {peerIP: 'fd0a::2', asNumber: 65000}]\n"


async def test_missing_router_id_is_said_and_is_not_final(tmp_path: Path) -> None:
    rig = Rig(tmp_path, PEERS)
    rig.facts.upsert(ONLY6)
    assert [peer.error for peer in rig.bgp.peers()] == ["BGP has not started yet"] * 2
    async with running(rig.bgp.run()):
        await until(rig.notices.all)
        [notice] = rig.notices.all()
        assert (notice.kind, notice.subject) == (NoticeKind.BGP, str(tmp_path / "bgp.yaml"))
        assert "routerID" in notice.text
        peers = rig.bgp.peers()
        assert [peer.address for peer in peers] == ["fd09::2", "fd0a::2"]
        assert all("routerID" in peer.error and not peer.established for peer in peers)
        assert rig.metric("notices", kind="bgp") == 1
        assert (rig.metric("bgp_peers"), rig.metric("bgp_peers_established")) == (2, 0)
        asked = ("fd09::2", "fd0a::2", "fd0b::2")
        assert [rig.metric("bgp_peer_up", peer=peer) for peer in asked] == [0, 0, None]
        # The cloud's controller gives nodes their addresses late.
        rig.facts.upsert(BOTH)
        await until(lambda: not rig.notices.all())
        await until(lambda: [peer.error for peer in rig.bgp.peers()] == ["no route to it"] * 2)


async def test_router_id_of_the_file_needs_no_address(tmp_path: Path) -> None:
    rig = Rig(tmp_path, f"routerID: 192.0.2.7\n{PEERS}")
    rig.facts.upsert(ONLY6)
    async with running(rig.bgp.run()):
        await until(lambda: [peer.error for peer in rig.bgp.peers()] == ["no route to it"] * 2)
        assert not rig.notices.all()


def test_without_bgp_there_is_nothing(tmp_path: Path) -> None:
    metrics = Metrics()
    config = AgentConfig(node_name="n1", run_dir=tmp_path)
    bgp = Bgp(config, ToldFacts("n1", ()), (), Notices(metrics), metrics, Objects())
    assert bgp.peers() == []
    with pytest.raises(ConfigError, match="--bgp-config"):
        Rig(tmp_path, "asNumber: 0\n")


async def test_a_disk_that_is_full_for_a_while_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, full = replace_private, [True]

    def first_full(path: Path, text: str) -> None:
        if full:
            full.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(speaker_module, "replace_private", first_full)
    monkeypatch.setattr(speaker_module, "_REWRITE", 0.01)

    with capture_logs() as logged:
        speaker = Speaker(tmp_path, lambda _: None, structlog.get_logger())
        speaker.set_config(parse_bgp_config({"asNumber": 65001, "routerID": "10.9.0.1", "peers": []}))
        task = asyncio.create_task(speaker.run())
        await until((tmp_path / CONFIG).exists)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [line["reason"] for line in logged if "trying again" in line["event"]] == [
        "[Errno 28] No space left on device"
    ]


async def test_what_keeps_exabgp_from_its_configuration_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sidecar, then a disk that is full."""
    monkeypatch.setattr(speaker_module, "_NOT_IN_EFFECT", 0.5)
    rig = Rig(tmp_path, "asNumber: 65001\npeers: [{peerIP: '127.0.0.2', asNumber: 65000}]\n")
    rig.facts.upsert(BOTH)

    def full(_path: Path, _text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def said(text: str) -> None:
        def notices() -> list[str]:
            return [notice.text for notice in rig.notices.all() if notice.kind is NoticeKind.BGP]

        await until(lambda: len(notices()) == 1 and text in notices()[0])

    async with running(rig.bgp.run()):
        await said("there is no ExaBGP")
        assert ["there is no ExaBGP" in peer.error for peer in rig.bgp.peers()] == [True]
        monkeypatch.setattr(speaker_module, "replace_private", full)
        assert rig.bgp._speaker
        rig.bgp._speaker.set_config(parse_bgp_config({"asNumber": 65001, "routerID": "10.9.0.1", "peers": []}))
        await said("cannot be written: [Errno 28]")
