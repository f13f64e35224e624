"""The label of a pod's host end: its lease, in the interface's alias (``ip link``, "alias"). No I/O.

The alias lives exactly as long as the interface, on no disk. So when the address store is lost, damaged or older
than the interfaces, the labels tell which pod holds which address.

Text: ``felix-py NAMESPACE/POD V4 V6 IFNAME NETWORK CONTAINER UID CREATED CHECK``, with ``-`` for an absent
field and ``.`` for the default interface and network name. The kernel takes 255 bytes (IFALIASZ), so container
and uid, mostly long hexadecimal numbers, are packed; if the text is still too long, so is the IPv6 address, and
then the uid is left out. CREATED is in microseconds since the epoch, hexadecimal; CHECK is the CRC-32 of the
text before it.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import zlib

from felix_py.layout import FIRST_INTERFACE, interface_name
from felix_py.records import Lease
from policy.model import Family

_MOST = 255
_HEAD = "felix-py "
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HEX = re.compile(r"([0-9a-f]{2})+")
_NONE, _USUAL = "-", "."
_NETWORK = "felix-py"


def link_label(lease: Lease) -> str:
    """The alias of the lease's interface; empty if it does not fit (very long names) or would not read back."""
    v4, v6 = (lease.addresses.get(family, _NONE) for family in Family)
    for address, uid in ((v6, lease.uid), (_packed(v6), lease.uid), (_packed(v6), "")):
        words = (
            f"{lease.namespace}/{lease.pod}",
            v4,
            address,
            _USUAL if lease.ifname == FIRST_INTERFACE else lease.ifname,
            _USUAL if lease.network == _NETWORK else lease.network or _NONE,
            _pack(lease.container),
            _pack(uid),
            f"{round(lease.created * 1e6):x}",
        )
        text = _HEAD + " ".join(words)
        text += f" {zlib.crc32(text.encode()):08x}"
        if len(text.encode()) <= _MOST:
            return text if _same(read_label(text), lease) else ""
    return ""


def read_label(text: str) -> Lease | None:
    """The lease in an alias; None if the alias is not ours or not intact."""
    try:
        body, check = text.rsplit(" ", 1)
        if not body.startswith(_HEAD) or int(check, 16) != zlib.crc32(body.encode()):
            return None
        pod, v4, v6, ifname, network, container, uid, created = body[len(_HEAD) :].split(" ")
        namespace, name = pod.split("/")
        container, ifname = _unpack(container), FIRST_INTERFACE if ifname == _USUAL else ifname
        return Lease(
            container,
            ifname,
            {_NONE: "", _USUAL: _NETWORK}.get(network, network),
            namespace,
            name,
            _unpack(uid),
            interface_name(container, ifname),
            _addresses(v4, _address(v6)),
            int(created, 16) / 1e6,
        )
    except (ValueError, binascii.Error):
        return None


def _same(read: Lease | None, lease: Lease) -> bool:
    """Whether the label holds all of the lease but the uid. The time may be a microsecond off."""
    return read is not None and abs(read.created - lease.created) < 1e-5 and _parts(read) == _parts(lease)


def _parts(lease: Lease) -> tuple[object, ...]:
    return (lease.container, lease.ifname, lease.network, lease.namespace, lease.pod, lease.addresses)


def _packed(v6: str) -> str:
    return v6 if v6 == _NONE else "@" + _base64(ipaddress.IPv6Address(v6).packed.hex())


def _address(word: str) -> str:
    if not word.startswith("@"):
        return word
    return str(ipaddress.IPv6Address(base64.urlsafe_b64decode(word[1:] + "==")))


def _addresses(v4: str, v6: str) -> dict[Family, str]:
    """
    Raises:
        ValueError: one is no address. Any privileged program may have written the alias.
    """
    found: dict[Family, str] = {}
    if v4 != _NONE:
        found[Family.V4] = str(ipaddress.IPv4Address(v4))
    if v6 != _NONE:
        found[Family.V6] = str(ipaddress.IPv6Address(v6))
    return found


def _pack(text: str) -> str:
    """A UUID in 23 characters, 64 hexadecimal digits in 44, or other text as it is, by its first character."""
    if _UUID.fullmatch(text):
        return "@" + _base64(text.replace("-", ""))
    if _HEX.fullmatch(text):
        return ":" + _base64(text)
    return "=" + text


def _base64(digits: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(digits)).decode().rstrip("=")


def _unpack(word: str) -> str:
    mark, text = word[:1], word[1:]
    if mark == "=":
        return text
    digits = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()
    if mark == ":":
        return digits
    if mark == "@" and len(digits) == 32:
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    raise ValueError(word)
