"""Routes and IP set members in bulk: felix-py's dataplane beside ``ip -batch`` and ``ipset restore``.

1,000 and 10,000 IPv4 routes with a gateway, added to an empty table and removed; 10,000 and 100,000 addresses
added to an empty IP set and removed. Then what a resync costs when nothing has changed: everything is read back
and compared with what is wanted, beside the tools that only print it.
"""

from __future__ import annotations

import ipaddress
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.harness import Way, compare, show
from felix_py.dataplane.kernel import Kernel
from felix_py.layout import ROUTE_PROTOCOL_LEARNED
from felix_py.records import Backend, NextHop, Route, SetSpec, SetType, Update
from felix_py.refs import RouteRef
from policy.model import Family
from tests.support.isolate import new_netns, run

GATEWAY = "192.0.2.2"
_SET = SetSpec("felix4-bench", SetType.IP, Family.V4)


def main(quick: bool) -> None:
    """All sizes, each in a network namespace of its own."""
    times = 1 if quick else 7
    for size in (200,) if quick else (1000, 10_000):
        with new_netns(), TemporaryDirectory() as folder:
            _routes(size, times, Path(folder))
    for size in (500,) if quick else (10_000, 100_000):
        with new_netns(), TemporaryDirectory() as folder:
            _members(size, times, Path(folder))


def _kernel() -> Kernel:
    kernel = Kernel([Family.V4], Backend.NFT)
    kernel.load()
    return kernel


def _apply(kernel: Kernel, update: Update) -> None:
    kernel.update(update)
    if failures := kernel.apply().failures:
        raise RuntimeError(str(failures[0]))


def _addresses(size: int) -> list[str]:
    first = int(ipaddress.IPv4Address("10.0.0.1"))
    return [str(ipaddress.IPv4Address(first + number)) for number in range(size)]


# --- routes -----------------------------------------------------------------------------------------------------


def _routes(size: int, times: int, folder: Path) -> None:
    run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    run("ip", "link", "set", "up1", "up")
    run("ip", "link", "set", "up0", "up")
    run("ip", "address", "add", "192.0.2.1/24", "dev", "up0")
    destinations = [f"{address}/32" for address in _addresses(size)]
    keys = [RouteRef(destination, ROUTE_PROTOCOL_LEARNED) for destination in destinations]
    wanted = Update(routes={key: Route(key, next_hops=(NextHop(GATEWAY, "up0"),)) for key in keys})
    gone = Update(routes=dict.fromkeys(keys))
    for verb in ("add", "del"):
        lines = [f"route {verb} {d} via {GATEWAY} proto {ROUTE_PROTOCOL_LEARNED}\n" for d in destinations]
        (folder / verb).write_text("".join(lines))

    def batch(verb: str) -> None:
        run("ip", "-batch", str(folder / verb))

    def resync(kernel: Kernel) -> None:
        kernel.load()
        if kernel.apply().writes:
            raise RuntimeError("there was nothing to write")

    with _kernel() as kernel:
        ways = [
            Way("ip -batch", lambda: batch("add"), after=lambda: batch("del"), base=True),
            Way("felix-py", lambda: _apply(kernel, wanted), after=lambda: _apply(kernel, gone)),
        ]
        show(f"routes, {size:,} added", compare(ways, times))
        ways = [
            Way("ip -batch", lambda: batch("del"), before=lambda: batch("add"), base=True),
            Way("felix-py", lambda: _apply(kernel, gone), before=lambda: _apply(kernel, wanted)),
        ]
        show(f"routes, {size:,} removed", compare(ways, times))
        _apply(kernel, wanted)
        printed = ["ip", "route", "show", "proto", str(ROUTE_PROTOCOL_LEARNED)]
        ways = [
            Way("ip route show", lambda: run(*printed), base=True),
            Way("felix-py", lambda: resync(kernel), note="with iptables-save"),
        ]
        show(f"routes, {size:,} resynced, nothing to do", compare(ways, times))


# --- IP sets ----------------------------------------------------------------------------------------------------


def _members(size: int, times: int, folder: Path) -> None:
    name, other = _SET.name, "other"
    addresses = _addresses(size)
    for verb in ("add", "del"):
        (folder / verb).write_text("".join(f"{verb} {other} {address}\n" for address in addresses))
    run("ipset", "create", other, "hash:ip", "maxelem", "1048576")
    full = Update(sets={name: _SET}, members={name: dict.fromkeys(addresses, 0)})
    empty = Update(members={name: dict.fromkeys(addresses)})

    def restore(verb: str) -> None:
        run("ipset", "restore", "-file", str(folder / verb))

    with _kernel() as kernel:
        _apply(kernel, Update(sets={name: _SET}))
        ways = [
            Way("ipset restore", lambda: restore("add"), after=lambda: restore("del"), base=True),
            Way("felix-py", lambda: _apply(kernel, full), after=lambda: _apply(kernel, empty)),
        ]
        show(f"IP set, {size:,} members added", compare(ways, times))
        ways = [
            Way("ipset restore", lambda: restore("del"), before=lambda: restore("add"), base=True),
            Way("felix-py", lambda: _apply(kernel, empty), before=lambda: _apply(kernel, full)),
        ]
        show(f"IP set, {size:,} members removed", compare(ways, times))
        _apply(kernel, full)

        def resync() -> None:
            kernel.load()
            if kernel.apply().writes:
                raise RuntimeError("there was nothing to write")

        ways = [
            Way(
                "ipset save",
                lambda: subprocess.run(["ipset", "save", name], capture_output=True, check=True),
                base=True,
            ),
            Way("felix-py", resync, note="with iptables-save"),
        ]
        show(f"IP set, {size:,} members resynced, nothing to do", compare(ways, times))
