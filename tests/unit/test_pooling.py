"""What the agent is told of pools: once they are known, whenever they change, and when it may not see them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from felix_py.agent.pooling import Pooling
from felix_py.ipam.reserved import Reserved
from felix_py.ipam.resources import IPAMBlock, IPPool, IPReservation
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from felix_py.records import NodeRecord
from policy.model import Family
from tests.support.told import ToldFacts

POOL = IPPool(name="p", cidr="10.64.0.0/16", block_size=26)


@dataclass
class Known:
    """The claims, as far as they are asked here."""

    known: bool = False
    pools: list[IPPool] = field(default_factory=list)
    reservations: list[IPReservation] = field(default_factory=list)
    all_blocks: list[IPAMBlock] = field(default_factory=list)
    hidden: tuple[str, ...] = ()

    def unseen(self) -> tuple[str, ...]:
        return self.hidden


class Rig:
    def __init__(self) -> None:
        self.facts = ToldFacts("n1", pooled=None)
        self.facts.upsert(NodeRecord("n1", "u", ("192.0.2.1",), ("10.1.0.0/24",)))
        self.claims, self.notices, self.refused = Known(), Notices(Metrics()), False
        self.reserved = Reserved(lambda _family, _number, _length: None)
        self.pooling = Pooling("n1", self.claims, self.facts, self.reserved, lambda: self.refused, self.notices)


async def test_nothing_is_announced_before_pools_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felix_py.agent.pooling._LOOK", 600)  # whoever waits is told, and does not look
    rig = Rig()
    rig.pooling.take_over()
    settled = asyncio.create_task(rig.pooling.settled())
    await asyncio.sleep(0)
    assert (rig.facts.announced, settled.done()) == (None, False)
    rig.claims.pools, rig.claims.known = [POOL], True
    rig.claims.all_blocks = [IPAMBlock(name="b", cidr="10.64.0.0/26", node="n1", node_uid="u")]
    rig.claims.reservations = [IPReservation("r", ("10.64.0.0/30",))]
    rig.pooling.take_over()
    await settled
    assert rig.facts.announced == ("10.64.0.0/26",)
    assert rig.reserved(Family.V4, 0x0A400001, 26) is not None
    rig.claims.all_blocks, rig.claims.reservations = [], []
    rig.pooling.take_over()
    assert not rig.facts.announced
    assert rig.reserved(Family.V4, 0x0A400001, 26) is None


@pytest.mark.parametrize(
    ("hidden", "what"), [((), "pods get addresses of podCIDRs"), (("p",), "no pod starts: there are p")]
)
async def test_an_agent_that_may_not_see_pools_works_as_without_any_and_says_so(
    hidden: tuple[str, ...], what: str
) -> None:
    rig = Rig()
    rig.refused, rig.claims.hidden = True, hidden
    await rig.pooling.settled()
    assert rig.facts.announced == ("10.1.0.0/24",)
    (told,) = rig.notices.of(NoticeKind.IP_POOLS).values()
    assert "ClusterRole" in told
    assert what in told
    rig.claims.known = True
    rig.pooling.take_over()
    assert rig.notices.all() == []
