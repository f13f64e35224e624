"""Syntax of names, label keys and values, ports, addresses and CIDRs in the Kubernetes API.

Each function returns None for valid text, or the reason why it is invalid; the two that also convert raise
:class:`ValueError` with that reason. Sources: apimachinery ``pkg/util/validation`` and ``pkg/api/validation``.
"""

from __future__ import annotations

import ipaddress
import re

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PORT_NAME = re.compile(r"(?!.*--)(?=.*[a-z])[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_CIDR = re.compile(r"([0-9.]+|[0-9A-Fa-f:.]+)/([0-9]{1,3})")
_LEADING_ZEROS = re.compile(r"(?<![0-9A-Fa-f])0+(?=[0-9A-Fa-f])")
"""In octets, groups and lengths of addresses and CIDRs."""

_SHOWN = 64
"""Characters of an invalid text in a reason: enough to find it, too few to flood an Event."""


def shown(value: object) -> str:
    """An invalid value for people: short, on one line, without control characters."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")
        case int():
            # Python refuses to print integers of thousands of digits.
            return str(value) if abs(value) < 10**18 else "a huge number"
        case float():
            return str(value)
        case list() | tuple():
            return "a list"
    return "an object"


def bad_namespace(text: str) -> str | None:
    """Namespaces are DNS labels (RFC 1123)."""
    return None if len(text) <= 63 and _DNS_LABEL.fullmatch(text) else f"{shown(text)} is not a DNS label"


def bad_name(text: str) -> str | None:
    """Most objects' names, those of NetworkPolicies among them, are DNS subdomains (RFC 1123)."""
    if len(text) <= 253 and _DNS_SUBDOMAIN.fullmatch(text):
        return None
    return f"{shown(text)} is not a DNS subdomain"


def bad_label_key(text: str) -> str | None:
    """A qualified name: at most 63 characters, perhaps behind a DNS subdomain and a slash."""
    prefix, slash, name = text.rpartition("/")
    if len(name) <= 63 and _QUALIFIED.fullmatch(name) and (not slash or not bad_name(prefix)):
        return None
    return f"{shown(text)} is not a label key"


def bad_label_value(text: str) -> str | None:
    """At most 63 characters, or empty."""
    if not text or (len(text) <= 63 and _QUALIFIED.fullmatch(text)):
        return None
    return f"{shown(text)} is not a label value"


def bad_port_name(text: str) -> str | None:
    """An IANA service name (RFC 6335, section 5.1), in small letters."""
    return None if len(text) <= 15 and _PORT_NAME.fullmatch(text) else f"{shown(text)} is not a port name"


def bad_port_number(number: int) -> str | None:
    """A port that a process can listen on."""
    return None if 1 <= number <= 65535 else f"{shown(number)} is not between 1 and 65535"


def _without_leading_zeros(text: str) -> str:
    """``010.008.0.1`` is ``10.8.0.1``.

    API servers accepted that until KEP-4858 and still serve stored values. To all parts of Kubernetes it is
    decimal (``ParseIPSloppy``, ``ParseCIDRSloppy`` in k8s.io/utils/net); libc, and so iptables, reads octal.
    """
    return _LEADING_ZEROS.sub("", text)


def canonical_address(text: str) -> str:
    """The canonical text of an IP address (RFC 5952). Leading zeros mean nothing.

    Raises:
        ValueError: no address, or one with a zone (which may hold any character), or IPv4-mapped.
    """
    try:
        address = ipaddress.ip_address(_without_leading_zeros(text)) if "%" not in text else None
    except ValueError:
        address = None
    if address is None:
        raise ValueError(f"{shown(text)} is not an IP address")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        raise ValueError(f"{shown(text)} is an IPv4-mapped IPv6 address")
    return str(address)


def canonical_cidr(text: str) -> str:
    """The canonical text of a CIDR. Host bits are cleared and leading zeros removed: the API server keeps both.

    Raises:
        ValueError: no CIDR, or an IPv4-mapped one.
    """
    try:
        # The pattern excludes what only Python accepts: zones, a netmask instead of a length, a lone address.
        plain = _without_leading_zeros(text)
        network = ipaddress.ip_network(plain, strict=False) if _CIDR.fullmatch(plain) else None
    except ValueError:
        network = None
    if network is None:
        raise ValueError(f"{shown(text)} is not a CIDR")
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
        raise ValueError(f"{shown(text)} is an IPv4-mapped IPv6 network")
    return str(network)


def strictly_inside(inner: str, outer: str) -> bool:
    """Whether a canonical CIDR is a proper subnet of another one."""
    small, big = ipaddress.ip_network(inner), ipaddress.ip_network(outer)
    return small.version == big.version and small.prefixlen > big.prefixlen and small.network_address in big
