"""Our old rules in the backend that this node no longer uses; packets pass both rule engines.

Sets are shared by both backends and are left alone: the rules of the backend in use need them.
"""

from __future__ import annotations

from collections.abc import Collection

from felix_py import log
from felix_py.dataplane.backend import OwnProcesses, ToolError, has_legacy_tables
from felix_py.dataplane.iptables import Iptables
from felix_py.dataplane.part import Sweep
from felix_py.records import Backend, Failure
from felix_py.refs import RulesRef
from felix_py.ruleset.model import Body
from policy.model import Family


class OtherBackend:
    """The other backend in the network namespace of the calling thread. One thread at a time."""

    def __init__(self, families: Collection[Family], in_use: Backend, own: OwnProcesses | None = None) -> None:
        """``own`` gets the pids of processes that write for us."""
        self.backend = Backend.LEGACY if in_use is Backend.NFT else Backend.NFT
        self.unreadable = ""
        """Why the backend cannot be read; empty if it can."""
        self._tables: dict[Family, Iptables] = {}
        for family in families:
            if self.backend is Backend.LEGACY and not has_legacy_tables(family):
                continue
            try:
                tables = Iptables(family, self.backend, own)
                tables.load()
            except ToolError as error:
                if self.backend is Backend.LEGACY:
                    self.unreadable = str(error)
                else:  # most likely a host without nf_tables, or without its tools
                    log.get("iptables").debug("cannot look for nft rules of ours", reason=str(error))
                continue
            if tables.owned():
                self._tables[family] = tables

    @property
    def owned(self) -> list[str]:
        """A line for each chain and hook of ours, as found."""
        return [line for tables in self._tables.values() for line in tables.owned()]

    def rules(self, family: Family, table: str, prefix: str) -> list[Body]:
        """The rules of our chains with this prefix."""
        return self._tables[family].rules(table, prefix) if family in self._tables else []

    def take_out(self) -> tuple[Failure, ...]:
        """Remove all our rules; returns what could not be removed, for another call to try again."""
        failures: list[Failure] = []
        for family, tables in list(self._tables.items()):
            try:
                tables.load()
                found = tables.write(Sweep.ALL).failures
            except ToolError as error:
                found = (Failure(RulesRef(family), str(error)),)
            failures += found
            if not found:
                del self._tables[family]
        return tuple(failures)
