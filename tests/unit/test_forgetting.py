"""Connections of released addresses: gone before the next holder has one, and looked for together."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from felix_py.agent.forgetting import Forgetting
from tests.support.waiting import until

NEVER = 3600.0


class Table:
    """Addresses that have connections. ``slow``: deletions end when it is set."""

    def __init__(self, *busy: str) -> None:
        self.connected = set(busy)
        self.walks = 0
        self.looks: list[set[str]] = []
        self.broken = False
        self.slow = asyncio.Event()
        self.slow.set()

    async def forget(self, addresses: Collection[str]) -> None:
        self.walks += 1
        await self.slow.wait()
        self.connected.difference_update(addresses)

    async def busy(self, networks: Collection[str]) -> set[str]:
        self.looks.append(set(networks))
        await asyncio.sleep(0)
        if self.broken:
            raise OSError(1, "no")
        return set(self.connected)


async def test_released_addresses_share_one_walk() -> None:
    table = Table("10.1.0.1", "10.1.0.2")
    forgetting = Forgetting(table, rest=0.05)
    forgetting.release(["10.1.0.1"])
    forgetting.release(["10.1.0.2"])
    assert table.connected
    await until(lambda: not table.connected)
    assert table.walks == 1
    await forgetting.close()
    assert table.walks == 1


async def test_the_next_holder_waits_for_no_rest() -> None:
    table = Table()
    forgetting = Forgetting(table, NEVER)
    await forgetting.gone(["10.1.0.1"])
    table.connected |= {"10.1.0.1", "10.1.0.2"}
    forgetting.release(["10.1.0.1"])
    forgetting.release(["10.1.0.2"])
    await forgetting.gone(["10.1.0.9"])
    assert table.walks == 0
    await forgetting.gone(["10.1.0.1", "fd00::1"])
    assert not table.connected
    assert table.walks == 1


async def test_the_next_holder_waits_for_a_walk_under_way() -> None:
    table = Table("10.1.0.1")
    forgetting = Forgetting(table, rest=0)
    table.slow.clear()
    forgetting.release(["10.1.0.1"])
    await until(lambda: table.walks > 0)
    next_holder, end = (asyncio.create_task(work) for work in (forgetting.gone(["10.1.0.1"]), forgetting.close()))
    await forgetting.gone(["10.1.0.2"])
    assert not next_holder.done()
    assert not end.done()
    table.slow.set()
    await asyncio.gather(next_holder, end)
    assert not table.connected


async def test_what_an_earlier_life_left_is_found_in_the_table() -> None:
    table = Table("10.1.0.1", "10.1.0.2", "fd00::1")
    forgetting = Forgetting(table, NEVER)
    forgetting.begin(["10.1.0.0/24", "fd00::/112"])
    await forgetting.gone(["10.1.0.3"])
    assert table.connected == {"10.1.0.1", "10.1.0.2", "fd00::1"}  # they may be somebody else's
    await forgetting.gone(["10.1.0.1", "fd00::1"])
    assert table.connected == {"10.1.0.2"}
    await forgetting.gone(["10.7.0.1"])
    assert table.looks == [{"10.1.0.0/16", "fd00::/64"}, {"10.7.0.0/16"}]
    await forgetting.gone(["10.1.0.1"])
    assert table.walks == 1


async def test_a_table_that_cannot_be_read_is_no_reason_to_trust_it() -> None:
    table = Table("10.1.0.1")
    table.broken = True
    forgetting = Forgetting(table, NEVER)
    forgetting.begin(["10.1.0.0/24"])
    await forgetting.gone(["10.1.0.1"])
    assert not table.connected
    await forgetting.gone(["10.1.0.2"])
    assert table.walks == 2
    table.broken = False
    await forgetting.gone(["10.1.0.3"])
    assert table.walks == 2


@pytest.mark.parametrize("due", [[], ["10.1.0.1"]])
async def test_the_end_waits_for_what_is_due(due: list[str]) -> None:
    table = Table("10.1.0.1")
    forgetting = Forgetting(table, NEVER)
    if due:
        forgetting.release(due)
    await forgetting.close()
    assert table.connected == {"10.1.0.1"} - set(due)
