"""Packed netlink against the kernel."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from felix_py.netlink import connection, wire
from felix_py.netlink.connection import Netlink
from felix_py.netlink.routes import Packed, delete, dump, new
from felix_py.netlink.wire import NETLINK_ROUTE, NLM_F_CREATE, NLM_F_EXCL
from policy.model import Family
from tests.support.isolate import new_netns, run
from tests.support.node_program import POD

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("interfaces")]


@pytest.fixture
def routes(interfaces: None) -> Iterator[Netlink]:
    with Netlink(NETLINK_ROUTE) as socket_:
        yield socket_


def destination(number: int) -> tuple[Family, bytes, int]:
    return Family.V4, struct.pack(">I", 0x0A000000 + number), 32


def route(number: int) -> Packed:
    return Packed(destination(number), 88, 1, 253, b"", ((b"", socket.if_nametoindex(POD)),))


def test_each_message_has_its_own_answer(routes: Netlink) -> None:
    messages = [new(route(number), NLM_F_CREATE | NLM_F_EXCL) for number in range(700)]
    assert routes.request(messages) == [None] * 700
    messages[300] = new(route(9999), NLM_F_CREATE | NLM_F_EXCL)
    results = routes.request(messages)
    assert [result and result.errno for result in results] == [*[errno.EEXIST] * 300, None, *[errno.EEXIST] * 399]
    assert len(routes.dump(dump(Family.V4, 88))) == 701


def test_the_kernels_own_words(routes: Netlink) -> None:
    bad = Packed((Family.V4, b"\x0a\0\0\1", 33), 88, 1, 0, b"", ((b"", 1),))
    (error,) = routes.request([new(bad, NLM_F_CREATE)])
    assert error is not None
    assert (error.errno, error.strerror) == (errno.EINVAL, "Invalid argument (Invalid prefix length)")
    (missing,) = routes.request([delete(destination(1), 88)])
    assert isinstance(missing, ProcessLookupError)


def test_nothing_to_send(routes: Netlink) -> None:
    assert routes.request([]) == []
    assert routes.dump(dump(Family.V6, 89)) == []


def test_lost_answers_are_told(interfaces: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receive buffer too small for a batch's errors: the kernel drops some and says so once. No message
    that may have failed counts as carried out."""
    monkeypatch.setattr(connection, "_RECEIVE_BUFFER", 16 * 1024)
    with Netlink(NETLINK_ROUTE) as small:
        messages = [new(route(n), NLM_F_CREATE | NLM_F_EXCL) for n in range(256)]
        assert small.request(messages) == [None] * 256
        results = small.request(messages)
        assert {result and result.errno for result in results} == {errno.EEXIST, errno.ENOBUFS}
        assert results[0] is not None
        assert results[0].errno == errno.EEXIST
        # The socket is good for more: what was left over is not taken for an answer.
        assert small.request([delete(destination(3), 88)]) == [None]
        assert len(small.dump(dump(Family.V4, 88))) == 255


def test_a_socket_stays_in_its_namespace(routes: Netlink) -> None:
    with new_netns():
        assert routes.request([new(route_through(POD, routes), NLM_F_CREATE)]) == [None]
        assert run("ip", "route") == ""
    assert "10.0.0.5" in run("ip", "route")


def route_through(interface: str, netlink_socket: Netlink) -> Packed:
    """A route by the index the interface has in the socket's namespace."""
    name = interface.encode() + b"\0"
    request = wire.message(18, 0, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + wire.attr(3, name))
    index = struct.unpack_from("=i", netlink_socket.get(request), 4)[0]
    return Packed(destination(5), 88, 1, 253, b"", ((b"", index),))


def test_get_raises_what_the_kernel_says(routes: Netlink) -> None:
    request = wire.message(18, 0, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + wire.attr(3, b"nope\0"))
    with pytest.raises(OSError, match="No such device"):
        routes.get(request)
