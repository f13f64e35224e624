"""Policies from files, as ``kubectl apply -f`` takes them: YAML and JSON, documents, lists, folders, stdin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from felix_py.datastore import kinds
from felix_py.datastore.decode import Kind
from policy.model import ClusterPolicy, Labels, NetworkPolicy, PolicyRef
from policy.parse import Invalid, Rejected, parse_labels, parse_network_policy
from policy.parse_cluster import parse_admin_policy, parse_baseline_admin_policy, parse_cluster_policy
from policy.syntax import bad_namespace, shown

EXTENSIONS = (".json", ".yaml", ".yml")
"""Suffixes of the files that are read in folders, as kubectl does."""

_KINDS: tuple[tuple[Kind[Any], Callable[[object], NetworkPolicy | ClusterPolicy]], ...] = (
    (kinds.POLICIES, parse_network_policy),
    (kinds.CLUSTER_POLICIES, parse_cluster_policy),
    (kinds.ADMIN_POLICIES, parse_admin_policy),
    (kinds.BASELINE_ADMIN_POLICIES, parse_baseline_admin_policy),
)
_PARSERS = {(kind.api_version, kind.name): parse for kind, parse in _KINDS}
_GROUPS = {"extensions", *(version.partition("/")[0] for version, _ in _PARSERS)}
"""API groups of policies. ``extensions`` had NetworkPolicy before networking.k8s.io/v1 (Kubernetes 1.16)."""


class ManifestError(Exception):
    """The files are unusable. ``reasons``: each names the file, the document and the field."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class Document:
    """An object of a file. ``where``: for people, such as ``db.yaml, document 2``."""

    where: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Other:
    """An object that is no policy. ``labels`` is None if they are invalid."""

    where: str
    kind: str
    namespace: str
    name: str
    labels: Labels | None


@dataclass(slots=True)
class Manifests:
    """The objects of the files. Of several documents of one policy the last counts, as if applied in turn."""

    policies: dict[PolicyRef, NetworkPolicy | ClusterPolicy] = field(default_factory=dict)
    where: dict[PolicyRef, str] = field(default_factory=dict)
    others: list[Other] = field(default_factory=list)


# --- files to documents ---------------------------------------------------------------------------------------


def read(names: Sequence[str], stdin: Callable[[], bytes], *, recursive: bool = False) -> list[Document]:
    """All documents of the files; ``-`` is stdin, and a folder's files are those with one of the EXTENSIONS.

    Raises:
        ManifestError: a file cannot be read, or is neither YAML nor JSON.
    """
    documents: list[Document] = []
    reasons: list[str] = []
    for name in names:
        try:
            for label, text in _texts(name, stdin, recursive):
                documents += _documents(label, text)
        except ManifestError as error:
            reasons += error.reasons
    if reasons:
        raise ManifestError(*reasons)
    return documents


def _texts(name: str, stdin: Callable[[], bytes], recursive: bool) -> Iterator[tuple[str, str]]:
    if name == "-":
        yield "stdin", _text("stdin", stdin)
        return
    if "://" in name:
        raise ManifestError(f"{name}: cannot read from a URL; download it first, or pipe it to `-f -`")
    path = Path(name)
    if not path.is_dir():
        yield name, _text(name, path.read_bytes)
        return
    every = path.rglob("*") if recursive else path.iterdir()
    files = sorted(file for file in every if file.suffix in EXTENSIONS and file.is_file())
    if not files:
        hint = "" if recursive else "; -R reads its folders, too"
        raise ManifestError(f"{name}: no file in this folder ends in {', '.join(EXTENSIONS)}{hint}")
    for file in files:
        yield str(file), _text(str(file), file.read_bytes)


def _text(label: str, load: Callable[[], bytes]) -> str:
    try:
        return load().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{label}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise ManifestError(f"{label}: {error.strerror or error}") from None


def _documents(label: str, text: str) -> Iterator[Document]:
    found = [body for body in _parsed(label, text) if body is not None]
    for number, body in enumerate(found, 1):
        where = f"{label}, document {number}" if len(found) > 1 else label
        if not isinstance(body, dict):
            raise ManifestError(f"{where}: must be an object, not {shown(body)}")
        yield from _flat(where, body)


