"""A stateful stand-in for the API server's list and watch, with faults that tests script.

It keeps objects, one global resourceVersion and the log of changes as the real one does, and speaks real HTTP on
a loopback port; it validates nothing. Everything is thread-safe, and nothing happens by time alone.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

PODS = "/api/v1/pods"
NAMESPACES = "/api/v1/namespaces"
NODES = "/api/v1/nodes"
POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"
CLUSTER_POLICIES = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
ADMIN_POLICIES = "/apis/policy.networking.k8s.io/v1alpha1/adminnetworkpolicies"
BASELINE_ADMIN_POLICIES = "/apis/policy.networking.k8s.io/v1alpha1/baselineadminnetworkpolicies"
CONFIGURATIONS = "/apis/felixpy.io/v1alpha1/felixconfigurations"
BGP_CONFIGURATIONS = "/apis/felixpy.io/v1alpha1/bgpconfigurations"
BGP_PEERS = "/apis/felixpy.io/v1alpha1/bgppeers"
BGP_FILTERS = "/apis/felixpy.io/v1alpha1/bgpfilters"
SECRETS = "/api/v1/secrets"
IP_POOLS = "/apis/felixpy.io/v1alpha1/ippools"
IP_RESERVATIONS = "/apis/felixpy.io/v1alpha1/ipreservations"
IPAM_BLOCKS = "/apis/felixpy.io/v1alpha1/ipamblocks"
BLOCK_AFFINITIES = "/apis/felixpy.io/v1alpha1/blockaffinities"
NODE_STATUSES = "/apis/felixpy.io/v1alpha1/nodenetworkstatuses"
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
COLLECTIONS = (PODS, NAMESPACES, NODES, POLICIES, DEFINITIONS, SERVICES, SLICES)

SPOILT = "@spoilt@"
"""A string in an object that is sent as other bytes, which may be no JSON at all."""

Json = dict[str, Any]
Key = tuple[str, str, str]
"""(collection path, namespace, name)."""

PATIENCE = 60.0
"""Seconds after which a test that waits in vain fails."""


@dataclass
class Request:
    """What a client asked."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str
    body: Any = None

    @property
    def verb(self) -> str:
        """``list``, ``page`` (a further page), ``confirm`` (a list that must not be older than a version),
        ``watch``, ``watchlist``, or the method in lower case."""
        if self.method != "GET":
            return self.method.lower()
        if "sendInitialEvents" in self.query:
            return "watchlist"
        if "watch" in self.query:
            return "watch"
        if "resourceVersionMatch" in self.query:
            return "confirm"
        return "page" if "continue" in self.query else "list"

    def selects(self, key: Key, obj: Json) -> bool:
        """Whether an object is one of those that are asked for; of labels, only ``name=value`` counts."""
        label, is_value, value = self.query.get("labelSelector", "").partition("=")
        if is_value and (obj["metadata"].get("labels") or {}).get(label) != value:
            return False
        wanted = self.query.get("fieldSelector", "").removeprefix("metadata.name=")
        return (key[0], self.namespace or key[1], wanted or key[2]) == (self.collection, *key[1:])

    @property
    def _parts(self) -> list[str]:
        """Of a path of a namespace's objects: before, the namespace, their kind; else all of it."""
        before, _, rest = self.path.partition("/namespaces/")
        namespace, _, plural = rest.partition("/")
        of_namespaces = ("pods", "networkpolicies", "secrets", "endpointslices")
        return [before, namespace, plural] if plural in of_namespaces else [self.path, "", ""]

    @property
    def collection(self) -> str:
        """The path of all objects of the kind, also where one namespace's were asked for."""
        before, _, plural = self._parts
        return f"{before}/{plural}" if plural else before

    @property
    def namespace(self) -> str:
        """The namespace whose objects are asked for; empty: all."""
        return self._parts[1]


@dataclass
class _Change:
    version: int
    type: str
    key: Key
    object: Json


Fault = Callable[["Exchange"], bool]
"""Runs instead of the request's own handling, or before it if it returns False."""


