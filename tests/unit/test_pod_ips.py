"""What other nodes are told of a pod's addresses: when, and what is put right later."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from felix_py.agent.held import HeldLeases
from felix_py.agent.pod_ips import PodIPs
from felix_py.cni.network import NetworkError
from felix_py.records import Lease
from policy.model import Family, ObjectKey, Pod

WEB = ("shop", "web")


class Annotations:
    """In the place of :class:`AnnouncementWriter`: ``problem`` is why nothing can be written."""

    def __init__(self) -> None:
        self.problem = ""
        self.of: dict[ObjectKey, tuple[str, ...]] = {}

    def announce(
        self, pod: ObjectKey, uid: str, addresses: tuple[str, ...], done: Callable[[str], None] | None = None
    ) -> None:
        if not self.problem:
            self.of[pod] = addresses
        if done:
            done(self.problem)


class Rig:
    def __init__(self) -> None:
        self.annotations = Annotations()
        self.held = HeldLeases()
        self.pods: list[Pod] = []
        writer, cidrs = self.annotations, ("10.1.0.0/24",)
        self.ips = PodIPs(writer, self.held, lambda: self.pods, lambda: cidrs)  # type: ignore[arg-type]

    async def connect(self, lease: Lease) -> None:
        self.held.add(lease)
        await self.ips.connected(lease)

    def release(self, lease: Lease) -> None:
        self.held.remove(lease)
        self.ips.released(lease)


def lease(ifname: str, address: str, container: str = "c1", created: float = 1.0) -> Lease:
    return Lease(container, ifname, "n", *WEB, "u", f"felix{address}", {Family.V4: address}, created)


FIRST, FURTHER = lease("eth0", "10.1.0.1"), lease("net1", "10.1.0.2", created=2.0)


async def test_all_addresses_of_a_pod_are_told_and_those_that_are_left() -> None:
    rig = Rig()
    await rig.connect(FIRST)
    assert rig.annotations.of[WEB] == ("10.1.0.1",)
    await rig.connect(FURTHER)
    assert rig.annotations.of[WEB] == ("10.1.0.1", "10.1.0.2")
    rig.release(FIRST)
    assert rig.annotations.of[WEB] == ("10.1.0.2",)
    rig.release(FURTHER)
    assert rig.annotations.of[WEB] == ()


async def test_an_old_sandbox_that_goes_takes_nothing_of_the_new_one() -> None:
    rig = Rig()
    for one in (FIRST, FURTHER):
        await rig.connect(one)
    new = lease("eth0", "10.1.0.9", "c2", 3.0)
    await rig.connect(new)
    for one in (FURTHER, FIRST):
        rig.release(one)
        assert rig.annotations.of[WEB] == ("10.1.0.9",)


async def test_a_further_interface_waits_until_it_is_written_and_the_first_for_nothing() -> None:
    rig = Rig()
    rig.annotations.problem = "403 Forbidden"
    await rig.connect(FIRST)
    with pytest.raises(NetworkError, match="net1 cannot be made known to other nodes' policy: 403 Forbidden"):
        await rig.connect(FURTHER)


async def test_an_address_that_others_do_not_believe_is_refused() -> None:
    rig = Rig()
    await rig.connect(FIRST)
    outside = lease("net1", "10.2.0.2", created=2.0)
    with pytest.raises(NetworkError, match=r"10\.2\.0\.2 is not of this node's podCIDRs or blocks"):
        await rig.connect(outside)


@pytest.mark.parametrize(
    ("announced", "told"),
    [
        (("10.1.0.2",), False),
        ((), True),
        (("10.1.0.2", "10.1.0.7"), True),
        (("10.1.0.7",), True),
    ],
)
async def test_what_was_lost_or_left_is_put_right(announced: tuple[str, ...], told: bool) -> None:
    rig = Rig()
    for one in (FIRST, FURTHER):
        rig.held.add(one)
    rig.pods = [Pod(*WEB, "u", "here", addresses=("10.1.0.1",), announced=announced)]
    rig.ips.look()
    assert rig.annotations.of.get(WEB) == (("10.1.0.1", "10.1.0.2") if told else None)


async def test_a_pod_with_one_interface_is_left_alone() -> None:
    rig = Rig()
    rig.held.add(FIRST)
    rig.pods = [Pod(*WEB, "u", "here", addresses=()), Pod("shop", "db", "d", "here", addresses=("10.1.0.3",))]
    rig.ips.look()
    assert not rig.annotations.of
