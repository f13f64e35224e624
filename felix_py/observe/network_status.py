"""The agent's state as NodeNetworkStatus (felixpy.io/v1alpha1), for ``kubectl get nns``: small, and bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from bgp.services import Drain, Drained
from bgp.session import LimitState, PeerStatus
from felix_py import log
from felix_py.datastore.status_writer import DRAINED, READY, Offer, StatusWriter
from felix_py.failures import Failures
from felix_py.notices import NoticeKind
from felix_py.observe.peer_events import PeerEvents
from felix_py.observe.status import Status
from felix_py.records import NodeRecord
from felix_py.refs import RouteRef, RoutesRef

_LOOK = 2.0
"""Seconds between two looks."""

_PATIENCE = 10.0
"""Seconds after the start until a status is written that is not ready yet: most starts are over by then."""

_MOST_NOTICES = 20
_LONGEST_NOTICE = 512
_LONGEST_SUBJECT = 253
_LONGEST_MESSAGE = 1024
_LONGEST_ERROR = 160
_PEERS_NAMED = 5
_MOST_PEERS = 32
_KEPT_NAMED = 5

Json = dict[str, Any]


class Telling:
    """Offers the state to the writer every two seconds. On the event loop only."""

    def __init__(
        self,
        status: Status,
        node: Callable[[], NodeRecord | None],
        writer: StatusWriter,
        events: PeerEvents | None = None,
    ) -> None:
        """``node`` returns this node's object, if it is known. ``events``: of its BGP peers."""
        self._status = status
        self._node = node
        self._writer = writer
        self._events = events
        self._log = log.get("node-status")

    async def run(self) -> None:
        """Run until cancelled."""
        patient_until = time.monotonic() + _PATIENCE
        while True:
            try:
                node = self._node()
                if node is not None and (not self._status.unready() or time.monotonic() > patient_until):
                    self._writer.offer(offered(self._status, node.uid))
                if self._events is not None:
                    self._events.look(self._status.bgp.peers())
            except Exception:
                # A defect here must not end the agent.
                self._log.exception("cannot tell the node's status")
            await asyncio.sleep(_LOOK)


def offered(status: Status, owner: str) -> Offer:
    """The state as an offer to the writer. ``owner``: the uid of the Node."""
    peers = status.bgp.peers()
    up = sum(peer.established for peer in peers)
    running = status.running["configuration"]
    conditions = _conditions(status, peers)
    due = sorted(status.configured.restart_due)
    notices = sorted(status.notices.all())[:_MOST_NOTICES]
    body = {
        "conditions": conditions,
        "endpoints": len(status.facts.held),
        "peersEstablished": up,
        "peersConfigured": len(peers),
        "peers": f"{up}/{len(peers)}",
        "bgpPeers": _bgp_peers(peers),
        "routes": status.facts.remote.number,
        "backend": running["backend"],
        "families": [f"ipv{family}" for family in running["families"]],
        "version": version("felix-py"),
        "restartRequired": due,
        "drain": _cut(status.bgp.drained().asked, _LONGEST_SUBJECT),
        "notices": [
            {
                "kind": notice.kind.value,
                "subject": _cut(notice.subject, _LONGEST_SUBJECT),
                "message": _cut(notice.text, _LONGEST_NOTICE),
            }
            for notice in notices
        ],
    }
    verdicts = [(one["type"], one["status"], one["reason"]) for one in conditions]
    states = {(peer.address, peer.established, peer.limit_state) for peer in peers}
    gist = (verdicts, states, due, body["drain"], running, {notice.kind for notice in notices})
    return Offer(owner, body, gist)


def _conditions(status: Status, peers: Sequence[PeerStatus]) -> list[Json]:
    return [
        _ready(status),
        _policy(status),
        _routes(status),
        _peers(peers),
        _limits(peers),
        _announced(peers),
        _bgp(status),
        _settings(status),
        _drained(status.bgp.drained(), peers),
    ]


def _ready(status: Status) -> Json:
    if (reason := status.unready()) is None:
        return _condition(READY, "True", "Ready", "pods can be connected, and policy is wholly in force")
    return _condition(
        READY, "False", "NotReady" if status.cluster.store.in_sync.is_set() else "NotInSync", reason
    )


def _policy(status: Status) -> Json:
    kind = "PolicyInForce"
    if failure := status.reconciler.unenforced:
        return _condition(kind, "False", "WriteFailed", str(failure))
    if unread := status.reconciler.unread:
        return _condition(kind, "Unknown", "KernelUnread", f"the kernel cannot be read back: {unread}")
    if hindered := status.network.unready():
        return _condition(kind, "False", "NotYet", hindered)
    return _condition(kind, "True", "InForce", "all that policy rests on is in the kernel")