@dataclass
class FakeApi:
    """The server. Use it in a ``with``; ``url`` is then where it listens.

    ``watch_list``: it knows sendInitialEvents (else 422). ``gone_in_stream``: a version too old is told by an
    ERROR event, else by HTTP 410. ``future``: what a watch from a version that is yet to come gets: nothing until
    then (as from kube-apiserver), or a refusal, 504 or 410. ``definitions``: clients have the right to read
    CustomResourceDefinitions. ``progress``: its etcd can report progress, else a watch needs a version
    (as with kube-apiserver 1.36 above etcd 3.4). ``token``: the one it accepts. ``clients``: the file of an
    authority whose certificate clients must show. ``certificate``: (certificate, key) files to speak TLS with.
    ``unknown``: fields of blocks that its definition does not know, and prunes.
    """

    watch_list: bool = True
    gone_in_stream: bool = True
    future: str = "silence"
    token: str = ""
    certificate: tuple[str, str] | None = None
    clients: str = ""
    definitions: bool = True
    progress: bool = True
    version: int = 100
    requests: list[Request] = field(default_factory=list)
    objects: dict[Key, Json] = field(default_factory=dict)
    events: dict[tuple[str, str], Json] = field(default_factory=dict)
    spoilt: bytes = b"null"
    unknown: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.port = 0
        self._collections = set(COLLECTIONS)
        self._log: list[_Change] = []
        self._compacted = self.version
        self._pages: dict[str, tuple[int, list[Json]]] = {}
        self._faults: list[tuple[str, str, Fault]] = []
        self._bookmarks = 0
        self._epoch = 0
        self._listener: _Listener | None = None
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> FakeApi:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is not None:
            self.refuse()

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    # --- what tests do to it -------------------------------------------------------------------------

    def listen(self) -> None:
        """Accept connections, on the same port as before."""
        self._listener = _Listener(self, self.port)
        self.port = self._listener.server_address[1]

    def refuse(self) -> None:
        """Stop as by SIGKILL: connections break, new ones are refused."""
        assert self._listener is not None
        self._listener.close()
        self._listener = None
        self.break_connections()

    def break_connections(self) -> None:
        """Cut every connection off, wherever it is."""
        with self.changed:
            connections, self._connections = self._connections, set()
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._epoch += 1
            self.changed.notify_all()

    def put(self, collection: str, obj: Json) -> Json:
        """Create or change an object; returns it with its new resourceVersion."""
        with self.changed:
            key = _key(collection, obj)
            obj = json.loads(json.dumps(obj))
            self._record("MODIFIED" if key in self.objects else "ADDED", key, obj)
            self.objects[key] = obj
            return obj

    def delete(self, collection: str, namespace: str, name: str) -> None:
        """Delete an object."""
        with self.changed:
            obj = self.objects.pop((collection, namespace, name))
            self._record("DELETED", (collection, namespace, name), json.loads(json.dumps(obj)))

    def _record(self, what: str, key: Key, obj: Json) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self._log.append(_Change(self.version, what, key, obj))
        self.changed.notify_all()

    def define(self, collection: str, *, established: bool = True, version: str = "") -> None:
        """Have a kind's CustomResourceDefinition, though the kind may not be served (yet)."""
        group, served, plural = collection.split("/")[2:]
        status = "True" if established else "False"
        definition: Json = {
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {"group": group, "versions": [{"name": version or served, "served": True}]},
            "status": {"conditions": [{"type": "Established", "status": status}]},
        }
        self.put(DEFINITIONS, definition)

    def install(self, collection: str) -> None:
        """Serve a collection, as once its CustomResourceDefinition is there."""
        with self.changed:
            self._collections.add(collection)
            self.define(collection)

    def serve(self, collection: str) -> None:
        """Serve a built-in collection that agents do not ask for, objects by their own paths."""
        with self.changed:
            self._collections.add(collection)

    def uninstall(self, collection: str) -> None:
        """Serve it no longer: its objects are gone without a word, its watches end, and requests get 404."""
        with self.changed:
            self._collections.remove(collection)
            for key in [key for key in self.objects if key[0] == collection]:
                del self.objects[key]
            group, _, plural = collection.split("/")[2:]
            self.delete(DEFINITIONS, "", f"{plural}.{group}")
        self.end_watches()

    def compact(self) -> None:
        """Forget the history: versions before now are too old, page tokens have expired."""
        with self.changed:
            self._compacted = self.version
            self._log.clear()
            self._pages.clear()

    def restore(self, version: int) -> None:
        """Come back from a backup: the objects at hand, but with lower versions and no history."""
        self.break_connections()
        with self.changed:
            self.version = version
            for obj in self.objects.values():
                obj["metadata"]["resourceVersion"] = str(version)
            self.compact()

    def bookmark(self) -> None:
        """Send every watch a bookmark."""
        with self.changed:
            self._bookmarks += 1
            self.changed.notify_all()

    def end_watches(self) -> None:
        """End every watch as its timeoutSeconds would."""
        with self.changed:
            self._epoch += 1
            self.changed.notify_all()

    def fault(self, verb: str, fault: Fault, *, path: str = "", times: int = 1) -> None:
        """Let the next requests of a verb (and path) meet a fault."""
        with self.changed:
            self._faults += [(verb, path, fault)] * times

    def clear_faults(self) -> None:
        """Be well again."""
        with self.changed:
            self._faults.clear()

    # --- what tests ask it ---------------------------------------------------------------------------

    def verbs(self, path: str = PODS) -> list[str]:
        """What was asked about one collection, in order, but for whether a version is known."""
        with self.changed:
            asked = [request.verb for request in self.requests if request.path == path]
        return [verb for verb in asked if verb != "confirm"]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something about the requests or objects is true."""
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE), f"not in {PATIENCE} s; asked: {self.requests}"

    # --- serving -------------------------------------------------------------------------------------

    def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = exchange.request
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()
            fault = self._take_fault(request)
        scheme, _, token = request.authorization.partition(" ")
        if self.token and (scheme.lower(), token) != ("bearer", self.token):
            exchange.refuse(401, "Unauthorized", "Unauthorized")
        elif fault is not None and fault(exchange):
            return
        elif request.method != "GET":
            self._write(exchange)
        elif request.path == "/version":
            exchange.send(200, {"gitVersion": "v0.0.0-fake"})
        elif request.path == DEFINITIONS and not self.definitions:
            exchange.refuse(403, "Forbidden", "customresourcedefinitions is forbidden")
        elif request.path.count("/") == 2:
            self._discover(exchange)
        elif obj := self._object(request.path):
            exchange.send(200, obj)
        elif request.collection not in self._collections:
            self._get(exchange)
        elif "watch" in request.query:
            self._watch(exchange)
        else:
            self._list(exchange)

    def _get(self, exchange: Exchange) -> None:
        """One object of a cluster-scoped collection."""
        collection, _, name = exchange.request.path.rpartition("/")
        with self.changed:
            found = self.objects.get((collection, "", name)) if collection in self._collections else None
        if found is None:
            exchange.refuse(404, "NotFound", "no such path")
        else:
            exchange.send(200, found)

    def _discover(self, exchange: Exchange) -> None:
        """The discovery document of a group, which lists the versions that have a kind."""
        group = exchange.request.path.removeprefix("/apis/")
        with self.changed:
            versions = {path.split("/")[3] for path in self._collections if path.startswith(f"/apis/{group}/")}
        if not versions:
            exchange.refuse(404, "NotFound", "the server could not find the requested resource")
            return
        entries = [{"groupVersion": f"{group}/{version}", "version": version} for version in sorted(versions)]
        exchange.send(200, {"kind": "APIGroup", "name": group, "versions": entries})

    def _take_fault(self, request: Request) -> Fault | None:
        for index, (verb, path, fault) in enumerate(self._faults):
            if verb in (request.verb, "*") and path in (request.path, ""):
                del self._faults[index]
                return fault
        return None

    def _object(self, path: str) -> Json | None:
        """A namespaced core/v1 object by its own path."""
        parts = path.removeprefix("/api/v1/namespaces/").split("/")
        if len(parts) != 3:
            return None
        namespace, resource, name = parts
        with self.changed:
            return self.objects.get((f"/api/v1/{resource}", namespace, name))

    def _items(self, request: Request) -> list[Json]:
        return [obj for key, obj in sorted(self.objects.items()) if request.selects(key, obj)]

    def _list(self, exchange: Exchange) -> None:
        query = exchange.request.query
        limit = int(query.get("limit", "0")) or 1 << 30
        with self.changed:
            least = int(query.get("resourceVersion", "0")) if "resourceVersionMatch" in query else 0
            if least > self.version:
                self._refuse_future(exchange, least)
                return
            if "continue" in query:
                if query["continue"] not in self._pages:
                    exchange.refuse(410, "Expired", "The provided continue parameter is too old")
                    return
                version, items = self._pages[query["continue"]]
            else:
                version, items = self.version, self._items(exchange.request)
            token = ""
            if len(items) > limit:
                token = f"page-{len(self._pages)}-{version}"
                self._pages[token] = (version, items[limit:])
            body: Json = {"kind": "List", "metadata": {"resourceVersion": str(version), "continue": token}}
            body["items"] = items[:limit]
        exchange.send(200, body)

    def _watch(self, exchange: Exchange) -> None:
        query = exchange.request.query
        initial = query.get("sendInitialEvents") == "true"
        if initial and not self.watch_list:
            message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            exchange.refuse(422, "Invalid", message)
            return
        if not (self.progress or query.get("resourceVersion")):
            exchange.begin_stream()
            message = "the required storage feature RequestWatchProgress is disabled"
            exchange.event("ERROR", status(500, "InternalError", message))
            exchange.end_stream()
            return
        with self.changed:
            position = int(query.get("resourceVersion") or self.version)
            epoch, bookmarks = self._epoch, self._bookmarks
            state = initial or not query.get("resourceVersion")
            items = self._items(exchange.request) if state else []
            if self._refuses_version(exchange, position):
                return
        exchange.begin_stream()
        for obj in items:
            exchange.event("ADDED", obj)
        if initial:
            exchange.bookmark(position, {"k8s.io/initial-events-end": "true"})
        while True:
            with self.changed:
                while not self._news(exchange.request, position, epoch, bookmarks):
                    self.changed.wait()
                if self._epoch != epoch:
                    break
                news = [
                    c for c in self._log if c.version > position and exchange.request.selects(c.key, c.object)
                ]
                position = max(position, self.version)
                marked, bookmarks = self._bookmarks > bookmarks, self._bookmarks
            for change in news:
                exchange.event(change.type, change.object)
            if marked:
                exchange.bookmark(position)
        exchange.end_stream()

    def _news(self, request: Request, position: int, epoch: int, bookmarks: int) -> bool:
        if self._epoch != epoch or self._bookmarks != bookmarks:
            return True
        return any(c.version > position and request.selects(c.key, c.object) for c in reversed(self._log))

    def _refuses_version(self, exchange: Exchange, position: int) -> bool:
        if self._compacted <= position <= self.version or (position > self.version and self.future == "silence"):
            return False
        if position > self.version and self.future == "504":
            self._refuse_future(exchange, position)
        elif self.gone_in_stream:
            exchange.begin_stream()
            exchange.event("ERROR", status(410, "Expired", f"too old resource version: {position}"))
            exchange.end_stream()
        else:
            exchange.refuse(410, "Expired", f"too old resource version: {position}")
        return True

    def _refuse_future(self, exchange: Exchange, position: int) -> None:
        cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        details = {"causes": [cause], "retryAfterSeconds": 1}
        exchange.refuse(504, "Timeout", f"Too large resource version: {position}", details=details)

    def _write(self, exchange: Exchange) -> None:
        """Events are created and merged, a node's conditions are merged by type, a custom resource's replaced."""
        request = exchange.request
        parts = request.path.strip("/").split("/")
        with self.changed:
            if request.method == "POST" and parts[-1] == "events":
                key = (parts[3], request.body["metadata"]["name"])
                if key in self.events:
                    exchange.refuse(409, "AlreadyExists", "exists")
                    return
                self.events[key] = request.body
            elif request.method == "PATCH" and parts[-2] == "events":
                if (parts[3], parts[-1]) not in self.events:
                    exchange.refuse(404, "NotFound", "no such event")
                    return
                self.events[parts[3], parts[-1]].update(request.body)
            elif request.method == "PATCH" and request.path.startswith("/apis/policy."):
                if not self._merge_status(exchange, *request.path.rsplit("/", 2)[:2]):
                    return
            elif request.path.startswith((IPAM_BLOCKS, BLOCK_AFFINITIES)):
                self._write_ipam(exchange, *request.path.partition("/v1alpha1/")[2].partition("/")[::2])
                return
            elif request.path.startswith(NODE_STATUSES):
                self._write_node_status(exchange, parts[4:])
                return
            elif request.method == "PATCH" and parts[-3] == "pods" and parts[-1] == "status":
                if not self._announce(exchange, parts[3], parts[-2]):
                    return
            elif request.method == "PATCH" and (NODES, "", parts[-1]) in self.objects:
                self._annotate(self.objects[NODES, "", parts[-1]], request.body["metadata"]["annotations"])
            elif request.method == "PATCH" and (NODES, "", parts[-2]) in self.objects and parts[-1] == "status":
                node = self.objects[NODES, "", parts[-2]]
                conditions = {c["type"]: c for c in node.setdefault("status", {}).get("conditions", [])}
                for condition in request.body["status"]["conditions"]:
                    conditions[condition["type"]] = condition
                node["status"]["conditions"] = list(conditions.values())
            else:
                exchange.refuse(404, "NotFound", "no such object")
                return
            self.changed.notify_all()
        exchange.send(200, request.body)

    def _announce(self, exchange: Exchange, namespace: str, name: str) -> bool:
        """A merge patch of a pod's annotations, through its status; a uid in it is a condition."""
        metadata, held = exchange.request.body["metadata"], self.objects.get((PODS, namespace, name))
        if held is None:
            exchange.refuse(404, "NotFound", "no such pod")
        elif metadata.get("uid", held["metadata"]["uid"]) != held["metadata"]["uid"]:
            exchange.refuse(409, "Conflict", "another uid")
        else:
            annotations = {**(held["metadata"].get("annotations") or {}), **metadata["annotations"]}
            self.put(PODS, {**held, "metadata": {**held["metadata"], "annotations": annotations}})
            return True
        return False

    def _annotate(self, node: Json, annotations: Json) -> None:
        """A merge patch of a Node's annotations."""
        merged = {**(node["metadata"].get("annotations") or {}), **annotations}
        kept = {name: value for name, value in merged.items() if value is not None}
        self.put(NODES, {**node, "metadata": {**node["metadata"], "annotations": kept}})

    def _write_ipam(self, exchange: Exchange, plural: str, name: str) -> None:
        """Create, merge or delete a custom resource, with the preconditions that kube-apiserver knows."""
        body, collection = exchange.request.body, f"/apis/felixpy.io/v1alpha1/{plural}"
        name = name or body["metadata"]["name"]
        held = self.objects.get((collection, "", name))
        if exchange.request.method == "POST":
            if held is not None:
                exchange.refuse(409, "AlreadyExists", "exists")
            else:
                metadata = {**body["metadata"], "uid": f"uid-{self.version}"}
                exchange.send(201, self.put(collection, {**body, "metadata": metadata}))
            return
        if held is None:
            exchange.refuse(404, "NotFound", "no such object")
            return
        deletes = exchange.request.method == "DELETE"
        wanted = body["preconditions"] if deletes else body["metadata"]
        is_as = {key: held["metadata"][key] for key in ("uid", "resourceVersion")}
        if any(wanted.get(key, value) != value for key, value in is_as.items()):
            exchange.refuse(409, "Conflict", "the object has been modified")
        elif deletes:
            self.delete(collection, "", name)
            exchange.send(200, held)
        else:
            labels = {**(held["metadata"].get("labels") or {}), **body["metadata"].get("labels", {})}
            metadata, spec = {**held["metadata"], "labels": labels}, {**held["spec"], **body.get("spec", {})}
            known = {key: value for key, value in spec.items() if key not in self.unknown}
            exchange.send(200, self.put(collection, {**held, "metadata": metadata, "spec": known}))

    def _write_node_status(self, exchange: Exchange, rest: list[str]) -> None:
        """Create one without its status, merge its metadata, or replace members of its status."""
        body = exchange.request.body
        name = rest[0] if rest else body["metadata"]["name"]
        key = (NODE_STATUSES, "", name)
        held = self.objects.get(key)
        if NODE_STATUSES not in self._collections or (held is None and rest):
            exchange.refuse(404, "NotFound", "no such object")
        elif held is not None and not rest:
            exchange.refuse(409, "AlreadyExists", "exists")
        elif len(rest) < 2:
            old = held or {}
            metadata = {**old.get("metadata", {}), **body["metadata"]}
            exchange.send(200, self.put(NODE_STATUSES, {**old, "metadata": metadata}))
        elif self._merge_status(exchange, NODE_STATUSES, name):
            exchange.send(200, self.objects[key])

    def _merge_status(self, exchange: Exchange, collection: str, name: str) -> bool:
        """A merge patch of a status that may tell the version it was made for."""
        obj = self.objects.get((collection, "", name))
        if obj is None:
            exchange.refuse(404, "NotFound", "no such object")
            return False
        body = exchange.request.body
        if body.get("metadata", {}).get("resourceVersion", "") not in ("", obj["metadata"]["resourceVersion"]):
            exchange.refuse(409, "Conflict", "the object has been modified")
            return False
        self.put(collection, {**obj, "status": {**obj.get("status", {}), **body["status"]}})
        return True

    @contextlib.contextmanager
    def connection(self, sock: socket.socket) -> Iterator[None]:
        """Count a connection among those that can be broken."""
        with self.changed:
            self._connections.add(sock)
        try:
            yield
        finally:
            with self.changed:
                self._connections.discard(sock)


