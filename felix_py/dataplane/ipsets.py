"""IP sets: wanted, actual, and the steps that write the difference."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec import Struct, field

from felix_py.dataplane.delta import Delta
from felix_py.dataplane.ipset_commands import ADD, BUSY, DELETE, FULL, TYPE_MISMATCH, Batch, Commands, Shape
from felix_py.dataplane.ipset_drift import member_drift, set_drift, stray_set
from felix_py.dataplane.order import Step
from felix_py.dataplane.part import Part, Sweep
from felix_py.dataplane.protocols import Look
from felix_py.layout import set_prefix
from felix_py.netlink import ipset_members as members
from felix_py.records import Drift, Failure, Report, SetSpec, SetType, Update, bounded
from felix_py.refs import MemberRef, MembersRef, Ref, SetRef
from policy.model import Family

_NAME_BYTES = 31
_WHOLE_MARK = 0xFFFFFFFF
_BUSY_TRIES = 10
_BUSY_WAIT = 0.01
"""Seconds between tries: nf_tables releases a deleted rule's sets a moment after the transaction."""


class _Set(Struct):
    """One set. ``members``: key -> ``mark << 32 | mask`` or 0; ``rejected``: invalid text -> mark and reason."""

    spec: SetSpec | None = None
    shape: Shape | None = None
    members: Delta[bytes, int, int] = field(default_factory=Delta)
    rejected: dict[str, tuple[int, str]] = field(default_factory=dict)
    doomed: bool = False
    stuck: bool = False
    """All tries to destroy it have failed; the next apply tries only once."""

    @property
    def marked(self) -> bool:
        return self.spec is not None and self.spec.mark_mask != 0

    @property
    def right(self) -> bool:
        """Whether the kernel has a set of the wanted shape."""
        return self.spec is not None and self.shape == Shape.of(self.spec)

    @property
    def done(self) -> bool:
        """Whether the kernel has what is wanted; strays do not count."""
        if self.spec is None:
            return self.shape is None or not self.doomed
        return self.right and not self.members.pending

    def load(self, shape: Shape | None, actual: dict[bytes, int]) -> list[Drift]:
        """Take over what the kernel has; returns drift, if the set had the wanted shape before."""
        was_right, before, self.shape = self.right, self.shape, shape
        found = self.members.load(actual)
        if self.spec is None or not was_right:
            return []
        if shape != before:
            return [set_drift(self.spec.name, shape)]
        return list(member_drift(self.spec, found, self.members))

    def find_strays(self) -> None:
        """Have all unwanted members deleted."""
        if self.spec is None:
            return
        held = self.members
        for raw in held.actual.keys() - held.desired.keys():
            key = members.canonical(self.spec.type, self.spec.family, raw)
            if key != raw:
                value = held.actual.pop(raw)
                if key in held.desired:  # the same element in another encoding must be written again
                    held.removed([key])
                    continue
                held.actual[key] = value
            held.dismiss(key)


