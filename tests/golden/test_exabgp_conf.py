"""The rendered exabgp.conf, text by text, and ExaBGP's own verdict on each.

``UPDATE_GOLDEN=1 pytest tests/golden`` writes the files anew; the diff is then the review.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bgp import bridge
from bgp.model import Peer, SpeakerConfig
from bgp.render import listen_on, process_section, render

FOLDER = Path(__file__).parent / "exabgp"

FOUR = Peer(address="10.9.0.2", asn=65000, local_asn=65001, source_address="10.9.0.1")
SIX = Peer(address="fd09::2", asn=65000, local_asn=65001, source_address="fd09::1")
EVERYTHING = Peer(
    address="10.10.0.2",
    port=1179,
    asn=4200000000,
    local_asn=65546,
    source_address="10.10.0.1",
    password="s3cret{};#[](),~",
    ttl_security=1,
    hold_time=9,
    max_restart_time=4095,
    passive=True,
)
DUAL = Peer(
    address="fd09::2",
    asn=65000,
    local_asn=65001,
    source_address="fd09::1",
    families=(4, 6),
    next_hops=("10.9.0.1", "fd09::1"),
)
UNNUMBERED = Peer(
    address="fe80::2", interface="eth0", asn=65000, local_asn=65001, source_address="fe80::1", families=(4, 6)
)
ALSO_SIX = Peer(
    address="10.9.0.2",
    asn=65000,
    local_asn=65001,
    source_address="10.9.0.1",
    families=(4, 6),
    next_hops=("10.9.0.1", "fd09::1"),
)

CASES = {
    "no-peers": ((), 179),
    "both-families": ((FOUR, SIX), 179),
    "everything-set": ((EVERYTHING,), 1790),
    "several-families": ((DUAL, ALSO_SIX, UNNUMBERED), 179),
    "connect-only": ((FOUR,), 0),
}


def text(case: str) -> str:
    peers, port = CASES[case]
    return render(SpeakerConfig(asn=65001, router_id="10.9.0.1", listen_port=port, peers=peers), peers)


@pytest.mark.parametrize("case", CASES)
def test_text(case: str) -> None:
    golden = FOLDER / f"{case}.conf"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text(case))
    assert text(case) == golden.read_text()


@pytest.mark.parametrize("case", CASES)
def test_listen_port_is_read_back(case: str) -> None:
    process = process_section(Path("/usr/bin/python3"), Path("/opt/bridge.py"), Path("/run/bridge.sock"))
    assert listen_on(process + text(case)) == (CASES[case][1], ())


def test_listen_addresses_are_read_back() -> None:
    config = SpeakerConfig(asn=65001, router_id="10.9.0.1", listen_addresses=("10.9.0.1", "fd09::1"))
    assert listen_on(render(config, ())) == (179, ("10.9.0.1", "fd09::1"))


def test_exabgp_accepts_all_of_them(tmp_path: Path) -> None:
    process = process_section(Path(sys.executable), Path(bridge.__file__), tmp_path / "bridge.sock")
    files = []
    for case in CASES:
        files.append(tmp_path / f"{case}.conf")
        files[-1].write_text(process + text(case))
    validate = [sys.executable, "-m", "exabgp", "validate", "-n", *map(str, files)]
    done = subprocess.run(validate, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_exabgp_reads_the_password_as_it_is(tmp_path: Path) -> None:
    """In ExaBGP's own configuration objects, in a process of its own: the parser has global state."""
    file = tmp_path / "exabgp.conf"
    process = process_section(Path(sys.executable), Path(bridge.__file__), tmp_path / "bridge.sock")
    file.write_text(process + text("everything-set"))
    script = (
        "import sys; from exabgp.environment import getenv; from exabgp.logger import log; log.init(getenv());"
        "from exabgp.configuration.configuration import Configuration;"
        "c = Configuration([sys.argv[1]]); assert c.reload(), c.error;"
        "[n] = c.neighbors.values();"
        "print(n['md5-password'], n['md5-base64'], n['incoming-ttl'], n['outgoing-ttl'], n['connect'],"
        " n['manual-eor'], n['adj-rib-in'], n['adj-rib-out'], n['passive'], int(n['hold-time']),"
        " n['capability']['graceful-restart'], [str(f[0]) for f in n.families()])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == [
        "s3cret{};#[](),~ False 255 255 1179 True True True True 9 4095 ['ipv4']"
    ], done.stderr


@pytest.mark.parametrize("path", ["/run/my sock", "/run/a;b", '/run/"x"', "/run/a\nb", "/run/{x}", "/run/#x"])
def test_path_that_would_need_quotes_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="cannot hold this path"):
        process_section(Path("/usr/bin/python3"), Path("/opt/bridge.py"), Path(path))
