"""The verbs: create, get, list, update, patch, delete. Synchronous: all state is in memory, in one thread."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from lab.apiserver import errors as api
from lab.apiserver import managed, metadata
from lab.apiserver.codec import Decoded, FieldValidation, check_type, check_unknown, decode
from lab.apiserver.fieldset import Typed
from lab.apiserver.journal import ObjectKey
from lab.apiserver.kinds import Obj, Resource, Version
from lab.apiserver.lifecycle import Lifecycle
from lab.apiserver.patch import StrategicMerge, json_patch, merge_patch
from lab.apiserver.selectors import Matcher, both, field_matcher, label_matcher
from lab.apiserver.store import Store, Stored
from lab.apiserver.structural import Structural

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
PATCH_TYPES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about. ``namespace`` empty: cluster-scoped, or all namespaces of a list."""

    resource: Resource
    version: Version
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def key(self) -> ObjectKey:
        return (self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """Query parameters of writes. ``manager`` is fieldManager, or the client's name from its User-Agent."""

    manager: str = "unknown"
    dry_run: bool = False
    validation: FieldValidation = FieldValidation.WARN
    force: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """A written object in the form of the request's version."""

    obj: Obj
    created: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ListOptions:
    """Query parameters of lists. ``version``/``match`` are resourceVersion and resourceVersionMatch."""

    label_selector: str = ""
    field_selector: str = ""
    limit: int = 0
    token: str = ""
    version: str = ""
    match: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A list answer: the objects as stored, and its ListMeta."""

    items: list[Stored]
    metadata: Obj = field(default_factory=dict)


class Rest:
    """Reads and writes through one store. ``after_write`` hears of every object put in place."""

    def __init__(
        self, store: Store, lifecycle: Lifecycle, after_write: Callable[[Resource, Stored], None]
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._after_write = after_write

    def matcher(self, target: Target, label_selector: str, field_selector: str) -> Matcher | None:
        """What a list or watch selects; None: everything. Reads the stored form."""
        labels = target.resource.strategy.field_labels
        chosen = both(label_matcher(label_selector), field_matcher(field_selector, labels))
        if target.name:
            name = target.name
            chosen = both(lambda obj: obj["metadata"]["name"] == name, chosen)
        return chosen

    def get(self, target: Target) -> Stored:
        """The object, or 404."""
        stored = self._store.get(target.resource.storage, target.key)
        if stored is None:
            raise api.not_found(target.resource.group_resource, target.name)
        return stored

    def list(self, target: Target, options: ListOptions) -> Page:
        """One page of objects in key order, all of one version; 410 for a token the log no longer reaches."""
        at, after = self._position(options)
        items = self._store.list(target.resource.storage, target.namespace, at)
        if after is not None:
            items = [stored for stored in items if stored.key > after]
        chosen = self.matcher(target, options.label_selector, options.field_selector)
        if chosen is not None:
            items = [stored for stored in items if chosen(stored.obj)]
        answer: Obj = {"resourceVersion": str(at)}
        if 0 < options.limit < len(items):
            remaining = len(items) - options.limit
            items = items[: options.limit]
            answer["continue"] = _token(at, items[-1].key)
            if chosen is None:
                answer["remainingItemCount"] = remaining
        return Page(items, answer)

    def _position(self, options: ListOptions) -> tuple[int, ObjectKey | None]:
        if options.token:
            return _read_token(options.token)
        version = parse_version(options.version)
        if version > self._store.version:
            raise too_large(version, self._store.version)
        exact = options.match == "Exact" and version
        return (version if exact else self._store.version), None

    def create(self, target: Target, body: object, options: WriteOptions) -> Outcome:
        """POST: 404 for an absent namespace, 409 for a taken name, 422 for an invalid object."""
        resource, version = target.resource, target.version
        document = check_type(body, resource, version)
        self._check_namespace(document, target)
        decoded = decode(document, resource, version)
        warnings = check_unknown(decoded, options.validation, resource, version)
        target = replace(target, name=decoded.obj["metadata"].get("name", ""))
        created = self._insert(target, decoded, options, managed.track_update)
        return replace(created, warnings=tuple(warnings))

    def _insert(
        self,
        target: Target,
        decoded: Decoded,
        options: WriteOptions,
        track: Callable[..., None] | None,
    ) -> Outcome:
        resource, version, obj = target.resource, target.version, decoded.obj
        self._lifecycle.check_namespace_accepts(resource, target.namespace, target.name)
        metadata.stamp_new(obj, target.namespace)
        key = (target.namespace, obj["metadata"].get("name", ""))
        if key[1] and self._store.get(resource.storage, key) is not None:
            raise api.already_exists(resource.group_resource, key[1])
        if version.status and not resource.strategy.keeps_status_on_create:
            obj.pop("status", None)
        stored_form = resource.convert_in(obj, version)
        self._complete(resource, version, stored_form, None, decoded)
        if resource.strategy.generation:
            stored_form["metadata"]["generation"] = 1
        if track is not None:
            typed = Typed(version.schema, version.components)
            manager = _manager(options.manager, "Update", target)
            track(stored_form, None, typed, manager, metadata.now())
        if options.dry_run:
            return Outcome(resource.convert_out(stored_form, version), created=True)
        stored = self._store.put(resource.storage, key, stored_form)
        self._after_write(resource, stored)
        return Outcome(resource.convert_out(stored.obj, version), created=True)

    def _complete(
        self, resource: Resource, version: Version, obj: Obj, old: Obj | None, decoded: Decoded
    ) -> None:
        """Prepare, default and validate the stored form, in place; 422 with all causes."""
        strategy = resource.strategy
        problems = list(decoded.errors)
        if strategy.prepare is not None:
            strategy.prepare(obj, old)
        if strategy.default is not None:
            strategy.default(obj)
        if not version.builtin:
            structural = Structural(version)
            structural.default(obj)
            problems += structural.validate(obj, old)
        problems = metadata.validate_metadata(obj, old, resource) + problems
        name = obj["metadata"].get("name", "")
        if strategy.validate is not None and name:
            problems += strategy.validate(obj, old)
        if problems:
            raise api.invalid_object(resource.group, resource.kind, name, problems)

    def update(self, target: Target, body: object, options: WriteOptions) -> Outcome:
        """PUT of the object or its status: 404, 409 for another resourceVersion or uid, 422."""
        resource, version = target.resource, target.version
        document = check_type(body, resource, version)
        self._check_namespace(document, target)
        name = document["metadata"].get("name", "")
        if name != target.name:
            raise api.bad_request(
                f"the name of the object ({name}) does not match the name on the URL ({target.name})"
            )
        decoded = decode(document, resource, version)
        warnings = check_unknown(decoded, options.validation, resource, version)
        current = self.get(target)
        outcome = self._replace(target, current, decoded, options)
        return replace(outcome, warnings=tuple(warnings))

    def _replace(
        self, target: Target, current: Stored, decoded: Decoded, options: WriteOptions, applied: bool = False
    ) -> Outcome:
        resource, version = target.resource, target.version
        new, old = resource.convert_in(decoded.obj, version), current.copy()
        self._preconditions(resource, new, old)
        new = _scoped(new, old, target)
        metadata.carry_over(new, old)
        self._complete(resource, version, new, old, decoded)
        if not applied:
            typed = Typed(version.schema, version.components)
            manager = _manager(options.manager, "Update", target)
            managed.track_update(new, old, typed, manager, metadata.now())
        if resource.strategy.generation and _spec_changed(new, old):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if options.dry_run:
            return Outcome(resource.convert_out(new, version))
        if new == old:
            return Outcome(resource.convert_out(old, version))
        stored = self._lifecycle.put(resource, current.key, new)
        self._after_write(resource, stored)
        return Outcome(resource.convert_out(stored.obj, version))

    def _preconditions(self, resource: Resource, new: Obj, old: Obj) -> None:
        wanted, have = new["metadata"], old["metadata"]
        version = wanted.get("resourceVersion")
        if version and version != have["resourceVersion"]:
            raise api.conflict(resource.group_resource, have["name"])
        uid = wanted.get("uid")
        if uid and uid != have["uid"]:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {have['uid']}"
            raise api.conflict(resource.group_resource, have["name"], why)

    def patch(self, target: Target, kind: str, patch: Any, options: WriteOptions) -> Outcome:
        """PATCH of one of :data:`PATCH_TYPES`; apply creates the object when it is absent."""
        if kind == APPLY_PATCH:
            return self._apply(target, patch, options)
        resource, version = target.resource, target.version
        current = self.get(target)
        before = resource.convert_out(current.copy(), version)
        if kind == JSON_PATCH:
            after = json_patch(before, patch)
        elif kind == MERGE_PATCH:
            after = merge_patch(before, patch)
        elif version.builtin:
            after = StrategicMerge(version.components).apply(before, patch, version.schema)
        else:
            raise api.unsupported_media_type(kind, (JSON_PATCH, MERGE_PATCH, APPLY_PATCH))
        document = check_type(after, resource, version)
        if document["metadata"].get("name") != target.name:
            raise api.bad_request("metadata.name: the name of an object cannot be changed by a patch")
        decoded = decode(document, resource, version)
        warnings = _check_patched(decoded, options.validation, patch)
        return replace(self._replace(target, current, decoded, options), warnings=tuple(warnings))

    def _apply(self, target: Target, patch: Any, options: WriteOptions) -> Outcome:
        resource, version = target.resource, target.version
        document = check_type(patch, resource, version)
        self._check_namespace(document, target)
        if document["metadata"].get("managedFields"):
            raise api.bad_request("metadata.managedFields must be nil")
        document["metadata"] = document["metadata"] | {"name": target.name}
        decoded = decode(document, resource, version)
        if decoded.unknown:
            raise api.ApiError(
                500,
                "",
                f"failed to create typed patch object ({target.namespace}/{target.name}; "
                f"{resource.api_version(version.name)}, Kind={resource.kind}): "
                f".{decoded.unknown[0]}: field not declared in schema",
            )
        stored = self._store.get(resource.storage, target.key)
        typed = Typed(version.schema, version.components)
        manager = _manager(options.manager, "Apply", target)
        identity = {"apiVersion": document["apiVersion"], "kind": resource.kind}
        live: Obj = {**identity, "metadata": {}}
        if stored is not None:
            live = resource.convert_out(stored.copy(), version)
        merged = managed.apply(live, decoded.obj, typed, manager, options.force, metadata.now())
        if stored is None:
            return self._insert(target, Decoded(merged), options, None)
        return self._replace(target, stored, Decoded(merged), options, applied=True)

    def _check_namespace(self, document: Obj, target: Target) -> None:
        given = document["metadata"].get("namespace")
        if given and target.resource.namespaced and given != target.namespace:
            raise api.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )

    def bind(self, target: Target, node: str, options: WriteOptions) -> None:
        """POST to pods/binding: the scheduler's decision; 409 when the pod has a node."""
        stored = self.get(target)
        obj = stored.copy()
        if not node:
            raise api.bad_request("target.name: the name of a node is required")
        if taken := obj["spec"].get("nodeName"):
            why = f'pod {target.name} is already assigned to node "{taken}"'
            raise api.conflict(target.resource.group_resource, target.name, why)
        obj["spec"]["nodeName"] = node
        if options.dry_run:
            return
        scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None,
                     "lastTransitionTime": metadata.now()}  # fmt: skip
        conditions = [c for c in obj["status"].get("conditions") or [] if c.get("type") != "PodScheduled"]
        obj["status"]["conditions"] = [*conditions, scheduled]
        self._after_write(target.resource, self._store.put(target.resource.storage, stored.key, obj))

    def delete(self, target: Target, body: Any, dry_run: bool) -> tuple[Obj, bool]:
        """DELETE: (the answer, is the object gone?). The answer is a Status or the object that lingers."""
        stored = self.get(target)
        options = _delete_options(body)
        self._delete_preconditions(target, stored, options.get("preconditions") or {})
        last, gone = self._lifecycle.delete(
            target.resource, stored, options.get("gracePeriodSeconds"), dry_run or bool(options.get("dryRun"))
        )
        if target.resource.strategy.graceful or not gone:
            return target.resource.convert_out(last, target.version), gone
        details = {
            "name": target.name,
            "group": target.resource.group,
            "kind": target.resource.plural,
            "uid": last["metadata"]["uid"],
        }
        details = {key: value for key, value in details.items() if value}
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return status, gone

    def _delete_preconditions(self, target: Target, stored: Stored, wanted: Obj) -> None:
        for name, title in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            want, have = wanted.get(name), stored.obj["metadata"][name]
            if want and want != have:
                why = f"Precondition failed: {title} in precondition: {want}, {title} in object meta: {have}"
                raise api.conflict(target.resource.group_resource, target.name, why)

    def delete_collection(self, target: Target, options: ListOptions, body: Any, dry_run: bool) -> Page:
        """DELETE of everything a list selects; the page is what was selected."""
        page = self.list(target, options)
        grace = _delete_options(body).get("gracePeriodSeconds")
        for stored in page.items:
            now = self._store.get(target.resource.storage, stored.key)
            if now is not None:
                self._lifecycle.delete(target.resource, now, grace, dry_run)
        return page


