"""Whatever is asked for, found, written and refused in whichever order: the kernel comes to what is desired."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from felix_py.dataplane.delta import Delta
from tests.support.thorough import examples

KEYS = st.integers(0, 4)
VALUES = st.integers(0, 2)
HAD = st.tuples(VALUES, st.sampled_from(["ours", "other"]))
"""What the kernel has: a value, and something about it that does not matter."""


class DeltaMachine(RuleBasedStateMachine):
    """Beside a Delta a model that compares everything with everything, and a kernel that others change, too.

    ``touched``: keys that others have changed since the last look; ``doomed``: keys that may be deleted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.delta: Delta[int, int, tuple[int, str]] = Delta(lambda value, had: had[0] == value)
        self.kernel: dict[int, tuple[int, str]] = {}
        self.known: dict[int, tuple[int, str]] = {}
        self.loaded = False
        self.desired: dict[int, int] = {}
        self.doomed: set[int] = set()
        self.touched: set[int] = set()

    # --- what is asked for ---------------------------------------------------------------------------

    @rule(key=KEYS, value=VALUES)
    def desire(self, key: int, value: int) -> None:
        self.delta.desire(key, value)
        self.desired[key] = value
        self.doomed.discard(key)

    @rule(key=KEYS)
    def dismiss(self, key: int) -> None:
        self.delta.dismiss(key)
        self.desired.pop(key, None)
        if not self.loaded or key in self.known:
            self.doomed.add(key)

    @rule(key=KEYS)
    def forget(self, key: int) -> None:
        self.delta.forget(key)
        self.desired.pop(key, None)
        self.doomed.discard(key)

    @rule()
    def release(self) -> None:
        self.delta.release()
        self.desired, self.doomed = {}, set()

    @rule()
    def dismiss_all(self) -> None:
        self.delta.dismiss_all()
        self.desired, self.doomed = {}, set(self.known)

    @rule(keep=st.sets(KEYS))
    def sweep(self, keep: set[int]) -> None:
        self.delta.sweep(keep)
        self.doomed |= self.known.keys() - self.desired.keys() - keep

    # --- what others do, and looking -----------------------------------------------------------------

    @rule(key=KEYS, had=st.none() | HAD)
    def somebody_changes(self, key: int, had: tuple[int, str] | None) -> None:
        self.touched.add(key)
        if had is None:
            self.kernel.pop(key, None)
        else:
            self.kernel[key] = had

    @rule()
    def load(self) -> None:
        lost, strays = self.delta.load(dict(self.kernel))
        before, self.known = self.known, dict(self.kernel)
        first, self.loaded = not self.loaded, True
        if first:
            assert not lost
            assert not strays
        else:
            right = {key for key in self.desired if self._right(before, key)}
            assert set(lost) == {key for key in right if not self._right(self.kernel, key)}
            assert set(strays) == self.kernel.keys() - before.keys() - self.desired.keys()
            assert len(lost) == len(set(lost))
            assert {*lost, *strays} <= self.touched
        self.doomed &= self.kernel.keys()
        self.touched.clear()
        assert self.delta.load(dict(self.kernel)) == ((), ()), "each change is told once"

    # --- writing -------------------------------------------------------------------------------------

    @rule(refused=st.sets(KEYS))
    def write(self, refused: set[int]) -> None:
        done = {key: (self.desired[key], "ours") for key in self.delta.updates() if key not in refused}
        self.kernel |= done
        self.delta.written(done)
        gone = [key for key in self.delta.deletions() if key not in refused]
        assert self.doomed.issuperset(gone), "nobody asked for it"
        for key in gone:
            self.kernel.pop(key, None)
        self.delta.removed(gone)
        self.known |= done
        for key in gone:
            self.known.pop(key, None)
        self.doomed.difference_update(gone)

    @rule(key=KEYS)
    def one_is_replaced_by_another_write(self, key: int) -> None:
        self.kernel.pop(key, None)
        self.delta.removed([key])
        self.doomed.discard(key)
        self.known.pop(key, None)

    @invariant()
    def what_is_pending_is_what_differs(self) -> None:
        assert self.delta.desired == self.desired
        assert set(self.delta.updates()) == {key for key in self.desired if not self._right(self.known, key)}
        assert set(self.delta.deletions()) == self.doomed & self.known.keys()

    def _right(self, state: dict[int, tuple[int, str]], key: int) -> bool:
        return key in state and state[key][0] == self.desired[key]

    def teardown(self) -> None:
        self.load()
        strays = self.kernel.keys() - self.desired.keys() - self.doomed
        self.write(set())
        assert self.kernel.keys() == self.desired.keys() | strays
        assert all(self._right(self.kernel, key) for key in self.desired)
        self.sweep(set())
        self.write(set())
        assert self.kernel.keys() == self.desired.keys()
        assert not self.delta.pending


TestDelta: Any = DeltaMachine.TestCase
TestDelta.settings = settings(max_examples=examples(1000), stateful_step_count=30, deadline=None)


def test_what_is_held_is_what_was_found_and_a_key_in_doubt_is_written_anew() -> None:
    delta: Delta[str, int, int] = Delta()
    delta.load({"a": 1, "b": 2})
    delta.dismiss("a")
    delta.hold()
    assert (delta.desired, delta.pending) == ({"a": 1, "b": 2}, set())
    delta.desire("b", 2, doubtful=True)
    assert delta.updates() == ["b"]
    assert delta.load({"a": 1}) == ([], set()), "it was not known to be right"
