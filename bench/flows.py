"""Established connections: to find a pod's among 100,000, to delete those of an address, to judge them.

A table of 100,000 connections (half of them IPv6) between the world and 110 pods, compared with conntrack(8):
listing both families, and deleting by an address at either end. Judging is the CPU time for one connection of a
client that was not seen before, on 100,000 pods and 1,000 policies, compared with the oracle on plain lists.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

from bench.clusters import Cluster, even
from bench.harness import Way, compare, show
from felix_py.agent.judge import Judge
from felix_py.agent.view import ClusterView
from felix_py.dataplane.conntrack import Conntrack
from policy.change import Change
from policy.model import LocalEndpoint, Namespace, NetworkPolicy, Packet, Pod, Protocol
from policy.oracle.evaluate import Snapshot, verdict
from tests.support.isolate import new_netns, run

PODS = 110
ADDRESSES = [*(f"10.65.0.{n + 1}" for n in range(PODS)), *(f"fd65::{n + 1:x}" for n in range(PODS))]
_ONE = (ADDRESSES[7], ADDRESSES[PODS + 7])


def main(quick: bool) -> None:
    """The table in a network namespace of its own; then the judge."""
    size, times = (2000, 1) if quick else (100_000, 7)
    with new_netns(), Conntrack() as table:
        _load(_connections(size))
        mine = len(table.flows(_ONE))
        show(
            f"flows: find connections in a table of {size:,}",
            compare(
                [
                    Way("conntrack -L, both families", _list, base=True, note="prints all of them"),
                    Way("felix-py, of one pod", lambda: table.flows(_ONE), note=f"{mine:,} of them"),
                    Way("felix-py, of all pods", lambda: table.flows(ADDRESSES), note="all of them"),
                ],
                times,
            ),
        )

        def again() -> None:
            _load(line for line in _connections(size) if any(f" {address} " in line for address in _ONE))

        show(
            f"flows: forget an address of each family in a table of {size:,}",
            compare(
                [
                    Way("conntrack -D", _delete, after=again, base=True, note="by source and by reply's source"),
                    Way("felix-py", lambda: table.forget(_ONE), after=again),
                ],
                times,
            ),
        )
    _judge(1000 if quick else 100_000, times)


def _connections(size: int) -> Iterator[str]:
    """As ``conntrack -R`` reads them."""
    for number in range(size // 2):
        rest = f"--sport 40000 --dport {80 + number % 3} -t 3600 --state ESTABLISHED -u ASSURED,SEEN_REPLY"
        pod = number % PODS
        yield f"-I -p tcp -s 198.18.{number >> 8}.{number & 255} -d {ADDRESSES[pod]} {rest}"
        yield f"-I -p tcp -s 2001:db8::{number + 1:x} -d {ADDRESSES[PODS + pod]} {rest}"


def _load(lines: Iterator[str]) -> None:
    run("conntrack", "-R", "-", stdin="".join(f"{line}\n" for line in lines))


def _list() -> None:
    for family in ("ipv4", "ipv6"):
        subprocess.run(["conntrack", "-L", "-f", family], capture_output=True, check=True)


def _delete() -> None:
    for address in _ONE:
        family = "ipv6" if ":" in address else "ipv4"
        for end in ("-s", "-r"):
            # Exit code 1 where there was none.
            subprocess.run(["conntrack", "-D", "-f", family, end, address], capture_output=True, check=False)


def _judge(pods: int, times: int) -> None:
    cluster = Cluster(even(pods, 1000, 200))
    view = ClusterView()
    records: list[Namespace | NetworkPolicy | Pod] = [*cluster.namespaces, *cluster.policies, *cluster.pods]
    for record in records:
        view.fold(Change(None, record))
    for pod in cluster.local:
        view.attach(LocalEndpoint(pod.namespace, pod.name, pod.addresses), pod)
    view.advance()
    snapshot = Snapshot(cluster.namespaces, cluster.pods, cluster.policies)
    many = 500
    packets = [
        Packet(f"198.51.{n >> 8}.{n & 255}", cluster.local[n % PODS].addresses[0], Protocol.TCP, 8000)
        for n in range(many)
    ]
    judge = Judge(view, frozenset())
    assert [judge.allows(p) for p in packets] == [verdict(snapshot, p).allowed for p in packets]
    ways = [
        Way("the oracle on plain lists", lambda: [verdict(snapshot, p) for p in packets], share=many, base=True),
        Way("felix-py", lambda: _all(Judge(view, frozenset()), packets), share=many),
    ]
    show(f"flows: judge one connection, {pods:,} pods, CPU", compare(ways, times, time.process_time))


def _all(judge: Judge, packets: list[Packet]) -> None:
    for packet in packets:
        judge.allows(packet)
