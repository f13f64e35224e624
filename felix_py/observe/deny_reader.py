"""Reads the deny log's NFLOG group and closes its events on time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from felix_py import log
from felix_py.dataplane.nflog import LoggedPacket, NflogError, NflogReader
from felix_py.desired.deny_log import COPIED_BYTES
from felix_py.metrics import Metrics
from felix_py.observe.denies import Denies

_RETRY_SECONDS = 10.0
"""Seconds until a group is tried again, which another process, such as the previous agent, may read."""

NOT_YET = "the agent has just started, and does not know the cluster yet"


class DenyReader:
    """Reads the group on the event loop. If that fails, the agent goes on and packets stay dropped."""

    def __init__(self, group: int, denies: Denies, metrics: Metrics, retry: float = _RETRY_SECONDS) -> None:
        self._group = group
        self._denies = denies
        self._metrics = metrics
        self._retry = retry
        self._log = log.get("denies")
        self._timer: asyncio.TimerHandle | None = None
        self.unavailable: str | None = NOT_YET
        """Why packets are not read at present, or None."""

    async def run(self) -> None:
        """Read until cancelled."""
        try:
            while True:
                try:
                    reader = NflogReader(self._group, COPIED_BYTES, self._note)
                    await self._read(reader)
                except NflogError as error:
                    self._say(str(error))
                except Exception as error:
                    self._log.exception("cannot read denied packets")
                    self._say(repr(error))
                await asyncio.sleep(self._retry)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._denies.close_all()

    def _say(self, reason: str | None) -> None:
        if reason is not None and reason != self.unavailable:
            self._log.error("denied packets are not shown; policy is in force all the same", reason=reason)
        elif reason is None:
            self._log.info("reading denied packets", group=self._group)
        self.unavailable = reason

    async def _read(self, reader: NflogReader) -> None:
        """Read until the socket fails, which raises NflogError."""
        self._say(None)
        self._denies.begin()
        loop = asyncio.get_running_loop()
        broken: asyncio.Future[None] = loop.create_future()
        lost = overruns = 0

        def readable() -> None:
            nonlocal lost, overruns
            try:
                reader.read()
            except OSError as error:
                if not broken.done():
                    broken.set_exception(NflogError(str(error)))
                loop.remove_reader(reader.fileno())
            self._metrics.deny_lost.inc(reader.lost - lost)
            self._denies.lose(reader.lost - lost)
            self._metrics.deny_overruns.inc(reader.overruns - overruns)
            lost, overruns = reader.lost, reader.overruns

        loop.add_reader(reader.fileno(), readable)
        try:
            await broken
        finally:
            loop.remove_reader(reader.fileno())
            reader.close()

    def _note(self, packets: Sequence[LoggedPacket]) -> None:
        try:
            self._denies.note(packets)
        except Exception:
            # A defect of ours with one packet must not lose the others or end the agent.
            self._log.exception("cannot take over denied packets")
        self._schedule()

    def _schedule(self) -> None:
        due = self._denies.next_due()
        if self._timer is None and due is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._close_due)

    def _close_due(self) -> None:
        self._timer = None
        self._denies.close_due()
        self._schedule()
