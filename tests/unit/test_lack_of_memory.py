"""What breaks off halfway, for want of memory or by a defect, is never taken for whole."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from felix_py.agent import memory
from felix_py.dataplane.fake import FakeDataplane
from felix_py.datastore.kinds import PODS
from felix_py.datastore.store import Mark, Store
from felix_py.desired.planner import Planner
from felix_py.records import Update
from policy.model import Pod
from tests.unit.test_agent_network import DENY, Rig, lease


class Breaking(FakeDataplane):
    """Takes up half of an update, and breaks off."""

    def __init__(self) -> None:
        super().__init__()
        self.breaks = False

    def update(self, update: Update) -> None:
        if self.breaks:
            self.breaks = False
            super().update(Update(sets=update.sets, members=update.members))
            raise RuntimeError("half of it")
        super().update(update)


async def test_an_update_that_was_taken_up_by_half_is_told_again() -> None:
    kernel = Breaking()
    async with Rig(kernel) as rig:
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        await rig.network.enforce(lease())
        before = set(kernel.chains)
        kernel.breaks = True
        rig.facts.upsert(DENY)
        while not kernel.chains.keys() - before:
            assert not rig.task.done()
            await asyncio.sleep(0.005)
        await rig.reconciler.settled()
        assert rig.reconciler.unenforced is None


async def test_without_memory_for_the_plan_the_reconciler_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the planner had taken from the facts is in neither: to go on would be to forget it."""

    def policy(*_: object) -> None:
        raise MemoryError

    async with Rig() as rig:
        monkeypatch.setattr(Planner, "policy", policy)
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        rig.facts.attach(lease())
        rig.facts.upsert(DENY)
        await asyncio.wait((rig.task,))
        assert memory.is_lack(rig.task.exception())


async def test_a_consumer_without_memory_is_not_passed_over() -> None:
    """It may know of half of the events. Whoever calls the table ends the process (felix_py/agent/memory.py)."""

    def handler(_events: object) -> None:
        raise MemoryError

    store = Store()
    store.subscribe(handler)
    with pytest.raises(MemoryError):
        store.pods.apply([Mark.LIST_BEGIN, Pod("shop", "web", "u1", "n1"), Mark.LIST_END])


def test_an_object_that_there_is_no_memory_for_is_not_called_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unusable object is taken out of the table: the policy of that name would be gone."""

    def convert(_decoded: object) -> Pod:
        raise MemoryError

    monkeypatch.setattr(PODS, "_convert", convert)
    with pytest.raises(MemoryError):
        PODS.change(b'{"type":"ADDED","object":{"metadata":{"name":"a","namespace":"b","uid":"u"}}}')


_LOOP = """
import asyncio
from felix_py import log
from felix_py.agent import memory
log.configure(log.LogLevel.INFO, log.LogFormat.JSON, node="n1")

def callback():
    raise MemoryError

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(memory.unhandled)
    loop.call_soon(callback)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_callback_without_memory_ends_the_process_with_a_sentence() -> None:
    done = subprocess.run([sys.executable, "-c", _LOOP], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "out of memory" in done.stderr


_THREAD = """
import threading
from felix_py import log
from felix_py.agent import memory
log.configure(log.LogLevel.INFO, log.LogFormat.JSON, node="n1")
memory.guard()

class Thread(threading.Thread):
    def {where}(self):
        raise MemoryError

thread = Thread()
thread.start()
thread.join()
threading.Event().wait()
"""


@pytest.mark.parametrize("where", ["_bootstrap_inner", "run"])
def test_a_thread_that_dies_for_want_of_memory_is_not_waited_for(where: str) -> None:
    """As it begins (whoever started it would wait for ever that it says so), or later."""
    program = _THREAD.format(where=where)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "out of memory" in done.stderr
