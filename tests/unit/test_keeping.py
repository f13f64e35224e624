"""Addresses that stay with a pod's name: on disk, for nobody else, and until the claim ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from felix_py.agent.keeping import PATIENCE, Keeping
from felix_py.cni.network import NetworkError
from felix_py.ipam.errors import StoreError
from felix_py.ipam.reserved import Reserved
from felix_py.ipam.resources import IPReservation
from policy.model import Family, Namespace, ObjectKey, Pod
from tests.support.slow_write import slow_first_write

NUMBER = 0x0A000005


class Rig:
    """A node whose agent can be started anew."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state" / "kept.json"
        self.pods: dict[ObjectKey, Pod] = {}
        self.namespaces: dict[ObjectKey, Namespace] = {("", "shop"): Namespace("shop")}
        self.start()

    def start(self) -> None:
        self.reserved = Reserved(lambda _family, _number, _length: None)
        self.keeping = Keeping(self.path, self.reserved, "n1", self.pods.get, self.namespaces)

    @property
    def withheld(self) -> bool:
        found = self.reserved(Family.V4, NUMBER, 24)
        assert found is None or found.how == "kept for pod shop/db-0"
        return found is not None


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    rig.pods["shop", "db-0"] = Pod("shop", "db-0", "u", "n1")
    await rig.keeping.keep("shop", "db-0", ("10.0.0.5", "fd00::5"))
    return rig


async def test_it_outlives_the_agent_and_its_pod(rig: Rig) -> None:
    rig.pods.clear()
    rig.start()
    assert rig.keeping.of("shop", "db-0") == ("10.0.0.5", "fd00::5")
    assert rig.keeping.owner("fd00::5") == "shop/db-0"
    assert rig.keeping.numbers(Family.V4) == [NUMBER]
    assert rig.withheld
    # Reservations come and go beside it.
    rig.reserved.set([IPReservation("r", ("10.0.0.6/32",))])
    assert rig.withheld


async def test_what_a_newer_version_has_kept_is_not_overwritten(rig: Rig) -> None:
    """After going back: whoever gets one of these addresses meanwhile would have it together with the pod."""
    newer = b'{"version": 2, "sha256": "", "fields": [["shop/db-0", "10.0.0.5"]]}'
    rig.path.write_bytes(newer)
    with pytest.raises(StoreError, match=r"kept.json was made by a newer felix-py: install that one again"):
        rig.start()
    assert rig.path.read_bytes() == newer


async def test_another_address_takes_its_place_and_none_ends_it(rig: Rig) -> None:
    await rig.keeping.keep("shop", "db-0", ("10.0.0.9",))
    assert (rig.keeping.owner("10.0.0.5"), rig.keeping.owner("10.0.0.9")) == ("", "shop/db-0")
    assert not rig.withheld
    await rig.keeping.keep("shop", "db-0", ())
    rig.start()
    assert rig.keeping.of("shop", "db-0") == ()


@pytest.mark.parametrize("fails", [False, True])
async def test_two_at_once(rig: Rig, fails: bool) -> None:
    """The write of the first came last, and had nothing of the second."""
    first = slow_first_write(rig.keeping._file, fails=fails)
    one = asyncio.create_task(rig.keeping.keep("shop", "a", ("10.0.0.6",)))
    await asyncio.to_thread(first.wait)
    two = asyncio.create_task(rig.keeping.keep("shop", "b", ("10.0.0.7",)))
    await asyncio.wait([one, two])
    assert isinstance(one.exception(), NetworkError) == fails
    assert two.exception() is None
    kept = [("10.0.0.7",), () if fails else ("10.0.0.6",)]
    assert [rig.keeping.of("shop", name) for name in "ba"] == kept
    rig.start()
    assert [rig.keeping.of("shop", name) for name in "ba"] == kept


@pytest.mark.parametrize("how", ["moved", "no namespace", "long gone"])
async def test_the_claim_ends(rig: Rig, how: str) -> None:
    await rig.keeping.look(60)
    assert rig.withheld
    if how == "moved":
        rig.pods["shop", "db-0"] = Pod("shop", "db-0", "u2", "")
        await rig.keeping.look(60)
        assert rig.withheld
        rig.pods["shop", "db-0"] = Pod("shop", "db-0", "u2", "n2")
        await rig.keeping.look(60)
    elif how == "no namespace":
        rig.namespaces.clear()
        await rig.keeping.look(60)
    else:
        rig.pods.clear()
        await rig.keeping.look(PATIENCE / 2)
        assert rig.withheld
        rig.start()  # which does not begin to count anew
        await rig.keeping.look(PATIENCE / 2)
    assert not rig.withheld
    rig.start()
    assert not rig.withheld


async def test_a_pod_that_comes_again_in_time(rig: Rig) -> None:
    pod = rig.pods.pop(("shop", "db-0"))
    await rig.keeping.look(PATIENCE - 60)
    rig.pods["shop", "db-0"] = pod
    await rig.keeping.look(60)
    del rig.pods["shop", "db-0"]
    await rig.keeping.look(PATIENCE - 60)
    assert rig.withheld


async def test_a_disk_that_cannot_be_written_to(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("felix_py.agent.last_good.replace_file", full)
    with pytest.raises(NetworkError, match="kept addresses cannot be written: No space left"):
        await rig.keeping.keep("shop", "db-1", ("10.0.0.6",))
    assert rig.keeping.of("shop", "db-1") == ()
    assert rig.keeping.of("shop", "db-0") == ("10.0.0.5", "fd00::5")


async def test_a_damaged_file_is_none(rig: Rig) -> None:
    rig.path.write_text("{")
    rig.start()
    assert rig.keeping.of("shop", "db-0") == ()
