"""exabgp.conf: the text for a speaker, in two parts.

The agent writes the neighbors, the sidecar prepends the process section: only the sidecar knows the paths of its
Python and bridge. Values come from :mod:`bgp.model`, which refuses all that would need quoting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bgp.bfd import settings
from bgp.model import Peer, SpeakerConfig

PROCESS = "agent"
"""Name of the helper process, :mod:`bgp.bridge`."""

KEEPALIVE = "keepalive"
"""Before the seconds, in the description of a neighbor that has a keepalive time of its own."""

_LISTEN = "# felix-py listen-port "
_PLAIN_WORD = re.compile(r"[\w./+:@%=~-]+", re.ASCII)

_TEMPLATE = f"""\
template {{
  neighbor node {{
    group-updates true;
    adj-rib-in true;
    adj-rib-out true;
    manual-eor true;
    md5-base64 false;
    api {{
      processes [ {PROCESS} ];
      neighbor-changes;
      receive {{ parsed; open; update; notification; refresh; }}
    }}
  }}
}}
"""
# adj-rib-in and adj-rib-out: a restarted agent reads both from ExaBGP, and without an agent ExaBGP itself
# announces again when a session comes back. manual-eor: only the agent knows when everything is announced; an
# automatic end-of-RIB would empty the peer's table. No `negotiated`: it would be repeated in every update.


def render(config: SpeakerConfig, peers: Sequence[Peer]) -> str:
    """The agent's part: template and neighbors. Each peer needs its ``source_address``: with ``auto``, ExaBGP
    does not know "next-hop self" before it has connected by itself, nor after a reload."""
    neighbors = "".join(_neighbor(config, peer) for peer in peers)
    listen = " ".join((str(config.listen_port), *config.listen_addresses))
    return f"{_LISTEN}{listen}\n{settings.lines(peers)}{_TEMPLATE}{neighbors}"


def listen_on(text: str) -> tuple[int, tuple[str, ...]]:
    """Port and addresses to listen on that :func:`render` noted for the sidecar; no addresses: on all.

    ExaBGP takes both from its environment.
    """
    match = re.search(rf"^{_LISTEN}(\d{{1,5}})((?: [0-9a-f.:]+)*)$", text, re.ASCII | re.MULTILINE)
    return (int(match[1]), tuple(match[2].split())) if match else (0, ())


def process_section(python: Path, bridge: Path, socket: Path) -> str:
    """The sidecar's part. ``-I -S``: the helper needs the standard library only, and starts in half the time.

    Raises ValueError for a path that would need quoting.
    """
    words = [str(python), "-I", "-S", str(bridge), str(socket)]
    for word in words:
        if not _PLAIN_WORD.fullmatch(word):
            raise ValueError(f"{word!r}: ExaBGP's configuration cannot hold this path; use plain characters")
    return f"process {PROCESS} {{\n  run {' '.join(words)};\n  encoder json;\n}}\n"


def _neighbor(config: SpeakerConfig, peer: Peer) -> str:
    lines = [
        "inherit node",
        f"router-id {config.router_id}",
        f"local-address {peer.source_address}",
        f"local-as {peer.local_asn}",
        f"peer-as {peer.asn}",
        f"hold-time {peer.hold_time}",
        f"connect {peer.port}",
        f"passive {'true' if peer.passive else 'false'}",
    ]
    if peer.keepalive_time:
        # For :mod:`bgp.launch`: ExaBGP itself has no option for it.
        lines.append(f'description "{KEEPALIVE} {peer.keepalive_time}"')
    if peer.password:
        lines.append(f'md5-password "{peer.password}"')
    if peer.ttl_security:
        # RFC 5082: send with TTL 255, accept only packets that lost at most the permitted hops.
        lines += ["outgoing-ttl 255", f"incoming-ttl {256 - peer.ttl_security}"]
    if peer.interface:
        lines.append(f"source-interface {peer.interface}")
    capabilities = f"graceful-restart {peer.max_restart_time}; route-refresh enable; asn4 enable;"
    capabilities += " add-path receive;"
    families = "".join(f" ipv{family} unicast;" for family in peer.carried)
    sections = [f"capability {{ {capabilities} }}", f"family {{{families} }}"]
    if peer.extended_next_hop:
        sections[0] = f"capability {{ {capabilities} nexthop enable; }}"
        sections.append("nexthop { ipv4 unicast ipv6; }")
    body = "".join([*(f"  {line};\n" for line in lines), *(f"  {section}\n" for section in sections)])
    return f"neighbor {peer.address} {{\n{body}}}\n"
