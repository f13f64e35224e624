"""The BGP peers that are held down, in a file beside the sockets: a restart of the agent lets none in earlier.

Times are the monotonic clock's, which goes on through restarts and never jumps; a reboot begins it and the folder
anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bgp.control import Held
from felix_py import log
from felix_py.agent.last_good import Kept


class HeldDown:
    """The file of one agent."""

    def __init__(self, run_dir: Path) -> None:
        self._kept = Kept(run_dir / "bgp-held-down.json")
        self._log = log.get("bgp")

    def read(self) -> dict[str, Held]:
        """Peer -> how it is held down. A damaged file counts as none."""
        fields, problem = self._kept.read()
        if problem:
            self._log.warning("no peer is held down any more", reason=problem)
        return {address: held for address, entry in (fields or {}).items() if (held := _held(entry))}

    def write(self, held: Mapping[str, Held]) -> None:
        """Replace what is kept; where that fails the hold-down ends with the agent's life."""
        try:
            self._kept.write({address: [one.limit, one.until] for address, one in held.items()})
        except OSError as error:
            self._log.warning("cannot keep which peers are held down", reason=str(error))


def _held(entry: Any) -> Held | None:
    match entry:
        case [int(limit), int() | float() as until]:
            return Held(limit, float(until))
    return None
