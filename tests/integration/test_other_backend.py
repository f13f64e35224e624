"""The node's programs come to use the other iptables backend: policy moves there, and leaves the old one."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py.records import Backend
from policy.model import Family
from tests.support import kernel_state
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import POLICY, PolicedNode
from tests.support.streams import Streams
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

HINT = "KUBE-IPTABLES-HINT"


def ours(backend: Backend) -> list[str]:
    """Our rules and chains in one engine."""
    saved = [line for family in Family for line in kernel_state.saved(family, backend).splitlines()]
    return [line for line in saved if "FELIX-" in line or "felix:" in line]


@pytest.fixture(params=list(Backend), ids=lambda old: f"from {old}")
def old(request: pytest.FixtureRequest) -> Backend:
    return Backend(request.param)


@pytest.fixture
def new(old: Backend) -> Backend:
    return Backend.LEGACY if old is Backend.NFT else Backend.NFT


@pytest.fixture
def node(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace], old: Backend) -> Iterator[PolicedNode]:
    """It has run on the backend that the kubelet used then; the kubelet's hint is in the other one now."""
    with PolicedNode(tmp_path, None, make_netns) as made:
        run(f"iptables-{old}", "-t", "mangle", "-N", HINT)
        made.prepare()
        assert ours(old)
        run(f"iptables-{old}", "-t", "mangle", "-X", HINT)
        other = Backend.LEGACY if old is Backend.NFT else Backend.NFT
        run(f"iptables-{other}", "-t", "mangle", "-N", HINT)
        yield made


def test_ours_leave_the_old_one_once_the_new_one_is_complete(
    node: PolicedNode, old: Backend, new: Backend
) -> None:
    run(f"iptables-{old}", "-A", "FORWARD", "-s", "198.51.100.1", "-j", "DROP")
    before, sets = ours(old), kernel_state.sets()
    with Streams() as streams:
        kept = [node.stream(streams, family, "api", "db", 80) for family in Family]
        node.start()
        node.ready()
        assert ours(old) == []
        assert sorted(ours(new)) == sorted(before)
        assert kernel_state.sets() == sets
        progress = [stream.progress for stream in kept]
        eventually(lambda: all(stream.progress > p + 20 for stream, p in zip(kept, progress, strict=True)))
        assert all(stream.intact for stream in kept)
    assert node.reached() == POLICY
    assert "took our rules out of the old one" in node.log
    assert node.status()["notices"] == []
    assert "198.51.100.1" in run(f"iptables-{old}-save")
    # From now on it is as ever.
    node.kill()
    node.start()
    node.ready()
    assert node.log.count("took our rules out of the old one") == 1
    assert node.metric("felix_py_iptables_restores_total") == 0


def test_with_both_engines_full_of_ours_and_stale_ones_in_the_old(
    node: PolicedNode, old: Backend, new: Backend
) -> None:
    """An agent without the fix has run on the new one; the old one's rules and sets are from long ago."""
    stale = {family: f"felix{int(family)}-old" for family in Family}
    for family in Family:
        tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{old}"
        run("ipset", "create", stale[family], "hash:ip", "family", "inet" if family is Family.V4 else "inet6")
        run(tool, "-I", "FELIX-FORWARD", "1", "-m", "set", "!", "--match-set", stale[family], "dst", "-j", "DROP")
        text = kernel_state.saved(family, old).replace(stale[family], f"felix{int(family)}-source")
        run(f"{tool.replace(old.value, new.value)}-restore", "--noflush", stdin=f"{text}\n")
    assert node.reached() == set()
    assert ours(new)
    node.start()
    node.ready()
    assert ours(old) == []
    assert node.reached() == POLICY
    eventually(lambda: not set(stale.values()) & kernel_state.sets().keys())
    eventually(lambda: node.status()["failures"] == [])


def test_what_cannot_be_taken_out_is_said_and_keeps_it_unready(node: PolicedNode, old: Backend) -> None:
    if old is Backend.NFT:
        pytest.skip("nothing can hold up nf_tables for long")
    with Path("/run/xtables.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node.start()
        eventually(lambda: node.metric('felix_py_notices{kind="rules-in-other-backend"}') == 1, 60)
        status, reason = node.ask("/readyz")
        assert status == 503
        assert "legacy tables" in reason
        assert "lock" in node.status()["notices"][0]["text"]
    node.ready()
    assert ours(old) == []
    assert node.status()["notices"] == []


def test_before_the_cluster_is_known_nothing_is_moved(node: PolicedNode, old: Backend, new: Backend) -> None:
    before = ours(old)
    node.start_alone()
    assert (ours(old), ours(new)) == (before, [])
    assert node.reached() == POLICY
    node.api.listen()
    node.ready()
    assert ours(old) == []
    assert node.reached() == POLICY
