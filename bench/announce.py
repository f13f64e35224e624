"""From "announce this" to the route in a ToR's table: felix-py's speaker, sidecar and ExaBGP beside BIRD to BIRD.

The ToR is a real BIRD 2 with two eBGP sessions: to felix-py, and to a second BIRD that gets the same prefixes as
static routes by ``birdc configure``, which is the limit. One prefix, then 1,000 and 10,000 at once on top of an
established session; the time ends when the ToR's table has them all. Withdrawal is measured the same way.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.harness import Row, show
from tests.support.bgp import NODE4, NODE_ASN, TOR4, TOR_ASN, Agent, Sidecar, agent, config, link
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace, new_netns
from tests.support.waiting import eventually, until

_TOR = f"""
router id {TOR4};
protocol device {{ }}
template bgp node {{
  local as {TOR_ASN};
  connect delay time 1;
  ipv4 {{ import all; export none; }};
}}
protocol bgp felix_py from node {{ neighbor {NODE4} as {NODE_ASN}; }}
protocol bgp other_bird from node {{ neighbor 10.10.0.1 as {NODE_ASN + 1}; }}
"""
_LIMIT = """
router id 10.10.0.1;
protocol device {{ }}
protocol static given {{
  ipv4;
include "{routes}";
}}
protocol bgp tor {{
  local as {asn};
  connect delay time 1;
  neighbor 10.10.0.2 as {tor};
  ipv4 {{ import none; export all; next hop self; }};
}}
"""
_PATIENCE = 60.0


def main(quick: bool) -> None:
    """All sizes on the same sessions, in namespaces of their own."""
    with new_netns(), TemporaryDirectory() as folder:
        asyncio.run(_run(Path(folder), (1, 100) if quick else (1, 1000, 10_000), 1 if quick else 5))


class _Tor:
    """The ToR's BIRD, asked over its control socket: ``birdc`` would cost more than what is measured."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(folder / "bird.ctl"))
        self._answer()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def count(self, protocol: str) -> int:
        """How many routes of one protocol are in the table."""
        self._socket.sendall(f"show route count protocol {protocol}\n".encode())
        return int(re.findall(r"(\d+) of ", self._answer())[0])

    def _answer(self) -> str:
        """One answer; its last line has a blank behind its four-digit code, all others a hyphen."""
        text = b""
        while not re.search(rb"^\d{4} .*\n\Z", text, re.MULTILINE):
            text += self._socket.recv(1 << 16)
        return text.decode()


class _Limit:
    """The second BIRD: its static routes are what it announces."""

    def __init__(self, namespace: NetworkNamespace, folder: Path) -> None:
        folder.mkdir()
        self._routes = folder / "routes.conf"
        self._write(())
        text = _LIMIT.format(routes=self._routes, asn=NODE_ASN + 1, tor=TOR_ASN)
        self.bird = Bird(namespace, folder, text)

    def announce(self, prefixes: Sequence[str]) -> None:
        """Exactly these from now on."""
        self._write(prefixes)
        self.bird.birdc("configure")

    def _write(self, prefixes: Sequence[str]) -> None:
        self._routes.write_text("".join(f"route {prefix} blackhole;\n" for prefix in prefixes))


async def _run(folder: Path, sizes: Sequence[int], times: int) -> None:
    with ExitStack() as stack:
        tor_place, limit_place = NetworkNamespace("tor"), NetworkNamespace("limit")
        stack.callback(tor_place.close)
        stack.callback(limit_place.close)
        _connect(tor_place, limit_place)
        bird = Bird(tor_place, folder / "tor", _TOR)
        stack.callback(bird.stop)
        bird.start()
        limit = _Limit(limit_place, folder / "limit")
        stack.callback(limit.bird.stop)
        limit.bird.start()
        tor = _Tor(folder / "tor")
        stack.callback(tor.close)
        sidecar = Sidecar(folder / "run")
        stack.callback(sidecar.stop)
        sidecar.start()
        async with agent(folder / "run", config({"peerIP": TOR4, "asNumber": TOR_ASN}), announce=set()) as node:
            await until(lambda: node.up() and bird.established("other_bird"))
            for size in sizes:
                await _measure(node, limit, tor, size, times)


def _connect(tor: NetworkNamespace, limit: NetworkNamespace) -> None:
    """This namespace (felix-py) and the limit's, each by a cable of its own to the ToR's."""
    link(tor)
    tor.run("ip", "link", "add", "limit", "type", "veth", "peer", "name", "tor", "netns", limit.name)
    for place, device, address in ((tor, "limit", "10.10.0.2/24"), (limit, "tor", "10.10.0.1/24")):
        place.run("ip", "address", "add", address, "dev", device)
        place.run("ip", "link", "set", device, "up")
    eventually(lambda: "LOWER_UP" in limit.run("ip", "link", "show", "dev", "tor"))


async def _measure(node: Agent, limit: _Limit, tor: _Tor, size: int, times: int) -> None:
    first = int(ipaddress.IPv4Address("10.128.0.0"))
    prefixes = [f"{ipaddress.IPv4Address(first + (number << 8))}/24" for number in range(size)]
    sides: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
        "BIRD to BIRD": ("other_bird", limit.announce),
        "felix-py": ("felix_py", node.speaker.announce),
    }
    announced = [Row(what, base=what.startswith("BIRD")) for what in sides]
    withdrawn = [Row(what, base=what.startswith("BIRD")) for what in sides]
    for _ in range(times):
        for rows, wanted in ((announced, prefixes), (withdrawn, ())):
            for row, (protocol, announce) in zip(rows, sides.values(), strict=True):
                started = time.perf_counter()
                announce(wanted)
                await _until_count(tor, protocol, len(wanted))
                row.values.append(time.perf_counter() - started)
    what = "one prefix" if size == 1 else f"{size:,} prefixes"
    show(f"announce: {what} into the ToR's table", announced)
    show(f"announce: {what} out of the ToR's table", withdrawn)


async def _until_count(tor: _Tor, protocol: str, count: int) -> None:
    await until(lambda: tor.count(protocol) == count, _PATIENCE, pause=0.001)
