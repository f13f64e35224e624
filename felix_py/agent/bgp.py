"""BGP in the agent: what to announce and what to accept follow the nodes; what is learned becomes facts."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping

from bgp.control import PeerStatus
from bgp.model import BGPConfigError
from felix_py import log
from felix_py.agent.facts import Facts
from felix_py.config import AgentConfig, ConfigError
from felix_py.speaker import Speaker, load_bgp_config


class Bgp:
    """The speaker, or nothing when no BGP is configured."""

    def __init__(self, config: AgentConfig, facts: Facts) -> None:
        """
        Raises:
            ConfigError: the BGP configuration cannot be used.
        """
        self._log = log.get("bgp")
        self._config = config
        self._facts = facts
        self._speaker: Speaker | None = None
        self._running = False
        self._patience = 0.0
        if config.bgp_config is not None:
            self._speaker = Speaker(config.bgp_dir, facts.learned, self._log)
            try:
                # Only looked at here: what the router id defaults to is not known yet.
                found = load_bgp_config(config.bgp_config, router_id="192.0.2.1")
            except BGPConfigError as error:
                raise ConfigError(f"--bgp-config {error}") from None
            self._patience = float(max((peer.max_restart_time for peer in found.peers), default=0))

    async def run(self) -> None:
        """Announce the node's pod CIDRs and learn routes, until cancelled. The dataplane must be in sync."""
        if self._speaker is None or self._config.bgp_config is None:
            return
        try:
            config = load_bgp_config(self._config.bgp_config, router_id=self._router_id())
        except BGPConfigError as error:
            # Policy and local pods do not depend on it.
            self._log.error("BGP does not start", reason=str(error))
            return
        self._running = True
        self.cluster_changed()
        self._speaker.set_config(config)
        await self._speaker.run()

    def _router_id(self) -> str | None:
        """The node's first IPv4 address: what a router id defaults to (RFC 4271, section 4.2)."""
        node = self._facts.node
        for address in node.addresses if node else ():
            if ipaddress.ip_address(address).version == 4:
                return address
        return None

    def cluster_changed(self) -> None:
        """The node's pod CIDRs or the cluster's may be others now."""
        if self._speaker is None or not self._running:
            return
        own = self._facts.pod_cidrs
        self._speaker.set_filter(within=self._facts.cluster_cidrs, never=(*own, *self._config.service_cidrs))
        if own:
            # Without its Node object the agent does not know; it must not take back what works.
            self._speaker.announce(own)

    async def wait_in_sync(self) -> None:
        """Return once learned routes are complete; at once without BGP.

        Whatever happens to sidecar, peers and their answers, it returns after :attr:`patience`.
        """
        if self._speaker is None:
            return
        try:
            async with asyncio.timeout(self.patience):
                await self._speaker.wait_in_sync()
        except TimeoutError:
            self._log.warning(
                "not every peer has told its routes in time; learned routes that none has told of go",
                seconds=self.patience,
            )

    @property
    def patience(self) -> float:
        """Seconds that learned routes from before a restart wait for their peers: the longest ``maxRestartTime``.

        That is as long as they outlive a session (RFC 4724, section 4.1: the Selection_Deferral_Timer).
        """
        return self._patience

    def peers(self) -> list[PeerStatus]:
        """Every configured peer."""
        return self._speaker.peers() if self._speaker else []

    def routes(self) -> Mapping[str, tuple[str, ...]]:
        """The best routes learned."""
        return self._speaker.routes() if self._speaker else {}
