"""Tables (meta/v1 Table) and metadata-only answers: what ``Accept: …;as=…`` asks for."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

from lab.apiserver.columns import DEFAULT
from lab.apiserver.kinds import Column, Obj, Version


class As(enum.StrEnum):
    """``as`` parameter of the accepted media type."""

    OBJECT = ""
    TABLE = "Table"
    METADATA = "PartialObjectMetadata"
    METADATA_LIST = "PartialObjectMetadataList"


_FORMS = frozenset(form.value for form in As)


def accepted_form(accept: str) -> As:
    """The first form of an Accept header that this server can produce."""
    for part in accept.split(","):
        media, *parameters = (text.strip() for text in part.split(";"))
        if media not in {"application/json", "*/*", "application/*", "application/yaml"}:
            continue
        pairs = dict(parameter.partition("=")[::2] for parameter in parameters)
        form = pairs.get("as", "")
        if form in _FORMS and pairs.get("v", "v1") == "v1":
            return As(form)
    return As.OBJECT


def table(
    objects: Iterable[Obj], version: Version, include: str, list_metadata: Obj, headers: bool = True
) -> Obj:
    """A Table of ``objects``; ``include`` is the includeObject parameter (None, Metadata or Object)."""
    columns = version.columns or DEFAULT
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_metadata,
        "columnDefinitions": [_definition(column) for column in columns] if headers else None,
        "rows": [_row(obj, columns, include) for obj in objects],
    }


def _definition(column: Column) -> Obj:
    return {
        "name": column.name,
        "type": column.type,
        "format": column.format,
        "description": column.description,
        "priority": column.priority,
    }


def _row(obj: Obj, columns: Sequence[Column], include: str) -> Obj:
    row: Obj = {"cells": [column.cell(obj) for column in columns]}
    if include == "Object":
        row["object"] = obj
    elif include != "None":
        row["object"] = partial(obj)
    return row


def partial(obj: Obj) -> Obj:
    """PartialObjectMetadata of an object."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}
