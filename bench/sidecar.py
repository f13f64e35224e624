"""What the BGP sidecar costs while nothing happens, and until its session is up.

One established session to a BIRD 2. CPU time a second of ExaBGP and of the sidecar's own two processes, beside
ExaBGP with the loop time that it comes with; memory of each process as its share (PSS: pages that several
processes have count in part).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import ExitStack

from bench.harness import Row, megabytes, show
from bench.processes import children, cpu, share
from bench.rack import rack
from bgp import bridge
from tests.support.bgp import NODE4, NODE_ASN, ROOT, TOR4, TOR_ASN, agent, config
from tests.support.waiting import until

_TOR = f"""
router id {TOR4};
protocol device {{ }}
protocol bgp node {{
  local as {TOR_ASN};
  neighbor {NODE4} as {NODE_ASN};
  connect delay time 1;
  ipv4 {{ import all; export none; }};
}}
"""
_AS_IT_COMES = """
import sys
from bgp import sidecar
sidecar._ENVIRONMENT["exabgp_reactor_speed"] = "1.0"
sys.exit(sidecar.main(sys.argv[1:]))
"""
_WAYS = {
    "as ExaBGP comes": [sys.executable, "-c", _AS_IT_COMES],
    "felix-py": [sys.executable, "-m", "bgp.sidecar"],
}
_PARTS = ("ExaBGP", "sidecar", "bridge")


def main(quick: bool) -> None:
    """Each way in turn, in namespaces of its own."""
    times, seconds = (1, 1.0) if quick else (3, 20.0)
    busy = {way: Row(way, base=way != "felix-py", note="ExaBGP") for way in _WAYS}
    others = Row("felix-py", note="sidecar and bridge")
    start = {way: Row(way, base=way != "felix-py") for way in _WAYS}
    # The bridge is a bare Python.
    memory = [Row(part, base=part == "bridge") for part in _PARTS]
    for _ in range(times):
        for way, argv in _WAYS.items():
            up, spent, size = asyncio.run(_once(argv, seconds))
            start[way].values.append(up)
            busy[way].values.append(spent["ExaBGP"])
            if way == "felix-py":
                others.values.append(spent["sidecar"] + spent["bridge"])
                for row in memory:
                    row.values.append(size[row.what])
    show("sidecar: CPU time a second, idle", [*busy.values(), others])
    show("sidecar: from its start to the session", list(start.values()))
    show("sidecar: memory, share of each process", memory, megabytes)


async def _once(argv: list[str], seconds: float) -> tuple[float, dict[str, float], dict[str, float]]:
    """Seconds until the session is up; CPU seconds a second and bytes of each process."""
    with rack(_TOR) as (folder, _, _), ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w"))
        started = time.perf_counter()
        process = subprocess.Popen([*argv, "--run-dir", str(folder / "run")], cwd=ROOT, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        peer = config({"peerIP": TOR4, "asNumber": TOR_ASN})
        async with agent(folder / "run", peer, announce={"10.244.1.0/24"}) as node:
            await until(node.up, 60)
            up = time.perf_counter() - started
            await asyncio.sleep(bridge._START + bridge._CHANGE)  # its loop is quick until then
            pids = _processes(process.pid)
            before = {part: cpu(pid) for part, pid in pids.items()}
            await asyncio.sleep(seconds)
            spent = {part: (cpu(pid) - before[part]) / seconds for part, pid in pids.items()}
            return up, spent, {part: share(pid) for part, pid in pids.items()}


def _processes(sidecar: int) -> dict[str, int]:
    [exabgp] = children(sidecar)
    [bridge] = children(exabgp)
    return dict(zip(_PARTS, (exabgp, sidecar, bridge), strict=True))