def _parsed(label: str, text: str) -> list[Any]:
    if text.lstrip().startswith("{"):
        try:
            return list(_json_values(text))
        except json.JSONDecodeError:
            pass  # a YAML document may begin like that, too
    try:
        return list(yaml.load_all(text, _Loader))
    except yaml.YAMLError as error:
        raise ManifestError(f"{label}: {_yaml_words(error)}") from None
    except RecursionError:
        raise ManifestError(f"{label}: nested too deeply") from None


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    place = 0
    while rest := text[place:].lstrip():
        place = len(text) - len(rest)
        value, place = decoder.raw_decode(text, place)
        yield value


def _yaml_words(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem


def _flat(where: str, body: dict[str, Any]) -> Iterator[Document]:
    """An object, or the objects of a list of any kind (API: meta/v1 List)."""
    kind, items = body.get("kind"), body.get("items")
    if not isinstance(kind, str) or not kind.endswith("List") or "items" not in body:
        yield Document(where, body)
        return
    if not isinstance(items, list | None):
        raise ManifestError(f"{where}: items: must be a list, not {shown(items)}")
    # The items of a typed list may omit apiVersion and kind.
    typed = {} if kind == "List" else {"apiVersion": body.get("apiVersion"), "kind": kind.removesuffix("List")}
    for number, item in enumerate(items or ()):
        if not isinstance(item, dict):
            raise ManifestError(f"{where}: items[{number}]: must be an object, not {shown(item)}")
        yield from _flat(f"{where}, items[{number}]", {**typed, **item})


_IMPLICIT = {
    first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith(":timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Loads YAML as kubectl does: duplicate keys are errors, and dates are text."""

    yaml_implicit_resolvers = _IMPLICIT

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag.endswith(":str"):
                if key.value in seen:
                    problem = f"the key {shown(key.value)} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


# --- documents to policies ------------------------------------------------------------------------------------


def policies_in(documents: Sequence[Document], namespace: str, *, only: bool = False) -> Manifests:
    """The policies of documents; :mod:`policy.parse` checks their fields.

    ``namespace``: of policies that name none. ``only``: policies must not name another one.

    Raises:
        ManifestError: an object has no kind or no name, or a policy is of an unknown version.
    """
    found = Manifests()
    reasons: list[str] = []
    for document in documents:
        try:
            _take(document, namespace, only, found)
        except ManifestError as error:
            reasons += error.reasons
    if reasons:
        raise ManifestError(*reasons)
    return found


def _take(document: Document, default: str, only: bool, found: Manifests) -> None:
    body, where = document.body, document.where
    version, kind = _text_at(body, "apiVersion", where), _text_at(body, "kind", where)
    metadata = body.get("metadata")
    if not isinstance(metadata, dict):
        raise ManifestError(f"{where}: metadata: must be an object, not {shown(metadata)}")
    parse = _PARSERS.get((version, kind))
    if parse is None:
        _refuse_version(version, kind, where)
        found.others.append(_other(where, kind, metadata, default))
        return
    if parse is parse_network_policy:
        metadata = {**metadata, "namespace": _namespace(metadata, default, only, where)}
    if "name" not in metadata and "generateName" in metadata:
        raise ManifestError(f"{where}: metadata.name: missing; generateName makes a new policy each time")
    try:
        policy = parse({**body, "metadata": metadata})
    except Rejected as error:
        raise ManifestError(f"{where}: {kind}: {error}") from None
    found.policies[policy.ref] = policy
    found.where[policy.ref] = where


def _text_at(body: Mapping[str, Any], key: str, where: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise ManifestError(f"{where}: {key}: {'missing' if value is None else 'must be a string'}")
    return value


def _refuse_version(version: str, kind: str, where: str) -> None:
    """Refuse a policy in an unknown version: it must not be skipped like other objects."""
    known = [right for right, name in _PARSERS if name == kind]
    if known and version.partition("/")[0] in _GROUPS:
        raise ManifestError(f"{where}: apiVersion: {kind} must be {known[0]}, not {shown(version)}")


def _namespace(metadata: Mapping[str, Any], default: str, only: bool, where: str) -> object:
    own = metadata.get("namespace")
    if own is None or own == "":
        return default
    if only and own != default:
        raise ManifestError(f"{where}: metadata.namespace: {shown(own)} is not --namespace {default}")
    return own


def _other(where: str, kind: str, metadata: Mapping[str, Any], default: str) -> Other:
    try:
        labels = parse_labels(metadata.get("labels"))
    except Invalid:
        labels = None
    namespace, name = metadata.get("namespace"), metadata.get("name")
    own = namespace if isinstance(namespace, str) and not bad_namespace(namespace) else default
    return Other(where, kind, own, name if isinstance(name, str) else "", labels)
