"""What other processes cost: CPU time and memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu(pid: int) -> float:
    """Seconds that all threads of a process have run so far."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def share(pid: int) -> float:
    """Bytes of memory: pages that several processes have count in part (PSS)."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return float(fields["Pss"].split()[0]) * 1024


class Cost:
    """CPU time of some processes since now; they must live on."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._before = self._now()

    def _now(self) -> float:
        return sum(map(cpu, self._pids))

    def seconds(self) -> float:
        """CPU seconds so far."""
        return self._now() - self._before

    def memory(self) -> float:
        """Bytes now, of all together."""
        return sum(map(share, self._pids))
