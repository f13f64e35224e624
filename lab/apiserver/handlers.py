"""HTTP methods to verbs, and their answers in the form the client accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aiohttp import web

from lab.apiserver import errors as api
from lab.apiserver import refused, requests
from lab.apiserver.instance import Instance
from lab.apiserver.kinds import Obj
from lab.apiserver.requests import ApiPath
from lab.apiserver.responses import json_response
from lab.apiserver.rest import APPLY_PATCH, PATCH_TYPES, Outcome, Page, Target, WriteOptions
from lab.apiserver.store import Stored, encode
from lab.apiserver.table import As, accepted_form, partial, table
from lab.apiserver.watch import INITIAL_EVENTS_END, Hub, Selection, Watch, WatchOptions


class Handlers:
    """Serves the paths of resources."""

    def __init__(self, instance: Instance, hub: Hub, bookmark_interval: float, *, lab: bool = False) -> None:
        """``lab``: refuse what nothing in a lab acts on."""
        self._lab = lab
        self._instance = instance
        self._rest = instance.rest
        self._hub = hub
        self._bookmark_interval = bookmark_interval
        self._watches: set[Watch] = set()

    def stop(self) -> None:
        """Tell all watches to end."""
        for watch in self._watches:
            watch.stopping = True

    async def serve(self, request: web.Request, path: ApiPath) -> web.StreamResponse:
        """Answer one request."""
        if path.group == "authorization.k8s.io":
            return await self._review(request)
        if self._lab:
            refused.check(self._instance.registry, request.method, path)
        target = requests.find_target(self._instance.registry, path)
        if target.subresource in {"binding", "eviction"}:
            return await self._pod_action(request, target)
        match request.method, bool(target.name):
            case "GET", _ if requests.is_true(request.query.get("watch")):
                return await self._watch(request, target)
            case "GET", True:
                return self._object(request, target, self._rest.get(target))
            case "GET", False:
                return self._list(request, target)
            case "POST", False:
                return await self._create(request, target)
            case "PUT", True:
                options = self._write_options(request)
                return self._written(request, target, self._rest.update(target, await _body(request), options))
            case "PATCH", True:
                return await self._patch(request, target)
            case "DELETE", True if not target.subresource:
                dry_run = requests.is_dry_run(request.query)
                answer, _ = self._rest.delete(target, await self._delete_options(request), dry_run)
                return json_response(answer)
            case "DELETE", False:
                return await self._delete_collection(request, target)
        raise api.method_not_allowed()

    @staticmethod
    def _write_options(request: web.Request, apply: bool = False) -> WriteOptions:
        return requests.write_options(request.query, request.headers.get("User-Agent", ""), apply)

    async def _create(self, request: web.Request, target: Target) -> web.Response:
        if target.resource.namespaced and not target.namespace:
            raise api.method_not_allowed()
        body = await _body(request)
        return self._written(request, target, self._rest.create(target, body, self._write_options(request)))

    async def _patch(self, request: web.Request, target: Target) -> web.Response:
        kind = request.content_type
        if kind not in PATCH_TYPES:
            raise api.unsupported_media_type(kind, PATCH_TYPES)
        options = self._write_options(request, apply=kind == APPLY_PATCH)
        outcome = self._rest.patch(target, kind, await _body(request), options)
        return self._written(request, target, outcome)

    async def _delete_options(self, request: web.Request) -> Any:
        body = await _body(request)
        grace = request.query.get("gracePeriodSeconds")
        if body is None and grace is not None:
            if not grace.isdigit():
                raise api.bad_request("gracePeriodSeconds must be a number")
            return {"gracePeriodSeconds": int(grace)}
        return body

    async def _delete_collection(self, request: web.Request, target: Target) -> web.Response:
        options = requests.list_options(request.query)
        body = await self._delete_options(request)
        page = self._rest.delete_collection(target, options, body, requests.is_dry_run(request.query))
        return json_response(self._list_body(target, page))

    async def _pod_action(self, request: web.Request, target: Target) -> web.Response:
        """pods/binding and pods/eviction."""
        if request.method != "POST" or not target.name:
            raise api.method_not_allowed()
        body, options = await _body(request) or {}, self._write_options(request)
        pod = replace(target, subresource="")
        if target.subresource == "eviction":
            self._rest.delete(pod, body.get("deleteOptions"), options.dry_run)
        else:
            self._rest.bind(pod, str((body.get("target") or {}).get("name", "")), options)
        return json_response(
            {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201
        )

    async def _review(self, request: web.Request) -> web.Response:
        """Whoever has the token may do everything: ``kubectl auth can-i`` says so."""
        body = await _body(request)
        if request.method != "POST" or not isinstance(body, dict):
            raise api.method_not_allowed()
        return json_response(body | {"status": {"allowed": True}}, 201)

    def _written(self, request: web.Request, target: Target, outcome: Outcome) -> web.Response:
        body = self._render(request, target, outcome.obj)
        return json_response(body, 201 if outcome.created else 200, outcome.warnings)

    def _object(self, request: web.Request, target: Target, stored: Stored) -> web.Response:
        verbatim = target.resource.stored_verbatim(target.version)
        if verbatim and accepted_form(request.headers.get("Accept", "")) is As.OBJECT:
            return json_response(stored.raw)
        return json_response(
            self._render(request, target, target.resource.convert_out(stored.obj, target.version))
        )

    @staticmethod
    def _render(request: web.Request, target: Target, obj: Obj) -> Obj:
        match accepted_form(request.headers.get("Accept", "")):
            case As.TABLE:
                meta = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
                return table([obj], target.version, request.query.get("includeObject", ""), meta)
            case As.METADATA:
                return partial(obj)
        return obj

    def _list(self, request: web.Request, target: Target) -> web.Response:
        page = self._rest.list(target, requests.list_options(request.query))
        form = accepted_form(request.headers.get("Accept", ""))
        if form is As.OBJECT:
            return json_response(self._list_body(target, page))
        objects = [target.resource.convert_out(stored.obj, target.version) for stored in page.items]
        if form is As.TABLE:
            return json_response(
                table(objects, target.version, request.query.get("includeObject", ""), page.metadata)
            )
        return json_response(
            {
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": page.metadata,
                "items": [partial(obj) for obj in objects],
            }
        )

    @staticmethod
    def _list_body(target: Target, page: Page) -> bytes:
        """The list, put together from stored bytes; items of built-in kinds name no kind, as on a real server."""
        resource, version = target.resource, target.version
        api_version = resource.api_version(version.name)
        if resource.stored_verbatim(version):
            raws = [stored.raw for stored in page.items]
        else:
            raws = [encode(resource.convert_out(stored.obj, version)) for stored in page.items]
        if version.builtin:
            prefix = encode({"apiVersion": api_version, "kind": resource.kind})[:-1] + b","
            raws = [b"{" + raw.removeprefix(prefix) if raw.startswith(prefix) else raw for raw in raws]
        head = {"kind": resource.list_kind, "apiVersion": api_version, "metadata": page.metadata}
        return encode(head)[:-1] + b',"items":[' + b",".join(raws) + b"]}"

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        options = requests.watch_options(request.query, self._bookmark_interval)
        selectors = requests.list_options(request.query)
        matcher = self._rest.matcher(target, selectors.label_selector, selectors.field_selector)
        selection = Selection(target.resource.storage, target.namespace, matcher)
        watch = Watch(
            self._instance.store,
            self._hub,
            selection,
            self._renderer(request, target),
            self._bookmarker(request, target),
            lambda: self._is_served(target),
        )
        self._watches.add(watch)
        try:
            return await self._stream(request, watch, options)
        finally:
            self._watches.discard(watch)

    def _is_served(self, target: Target) -> bool:
        resource = target.resource
        return self._instance.registry.find(resource.group, target.version.name, resource.plural) is not None

    @staticmethod
    async def _stream(request: web.Request, watch: Watch, options: WatchOptions) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for chunk in watch.chunks(options):
            await response.write(chunk)
        await response.write_eof()
        return response

    def _renderer(self, request: web.Request, target: Target) -> Callable[[Stored], bytes]:
        resource, version = target.resource, target.version
        form = accepted_form(request.headers.get("Accept", ""))
        if form is As.OBJECT and resource.stored_verbatim(version):
            return lambda stored: stored.raw
        if form is As.OBJECT:
            return lambda stored: encode(resource.convert_out(stored.obj, version))
        if form is As.TABLE:
            return self._table_renderer(request, target)
        return lambda stored: encode(partial(resource.convert_out(stored.obj, version)))

    @staticmethod
    def _table_renderer(request: web.Request, target: Target) -> Callable[[Stored], bytes]:
        headers = True

        def render(stored: Stored) -> bytes:
            nonlocal headers
            obj = target.resource.convert_out(stored.obj, target.version)
            meta = {"resourceVersion": str(stored.version)}
            include = request.query.get("includeObject", "")
            body = encode(table([obj], target.version, include, meta, headers))
            headers = False
            return body

        return render

    @staticmethod
    def _bookmarker(request: web.Request, target: Target) -> Callable[[int, bool], Obj]:
        as_table = accepted_form(request.headers.get("Accept", "")) is As.TABLE

        def bookmark(version: int, initial_end: bool) -> Obj:
            metadata: Obj = {"resourceVersion": str(version), "creationTimestamp": None}
            if initial_end:
                metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
            obj = {
                "kind": target.resource.kind,
                "apiVersion": target.resource.api_version(target.version.name),
                "metadata": metadata,
            }
            if not as_table:
                return obj
            row = {"cells": [], "object": partial(obj)}
            meta = {"resourceVersion": str(version)}
            return table([], target.version, "", meta, headers=False) | {"rows": [row]}

        return bookmark


async def _body(request: web.Request) -> Any:
    return requests.parse_body(await request.read(), request.headers.get("Content-Type", ""))
