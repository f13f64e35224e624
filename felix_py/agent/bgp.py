"""BGP in the agent: announcements and the import filter follow the Nodes; learned routes become facts."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from bgp.announcement import Announcement
from bgp.fields import BGPConfigError
from bgp.model import SpeakerConfig
from bgp.resources import BGPConfiguration
from bgp.rib import Explained
from bgp.services import Drained
from bgp.session import LimitState, PeerStatus
from bgp.sidecar import CONFIG, RUNNING
from bgp.trace import Traced
from felix_py import log
from felix_py.agent.announcing import Announcing
from felix_py.agent.bgp_declared import DeclaredBgp
from felix_py.agent.declared_pools import DeclaredPools
from felix_py.agent.facts import Facts
from felix_py.agent.held_down import HeldDown
from felix_py.agent.service_prefixes import Objects
from felix_py.bgp_file import load_bgp_config
from felix_py.config import AgentConfig, ConfigError
from felix_py.dataplane.reach import Hosts, Links
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from felix_py.speaker import Speaker
from policy.model import Family

_TELL = 1.0
"""Seconds between two updates of the notices."""

_NOBODY = SpeakerConfig(asn=1, router_id="0.0.0.1")
"""For a sidecar that still has the peers of an earlier life, while none are declared any more."""

_NEXT_HOPS_TOLD = 20
"""Next hops with notices of their own; a peer may announce any number."""


class Bgp:
    """The speaker, or nothing when no BGP is configured."""

    def __init__(
        self,
        config: AgentConfig,
        facts: Facts,
        families: tuple[Family, ...],
        notices: Notices,
        metrics: Metrics,
        services: Objects,
        declared: DeclaredBgp | None = None,
        pools: DeclaredPools | None = None,
    ) -> None:
        """``services``, ``pools``: the cluster's. ``declared``: the peers of a node that has none in a file.

        Raises ConfigError if the BGP configuration is invalid.
        """
        self._log = log.get("bgp")
        self._config = config
        self._facts = facts
        self._notices = notices
        self._metrics = metrics
        self._declared = declared
        self._speaker: Speaker | None = None
        self._patience = 0.0
        self._links: Links | None = None
        self._hosts: Hosts | None = None
        self._reaching: object = None
        self._linked = asyncio.Event()
        self._ignored_told = 0
        self._hangs_told = 0
        self._problem = ""
        self._announcing: Announcing | None = None
        if config.bgp_config is not None or declared is not None:
            self._held = HeldDown(config.run_dir)
            self._speaker = Speaker(config.bgp_dir, self._learned, self._log, self._held.write)
            self._speaker.hold(self._held.read())
            self._announcing = Announcing(facts, services, families, notices, self._speaker, pools)
        if config.bgp_config is not None:
            self._problem = "BGP has not started yet"
            try:
                # Only checked here: the default of the router id is not known yet.
                self._configured = load_bgp_config(
                    config.bgp_config, node=config.node_name, router_id="192.0.2.1"
                )
            except BGPConfigError as error:
                raise ConfigError(f"--bgp-config {error}") from None
            self._patience = _patience(self._configured)

    async def follow_declared(self) -> None:
        """Follow what the API declares, until cancelled. All Nodes must be known."""
        if self._declared is not None:
            await self._declared.run()

    async def run(self) -> None:
        """Announce the node's pod CIDRs and learn routes, until cancelled. The dataplane must be in sync."""
        async with asyncio.TaskGroup() as tasks:
            if self._announcing is None or self._speaker is None:
                return
            tasks.create_task(self._announcing.run_drops())
            config = await self._first(self._announcing)
            # The usable next hops must be known before the first route comes.
            await self._linked.wait()
            self._announcing.configure(self._configuration)
            self._follow_nodes(self._speaker, self._announcing)
            self._speaker.set_config(config)
            tasks.create_task(self._keep_following(self._speaker, self._announcing))
            tasks.create_task(self._announcing.run())
            tasks.create_task(self._speaker.run())
            tasks.create_task(self._keep_telling(self._speaker))
            tasks.create_task(self._keep_declared(config, self._speaker, self._announcing))

    async def _first(self, announcing: Announcing) -> SpeakerConfig:
        """The configuration once there is one: of the file, else of the API."""
        if self._config.bgp_config is not None or self._declared is None:
            return await self._load()
        await self._declared.decided.wait()
        while (config := self._declared.speaker) is None:
            # Which is not certain before all kinds are listed, and the API server may take its time.
            if self._declared.nothing:
                if self._sidecar_has_a_configuration:
                    return _NOBODY
                announcing.nowhere()
            self._declared.changed.clear()
            await self._declared.changed.wait()
        return config

    @property
    def _sidecar_has_a_configuration(self) -> bool:
        return any((self._config.bgp_dir / name).exists() for name in (CONFIG, RUNNING))

    async def _keep_declared(self, config: SpeakerConfig, speaker: Speaker, announcing: Announcing) -> None:
        """Take over what the API declares; once it declares nothing any more, there is no peer."""
        if self._config.bgp_config is not None or self._declared is None:
            return
        while True:
            config = self._declared.speaker or replace(config, peers=())
            announcing.configure(self._configuration)
            self._set_reach()
            self._set_filter(speaker, announcing)
            speaker.set_config(config)
            self._declared.changed.clear()
            await self._declared.changed.wait()

    @property
    def _configuration(self) -> BGPConfiguration:
        """What is said beside the peers; a peers file knows nothing of that."""
        if self._declared is None or self._config.bgp_config is not None:
            return BGPConfiguration(name="default")
        return self._declared.configuration

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

    async def _keep_following(self, speaker: Speaker, announcing: Announcing) -> None:
        while True:
            await self._facts.nodes_changed.wait()
            self._follow_nodes(speaker, announcing)

    def _follow_nodes(self, speaker: Speaker, announcing: Announcing) -> None:
        self._facts.nodes_changed.clear()
        self._set_filter(speaker, announcing)
        self._set_reach()
        announcing.review()

    def _set_filter(self, speaker: Speaker, announcing: Announcing) -> None:
        own, services = self._facts.never_learned, announcing.prefixes.ranges()
        never = (*own, *self._config.service_cidrs, *services)
        speaker.set_filter(within=self._facts.cluster_cidrs, never=never)

    # --- next hops -----------------------------------------------------------------------------------

    def on_links(self, links: Links) -> None:
        """Take over the host's links; BGP starts once they are known."""
        self._links = links
        self._linked.set()
        self._set_reach()

    def _set_reach(self) -> None:
        if self._speaker is None or self._links is None:
            return
        never, ignored = self._facts.no_next_hops, self._configuration.ignored_interfaces or ()
        if self._reaching == (self._links, never, ignored):
            return
        self._reaching = (self._links, never, ignored)
        self._hosts = hosts = Hosts(self._links, never, ignored)
        self._speaker.set_reach(hosts)

    def _learned(self, routes: Mapping[str, tuple[str, ...]]) -> None:
        assert self._speaker is not None
        hosts = self._hosts
        self._facts.learned(
            routes, lambda gateway: hosts(gateway).interface if hosts else "", self._speaker.priority
        )

    async def _keep_telling(self, speaker: Speaker) -> None:
        while True:
            self._tell_next_hops()
            self._notices.tell(NoticeKind.BGP, "ExaBGP", speaker.hindrance)
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

    async def expected(self) -> bool:
        """Whether peers may teach routes: known within ten seconds of :meth:`follow_declared`'s start."""
        if self._config.bgp_config is not None or self._declared is None:
            return self._speaker is not None
        await self._declared.decided.wait()
        return self._declared.speaker is not None

    async def wait_in_sync(self) -> None:
        """Return once learned routes are complete; at once without BGP.

        It returns after the longest ``maxRestartTime`` in any case: that long learned routes outlive a session
        (RFC 4724, section 4.1: the Selection_Deferral_Timer).
        """
        if self._speaker is None:
            return
        if self._config.bgp_config is None and self._declared is not None:
            await self._declared.decided.wait()
            if self._declared.speaker is None:
                return
            self._patience = _patience(self._declared.speaker)
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
        self._set_peers(peers)
        self._metrics.bgp_routes.set(len(self.routes()))
        if self._speaker:
            self._metrics.bgp_unresolved.set(self._speaker.prefixes_without_next_hop())
            self._metrics.bgp_ignored.inc(self._speaker.ignored - self._ignored_told)
            self._metrics.bgp_hangs.inc(self._speaker.hangs - self._hangs_told)
            self._ignored_told, self._hangs_told = self._speaker.ignored, self._speaker.hangs

    def _set_peers(self, peers: Sequence[PeerStatus]) -> None:
        """By peer; those that have left are left out."""
        up, received = self._metrics.bgp_peer_up, self._metrics.bgp_peer_received
        announced = self._metrics.bgp_peer_announced
        limit, held = self._metrics.bgp_peer_limit, self._metrics.bgp_peer_held_down
        for gauge in (up, received, announced, limit, held):
            gauge.clear()
        for peer in peers:
            up.labels(peer.address).set(peer.established)
            received.labels(peer.address).set(peer.received)
            announced.labels(peer.address).set(peer.announced)
            limit.labels(peer.address).set(peer.limit)
            held.labels(peer.address).set(peer.limit_state is LimitState.HELD_DOWN)

    def peers(self) -> list[PeerStatus]:
        """Status of every configured peer, with the reason if BGP has not started."""
        if self._speaker is None:
            return []
        if not self._problem:
            return self._speaker.peers()
        return [
            PeerStatus(peer.key, peer.asn, False, 0.0, 0, (f"ipv{peer.version} unicast",), self._problem)
            for peer in self._configured.peers
        ]

    def dropped(self) -> frozenset[str] | None:
        """The Service prefixes whose packets are dropped where no Service takes them; None: not known yet."""
        return self._announcing.dropped if self._announcing else frozenset()

    def drained(self) -> Drained:
        """How far the drain of this node is."""
        if self._announcing is not None:
            return self._announcing.drained()
        return Drained(self._facts.node.drain if self._facts.node else "")

    def routes(self) -> Mapping[str, tuple[str, ...]]:
        """The best learned routes: prefix -> next hops."""
        return self._speaker.routes() if self._speaker else {}

    def priority(self, prefix: str) -> int:
        """The metric of a learned route, as a BGPFilter has set it; 0: the kernel's default."""
        return self._speaker.priority(prefix) if self._speaker else 0

    def trace(self, listener: Callable[[Traced], None] | None) -> None:
        """Have events told to a listener, which must only take note; None: to nobody."""
        if self._speaker:
            self._speaker.trace(listener)

    def announced(self) -> Mapping[str, Mapping[str, Announcement | None]]:
        """Peer -> what it is told, by prefix, of those whose session is up."""
        return self._speaker.announced() if self._speaker else {}

    def refused(self) -> Mapping[str, Mapping[str, str]]:
        """Peer -> what it cannot be told, by prefix, and why, of those whose session is up."""
        return self._speaker.refused() if self._speaker else {}

    def explain(self, prefix: str) -> list[Explained]:
        """Every path to a prefix, the best one first. Canonical prefix."""
        return self._speaker.explain(prefix) if self._speaker else []

    @property
    def in_sync(self) -> bool:
        """Whether every peer has sent its whole table, or had time to."""
        return self._speaker is None or self._speaker.in_sync


def _patience(config: SpeakerConfig) -> float:
    return float(max((peer.max_restart_time for peer in config.peers), default=0))
