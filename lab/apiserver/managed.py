"""metadata.managedFields: who owns which field, and server-side apply on top of it (KEP-555)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lab.apiserver.errors import ApiError
from lab.apiserver.fieldset import Path, Typed, from_fields_v1, shown, to_fields_v1
from lab.apiserver.kinds import Obj

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True)
class Manager:
    """Who writes: one entry of managedFields is kept per distinct value."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""


@dataclass(slots=True)
class _Entry:
    manager: Manager
    time: str
    paths: set[Path] = field(default_factory=set)

    def to_api(self) -> Obj:
        entry: Obj = {
            "manager": self.manager.name,
            "operation": self.manager.operation,
            "apiVersion": self.manager.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": to_fields_v1(self.paths),
        }
        if self.manager.subresource:
            entry["subresource"] = self.manager.subresource
        return entry


def _entries(obj: Obj) -> list[_Entry]:
    entries = []
    for raw in obj["metadata"].get("managedFields") or []:
        manager = Manager(
            raw.get("manager", ""),
            raw.get("operation", ""),
            raw.get("apiVersion", ""),
            raw.get("subresource", ""),
        )
        if manager.operation:
            entries.append(_Entry(manager, raw.get("time", ""), from_fields_v1(raw.get("fieldsV1") or {})))
    return entries


def _store(obj: Obj, entries: Iterable[_Entry]) -> None:
    kept = [entry.to_api() for entry in entries if entry.paths]
    if kept:
        obj["metadata"]["managedFields"] = kept
    else:
        obj["metadata"].pop("managedFields", None)


def track_update(new: Obj, old: Obj | None, typed: Typed, manager: Manager, now: str) -> None:
    """Record on ``new`` that ``manager`` made it out of ``old`` (None: created it); in place."""
    only_status = manager.subresource == "status"
    after = typed.leaves(new, only_status)
    before = typed.leaves(old, only_status) if old is not None else {}
    changed = {path for path, value in after.items() if path not in before or before[path] != value}
    removed = before.keys() - after.keys()
    entries = _entries(new if "managedFields" in new["metadata"] or old is None else old)
    mine = next((entry for entry in entries if entry.manager == manager), None)
    for entry in entries:
        entry.paths -= removed if entry is mine else removed | changed
    if changed:
        if mine is None:
            entries.append(mine := _Entry(manager, now))
        mine.paths |= changed
        mine.time = now
    _store(new, entries)


def apply(live: Obj, config: Obj, typed: Typed, manager: Manager, force: bool, now: str) -> Obj:
    """Server-side apply of ``config``: a new document with its managedFields, or 409 naming the conflicts.

    ``live`` is ``{"metadata": {}}`` with apiVersion and kind when the object does not exist yet.
    """
    wanted = typed.leaves(config)
    before = typed.leaves(live)
    entries = _entries(live)
    mine = next((entry for entry in entries if entry.manager == manager), None)
    others = [entry for entry in entries if entry is not mine]
    conflicts = [
        (entry, path)
        for entry in others
        for path in sorted(entry.paths & wanted.keys())
        if path not in before or before[path] != wanted[path]
    ]
    if manager.name == "kubectl" and not force:
        # Moving an object from client-side to server-side apply is no conflict with oneself.
        unchanged = _last_applied(live, typed)
        if all(path in unchanged and unchanged[path] == before.get(path) for _, path in conflicts):
            force = True
    if conflicts and not force:
        raise _conflict_error(conflicts)
    for entry, path in conflicts:
        entry.paths.discard(path)
    merged = typed.merge(live, config)
    if mine is not None:
        owned_by_others: set[Path] = set().union(*(entry.paths for entry in others))
        dropped = mine.paths - wanted.keys() - owned_by_others
        if dropped:
            merged = typed.remove(merged, dropped, owned_by_others | wanted.keys())
    if mine is None:
        entries.append(mine := _Entry(manager, now))
    elif mine.paths != wanted.keys() or typed.leaves(merged) != before:
        mine.time = now
    mine.paths = set(wanted)
    merged["metadata"] = dict(merged["metadata"])
    _store(merged, entries)
    return merged


def _last_applied(live: Obj, typed: Typed) -> dict[Path, Any]:
    """What the last client-side apply asked for; empty when the annotation is absent or unreadable."""
    text = (live["metadata"].get("annotations") or {}).get(LAST_APPLIED)
    try:
        return typed.leaves(json.loads(text)) if text else {}
    except (ValueError, TypeError, AttributeError):  # people may write anything there
        return {}


def _conflict_error(conflicts: list[tuple[_Entry, Path]]) -> ApiError:
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {_who(entry)}", "field": shown(path)}
        for entry, path in conflicts
    ]
    if len(conflicts) == 1:
        entry, path = conflicts[0]
        message = f"Apply failed with 1 conflict: conflict with {_who(entry)}: {shown(path)}"
    else:
        by_manager: dict[str, list[str]] = {}
        for entry, path in conflicts:
            by_manager.setdefault(_who(entry), []).append(shown(path))
        parts = ["conflicts with " + who + ":" + "".join(f"\n- {p}" for p in paths)
                 for who, paths in by_manager.items()]  # fmt: skip
        message = f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(parts)
    return ApiError(409, "Conflict", message, {"causes": causes})


def _who(entry: _Entry) -> str:
    manager = entry.manager
    text = f'"{manager.name}"'
    if manager.subresource:
        text += f' with subresource "{manager.subresource}"'
    if manager.operation != "Update":
        return text
    text += f" using {manager.api_version}"
    return f"{text} at {entry.time}" if entry.time else text
