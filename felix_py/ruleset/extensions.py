"""The options of the known matches and targets (iptables-extensions(8)). No I/O.

A reader raises :class:`Unknown` for an unknown option; the whole extension is opaque then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from felix_py.ruleset import model as m
from policy.cidr import merge

TCP_FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}
"""Bits of the TCP header (RFC 9293, section 3.1)."""

_SETS_OF_FLAGS = {**TCP_FLAGS, "ALL": 63, "NONE": 0}
_SYN_MASK, _SYN_SET = 0x17, 0x02
"""``--syn`` is ``--tcp-flags SYN,RST,ACK,FIN SYN``."""

_LIMIT_SCALE = 10_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DEFAULT_BURST = 5
_ICMP, _ICMPV6 = 1, 58


class Unknown(Exception):
    """An unknown option."""


class Option(Struct, frozen=True):
    """One option of an extension, as ``--dports`` with its values."""

    name: str
    values: tuple[str, ...] = ()
    negated: bool = False

    @property
    def value(self) -> str:
        """Its only value; raises Unknown if it has none, or several."""
        if len(self.values) != 1:
            raise Unknown(self.name)
        return self.values[0]


Options = Sequence[Option]


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    """``80,443,8000:8080`` as sorted ranges that do not touch."""
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        low = int(first or 0)
        found.append((low, int(last or 65535) if colon else low))
    return merge(found)


_PORT_SIDES = {
    **dict.fromkeys(("--sport", "--source-port", "--sports", "--source-ports"), m.SOURCE),
    **dict.fromkeys(("--dport", "--destination-port", "--dports", "--destination-ports"), m.DESTINATION),
    "--ports": m.EITHER,
}


def _transport(options: Options) -> list[m.Match]:
    """tcp, udp, sctp, dccp and multiport."""
    found: list[m.Match] = []
    for option in options:
        if option.name in _PORT_SIDES:
            found.append(m.PortIn(_PORT_SIDES[option.name], _ranges(option.value), option.negated))
        elif option.name == "--syn" and not option.values:
            found.append(m.TCPFlags(_SYN_MASK, _SYN_SET, option.negated))
        elif option.name == "--tcp-flags" and len(option.values) == 2:
            mask, wanted = (_flags(value) for value in option.values)
            found.append(m.TCPFlags(mask, wanted, option.negated))
        else:
            raise Unknown(option.name)
    return found


def _flags(text: str) -> int:
    bits = 0
    for name in text.split(","):
        if name not in _SETS_OF_FLAGS:
            raise Unknown(name)
        bits |= _SETS_OF_FLAGS[name]
    return bits


def _set(options: Options) -> list[m.Match]:
    (option,) = options
    if option.name != "--match-set" or len(option.values) != 2:
        raise Unknown(option.name)
    name, flags = option.values
    return [m.InSet(name, tuple(flags.split(",")), option.negated)]


def _mark(options: Options) -> list[m.Match]:
    (option,) = options
    if option.name != "--mark":
        raise Unknown(option.name)
    value, mask = _masked(option.value)
    return [m.MarkIs(value, mask, option.negated)]


def _masked(text: str) -> tuple[int, int]:
    """``VALUE[/MASK]`` in any base."""
    value, slash, mask = text.partition("/")
    return int(value, 0) & m.FULL, int(mask, 0) & m.FULL if slash else m.FULL


def _state(options: Options) -> list[m.Match]:
    found: list[m.Match] = []
    for option in options:
        if option.name not in ("--ctstate", "--state"):
            raise Unknown(option.name)
        found.append(m.StateIn(tuple(sorted(set(option.value.upper().split(",")))), option.negated))
    return found


def _icmp(protocol: int, name: str) -> Callable[[Options], list[m.Match]]:
    def read(options: Options) -> list[m.Match]:
        found: list[m.Match] = []
        for option in options:
            if option.name != name:
                raise Unknown(option.name)
            kind, slash, code = option.value.partition("/")
            if kind in ("any", "255") and protocol == _ICMP and not option.negated:
                continue
            found.append(m.ICMPType(protocol, int(kind), int(code) if slash else None, option.negated))
        return found

    return read


def _group(options: Options) -> list[m.Match]:
    found: list[m.Match] = []
    for option in options:
        side = {"--src-group": m.IN, "--dst-group": m.OUT}.get(option.name)
        if side is None or not option.value[:1].isdigit():  # a name of /etc/iproute2/group
            raise Unknown(option.name)
        value, mask = _masked(option.value)
        found.append(m.InGroup(side, value, mask, option.negated))
    return found


def _address_type(options: Options) -> list[m.Match]:
    found: list[m.Match] = []
    for option in options:
        side = {"--src-type": m.SOURCE, "--dst-type": m.DESTINATION}.get(option.name)
        if side is None:
            raise Unknown(option.name)
        types = tuple(sorted(option.value.upper().split(",")))
        found.append(m.AddressType(side, types, option.negated))
    return found


def _limit(options: Options) -> list[m.Match]:
    average, burst, said = 3600 * _LIMIT_SCALE // 3, _DEFAULT_BURST, "3/hour"
    for option in options:
        if option.negated:
            raise Unknown(option.name)
        if option.name == "--limit":
            rate, slash, unit = option.value.partition("/")
            seconds = _UNITS.get(unit[:1].lower()) if slash else 1
            if not seconds:
                raise Unknown(option.value)
            average, said = seconds * _LIMIT_SCALE // int(rate), option.value
        elif option.name == "--limit-burst":
            burst = int(option.value)
        else:
            raise Unknown(option.name)
    return [m.Limit(average, burst, said)]


def _hop_limit(options: Options) -> list[m.Match]:
    (option,) = options
    if option.name != "--hl-eq":
        raise Unknown(option.name)
    return [m.HopLimit(int(option.value), option.negated)]


def _bytecode(options: Options) -> list[m.Match]:
    (option,) = options
    if option.name != "--bytecode" or option.negated:
        raise Unknown(option.name)
    count, *lines = option.value.split(",")
    steps = []
    for line in lines:
        code, jump_true, jump_false, value = map(int, line.split())
        steps.append((code, jump_true, jump_false, value))
    if int(count) != len(steps):
        raise Unknown(option.value)
    return [m.Bytecode(tuple(steps))]


def _reverse_path(options: Options) -> list[m.Match]:
    if any(option.name != "--invert" or option.negated or option.values for option in options):
        raise Unknown(options[0].name)
    return [m.ReversePath(negated=bool(options))]


MATCHES: dict[str, Callable[[Options], list[m.Match]]] = {
    **dict.fromkeys(("tcp", "udp", "sctp", "dccp", "udplite", "multiport"), _transport),
    "set": _set,
    "mark": _mark,
    "conntrack": _state,
    "state": _state,
    "icmp": _icmp(_ICMP, "--icmp-type"),
    "icmp6": _icmp(_ICMPV6, "--icmpv6-type"),
    "icmpv6": _icmp(_ICMPV6, "--icmpv6-type"),
    "devgroup": _group,
    "addrtype": _address_type,
    "limit": _limit,
    "hl": _hop_limit,
    "bpf": _bytecode,
    "rpfilter": _reverse_path,
}
"""Module name after ``-m`` -> reader of its options. ``comment`` is no match."""


# --- targets -----------------------------------------------------------------------------------------


def _verdict(name: str) -> Callable[[Options], m.Target]:
    def read(options: Options) -> m.Target:
        if options:
            raise Unknown(options[0].name)
        return m.Verdict(name)

    return read


def _set_mark(options: Options) -> m.Target:
    """All options are one operation of the kernel, ``mark = (mark & ~mask) ^ value`` (xt_mark.c)."""
    (option,) = options
    value, mask = _masked(option.value)
    match option.name:
        case "--set-xmark":
            return m.SetMark(value, mask)
        case "--set-mark":
            return m.SetMark(value, value | mask)
        case "--and-mark":
            return m.SetMark(0, ~value & m.FULL)
        case "--or-mark":
            return m.SetMark(value, value)
        case "--xor-mark":
            return m.SetMark(value, 0)
    raise Unknown(option.name)


_MAPPED = {"--map-mark": "mark", "--map-prio": "prio", "--map-queue": "queue"}


def _set_target(options: Options) -> m.Target:
    first, *others = options
    if first.name != "--map-set" or len(first.values) != 2 or any(o.name not in _MAPPED for o in others):
        raise Unknown(first.name)
    name, flags = first.values
    return m.MapSet(name, tuple(flags.split(",")), tuple(sorted(_MAPPED[o.name] for o in others)))


def _masquerade(options: Options) -> m.Target:
    return m.Masquerade(tuple(sorted(" ".join((option.name, *option.values)) for option in options)))


def _log(options: Options) -> m.Target:
    known = {option.name: option.value for option in options}
    group, prefix = int(known.pop("--nflog-group", "0")), known.pop("--nflog-prefix", "")
    return m.Log(group, prefix, tuple(sorted(known.items())))


TARGETS: dict[str, Callable[[Options], m.Target]] = {
    **{name: _verdict(name) for name in ("ACCEPT", "DROP", "RETURN")},
    "MARK": _set_mark,
    "SET": _set_target,
    "MASQUERADE": _masquerade,
    "NFLOG": _log,
}
