"""The node's pods: their leases, their interfaces, the CNI calls about them, and what no call tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from felix_py import log
from felix_py.agent.network import PodNetwork
from felix_py.cni.conflist import is_delegated
from felix_py.cni.network_list import NetworkList
from felix_py.cni.plugin import NO_CIDR, Plugin
from felix_py.cni.recovery import recover
from felix_py.cni.server import CNIServer
from felix_py.cni.workers import Interfaces, Leases
from felix_py.config import AgentConfig
from felix_py.dataplane.elsewhere import ElsewhereLookup
from felix_py.dataplane.links import Links
from felix_py.dataplane.uplink import uplink_mtu
from felix_py.metrics import Metrics
from felix_py.notices import Notices
from felix_py.records import Lease

_LOOK_INTERVAL = 60.0
"""Seconds between two looks at what no CNI call tells of."""


class Pods:
    """The CNI side of the agent. ``stack`` takes what must be closed, in reverse order."""

    def __init__(self, config: AgentConfig, stack: AsyncExitStack, metrics: Metrics, notices: Notices) -> None:
        self._config = config
        self._stack = stack
        self._metrics = metrics
        self._notices = notices
        self._mtu = config.mtu
        self._list = NetworkList(config.cni_conf_dir, config.cni_bin_dir, config.chained_plugins, notices)
        self._server: CNIServer | None = None
        self._log = log.get("cni")

    def mtu(self) -> int:
        """MTU of new pod interfaces, in bytes."""
        return self._mtu

    async def start(self, network: PodNetwork, attach: Callable[[Lease], None]) -> None:
        """Read the leases, ``attach`` those whose interface is there, and answer calls from now on.

        Raises:
            StoreError, SocketInUse, OSError: see :func:`recover` and :meth:`CNIServer.start`.
        """
        config = self._config
        self._mtu = self._mtu or uplink_mtu()
        with Links() as links:
            store, alive = recover(config.state_dir / "leases.db", links, self._notices.say)
        store.elsewhere = self._elsewhere = ElsewhereLookup()
        self._stack.callback(self._elsewhere.close)
        leases = Leases(store)
        self._stack.callback(leases.close)
        interfaces = Interfaces()
        self._stack.callback(interfaces.close)
        self._plugin = Plugin(
            leases,
            interfaces,
            network,
            self._notices,
            timeout=config.cni_timeout,
            chained=config.chained_plugins,
        )
        for lease in alive:
            attach(lease)
        self._server = CNIServer(self._plugin, config.cni_socket, self._metrics)
        await self._server.start()
        self._stack.push_async_callback(self._server.stop)  # again: for those that waited for the reconciler

    async def stop_calls(self) -> None:
        """Take no more calls, and finish those under way as far as they come."""
        if self._server is not None:
            await self._server.stop()

    def no_addresses(self, cidrs: Sequence[str]) -> str | None:
        """Why no pod can get an address, or None; another IPAM plugin needs no podCIDR."""
        return None if cidrs or is_delegated(self._config.cni_conf_dir) else NO_CIDR

    async def tell_the_runtime(self) -> None:
        """Pods can be connected from now on."""
        try:
            await self._list.bring_up_to_date()
        except OSError as error:  # the next look tries again
            self._log.error("cannot look after the network list", reason=str(error))

    async def run(self, nodes: Callable[[], Sequence[str]]) -> None:
        """Look every minute, until cancelled. ``nodes``: the addresses of all nodes."""
        while True:
            try:
                if not self._config.mtu:
                    self._mtu = await asyncio.to_thread(uplink_mtu, nodes())
                await asyncio.to_thread(self._elsewhere.refresh)
                await self._plugin.look()
                await self._list.bring_up_to_date()
            except Exception:
                # A defect of ours here must not cost the agent, which works without.
                self._log.exception("cannot look after the pods' leases")
            await asyncio.sleep(_LOOK_INTERVAL)
