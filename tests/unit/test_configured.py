"""FelixConfigurations while the agent runs: what changes at once, what needs a restart, what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from felix_py.agent import configured
from felix_py.agent.configured import Configured, StartAnew
from felix_py.agent.last_good import LastGood
from felix_py.agent.starting import Start, settle
from felix_py.config import AgentConfig
from felix_py.datastore.client import Unreachable
from felix_py.datastore.decode import Gone, Unusable
from felix_py.datastore.kinds import CONFIGURATIONS
from felix_py.datastore.store import Mark, Store
from felix_py.layers import Problem
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from felix_py.records import Backend, ConfigurationRecord
from tests.support.configurations import fine, record
from tests.support.waiting import until

LIVE = ("mtu", "log_level")
PATIENCE = 20.0


class Running:
    """The part, with the table that it follows and everything that it does to others."""

    def __init__(self, begun: Start, judge: Callable[[str, Any], str]) -> None:
        self.table = Store().own(CONFIGURATIONS)
        self.notices = Notices(Metrics())
        self.applied: list[tuple[str, Any]] = []
        self.warned: list[Problem] = []
        live = {name: self._takes(name) for name in LIVE}
        self.part = Configured(begun, self.table, live, judge, self.notices, self.warned.append)

    def _takes(self, name: str) -> Callable[[Any], None]:
        return lambda value: self.applied.append((name, value))

    def say(self, kind: NoticeKind) -> dict[str, str]:
        return dict(self.notices.of(kind))

    async def until(self, condition: Callable[[], object]) -> None:
        await until(condition, PATIENCE)

    async def listed(self, *found: ConfigurationRecord) -> None:
        self.table.apply([Mark.LIST_BEGIN, *found, Mark.LIST_END])
        await self.until(lambda: not self.table.changed.is_set())


@asynccontextmanager
async def running(
    folder: Path,
    *found: ConfigurationRecord,
    away: bool = False,
    judge: Callable[[str, Any], str] = fine,
    given: tuple[str, ...] = (),
    **base: Any,
) -> AsyncIterator[Running]:
    def read(_config: AgentConfig) -> list[ConfigurationRecord]:
        if away:
            raise Unreachable("refused")
        return list(found)

    begun = settle(AgentConfig(node_name="n1", state_dir=folder, **base), given, read, judge)
    run = Running(begun, judge)
    task = asyncio.create_task(run.part.run())
    try:
        yield run
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def copied(folder: Path) -> Any:
    return LastGood(folder).read().values


async def test_live_settings_change_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.listed(record("default", mtu=1400))
        await run.until(lambda: copied(tmp_path) == {"mtu": 1400})
        assert run.applied == [("mtu", 1400)]
        assert run.part.config.mtu == 1400
        assert run.part.sources == {"mtu": "default"}
        await run.listed(record("node.n1", mtu=1300), record("default", mtu=1400))
        await run.until(lambda: run.applied[-1] == ("mtu", 1300))
        await run.listed()
        await run.until(lambda: run.applied[-1] == ("mtu", 0))
        assert run.part.restart_due == ()
        await run.until(lambda: copied(tmp_path) == {})


async def test_others_need_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path, record("default", natOutgoing=False)) as run:
        await run.listed(record("default", natOutgoing=True, dropInvalid=False))
        await run.until(lambda: run.part.restart_due == ("natOutgoing", "dropInvalid"))
        assert run.part.config.nat_outgoing is False, "what runs, runs on"
        await run.until(lambda: run.say(NoticeKind.RESTART_DUE).keys() == {"natOutgoing", "dropInvalid"})
        assert "rollout restart" in run.say(NoticeKind.RESTART_DUE)["natOutgoing"]
        await run.listed(record("default", natOutgoing=False))
        await run.until(lambda: not run.say(NoticeKind.RESTART_DUE))
        assert run.part.restart_due == ()


async def test_what_is_given_stays(tmp_path: Path) -> None:
    async with running(tmp_path, given=("mtu", "drop_invalid"), mtu=1280) as run:
        await run.listed(record("default", mtu=1400, dropInvalid=False, denyLog=False))
        await run.until(lambda: run.part.restart_due == ("denyLog",))
        assert run.applied == []


async def test_a_wrong_value_leaves_the_last_good_one_and_is_told(tmp_path: Path) -> None:
    async with running(tmp_path, record("default", mtu=1400)) as run:
        await run.listed(record("default", mtu=1, logSeverityScreen="Debug"))
        await run.until(lambda: run.say(NoticeKind.CONFIGURATION))
        assert run.part.config.mtu == 1400
        assert run.applied == [("log_level", "debug")]
        (text,) = run.say(NoticeKind.CONFIGURATION).values()
        assert text.startswith("FelixConfiguration default: mtu: 1: IPv4 needs 68 at least")
        assert [str(problem) for problem in run.warned] == [
            "mtu: 1: IPv4 needs 68 at least and the kernel takes 65535 at most"
        ]
        assert copied(tmp_path)["mtu"] == 1400
        await run.listed(record("default", mtu=1, logSeverityScreen="Info"))
        await run.until(lambda: run.applied[-1] == ("log_level", "info"))
        assert len(run.warned) == 1, "one Event for one problem"
        await run.listed(record("default", mtu=1300))
        await run.until(lambda: not run.say(NoticeKind.CONFIGURATION))
        assert run.part.config.mtu == 1300


async def test_what_only_the_node_can_judge(tmp_path: Path) -> None:
    def judge(name: str, value: Any) -> str:
        return "not on this node" if value is Backend.NFT and name == "backend" else ""

    async with running(tmp_path, record("default", iptablesBackend="Legacy"), judge=judge) as run:
        await run.listed(record("default", iptablesBackend="NFT"))
        await run.until(lambda: run.warned)
        assert run.part.config.backend is Backend.LEGACY
        assert run.part.restart_due == ()


async def test_rubbish_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, record("default", mtu=1400)) as run:
        spoilt = CONFIGURATIONS.single(b'{"metadata": {"name": "default", "uid": "u"}, "spec": {"mtu": \x01}}')
        named = CONFIGURATIONS.single(b'{"metadata": {"name": "default", "uid": "u"}, "spec": 5}')
        assert isinstance(named, ConfigurationRecord)
        await run.listed(named)
        await run.until(lambda: run.warned)
        assert run.part.config.mtu == 1400
        assert run.applied == []
        assert isinstance(spoilt, ConfigurationRecord)
        run.table.apply([spoilt])
        await run.until(lambda: len(run.warned) == 2)
        run.table.apply([Unusable(("", "default"), "u", "brackets do not match")])
        await run.until(lambda: len(run.warned) == 3)
        assert run.part.config.mtu == 1400
        assert run.applied == []
        assert copied(tmp_path) == {"mtu": 1400}


async def test_half_a_list_is_not_taken_over(tmp_path: Path) -> None:
    async with running(tmp_path, record("node.n1", mtu=1300), record("default", mtu=1400)) as run:
        run.table.apply([Mark.LIST_BEGIN, record("default", mtu=1400)])
        await asyncio.sleep(0.05)
        assert run.applied == []
        run.table.apply([record("node.n1", mtu=1300), Mark.LIST_END])
        await run.until(lambda: copied(tmp_path) == {"mtu": 1300})
        assert run.applied == []


async def test_one_that_goes_leaves_what_is_below(tmp_path: Path) -> None:
    async with running(tmp_path, record("node.n1", mtu=1300), record("default", mtu=1400)) as run:
        await run.listed(record("node.n1", mtu=1300), record("default", mtu=1400))
        run.table.apply([Gone(("", "node.n1"))])
        await run.until(lambda: run.applied == [("mtu", 1400)])


async def test_a_start_on_the_copy_is_said_until_the_objects_are_read(tmp_path: Path) -> None:
    LastGood(tmp_path).write({"mtu": 1400, "nat_outgoing": False})
    async with running(tmp_path, away=True) as run:
        assert "last good copy" in run.say(NoticeKind.CONFIGURATION)["not read"]
        assert run.part.config.mtu == 1400
        await run.part.settled()  # it does not wait
        await run.listed(record("default", mtu=1400))
        await run.until(lambda: run.part.restart_due == ("natOutgoing",))
        await run.until(lambda: not run.say(NoticeKind.CONFIGURATION))
        await run.until(lambda: copied(tmp_path) == {"mtu": 1400})


async def test_a_start_on_nothing_begins_anew_if_the_objects_say_otherwise(tmp_path: Path) -> None:
    async with running(tmp_path, away=True) as run:
        waiting = asyncio.create_task(run.part.settled())
        await run.listed(record("default", defaultEndpointToHostAction="Drop"))
        with pytest.raises(StartAnew, match="defaultEndpointToHostAction"):
            await waiting
        assert copied(tmp_path) == {"endpoint_to_host": "drop"}, "the next start knows it in any case"


@pytest.mark.parametrize("found", [(), (record("default", mtu=1400),)], ids=["none", "live"])
async def test_and_goes_on_if_they_do_not(tmp_path: Path, found: tuple[ConfigurationRecord, ...]) -> None:
    async with running(tmp_path, away=True) as run:
        waiting = asyncio.create_task(run.part.settled())
        await run.listed(*found)
        await waiting


async def test_who_may_not_read_them_waits_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configured, "_GRACE", 2.0)
    async with running(tmp_path, away=True) as run:
        await run.part.settled()
        assert copied(tmp_path) == {}
    monkeypatch.setattr(configured, "_GRACE", 1000.0)
    async with running(tmp_path, away=True) as run:
        await run.part.settled()


async def test_who_read_them_does_not_wait(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.part.settled()


async def test_a_full_disk_is_said_and_changes_take_effect(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with running(state) as run:
        state.write_text("a file, where a folder should be")
        await run.listed(record("default", mtu=1400))
        await run.until(lambda: "copy" in run.say(NoticeKind.CONFIGURATION))
        assert run.applied == [("mtu", 1400)]
        state.unlink()
        await run.listed(record("default", mtu=1300))
        await run.until(lambda: not run.say(NoticeKind.CONFIGURATION))
        assert copied(state) == {"mtu": 1300}


async def test_a_defect_does_not_end_it(tmp_path: Path) -> None:
    failing = [True]

    def judge(name: str, value: Any) -> str:
        if failing and name == "mtu" and value == 1400:
            raise RuntimeError("a defect")
        return ""

    async with running(tmp_path, judge=judge) as run:
        await run.listed(record("default", mtu=1400))
        failing.clear()
        await run.listed(record("default", mtu=1401))
        await run.until(lambda: run.applied == [("mtu", 1401)])