class IPSets(Part):
    """All our sets of both families."""

    looks = Look.SETS

    def __init__(self) -> None:
        self.steps = {
            Step.GROW_SETS: self.grow,
            Step.WRITE_MARKS: self.mark,
            Step.SHRINK_SETS: self.shrink,
            Step.DESTROY_SETS: self.destroy,
        }
        self._commands = Commands()
        self._sets: dict[str, _Set] = {}
        self._dirty: set[str] = set()
        self._unswept: set[str] = set()
        self._refused: dict[str, Failure] = {}
        self._loaded = False
        self._drift: list[Drift] = []

    def close(self) -> None:
        self._commands.close()

    # --- wanted --------------------------------------------------------------------------------------

    def update(self, update: Update) -> None:
        for name in update.emptied:
            self.spec(name, None)
        for name, spec in update.sets.items():
            self.spec(name, spec)
        for name, texts in update.members.items():
            for text, mark in texts.items():
                self.member(name, text, mark)

    def spec(self, name: str, spec: SetSpec | None) -> None:
        """Note a wanted set; None: the set must not exist."""
        self._refused.pop(name, None)
        if reason := _name_problem(name, spec):
            self._refused[name] = Failure(SetRef(name), reason)
            return
        known = self._sets.setdefault(name, _Set())
        before, known.spec = known.spec, spec
        self._dirty.add(name)
        if spec is None:
            known.members.release()
            known.rejected.clear()
            known.doomed = True
        elif before is None:
            if known.doomed:  # wanted again before it was destroyed: its old members are not wanted
                known.members.dismiss_all()
            known.doomed = False
        elif before != spec:
            self._respecify(name, known)

    def _respecify(self, name: str, known: _Set) -> None:
        texts = {members.decode(key): value >> 32 for key, value in known.members.desired.items()}
        texts |= {text: mark for text, (mark, _) in known.rejected.items()}
        known.members.release()
        known.rejected.clear()
        for text, mark in texts.items():
            self.member(name, text, mark)

    def member(self, name: str, text: str, mark: int | None) -> None:
        """Note a wanted member, with its mark in a marked set; None: the set must not hold it."""
        known = self._sets.get(name)
        if known is None or known.spec is None:
            if mark is not None and name not in self._refused:
                self._refused[name] = Failure(SetRef(name), f"{text!r} is to be in it, but nobody declared it")
            return
        known.rejected.pop(text, None)
        spec = known.spec
        try:
            key = members.encode(spec.type, spec.family, text)
        except ValueError as error:
            if mark is not None:
                known.rejected[text] = (mark, str(error))
            return
        if mark is None:
            known.members.dismiss(key)
        else:
            known.members.desire(key, mark << 32 | spec.mark_mask if spec.mark_mask else 0)
        self._dirty.add(name)

    # --- actual --------------------------------------------------------------------------------------

    def load(self) -> None:
        found = {
            name: read for name in self._commands.names() if is_ours(name) and (read := self._commands.read(name))
        }
        for name, (shape, actual) in found.items():
            known = self._sets.get(name)
            if known is None:
                known = self._sets[name] = _Set()
                if self._loaded and name not in self._refused:
                    self._drift.append(stray_set(name, shape))
            self._drift += known.load(shape, actual)
        for name in self._sets.keys() - found.keys():
            self._drift += self._sets[name].load(None, {})
            if self._sets[name].spec is None:
                del self._sets[name]
        self._loaded = True
        self._dirty = {name for name, known in self._sets.items() if not known.done}
        self._unswept = set(found)

    def miscounted(self) -> bool:
        """Whether the kernel has other sets, or sets of other sizes, than were last read or written.

        Members that were exchanged for as many others stay unseen, and so do marks.

        Raises:
            OSError: the kernel does not answer.
        """
        found = 0
        for header in self._commands.headers():
            known = self._sets.get(header.name)
            if known is not None and known.shape == header.shape:
                if header.members not in (None, len(known.members.actual)):
                    return True
                found += 1
            elif is_ours(header.name):
                return True
        return found != sum(known.shape is not None for known in self._sets.values())

    def hold(self, base: Update) -> Update:
        """Want what was found, except sets of a type that we do not use."""
        for name, known in self._sets.items():
            if known.shape is None or known.shape.type not in list(SetType):
                continue
            value = next(iter(known.members.actual.values()), _WHOLE_MARK) if known.shape.marked else 0
            family = Family.V4 if name.startswith(set_prefix(Family.V4)) else Family.V6
            known.spec = SetSpec(name, SetType(known.shape.type), family, value & _WHOLE_MARK)
            known.members.hold()
        return Update()

    def has(self, name: str) -> bool:
        """Whether the kernel has a set."""
        return name in self._sets and self._sets[name].shape is not None

    def release(self) -> None:
        for known in self._sets.values():
            known.spec, known.doomed = None, False
            known.members.release()
            known.rejected.clear()
        self._refused.clear()
        self._dirty.clear()

    def differences(self) -> Iterator[Ref]:
        for name, known in sorted(self._sets.items()):
            if known.spec is None:
                continue
            if not known.right:
                yield SetRef(name)
            for key in known.members.updates():
                yield MemberRef(name, members.decode(key))

    def marks(self, name: str) -> set[int]:
        """The marks of a set's members in the kernel."""
        known = self._sets.get(name)
        return {value >> 32 for value in known.members.actual.values()} if known else set()

    def sizes(self) -> Mapping[str, int]:
        wanted = [known for known in list(self._sets.values()) if known.spec]
        return {"set": len(wanted), "member": sum(len(known.members.desired) for known in wanted)}

    def owned(self) -> list[str]:
        return [
            f"set {name} ({known.shape.type}): {len(known.members.actual)} members"
            for name, known in sorted(self._sets.items())
            if known.shape
        ]

    # --- the steps of an apply -----------------------------------------------------------------------

    def grow(self, _sweep: Sweep) -> Report:
        """Create sets, and add members to those without marks. Also reports what can never be written."""
        refused = [*self._refused.values()]
        for name, known in sorted(self._sets.items()):
            rejected = (Failure(MemberRef(name, text), reason) for text, (_, reason) in known.rejected.items())
            refused += bounded(rejected, MembersRef(name, further=True))
        names = [name for name in self._dirty if self._sets[name].spec]
        return Report(failures=tuple(refused)) + self._each(names, self._make) + self._write(ADD, marked=False)

    def mark(self, _sweep: Sweep) -> Report:
        """Write members of marked sets, with their marks."""
        names = [name for name in self._dirty if self._sets[name].marked]
        return self._each(names, self._remake) + self._write(ADD, marked=True)

    def shrink(self, sweep: Sweep) -> Report:
        """Delete members, those of marked sets last."""
        if sweep:
            for name in self._unswept:
                self._sets[name].find_strays()
            self._dirty |= self._unswept
        return self._write(DELETE, marked=False) + self._write(DELETE, marked=True)

    def destroy(self, sweep: Sweep) -> Report:
        """Destroy unwanted sets."""
        if sweep:
            for name in self._unswept:
                self._sets[name].doomed = self._sets[name].spec is None
            self._unswept.clear()
        names = [n for n in self._dirty if self._sets[n].doomed and self._sets[n].shape]
        report = self._each(names, self._destroy, unused=True)
        self._dirty = {name for name in self._dirty if not self._sets[name].done}
        return report

    # --- one set -------------------------------------------------------------------------------------

    def _each(self, names: Iterable[str], step: Callable[[str, _Set], int], *, unused: bool = False) -> Report:
        writes = 0
        failures: list[Failure] = []
        for name in sorted(names):
            try:
                writes += step(name, self._sets[name])
            except OSError as error:
                failures.append(Failure(SetRef(name, unused), error.strerror or str(error)))
        return Report(writes=writes, failures=tuple(failures))

    def _make(self, name: str, known: _Set) -> int:
        if known.right or known.spec is None:
            return 0
        if known.shape is None:
            self._create(name, known, known.spec)
            return 1
        # The step WRITE_MARKS gives a marked set its new shape together with its members.
        return 0 if known.marked else self._remake(name, known)

    def _create(self, name: str, known: _Set, spec: SetSpec) -> None:
        """Create a set; the members of one that exists by now (others', or not acknowledged) are not wanted."""
        try:
            self._commands.create(name, spec)
        except FileExistsError:
            if not known.marked:
                self._replace(name, known, spec)
                return
            self._commands.destroy(name)
            self._commands.create(name, spec)
        known.load(Shape.of(spec), {})

    def _remake(self, name: str, known: _Set) -> int:
        if known.right or known.spec is None or known.shape is None:
            return 0
        self._replace(name, known, known.spec)
        return 1

    def _replace(self, name: str, known: _Set, spec: SetSpec) -> None:
        """Fill a set under another name and swap it in for the existing one."""
        other = f"{set_prefix(spec.family)}tmp-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        self._commands.destroy(other)
        self._commands.create(other, spec)
        wanted = known.members.desired
        failed = {key for _, key, _ in self._commands.write([Batch(other, ADD, list(wanted.items()))])}
        try:
            self._commands.swap(other, name)
        except OSError as error:
            self._commands.destroy(other)
            if error.errno != TYPE_MISMATCH:
                raise
            try:
                self._commands.destroy(name)
            except OSError:
                raise error from None
            self._commands.create(name, spec)
            known.load(Shape.of(spec), {})
            return
        known.load(Shape.of(spec), {key: value for key, value in wanted.items() if key not in failed})
        self._commands.destroy(other)

    def _destroy(self, name: str, known: _Set) -> int:
        for left in reversed(range(1 if known.stuck else _BUSY_TRIES)):
            try:
                self._commands.destroy(name)
                break
            except OSError as error:
                if error.errno != BUSY or not left:
                    known.stuck = True
                    raise
                time.sleep(_BUSY_WAIT)
        known.load(None, {})
        known.doomed = known.stuck = False
        if known.spec is None:
            del self._sets[name]
            self._dirty.discard(name)
            self._unswept.discard(name)
        return 1

    def _write(self, command: int, *, marked: bool) -> Report:
        batches: list[Batch] = []
        for name in sorted(self._dirty):
            known = self._sets[name]
            if known.marked != marked:
                continue
            if command == ADD:
                todo = [(key, known.members.desired[key]) for key in known.members.updates()]
            else:
                todo = [(key, 0) for key in known.members.deletions()]
            if todo and known.right:
                batches.append(Batch(name, command, todo))
        refused: dict[str, dict[bytes, OSError]] = {}
        for name, key, error in self._commands.write(batches):
            refused.setdefault(name, {})[key] = error
        writes = 0
        for batch in batches:
            known, errors = self._sets[batch.name], refused.get(batch.name, {})
            written = {key: value for key, value in batch.members if key not in errors}
            writes += len(written)
            if command == ADD:
                known.members.written(written)
            else:
                known.members.removed(written)
        failures = [
            failure
            for name, errors in refused.items()
            for failure in bounded(self._member_failures(name, errors), MembersRef(name, further=True))
        ]
        return Report(writes=writes, failures=tuple(failures))

    def _member_failures(self, name: str, refused: dict[bytes, OSError]) -> Iterator[Failure]:
        asked = False
        for key, error in refused.items():
            if error.errno in (errno.ENOENT, FULL) and not asked:
                asked = True
                self._changed(name, None if error.errno == errno.ENOENT else self._commands.shape(name))
                if error.errno == errno.ENOENT:
                    yield Failure(SetRef(name), error.strerror or str(error))
            if error.errno != errno.ENOENT:
                yield Failure(MemberRef(name, members.decode(key)), error.strerror or str(error))

    def _changed(self, name: str, shape: Shape | None) -> None:
        """Note a set that somebody else has destroyed or replaced: the next apply makes it anew."""
        known = self._sets[name]
        if shape != known.shape:
            self._drift += known.load(shape, known.members.actual if shape else {})


def is_ours(name: str) -> bool:
    """Whether a set of this name is ours."""
    return name.startswith(tuple(map(set_prefix, Family)))


def _name_problem(name: str, spec: SetSpec | None) -> str:
    if not is_ours(name):
        return "not a set name of ours"
    if len(name.encode(errors="replace")) > _NAME_BYTES:
        return f"a set name takes {_NAME_BYTES} bytes at most"
    if spec and (spec.name != name or not name.startswith(set_prefix(spec.family))):
        return "name and family do not fit each other"
    return ""
