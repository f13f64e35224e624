"""An upgrade over rules of the version before: each of those had a comment with its hash, and no chain a seal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from felix_py.dataplane.iptables_text import render, render_chain
from felix_py.layout import CHAIN_PREFIX
from felix_py.records import Backend
from felix_py.ruleset.model import InSet, RuleSpec
from felix_py.ruleset.seal import is_seal
from felix_py.ruleset.words import parse, split
from policy.model import Family, Packet, Protocol
from tests.support import kernel_state
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import POLICY, PolicedNode
from tests.support.streams import Streams
from tests.support.traffic import attempt, serve
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
TCP = Protocol.TCP


@pytest.fixture(params=list(Backend), ids=str)
def node(
    request: pytest.FixtureRequest, tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]
) -> Iterator[PolicedNode]:
    with PolicedNode(tmp_path, Backend(request.param), make_netns) as made:
        made.prepare()
        yield made


def as_before(family: Family, backend: Backend) -> None:
    """Write our chains as the version before wrote them, in one transaction."""
    lines: list[str] = []
    for line in kernel_state.saved(family, backend).splitlines():
        if line.startswith(":") and not line.startswith(f":{CHAIN_PREFIX}"):
            continue
        if not line.startswith("-A"):
            lines.append(line)
            continue
        _, chain, text = line.split(" ", 2)
        if chain.startswith(CHAIN_PREFIX) and not is_seal(text):
            lines.append(f"-A {chain} {render(parse(tuple(split(text)))[0]).text}")
    tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}-restore"
    run(tool, "--noflush", stdin="\n".join([*lines, ""]))


def with_earlier_dispatch(family: Family, backend: Backend) -> None:
    """Write the roots of dispatch as a version before did, which asked no set whether a packet has a class."""
    lines = ["*filter"]
    saved = kernel_state.saved(family, backend).splitlines()
    for chain in ("FELIX-EGRESS", "FELIX-INGRESS"):
        texts = [line.split(" ", 2)[2] for line in saved if line.startswith(f"-A {chain} ")]
        bodies = [parse(tuple(split(text)))[0] for text in texts if not is_seal(text)]
        bodies[0] = replace(bodies[0], matches=tuple(m for m in bodies[0].matches if not isinstance(m, InSet)))
        rules = tuple(RuleSpec(body.matches, body.target) for body in bodies)
        lines += [f":{chain} - [0:0]", *(f"-A {chain} {rule.text}" for rule in render_chain(rules))]
    tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}-restore"
    run(tool, "--noflush", stdin="\n".join([*lines, "COMMIT", ""]))


@contextmanager
def knocking(node: PolicedNode, client: str, seconds: float) -> Iterator[list[set[Packet]]]:
    """New connections of a pod to db all the time; yields what each round reached within ``seconds``."""
    pairs = zip(node.addresses[client].values(), node.addresses["db"].values(), strict=True)
    tries = [(node.places[client], Packet(*pair, TCP, 80)) for pair in pairs]
    rounds: list[set[Packet]] = []
    over = threading.Event()

    def knock() -> None:
        while not over.is_set():
            rounds.append(attempt(tries, seconds))

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield rounds
    finally:
        over.set()
        thread.join()


def test_the_new_version_takes_over_without_a_gap(node: PolicedNode) -> None:
    assert node.backend is not None
    sealed = node.kernel()
    for family in Family:
        as_before(family, node.backend)
    before = kernel_state.saved(Family.V4, node.backend)
    assert before != sealed["rules4"]
    assert node.reached() == POLICY
    at_db = serve([(node.places["db"], address, TCP, 80) for address in node.addresses["db"].values()])
    with Streams() as streams, at_db, knocking(node, "api", 5) as allowed, knocking(node, "web", 0.02) as denied:
        kept = [node.stream(streams, family, "api", "db", 81) for family in Family]
        node.start()
        node.ready()
        eventually(lambda: node.kernel() == sealed, 20)
        so_far = len(allowed), len(denied)
        eventually(lambda: len(allowed) > so_far[0] + 10 and len(denied) > so_far[1] + 10, 60)
        assert all(stream.intact for stream in kept)
    assert all(len(reached) == len(Family) for reached in allowed), "an allowed connection was refused"
    assert not any(denied), "a denied connection was let through"
    assert node.drift() == 0, "nobody has changed anything"
    assert node.reached() == POLICY
    # From now on it is as ever.
    node.kill()
    node.start()
    node.ready()
    assert node.metric("felix_py_iptables_restores_total") == 0


def test_dispatch_of_the_version_before_is_nobodys_change(node: PolicedNode) -> None:
    """While the API server is away it stays as it is; that rules were changed while no agent ran is not said."""
    assert node.backend is not None
    sealed = node.kernel()
    for family in Family:
        with_earlier_dispatch(family, node.backend)
    before = node.kernel()
    assert before != sealed
    assert node.reached() == POLICY
    node.start_alone()
    assert node.kernel() == before
    assert "rules were changed" not in node.log
    assert node.reached() == POLICY
    node.api.listen()
    node.ready()
    eventually(lambda: node.kernel() == sealed, 20)
    assert node.reached() == POLICY


def test_a_chain_without_its_seal_stays_in_force_until_the_cluster_is_known(node: PolicedNode) -> None:
    """Another version's: what it wrote cannot be made again. A class whose rules cannot be told is shut."""
    seals = [
        (line.split(" ")[1], number)
        for chain in ("FELIX-FORWARD", "FELIX-INGRESS", "FELIX-INPUT")
        for number, line in enumerate(lines_of(node, chain), 1)
        if is_seal(line.split(" ", 2)[2])
    ]
    assert len(seals) == 3
    for chain, number in seals:
        node.do(f"{{iptables}} -D {chain} {number}; {{iptables}} -I {chain} 1 -j ACCEPT")
    node.api.refuse()
    node.start("--no-drop-invalid")
    eventually(lambda: node.ask("/readyz")[0] == 503, 60)
    eventually(lambda: node.reached() == POLICY, 20)
    node.api.listen()
    node.ready()
    assert node.reached() == POLICY


def lines_of(node: PolicedNode, chain: str) -> list[str]:
    assert node.backend is not None
    saved = kernel_state.saved(Family.V4, node.backend).splitlines()
    return [line for line in saved if line.startswith(f"-A {chain} ")]


def test_before_the_cluster_is_known_what_there_is_stays_and_is_guarded(node: PolicedNode) -> None:
    assert node.backend is not None
    for family in Family:
        as_before(family, node.backend)
    before = node.kernel()
    node.start_alone()
    assert node.kernel() == before
    for spoil in ("{iptables} -F FELIX-FORWARD", "{iptables} -I FELIX-FORWARD 1 -j ACCEPT"):
        noticed = node.drift()
        node.do(spoil)
        eventually(lambda: node.drift() > noticed, 20)  # noqa: B023
        eventually(lambda: node.kernel() == before, 20)
    assert node.reached() == POLICY
