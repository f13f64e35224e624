"""Merging FelixConfigurations: any objects, in any order, give one result, and it can always be used."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from felix_py.config import FIELDS, AgentConfig
from felix_py.datastore.decode import Unusable
from felix_py.datastore.kinds import CONFIGURATIONS
from felix_py.layers import effective, merge
from felix_py.records import ConfigurationRecord
from tests.support.configurations import EVERYTHING, fine

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_SPEC = st.dictionaries(st.sampled_from([*FIELDS, "unknown"]), _JSON) | st.sets(
    st.sampled_from(sorted(EVERYTHING))
).map(lambda names: {name: EVERYTHING[name] for name in names})
_NAMES = ("default", "node.n1", "node.n2", "other")
_RECORDS = st.builds(
    ConfigurationRecord, st.sampled_from(_NAMES), st.just("uid"), _SPEC, st.sampled_from(["", "bad"])
)
_CLUSTER = st.lists(_RECORDS, unique_by=lambda record: record.name, max_size=4)
_VALUES = st.sampled_from([{}, {"mtu": 1400}, {"nat_outgoing": False, "cluster_cidrs": ("10.0.0.0/8",)}])


@given(_CLUSTER, _VALUES, st.randoms())
def test_order_does_not_count(found: list[ConfigurationRecord], good: dict[str, Any], chance: Any) -> None:
    shuffled = list(found)
    chance.shuffle(shuffled)
    assert repr(merge("n1", found, good, fine)) == repr(merge("n1", shuffled, good, fine))


@given(_CLUSTER, _VALUES)
def test_the_result_can_be_used_and_is_stable(found: list[ConfigurationRecord], good: dict[str, Any]) -> None:
    once = merge("n1", found, good, fine)
    effective(AgentConfig(node_name="n1"), (), once.values)  # raises ConfigError otherwise
    again = merge("n1", found, once.values, fine)
    assert again.values == once.values
    assert again.problems == once.problems


@given(_CLUSTER, _VALUES)
def test_others_do_not_count(found: list[ConfigurationRecord], good: dict[str, Any]) -> None:
    own = [record for record in found if record.name in ("default", "node.n1")]
    assert repr(merge("n1", found, good, fine)) == repr(merge("n1", own, good, fine))


_OBJECT = b'{"metadata": {"name": "default", "uid": "u"}, "spec": %s}'


@given(st.binary(max_size=200) | _JSON.map(lambda found: msgspec.json.encode(repr(found))) | st.just(b"[" * 3000))
def test_any_bytes_for_a_spec(raw: bytes) -> None:
    found = CONFIGURATIONS.single(_OBJECT % raw)
    if isinstance(found, Unusable):
        return
    merged = merge("n1", [found], {"mtu": 1400}, fine)
    effective(AgentConfig(node_name="n1"), (), merged.values)
    assert merged.problems or not found.spec


@given(_SPEC)
def test_any_json_for_a_spec(spec: dict[str, Any]) -> None:
    found = CONFIGURATIONS.single(_OBJECT % msgspec.json.encode(spec))
    if not isinstance(found, Unusable):
        effective(AgentConfig(node_name="n1"), (), merge("n1", [found], {}, fine).values)
