"""The node's pods: their leases and interfaces, the CNI calls, and periodic checks beside the calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from functools import partial

from felix_py import log
from felix_py.agent.keeping import Keeping
from felix_py.agent.loan_book import LoanBook
from felix_py.agent.network import PodNetwork
from felix_py.cni.addresses import NO_CIDR
from felix_py.cni.conflist import is_delegated
from felix_py.cni.delegate import forget
from felix_py.cni.holdings import Holdings
from felix_py.cni.network_list import NetworkList
from felix_py.cni.plugin import Plugin
from felix_py.cni.recovery import recover
from felix_py.cni.server import CNIServer
from felix_py.cni.workers import Interfaces, Leases
from felix_py.config import AgentConfig
from felix_py.dataplane.elsewhere import ElsewhereLookup
from felix_py.dataplane.links import Links
from felix_py.dataplane.uplink import uplink_mtu
from felix_py.ipam.reserved import Reserved
from felix_py.metrics import Metrics
from felix_py.notices import Notices
from felix_py.records import Lease
from policy.model import Namespace, ObjectKey, Pod

_LOOK_INTERVAL = 60.0
"""Seconds between two periodic checks."""


class Mtu:
    """MTU of new pod interfaces, in bytes: as configured, else what the uplinks allow."""

    def __init__(self, configured: int) -> None:
        """``configured``: 0 to look."""
        self._configured = configured
        self._found = 0 if configured else uplink_mtu()

    def __call__(self) -> int:
        return self._configured or self._found

    def set(self, configured: int) -> None:
        """Change the setting. Interfaces that are there keep their MTU."""
        self._configured = configured
        self._found = 0 if configured else uplink_mtu()

    async def look(self, nodes: Sequence[str]) -> None:
        """Determine the MTU anew, from the routes to these nodes' addresses as well."""
        if not self._configured:
            self._found = await asyncio.to_thread(uplink_mtu, nodes)


class Pods:
    """The CNI side of the agent. ``stack`` closes its resources, in reverse order."""

    def __init__(
        self,
        config: AgentConfig,
        stack: AsyncExitStack,
        network: PodNetwork,
        mtu: Mtu,
        notices: Notices,
        metrics: Metrics,
        tell: Callable[[str, str], None],
    ) -> None:
        """Read the leases. ``tell`` writes a warning Event on the Node: reason, text.

        Raises StoreError and OSError as :func:`recover` does.
        """
        self._config = config
        self._stack = stack
        self._mtu = mtu
        self._network = network
        self._list = NetworkList(config.cni_conf_dir, config.cni_bin_dir, config.chained_plugins, notices)
        self._elsewhere = stack.enter_context(closing(ElsewhereLookup()))
        self.reserved = Reserved(self._elsewhere)
        """Addresses that no pod gets without asking for them."""
        with Links() as links:
            database = config.state_dir / "leases.db"
            store, self._alive = recover(database, links, notices.say, elsewhere=self.reserved)
        leases = self._leases = stack.enter_context(closing(Leases(store)))
        self.set_cooldown(config.address_cooldown)
        interfaces = stack.enter_context(closing(Interfaces()))
        self._plugin = Plugin(
            leases,
            interfaces,
            network,
            notices,
            timeout=config.cni_timeout,
            chained=config.chained_plugins,
            tell=tell,
            forget=partial(forget, conf_dir=config.cni_conf_dir, bin_dir=config.cni_bin_dir),
            containers=config.connect_containers,
        )
        self._parts = self._plugin, leases, interfaces, network
        self._server = CNIServer(self._plugin, config.cni_socket, metrics)
        self._keeping: Keeping | None = None
        self._log = log.get("cni")

    async def start(self, attach: Callable[[Lease], None]) -> None:
        """``attach`` the leases whose interface exists, and serve calls. Raises what CNIServer.start does."""
        for lease in self._alive:
            attach(lease)
        await self._server.start()
        self._stack.push_async_callback(self._server.stop)  # again: for those that waited for the reconciler

    @property
    def leases(self) -> Leases:
        """The address store."""
        return self._leases

    def keep(
        self, pod_of: Callable[[ObjectKey], Pod | None], namespaces: Mapping[ObjectKey, Namespace]
    ) -> Keeping:
        """Keep addresses for names of pods from now on; see :class:`Keeping`."""
        path = self._config.state_dir / "kept-addresses.json"
        self._keeping = Keeping(path, self.reserved, self._config.node_name, pod_of, namespaces)
        return self._keeping

    def loan_book(self) -> LoanBook:
        """What this node has lent of its addresses; no pod gets one of these from now on."""
        return LoanBook(self._config.state_dir / "lent-addresses.json", self.reserved, self.leases)

    def set_timeout(self, seconds: float) -> None:
        """Change how long an ADD may wait; those that wait already keep theirs."""
        self._plugin.timeout = seconds

    def set_cooldown(self, seconds: float) -> None:
        """Change how long released addresses rest while others are free."""
        self._leases.set_cooldown(seconds)

    def holdings(self, pods: Callable[[], Iterable[Pod] | None]) -> Holdings:
        """What ``felix-py ipam`` asks; ``pods``: see :class:`Holdings`."""
        return Holdings(*self._parts, pods)

    async def stop_calls(self) -> None:
        """Take no more calls, and finish running ones as far as they get."""
        await self._server.stop()

    def no_addresses(self, cidrs: Sequence[str]) -> str | None:
        """Why no pod can get an address, or None; another IPAM plugin needs no podCIDR."""
        if is_delegated(self._config.cni_conf_dir):
            return None
        return self._network.why_none() or (None if cidrs else NO_CIDR)

    def usage(self, cidrs: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Addresses of each CIDR that pods have, and that they do not have; empty with another IPAM plugin."""
        return {} if is_delegated(self._config.cni_conf_dir) else self._leases.usage(cidrs)

    def resting(self, cidrs: Sequence[str]) -> dict[str, int]:
        """Free addresses of each CIDR that rest; empty with another IPAM plugin."""
        return {} if is_delegated(self._config.cni_conf_dir) else self._leases.resting(cidrs)

    async def tell_the_runtime(self) -> None:
        """Write the network list: pods can be connected from now on."""
        try:
            await self._list.bring_up_to_date()
        except OSError as error:  # the next look tries again
            self._log.error("cannot look after the network list", reason=str(error))

    async def run(self, nodes: Callable[[], Sequence[str]]) -> None:
        """Check every minute until cancelled. ``nodes`` returns the addresses of all nodes."""
        while True:
            try:
                await self._mtu.look(nodes())
                await asyncio.to_thread(self._elsewhere.refresh)
                await self._plugin.look()
                self._network.look()
                if self._keeping:
                    await self._keeping.look(_LOOK_INTERVAL)
                await self._list.bring_up_to_date()
            except Exception:
                # A defect here must not end the agent, which works without these checks.
                self._log.exception("cannot look after the pods' leases")
            await asyncio.sleep(_LOOK_INTERVAL)
