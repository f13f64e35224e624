"""Whatever is sent, the answer is a CNI error or a valid request: no other exception leaves the parsers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from felix_py.cni.errors import CNIError
from felix_py.cni.protocol import Call, ProtocolError, parse_call
from felix_py.cni.types import parse_request, version_of

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = ("name", "ipam", "dns", "args", "runtimeConfig", "prevResult", "cni.dev/valid-attachments")
configs = st.fixed_dictionaries(
    {"cniVersion": st.sampled_from(["0.3.0", "1.1.0"])}, optional=dict.fromkeys(keys, json_values)
).map(lambda config: {"name": "net", **config})
texts = st.text(max_size=20)
environments = st.fixed_dictionaries(
    {"CNI_COMMAND": st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS"]), "CNI_PATH": st.just("/x")},
    optional={"CNI_ARGS": texts | st.just("IP=10.0.0.1"), "CNI_IFNAME": texts, "CNI_CONTAINERID": texts},
).map(lambda given: {"CNI_IFNAME": "eth0", "CNI_CONTAINERID": "c", "CNI_NETNS": "/x", **given})


@contextlib.contextmanager
def refusal_allowed() -> Iterator[None]:
    """A refusal is fine, if the runtime can be told of it."""
    try:
        yield
    except CNIError as error:
        json.loads(error.encode("1.0.0"))


@given(st.binary(max_size=100) | st.binary(max_size=50).map(lambda tail: b"felix-py-cni/1 9 9\n" + tail))
def test_frames(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        parse_call(data)


raw_texts = st.binary(max_size=20).map(lambda raw: b'{"cniVersion": "1.0.0", "name": "' + raw + b'"}')
stdins = configs.map(lambda config: json.dumps(config).encode()) | raw_texts | st.binary(max_size=200)


@given(environments, stdins)
def test_calls(environment: dict[str, str], stdin: bytes) -> None:
    call = Call(environment, stdin)
    version_of(call)
    with refusal_allowed():
        request = parse_request(call)
        for question in (request.pod, request.requested_addresses, request.requested_mac):
            with refusal_allowed():
                question()
        if request.config.prev_result:
            json.loads(request.config.prev_result.encode(request.version))