def _delete_options(body: Any) -> Obj:
    if body is None:
        return {}
    if not isinstance(body, dict) or body.get("kind", "DeleteOptions") != "DeleteOptions":
        raise api.bad_request("the body of a delete must be DeleteOptions")
    grace = body.get("gracePeriodSeconds")
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool)):
        raise api.bad_request("gracePeriodSeconds must be an integer")
    return body


def _scoped(new: Obj, old: Obj, target: Target) -> Obj:
    """Only the status, or all but the status, may change, by which of the two the request addresses."""
    if target.subresource == "status":
        scoped = old | {"status": new.get("status", {})}
        if target.version.builtin:
            scoped["metadata"] = new["metadata"]
        elif "managedFields" in new["metadata"]:
            scoped["metadata"] = old["metadata"] | {"managedFields": new["metadata"]["managedFields"]}
        return scoped
    if target.version.status:
        new = {key: value for key, value in new.items() if key != "status"}
        if "status" in old:
            new["status"] = old["status"]
    return new


def _spec_changed(new: Obj, old: Obj) -> bool:
    apart = {"metadata", "status"}
    return any(new.get(key) != old.get(key) for key in new.keys() | old.keys() if key not in apart)


def _manager(name: str, operation: str, target: Target) -> managed.Manager:
    return managed.Manager(name, operation, target.resource.api_version(target.version.name), target.subresource)