def _routes(status: Status) -> Json:
    kind = "RoutesInstalled"
    failed = Failures(one for one in status.reconciler.failures if isinstance(one.ref, RouteRef | RoutesRef))
    if failed:
        first = next(iter(failed))
        return _condition(kind, "False", "WriteFailed", f"{failed.objects} missing; {first}")
    if hindered := status.network.unready():
        return _condition(kind, "Unknown", "NotYet", hindered)
    return _condition(kind, "True", "Installed", "all routes are in the kernel")


def _peers(peers: Sequence[PeerStatus]) -> Json:
    kind = "PeersUp"
    if not peers:
        return _condition(kind, "True", "NoPeers", "no BGP peer is configured")
    down = [peer for peer in peers if not peer.established]
    if not down:
        return _condition(kind, "True", "Established", "all BGP peers are established")
    named = [f"{peer.address} (AS {peer.asn}): {peer.error or 'down'}" for peer in down]
    return _condition(kind, "False", "PeersDown", _some(named))


def _limits(peers: Sequence[PeerStatus]) -> Json:
    kind = "PrefixLimitsKept"
    words = {LimitState.HELD_DOWN: "was over", LimitState.NEAR: "is near"}
    found = [peer for state in words for peer in peers if peer.limit_state is state]
    if not found:
        return _condition(kind, "True", "Within", "no BGP peer is near its limit of prefixes")
    named = [f"{peer.address} {words[peer.limit_state]} its limit of {peer.limit}" for peer in found]
    text = _some(named)
    if found[0].limit_state is LimitState.HELD_DOWN:
        return _condition(kind, "False", "HeldDown", text)
    return _condition(kind, "True", "Near", text)


def _announced(peers: Sequence[PeerStatus]) -> Json:
    kind = "PrefixesAnnounced"
    found = [f"{peer.address}: {peer.refused} are not, {peer.refusal}" for peer in peers if peer.refused]
    if not found:
        return _condition(kind, "True", "Announced", "every session that is up can carry what is to be announced")
    return _condition(kind, "False", "NotAgreed", _some(found))


def _some(peers: Sequence[str]) -> str:
    """What is said of each of some peers, of the first ones only."""
    more = [f"and {len(peers) - _PEERS_NAMED} more"] if len(peers) > _PEERS_NAMED else []
    return "; ".join([*peers[:_PEERS_NAMED], *more])


def _bgp_peers(peers: Sequence[PeerStatus]) -> list[Json]:
    """The peers, those that are down first."""
    shown = sorted(peers, key=lambda peer: (peer.established, peer.name, peer.address))[:_MOST_PEERS]
    return [
        {
            "name": _cut(peer.name, _LONGEST_SUBJECT),
            "address": peer.address,
            "asNumber": peer.asn,
            "state": "Established" if peer.established else "Down",
            "prefixesReceived": peer.received,
            "prefixesAnnounced": peer.announced,
            "lastError": _cut(peer.error, _LONGEST_ERROR),
        }
        for peer in shown
    ]


def _bgp(status: Status) -> Json:
    kind = "BGPInForce"
    kinds = (NoticeKind.BGP, NoticeKind.BGP_RESOURCES)
    if told := [text for one in kinds for _, text in sorted(status.notices.of(one).items())]:
        return _condition(kind, "False", "NotUsable", "; ".join(told))
    return _condition(kind, "True", "InForce", "the speaker has the peers that the API, or the file, declares")


def _settings(status: Status) -> Json:
    kind = "SettingsInForce"
    if told := status.notices.of(NoticeKind.CONFIGURATION):
        return _condition(kind, "False", "NotUsable", "; ".join(text for _, text in sorted(told.items())))
    if due := status.configured.restart_due:
        return _condition(kind, "False", "RestartRequired", f"the agent must start again for {', '.join(due)}")
    return _condition(kind, "True", "InForce", "the agent runs with what its FelixConfigurations say")


def _drained(found: Drained, peers: Sequence[PeerStatus]) -> Json:
    """``felix-py drain`` waits for this."""
    if not found.asked:
        return _condition(DRAINED, "False", "NotAsked", "BGP leads traffic to this node")
    if not peers:
        return _condition(DRAINED, "True", "NoPeers", "no BGP peer is configured: nothing leads traffic here")
    if found.stage is Drain.GRACEFUL:
        words = "routers are asked to use other paths (RFC 8326); in half a minute at most Services are withdrawn"
        return _condition(DRAINED, "False", "AskingRouters", words)
    if not found.sent:
        return _condition(DRAINED, "False", "Withdrawing", "not every peer has been told yet")
    words = "Services are withdrawn; prefixes of pods stay announced, as the last choice"
    if found.kept:
        named = ", ".join(found.kept[:_KEPT_NAMED])
        more = f" and {len(found.kept) - _KEPT_NAMED} more" if len(found.kept) > _KEPT_NAMED else ""
        words += f". So do {named}{more}, until another node has a ready endpoint"
    return _condition(DRAINED, "True", "Withdrawn", words)


def _condition(kind: str, status: str, reason: str, message: str) -> Json:
    return {"type": kind, "status": status, "reason": reason, "message": _cut(message, _LONGEST_MESSAGE)}


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2]} …"
