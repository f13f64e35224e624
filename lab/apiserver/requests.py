"""HTTP requests to the records the verbs take: paths, query parameters, bodies."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import yaml

from lab.apiserver import errors as api
from lab.apiserver import protobuf
from lab.apiserver.codec import FieldValidation
from lab.apiserver.registry import Registry
from lab.apiserver.rest import PATCH_TYPES, ListOptions, Target, WriteOptions, parse_version
from lab.apiserver.store import decode, encode
from lab.apiserver.watch import WatchOptions

_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})
_BODY_TYPES = ("application/json", "application/yaml", protobuf.CONTENT_TYPE)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML as Kubernetes reads it: a timestamp stays a text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class ApiPath:
    """A path below /api or /apis, split."""

    group: str
    version: str
    parts: tuple[str, ...]


def split_path(path: str) -> ApiPath | None:
    """``/api/v1/…`` or ``/apis/GROUP/VERSION/…``; None for anything else."""
    parts = [part for part in path.split("/") if part]
    match parts:
        case ["api", version, *rest]:
            return ApiPath("", version, tuple(rest))
        case ["apis", group, version, *rest]:
            return ApiPath(group, version, tuple(rest))
    return None


def find_target(registry: Registry, path: ApiPath) -> Target:
    """The resource, and perhaps the object, that a path names; 404 when it is not served."""
    parts = path.parts
    namespace = ""
    if (
        len(parts) > 2
        and parts[0] == "namespaces"
        and not (len(parts) == 3 and parts[2] in _NAMESPACE_SUBRESOURCES)
    ):
        namespace, parts = parts[1], parts[2:]
    plural, name, subresource = (*parts, "", "", "")[:3]
    found = registry.find(path.group, path.version, plural)
    if found is None or len(parts) > 3:
        raise api.no_such_path()
    resource, version = found
    if namespace and not resource.namespaced:
        raise api.no_such_path()
    if name and resource.namespaced and not namespace:
        raise api.no_such_path()
    known = {"status"} if version.status else set()
    if subresource and subresource not in known | set(resource.subresources):
        raise api.no_such_path()
    return Target(resource, version, namespace, name, subresource)


def parse_body(raw: bytes, content_type: str) -> Any:
    """The document of a request body; None when it is empty. 400 when it cannot be read, 415 for its type."""
    media = content_type.partition(";")[0].strip().lower()
    if not raw:
        return None
    if media == protobuf.CONTENT_TYPE:
        return protobuf.decode(raw)
    if media not in {"", *_BODY_TYPES, *PATCH_TYPES}:
        raise api.unsupported_media_type(media, _BODY_TYPES)
    try:
        return decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        if "yaml" not in media:
            raise api.bad_request(f"the object provided is unrecognized: invalid JSON: {error}") from error
    try:
        return decode(encode(yaml.load(raw, Loader=_Loader)))  # noqa: S506 - a safe one; the rest becomes text
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise api.bad_request(f"the object provided is unrecognized: invalid YAML: {error}") from error


def write_options(query: Mapping[str, str], user_agent: str, apply: bool = False) -> WriteOptions:
    """Options of a write; 422 for a dryRun or fieldValidation that does not exist, or apply without manager."""
    dry_run = is_dry_run(query)
    validation = query.get("fieldValidation") or FieldValidation.WARN
    if validation not in list(FieldValidation):
        cause = api.not_supported("fieldValidation", validation, FieldValidation)
        raise api.invalid_object("meta.k8s.io", "CreateOptions", "", [cause])
    manager = query.get("fieldManager", "")
    if apply and not manager:
        cause = api.required("fieldManager", "is required for apply patch")
        raise api.invalid_object("meta.k8s.io", "PatchOptions", "", [cause])
    return WriteOptions(
        manager=manager or user_agent.partition("/")[0] or "unknown",
        dry_run=dry_run,
        validation=FieldValidation(validation),
        force=is_true(query.get("force")),
    )


def is_dry_run(query: Mapping[str, str]) -> bool:
    """``dryRun=All``; 422 for any other value."""
    value = query.get("dryRun", "")
    if value not in {"", "All"}:
        cause = api.not_supported("dryRun", [value], ["All"])
        raise api.invalid_object("meta.k8s.io", "CreateOptions", "", [cause])
    return value == "All"


def is_true(value: str | None) -> bool:
    return value in {"1", "t", "true", "True", "TRUE"}


def _number(query: Mapping[str, str], name: str) -> int:
    try:
        return int(query.get(name) or 0)
    except ValueError as error:
        raise api.bad_request(f'{name}: strconv.ParseInt: parsing "{query[name]}": invalid syntax') from error


def list_options(query: Mapping[str, str]) -> ListOptions:
    """Options of a list or of a deletecollection."""
    return ListOptions(
        label_selector=query.get("labelSelector", ""),
        field_selector=query.get("fieldSelector", ""),
        limit=_number(query, "limit"),
        token=query.get("continue", ""),
        version=query.get("resourceVersion", ""),
        match=query.get("resourceVersionMatch", ""),
    )


def watch_options(query: Mapping[str, str], bookmark_interval: float) -> WatchOptions:
    """Options of a watch; 422 for a combination that the API forbids."""
    initial = query.get("sendInitialEvents")
    options = WatchOptions(
        version=parse_version(query.get("resourceVersion", "")),
        bookmarks=is_true(query.get("allowWatchBookmarks")),
        initial=None if initial is None else is_true(initial),
        match=query.get("resourceVersionMatch", ""),
        timeout=_number(query, "timeoutSeconds") or random.uniform(1800, 3600),
        bookmark_interval=bookmark_interval,
    )
    options.check()
    return options
