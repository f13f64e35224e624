"""Settings in layers: which value counts, and what one that cannot be used leaves in force."""

from __future__ import annotations

from typing import Any

import pytest

from felix_py.config import FIELDS, SETTINGS, AgentConfig, EndpointToHost
from felix_py.layers import LAST_GOOD, Merged, effective, from_fields, merge, to_fields
from felix_py.log import LogLevel
from felix_py.records import Backend, ConfigurationRecord
from policy.model import Family
from tests.support.configurations import EVERYTHING, fine, record


def merged(*found: ConfigurationRecord, **last_good: Any) -> Merged:
    return merge("n1", found, last_good, fine)


def said(found: Merged) -> list[str]:
    return [f"{problem.name} {problem}" for problem in found.problems]


def test_every_field_can_be_set() -> None:
    assert EVERYTHING.keys() == FIELDS.keys()
    found = merged(record("default", **EVERYTHING))
    assert found.problems == ()
    assert found.values.keys() == {it.name for it in FIELDS.values()}
    config = effective(AgentConfig(node_name="n1"), (), found.values)
    assert config.backend is Backend.NFT
    assert config.ip_families == (Family.V4, Family.V6)
    assert config.endpoint_to_host is EndpointToHost.DROP
    assert config.log_level is LogLevel.DEBUG
    assert (config.refresh_interval, config.cni_timeout, config.mtu) == (30, 5, 1400)
    same = [it.name for it in FIELDS.values() if found.values[it.name] == it.default]
    assert same == [], "each has another value than its default"


def test_values_survive_the_way_through_a_file() -> None:
    values = merged(record("default", **EVERYTHING)).values
    assert from_fields(to_fields(values)) == values
    defaults = {it.name: it.default for it in FIELDS.values()}
    assert from_fields(to_fields(defaults)) == defaults


def test_the_node_counts_before_all() -> None:
    found = merged(record("node.n1", mtu=1300), record("default", mtu=1400, natOutgoing=False))
    assert found.values == {"mtu": 1300, "nat_outgoing": False}
    assert found.sources == {"mtu": "node.n1", "nat_outgoing": "default"}


def test_other_nodes_do_not_count() -> None:
    assert (
        merged(record("node.n2", mtu=1300), record("node.n1.example", mtu=1300), record("n1", mtu=1)).values == {}
    )


def test_an_empty_list_is_a_value_and_null_is_none() -> None:
    found = merged(record("node.n1", clusterCIDRs=[], mtu=None), record("default", clusterCIDRs=["10.0.0.0/8"]))
    assert found.values == {"cluster_cidrs": ()}


def test_command_line_and_environment_count_before_objects() -> None:
    base = AgentConfig(node_name="n1", mtu=1280, nat_outgoing=True)
    config = effective(base, {"mtu", "nat_outgoing"}, {"mtu": 1400, "nat_outgoing": False, "drop_invalid": False})
    assert (config.mtu, config.nat_outgoing, config.drop_invalid) == (1280, True, False)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("mtu", "1400", "must be an integer"),
        ("mtu", True, "must be an integer"),
        ("mtu", 1.5, "must be an integer"),
        ("mtu", 10, "10: IPv4 needs 68 at least"),
        ("natOutgoing", "yes", "must be true or false"),
        ("natOutgoing", 0, "must be true or false"),
        ("denyLogGroup", 65536, "65536: must be 65535 at most"),
        ("denyLogRate", 10**30, "must be 1000 at most"),
        ("refreshIntervalSeconds", 0, "0: must be 1 at least"),
        ("iptablesBackend", "nft", "'nft': must be Auto or Legacy or NFT"),
        ("logSeverityScreen", "Loud", "must be Debug or Info or Warning or Error"),
        ("logSeverityScreen", {"a": 1}, "must be Debug"),
        ("ipFamilies", ["ipv5"], "'ipv5': must be ipv4 or ipv6"),
        ("ipFamilies", "ipv4", "must be a list of strings"),
        ("clusterCIDRs", ["10.0.0.1/8"], "write it as 10.0.0.0/8"),
        ("clusterCIDRs", ["::/0"], "everything cannot be"),
        ("clusterCIDRs", [1], "must be a list of strings"),
        ("clusterCIDRs", ["x" * 1000], "'xxx"),
        ("chainedPlugins", ["../sh"], "the name of a program"),
        ("defaultEndpointToHostAction", [], "must be Return"),
    ],
)
def test_what_cannot_be_used_is_named_and_leaves_the_last_good_one(field: str, value: Any, words: str) -> None:
    name = FIELDS[field].name
    good = merged(record("default", **EVERYTHING)).values
    found = merged(record("default", **(EVERYTHING | {field: value})), **good)
    (line,) = said(found)
    assert line.startswith(f"default {field}: ")
    assert words in line
    assert len(line) < 600
    assert found.values == good
    assert found.sources[name] == LAST_GOOD
    # Without one, what is below counts.
    assert name not in merged(record("default", **{field: value})).values
    below = merged(record("node.n1", **{field: value}), record("default", **EVERYTHING))
    assert below.values == good


def test_a_wrong_value_below_a_right_one_is_told_and_does_no_harm() -> None:
    found = merged(record("node.n1", mtu=1300), record("default", mtu=1), mtu=1500)
    assert (found.values, found.sources) == ({"mtu": 1300}, {"mtu": "node.n1"})
    assert said(found) == ["default mtu: 1: IPv4 needs 68 at least and the kernel takes 65535 at most"]


def test_unknown_fields_are_told_and_bounded() -> None:
    unknown: dict[str, Any] = {f"x{number:03}": 1 for number in range(1000)}
    found = merged(record("default", "", mtu=1400, **unknown))
    assert found.values == {"mtu": 1400}
    assert said(found)[0] == "default x000: this version does not know the field"
    assert len(found.problems) == 50


def test_an_object_that_cannot_be_read_leaves_everything_as_it_is() -> None:
    found = merged(record("node.n1", "spec: must be an object"), record("default", mtu=1300), mtu=1400)
    assert (found.values, found.sources) == ({"mtu": 1400}, {"mtu": LAST_GOOD})
    assert said(found) == ["node.n1 spec: must be an object"]


def test_what_only_the_node_can_judge() -> None:
    def judge(name: str, value: Any) -> str:
        return "not on this node" if (name, value) == ("backend", Backend.NFT) else ""

    found = merge("n1", [record("default", iptablesBackend="NFT", mtu=1400)], {"backend": Backend.LEGACY}, judge)
    assert found.values == {"backend": Backend.LEGACY, "mtu": 1400}
    assert said(found) == ["default iptablesBackend: not on this node"]


def test_fields_are_named_in_the_style_of_the_api() -> None:
    for it in SETTINGS.values():
        if it.field is not None:
            assert it.field.name[0].islower()
            assert it.field.name.isalnum()
            assert not (it.live and it.field is None)
    assert not [it.name for it in SETTINGS.values() if it.live and it.field is None]
