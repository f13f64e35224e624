"""Steps about blocks: a few at a time, one a block; again after a failure, which is told unless it was a race."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from felix_py import log
from felix_py.agent.pool_notices import PoolNotices
from felix_py.backoff import Backoff
from felix_py.datastore.client import ApiError, Unreachable
from felix_py.ipam.blocks import Act

_SEEN_WITHIN = 2.0
"""Seconds that a watch may take to show what was written, before it is written again."""

_SOON = 0.05
_RETRY = (1.0, 30.0)
_AT_ONCE = 4
_NO_RACE = 5
"""Conflicts in a row, which take a quarter of a minute."""


class Steps:
    """On the event loop only."""

    def __init__(
        self,
        carry_out: Callable[[Act, str], Awaitable[None]],
        ended: Callable[[], None],
        told: PoolNotices,
        file: Path,
    ) -> None:
        """``carry_out`` does one as the node of a uid, and may raise ApiError, Unreachable or OSError. ``file``:
        what it writes to where an OSError names none. ``ended`` is called after each."""
        self._carry_out = carry_out
        self._ended = ended
        self._told = told
        self._file = file
        self._log = log.get("blocks")
        self._tried: dict[Act, float] = {}
        """When each may be tried again, in seconds of the monotonic clock."""
        self._backoffs: dict[str, Backoff] = {}
        self._conflicts: Counter[str] = Counter()
        """In a row, by CIDR."""
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def begin(self, acts: Sequence[Act], node_uid: str) -> None:
        """Begin those that are due. ``acts`` are all that are to be done by now."""
        to_do = {act.cidr for act in acts} | self._under_way.keys()
        self._told.undone(to_do)
        self._conflicts = Counter({cidr: n for cidr, n in self._conflicts.items() if cidr in to_do})
        now = time.monotonic()
        self._tried = {act: at for act, at in self._tried.items() if at > now}
        for act in acts:
            if act not in self._tried and act.cidr not in self._under_way and len(self._under_way) < _AT_ONCE:
                self._under_way[act.cidr] = asyncio.create_task(self._do(act, node_uid))

    def next_in(self) -> float:
        """Seconds until one may be tried again; infinite if none waits."""
        now = time.monotonic()
        return min((max(_SOON, at - now) for at in self._tried.values() if at > now), default=math.inf)

    async def _do(self, act: Act, node_uid: str) -> None:
        backoff = self._backoffs.setdefault(act.cidr, Backoff(*_RETRY))
        delay = _SEEN_WITHIN
        try:
            await self._carry_out(act, node_uid)
            self._backoffs.pop(act.cidr, None)
            self._conflicts.pop(act.cidr, None)
            self._told.failed(act.cidr, "")
        except (ApiError, Unreachable) as error:
            delay = backoff.delay(error.retry_after if isinstance(error, ApiError) else 0.0)
            self._tell_failed(act, error)
        except OSError as error:
            delay = backoff.delay()
            self._told.failed(act.cidr, f"{error.filename or self._file}: {error.strerror}")
        except Exception:
            delay = backoff.delay()
            self._log.exception("cannot do a step", step=act.step.name, cidr=act.cidr)
        finally:
            self._tried[act] = time.monotonic() + delay
            del self._under_way[act.cidr]
            self._ended()

    def _tell_failed(self, act: Act, error: ApiError | Unreachable) -> None:
        """A conflict is a race, whose end the watch will show; many in a row are none."""
        conflict = isinstance(error, ApiError) and error.status in (404, 409)
        (self._log.info if conflict else self._log.warning)(
            "a step is to be done again", step=act.step.name, cidr=act.cidr, reason=str(error)
        )
        self._conflicts[act.cidr] += conflict
        if isinstance(error, ApiError) and (not conflict or self._conflicts[act.cidr] >= _NO_RACE):
            self._told.failed(act.cidr, str(error))
