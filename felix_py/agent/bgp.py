"""BGP in the agent: announcements and the import filter follow the Nodes; learned routes become facts."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from itertools import islice

from bgp.model import BGPConfigError, SpeakerConfig
from bgp.session import PeerStatus
from felix_py import log
from felix_py.agent.facts import Facts
from felix_py.config import AgentConfig, ConfigError
from felix_py.dataplane.reach import Hosts, Links
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from felix_py.speaker import Speaker, load_bgp_config

_TELL = 1.0
"""Seconds between two updates of the notices."""

_NEXT_HOPS_TOLD = 20
"""Next hops with notices of their own; a peer may announce any number."""


class Bgp:
    """The speaker, or nothing when no BGP is configured."""

    def __init__(self, config: AgentConfig, facts: Facts, notices: Notices, metrics: Metrics) -> None:
        """Raises ConfigError if the BGP configuration is invalid."""
        self._log = log.get("bgp")
        self._config = config
        self._facts = facts
        self._notices = notices
        self._metrics = metrics
        self._speaker: Speaker | None = None
        self._patience = 0.0
        self._links: Links | None = None
        self._hosts: Hosts | None = None
        self._reaching: object = None
        self._linked = asyncio.Event()
        self._ignored_told = 0
        self._problem = "BGP has not started yet"
        if config.bgp_config is not None:
            self._speaker = Speaker(config.bgp_dir, self._learned, self._log)
            try:
                # Only checked here: the default of the router id is not known yet.
                self._configured = load_bgp_config(
                    config.bgp_config, node=config.node_name, router_id="192.0.2.1"
                )
            except BGPConfigError as error:
                raise ConfigError(f"--bgp-config {error}") from None
            self._patience = float(max((peer.max_restart_time for peer in self._configured.peers), default=0))

    async def run(self) -> None:
        """Announce the node's pod CIDRs and learn routes, until cancelled. The dataplane must be in sync."""
        if self._speaker is None:
            return
        async with asyncio.TaskGroup() as tasks:
            config = await self._load()
            # The usable next hops must be known before the first route comes.
            await self._linked.wait()
            self._follow_nodes(self._speaker)
            self._speaker.set_config(config)
            tasks.create_task(self._keep_following(self._speaker))
            tasks.create_task(self._speaker.run())
            tasks.create_task(self._keep_telling())

    async def _load(self) -> SpeakerConfig:
        """Returns the configuration once it is valid: on a node without an IPv4 address it needs a router id."""
        assert self._config.bgp_config is not None
        while True:
            self._facts.nodes_changed.clear()
            try:
                config = load_bgp_config(
                    self._config.bgp_config, node=self._config.node_name, router_id=self._router_id()
                )
            except BGPConfigError as error:
                # Policy and local pods do not depend on it.
                self._problem = f"BGP does not start: {error}"
                text = f"{self._problem}. Mend the file and restart the agent"
                self._notices.say(NoticeKind.BGP, str(self._config.bgp_config), text)
                await self._facts.nodes_changed.wait()
            else:
                self._problem = ""
                self._notices.clear(NoticeKind.BGP, str(self._config.bgp_config))
                return config

    def _router_id(self) -> str | None:
        """The default of the router id: the node's first IPv4 address (RFC 4271, section 4.2)."""
        addresses = self._facts.node.addresses if self._facts.node else ()
        return next((a for a in addresses if ipaddress.ip_address(a).version == 4), None)

    async def _keep_following(self, speaker: Speaker) -> None:
        while True:
            await self._facts.nodes_changed.wait()
            self._follow_nodes(speaker)

    def _follow_nodes(self, speaker: Speaker) -> None:
        self._facts.nodes_changed.clear()
        own = self._facts.own_prefixes
        speaker.set_filter(within=self._facts.cluster_cidrs, never=(*(own or ()), *self._config.service_cidrs))
        self._set_reach()
        if own is not None:
            # An agent that has never seen its Node object must not withdraw prefixes that work.
            speaker.announce(own)

    # --- next hops -----------------------------------------------------------------------------------

    def on_links(self, links: Links) -> None:
        """Take over the host's links; BGP starts once they are known."""
        self._links = links
        self._linked.set()
        self._set_reach()

    def _set_reach(self) -> None:
        if self._speaker is None or self._links is None:
            return
        never = self._facts.no_next_hops
        if self._reaching == (self._links, never):
            return
        self._reaching = (self._links, never)
        self._hosts = hosts = Hosts(self._links, never)
        self._speaker.set_reach(hosts)

    def _learned(self, routes: Mapping[str, tuple[str, ...]]) -> None:
        hosts = self._hosts
        self._facts.learned(routes, lambda gateway: hosts(gateway).interface if hosts else "")

    async def _keep_telling(self) -> None:
        while True:
            self._tell_next_hops()
            await asyncio.sleep(_TELL)

    def _tell_next_hops(self) -> None:
        """Update the notices of unusable next hops."""
        assert self._speaker is not None
        unresolved = self._speaker.unresolved()
        told = {
            next_hop: f"a BGP peer announces routes by next hop {next_hop}, which is not used: {problem}. "
            "Prefixes that have no other next hop are not installed"
            for next_hop, problem in islice(unresolved, _NEXT_HOPS_TOLD)
        }
        if len(unresolved) > _NEXT_HOPS_TOLD:
            told["others"] = "BGP peers announce routes by further next hops that cannot be used"
        self._notices.replace(NoticeKind.NEXT_HOP, told)

    # --- state ---------------------------------------------------------------------------------------

    @property
    def configured(self) -> bool:
        """Whether routes may come from peers."""
        return self._speaker is not None

    async def wait_in_sync(self) -> None:
        """Return once learned routes are complete; at once without BGP.

        It returns after the longest ``maxRestartTime`` in any case: that long learned routes outlive a session
        (RFC 4724, section 4.1: the Selection_Deferral_Timer).
        """
        if self._speaker is None:
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._speaker.wait_in_sync()
        except TimeoutError:
            self._log.warning(
                "not every peer has told its routes in time; learned routes that none has told of go",
                seconds=self._patience,
            )

    def refresh_metrics(self) -> None:
        """Set the metrics, before they are read."""
        peers = self.peers()
        self._metrics.bgp_peers.set(len(peers))
        self._metrics.bgp_established.set(sum(peer.established for peer in peers))
        self._metrics.bgp_routes.set(len(self.routes()))
        if self._speaker:
            self._metrics.bgp_unresolved.set(self._speaker.prefixes_without_next_hop())
            self._metrics.bgp_ignored.inc(self._speaker.ignored - self._ignored_told)
            self._ignored_told = self._speaker.ignored

    def peers(self) -> list[PeerStatus]:
        """Status of every configured peer, with the reason if BGP has not started."""
        if self._speaker is None:
            return []
        if not self._problem:
            return self._speaker.peers()
        return [
            PeerStatus(peer.address, peer.asn, False, 0.0, 0, (f"ipv{peer.version} unicast",), self._problem)
            for peer in self._configured.peers
        ]

    def routes(self) -> Mapping[str, tuple[str, ...]]:
        """The best learned routes: prefix -> next hops."""
        return self._speaker.routes() if self._speaker else {}
