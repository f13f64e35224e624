from __future__ import annotations

import pytest

from lab.apiserver.errors import ApiError
from lab.apiserver.kinds import GroupResource, Obj
from lab.apiserver.store import EventType, Store, decode

PODS = GroupResource("", "pods")
NODES = GroupResource("", "nodes")


def obj(name: str, **data: str) -> Obj:
    return {"metadata": {"name": name}, "kind": "Pod", "apiVersion": "v1", "data": data}


def names(store: Store, at: int | None = None) -> list[str]:
    return [stored.key[1] for stored in store.list(PODS, at=at)]


def test_one_counter_for_all_resources() -> None:
    store = Store(start=100)
    first = store.put(PODS, ("a", "x"), obj("x"))
    second = store.put(NODES, ("", "n"), obj("n"))
    assert (first.version, second.version, store.version) == (101, 102, 102)
    assert decode(first.raw)["metadata"]["resourceVersion"] == "101"
    assert list(decode(first.raw))[:3] == ["apiVersion", "kind", "metadata"]


def test_lists_are_in_key_order_and_by_namespace() -> None:
    store = Store(start=0)
    for key in [("b", "x"), ("a", "y"), ("a", "x")]:
        store.put(PODS, key, obj(key[1]))
    assert [stored.key for stored in store.list(PODS)] == [("a", "x"), ("a", "y"), ("b", "x")]
    assert [stored.key for stored in store.list(PODS, "b")] == [("b", "x")]
    assert store.has_any(PODS, "b")
    store.remove(PODS, ("b", "x"))
    assert not store.has_any(PODS, "b")


def test_the_log_tells_what_came_after_a_version() -> None:
    store = Store(start=10)
    store.put(PODS, ("a", "x"), obj("x"))
    store.put(NODES, ("", "n"), obj("n"))
    store.put(PODS, ("a", "x"), obj("x", changed="yes"))
    store.remove(PODS, ("a", "x"))
    told = [(event.version, event.type, event.after.version) for event in store.events(PODS, 10)]
    assert told == [
        (11, EventType.ADDED, 11),
        (13, EventType.MODIFIED, 13),
        (14, EventType.DELETED, 14),
    ]
    assert store.events(PODS, 13)[0].after.obj["data"] == {"changed": "yes"}
    assert store.events(PODS, 14) == []


@pytest.mark.parametrize("after", [9, 15])
def test_versions_before_the_log_or_in_the_future_are_expired(after: int) -> None:
    store = Store(start=10)
    store.put(PODS, ("a", "x"), obj("x"))
    with pytest.raises(ApiError) as error:
        store.events(PODS, after)
    assert (error.value.code, error.value.reason) == (410, "Expired")


def test_the_log_is_bounded() -> None:
    store = Store(start=0, log_size=3)
    for index in range(5):
        store.put(PODS, ("a", f"p{index}"), obj("p"))
    assert [event.version for event in store.events(PODS, 2)] == [3, 4, 5]
    with pytest.raises(ApiError, match="too old resource version: 1"):
        store.events(PODS, 1)


def test_a_list_at_an_earlier_version() -> None:
    store = Store(start=0)
    store.put(PODS, ("a", "x"), obj("x", v="1"))
    store.put(PODS, ("a", "y"), obj("y"))
    then = store.version
    store.put(PODS, ("a", "x"), obj("x", v="2"))
    store.put(PODS, ("a", "z"), obj("z"))
    store.remove(PODS, ("a", "y"))
    store.put(PODS, ("a", "y"), obj("y"))
    assert names(store) == ["x", "y", "z"]
    assert names(store, at=then) == ["x", "y"]
    assert store.list(PODS, at=then)[0].obj["data"] == {"v": "1"}


def test_a_list_at_a_version_the_log_lost_is_expired() -> None:
    store = Store(start=0, log_size=1)
    for index in range(3):
        store.put(PODS, ("a", f"p{index}"), obj("p"))
    with pytest.raises(ApiError, match="continue parameter is too old"):
        store.list(PODS, at=1)


def test_a_copy_is_private() -> None:
    store = Store(start=0)
    stored = store.put(PODS, ("a", "x"), obj("x", v="1"))
    copy = stored.copy()
    copy["data"]["v"] = "2"
    assert stored.obj["data"] == {"v": "1"}