class Exchange:
    """One request and the means to answer it, well or badly."""

    def __init__(self, api: FakeApi, handler: _Handler, request: Request) -> None:
        self.api = api
        self.request = request
        self._handler = handler
        self._streaming = False

    def send(self, code: int, body: Json, headers: dict[str, str] | None = None) -> None:
        """A whole answer."""
        data = self._bytes(body)
        self._handler.send_response(code)
        for name, value in (headers or {}).items():
            self._handler.send_header(name, value)
        self._handler.send_header("Content-Length", str(len(data)))
        self._handler.end_headers()
        self._handler.wfile.write(data)

    def refuse(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Json | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """A Status."""
        self.send(code, status(code, reason, message, details), headers)

    def begin_stream(self) -> None:
        """The head of a watch; asking twice is fine."""
        if not self._streaming:
            self._streaming = True
            self._handler.send_response(200)
            self._handler.send_header("Transfer-Encoding", "chunked")
            self._handler.end_headers()

    def event(self, what: str, obj: Json) -> None:
        """One line of a watch."""
        self.raw(self._bytes({"type": what, "object": obj}) + b"\n")

    def _bytes(self, body: Json) -> bytes:
        return json.dumps(body).encode().replace(json.dumps(SPOILT).encode(), self.api.spoilt)

    def bookmark(self, version: int, annotations: dict[str, str] | None = None) -> None:
        """A bookmark."""
        metadata = {"resourceVersion": str(version), "annotations": annotations or {}}
        self.event("BOOKMARK", {"metadata": metadata})

    def raw(self, data: bytes) -> None:
        """Bytes as one chunk."""
        self._handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def end_stream(self) -> None:
        """The clean end of a watch."""
        self._handler.wfile.write(b"0\r\n\r\n")

    def cut(self) -> None:
        """Close the connection as it is."""
        self._handler.close_connection = True

    def hang(self) -> None:
        """Say nothing more until the client or the test has had enough."""
        self._handler.close_connection = True
        with contextlib.suppress(OSError):
            self._handler.connection.recv(1)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def handle(self) -> None:
        with self.server.api.connection(self.connection), contextlib.suppress(OSError):
            super().handle()

    def _serve(self) -> None:
        split = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        request = Request(
            self.command,
            split.path,
            dict(parse_qsl(split.query)),
            self.headers.get("Authorization", ""),
            json.loads(body) if body else None,
        )
        self.server.api.handle(Exchange(self.server.api, self, request))

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest shows what failed."""


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, api: FakeApi, port: int) -> None:
        self.api = api
        super().__init__(("127.0.0.1", port), _Handler)
        if api.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*api.certificate)
            if api.clients:
                context.load_verify_locations(api.clients)
                context.verify_mode = ssl.CERT_REQUIRED
            # The handshake happens with the first read, in the connection's own thread.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what some tests are about."""

    def close(self) -> None:
        """Stop accepting."""
        self.shutdown()
        self._thread.join()
        self.server_close()


# --- objects ---------------------------------------------------------------------------------------------------


def pod(name: str, namespace: str = "default", *, ip: str = "", labels: dict[str, str] | None = None) -> Json:
    """A Pod."""
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "labels": labels or {}},
        "spec": {"nodeName": "node-1", "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}] if ip else []},
    }


def _key(collection: str, obj: Json) -> Key:
    return (collection, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])


def status(code: int, reason: str, message: str, details: Json | None = None) -> Json:
    """A Status that refuses."""
    body: Json = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    return body | ({"details": details} if details else {})
