"""A rule's meaning -> its words (:mod:`felix_py.ruleset.words` is the reverse). No I/O.

The words follow the order of the matches, and equal records always give equal words: a rule's hash is made of
them, and another hash would rewrite it on every node.
"""

from __future__ import annotations

from collections.abc import Iterable

from felix_py.ruleset import model as m
from felix_py.ruleset.extensions import TCP_FLAGS
from felix_py.ruleset.words import join

Words = tuple[str, ...]

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
_STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")
"""In the order in which the tools print them."""

_PORTS = {m.SOURCE: "--sports", m.DESTINATION: "--dports", m.EITHER: "--ports"}
_TYPES = {m.SOURCE: "--src-type", m.DESTINATION: "--dst-type"}
_GROUPS = {m.IN: "--src-group", m.OUT: "--dst-group"}
_ICMP = {1: ("icmp", "--icmp-type"), 58: ("icmp6", "--icmpv6-type")}


def encode(matches: Iterable[m.Match]) -> Words:
    """The words of a rule's matches."""
    return tuple(word for match in matches for word in _match(match))


def shown(spec: m.RuleSpec) -> str:
    """A rule for people, without its comment."""
    return join((*encode(spec.matches), *encode_target(spec.target)))


def _match(match: m.Match) -> Words:
    match match:
        case m.InSet(name, flags, negated):
            return _module("set", negated, "--match-set", name, ",".join(flags))
        case m.MarkIs(value, mask, negated):
            return _module("mark", negated, "--mark", f"{value:#x}/{mask:#x}")
        case m.PortIn(side, ranges, negated):
            ports = (str(low) if low == high else f"{low}:{high}" for low, high in ranges)
            return _module("multiport", negated, _PORTS[side], ",".join(ports))
        case m.ProtocolIs() | m.InterfaceIs() | m.AddressIn():
            return ("!", *_head(match)) if match.negated else _head(match)
        case m.StateIn(states, negated):
            return _module("conntrack", negated, "--ctstate", ",".join(sorted(states, key=_STATES.index)))
        case m.TCPFlags(mask, wanted, negated):
            return _module("tcp", negated, "--tcp-flags", _flags(mask), _flags(wanted))
        case m.ICMPType(protocol, kind, detail, negated):
            module, option = _ICMP[protocol]
            return _module(module, negated, option, str(kind) if detail is None else f"{kind}/{detail}")
        case m.InGroup(side, value, mask, negated):
            group = f"{value:#x}" if mask == m.FULL else f"{value:#x}/{mask:#x}"
            return _module("devgroup", negated, _GROUPS[side], group)
        case m.AddressType(side, types, negated):
            return _module("addrtype", negated, _TYPES[side], ",".join(types))
        case m.Limit(_, burst, rate):
            return ("-m", "limit", "--limit", rate, "--limit-burst", str(burst))
        case m.HopLimit(value, negated):
            return _module("hl", negated, "--hl-eq", str(value))
        case m.Bytecode(steps):
            code = ",".join((str(len(steps)), *(" ".join(map(str, step)) for step in steps)))
            return ("-m", "bpf", "--bytecode", code)
        case m.ReversePath(negated):
            return ("-m", "rpfilter", "--invert") if negated else ("-m", "rpfilter")
        case m.OpaqueMatch(module, words):
            return ("-m", module, *words)


def _head(match: m.ProtocolIs | m.InterfaceIs | m.AddressIn) -> Words:
    """The words of a match without a module."""
    match match:
        case m.ProtocolIs(number):
            return ("-p", _PROTOCOLS.get(number, str(number)))
        case m.InterfaceIs(side, name, prefix):
            return ("-i" if side == m.IN else "-o", f"{name}+" if prefix else name)
        case m.AddressIn(side, network):
            return ("-s" if side == m.SOURCE else "-d", network)


def _module(name: str, negated: bool, *words: str) -> Words:
    return ("-m", name, "!", *words) if negated else ("-m", name, *words)


def _flags(bits: int) -> str:
    return ",".join(name for name, bit in TCP_FLAGS.items() if bits & bit) or "NONE"


def encode_target(target: m.Target | None) -> Words:
    """The words of a rule's target; () if it only counts."""
    match target:
        case None:
            return ()
        case m.Goto(chain):
            return ("-g", chain)
        case m.Jump(name) | m.Verdict(name):
            return ("-j", name)
        case m.SetMark(value, mask):
            return ("-j", "MARK", "--set-xmark", f"{value:#x}/{mask:#x}")
        case m.MapSet(name, flags, what):
            return ("-j", "SET", "--map-set", name, ",".join(flags), *(f"--map-{one}" for one in what))
        case m.Masquerade(options):
            return ("-j", "MASQUERADE", *(word for option in options for word in option.split(" ")))
        case m.Log(group, prefix, options):
            rest = (word for option in options for word in option)
            return ("-j", "NFLOG", "--nflog-group", str(group), "--nflog-prefix", prefix, *rest)
        case m.OpaqueTarget(name, words):
            return ("-j", name, *words)
