"""What the speaker writes for the sidecar: needs interfaces and routes, but no router."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from bgp.fields import BGPConfigError
from bgp.sidecar import CONFIG
from felix_py.bgp_file import load_bgp_config
from tests.support.bgp import TOR_ASN, agent, config
from tests.support.isolate import run, veth
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

SECRET = "s3cret"


async def test_peer_without_a_route_waits_outside_and_is_shown(tmp_path: Path) -> None:
    file = tmp_path / CONFIG
    veth("near", "nearp", "10.9.0.1/24")
    both = config({"peerIP": "10.9.0.2", "asNumber": TOR_ASN}, {"peerIP": "10.10.0.2", "asNumber": 65100})
    async with agent(tmp_path, both) as node:
        await until(file.exists)
        assert "neighbor 10.9.0.2 {" in file.read_text()
        assert "10.10.0.2" not in file.read_text()
        assert [(peer.address, peer.error) for peer in node.speaker.peers()] == [
            ("10.9.0.2", ""),
            ("10.10.0.2", "no route to it"),
        ]
        veth("far", "farp", "10.10.0.1/24")
        await until(lambda: "  local-address 10.10.0.1;\n" in file.read_text())


async def test_source_address_outlives_a_link_that_flaps(tmp_path: Path) -> None:
    file = tmp_path / CONFIG
    veth("near", "nearp", "10.9.0.1/24")
    veth("other", "otherp", "10.10.0.1/24")
    run("ip", "route", "add", "default", "via", "10.10.0.2")
    async with agent(tmp_path, config({"peerIP": "10.9.0.2", "asNumber": TOR_ASN})) as node:
        await until(file.exists)
        before = file.stat().st_mtime_ns
        run("ip", "link", "set", "near", "down")
        node.speaker.set_config(config({"peerIP": "10.9.0.2", "asNumber": TOR_ASN}))
        await asyncio.sleep(1.2)  # longer than the interval at which addresses are looked up
        assert "  local-address 10.9.0.1;\n" in file.read_text()
        assert file.stat().st_mtime_ns == before
        # Only a source that the node no longer has is replaced.
        run("ip", "address", "del", "10.9.0.1/24", "dev", "near")
        await until(lambda: "  local-address 10.10.0.1;\n" in file.read_text())


async def test_file_is_for_the_folders_owner_only(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    run("chown", "1234:2345", str(shared))
    veth("near", "nearp", "10.9.0.1/24")

    wanted = config({"peerIP": "10.9.0.2", "asNumber": TOR_ASN, "password": SECRET})
    async with agent(shared, wanted):
        await until((shared / CONFIG).exists)
    status = (shared / CONFIG).stat()
    assert SECRET in (shared / CONFIG).read_text()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o600, 1234, 2345)
    assert [file.name for file in shared.iterdir()] == [CONFIG]


def test_users_file(tmp_path: Path) -> None:
    secret, file = tmp_path / "secret", tmp_path / "bgp.yaml"
    secret.write_text(f"{SECRET}\n")
    file.write_text(f"asNumber: 65001\npeers:\n- peerIP: 10.9.0.2\n  asNumber: 65000\n  passwordFile: {secret}\n")
    loaded = load_bgp_config(file, router_id="10.9.0.1")
    assert (loaded.router_id, loaded.peers[0].password) == ("10.9.0.1", SECRET)
    for text, message in (("a: [", "bgp.yaml: "), ("asNumber: 65001", "routerID: is missing"), ("", "mapping")):
        file.write_text(text)
        with pytest.raises(BGPConfigError, match=message):
            load_bgp_config(file)
    with pytest.raises(BGPConfigError, match="No such file"):
        load_bgp_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"- " * 5_000 + b"1",
        b"x: 2026-13-45",
        b"asNumber: " + b"9" * 5_000,
        b"asNumber: \x80",
        b"\xff\xfe\x00",
        b"\x00",
        b"peers: !!python/object:os.system x",
        b"asNumber: &a [*a]",
        b"? [1]\n: 2",
        b"1: 2",
        b'asNumber: 1\nrouterID: 10.9.0.1\npeers: [{peerIP: 10.9.0.2, asNumber: 1, passwordFile: "a\\0b"}]',
    ],
    ids=lambda content: repr(content[:20]),
)
def test_whatever_is_in_the_users_file_is_an_error_and_no_crash(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bgp.yaml"
    file.write_bytes(content)
    with pytest.raises(BGPConfigError, match=r"bgp\.yaml: "):
        load_bgp_config(file)