def _check_patched(decoded: Decoded, validation: FieldValidation, patch: Any) -> list[str]:
    if not decoded.unknown or validation is FieldValidation.IGNORE:
        return []
    if validation is FieldValidation.WARN:
        return decoded.strict_errors
    why = f"strict decoding error: {', '.join(decoded.strict_errors)}"
    cause = api.invalid("patch", msgspec.json.encode(patch).decode(), why)
    raise api.invalid_object("", "", "", [cause])


def parse_version(text: str) -> int:
    """A resourceVersion parameter as a number; empty is 0."""
    if not text:
        return 0
    if not text.isascii() or not text.isdigit():
        cause = api.invalid("resourceVersion", text, f'strconv.ParseUint: parsing "{text}": invalid syntax')
        raise api.invalid_object("", "", "", [cause])
    return int(text)


def too_large(version: int, current: int) -> api.ApiError:
    """What a list answers that asks for a version the server has not reached."""
    return api.ApiError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {version}, current: {current}",
        {"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
         "retryAfterSeconds": 1},
    )  # fmt: skip


def _token(version: int, last: ObjectKey) -> str:
    raw = msgspec.json.encode({"v": "meta.k8s.io/v1", "rv": version, "start": list(last)})
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


class _Token(msgspec.Struct):
    rv: int
    start: tuple[str, str]


def _read_token(text: str) -> tuple[int, ObjectKey]:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        token = msgspec.json.decode(raw, type=_Token)
    except (binascii.Error, ValueError) as error:
        raise api.bad_request("continue key is not valid: the token could not be read") from error
    return token.rv, token.start
