"""The HTTP verbs on resources."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import yaml
from aiohttp import web

from . import apply, errors, nodes, patches, reviews, selectors, subresources, tables
from .auth import User
from .operations import DeleteOptions, WriteOptions
from .request import Accepted, RequestInfo, negotiate
from .resource import Resource
from .store import Entry, Obj, encode
from .watch import ListOptions, Watcher

if TYPE_CHECKING:
    from .server import ApiServer

_OBJECT_KINDS = ("Table", "PartialObjectMetadata")
_LIST_KINDS = ("Table", "PartialObjectMetadataList", "PartialObjectMetadata")
_TRUE = ("true", "1")
_MAX_MANAGER_LENGTH = 128


async def handle(server: ApiServer, request: web.Request, info: RequestInfo, user: User) -> web.StreamResponse:
    """Answer an authorized request to a resource."""
    review = reviews.find(info)
    if review is not None:
        if info.verb != "create":
            raise errors.ApiError(
                405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
            )
        return respond(reviews.answer(server, review, info, await server.body(request), user), status=201)
    resource = server.registry.find(info.group, info.version, info.plural)
    if resource is None:
        raise errors.path_not_found()
    if info.namespace and not resource.namespaced and info.plural != "namespaces":
        raise errors.path_not_found()
    if info.name and resource.namespaced and not info.namespace:
        raise errors.path_not_found()
    if info.verb == "create" and resource.namespaced and not info.namespace:
        raise errors.ApiError(
            405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
        )
    if info.subresource and info.subresource != "status":
        return await subresources.handle(server, request, info, resource, user)
    if info.subresource and info.subresource not in resource.subresources:
        raise errors.path_not_found()
    allowed = resource.subresources["status"].verbs if info.subresource else resource.verbs
    if info.verb not in allowed:
        raise errors.method_not_supported(resource.group, resource.plural, info.verb)
    return await _VERBS[info.verb](server, request, info, resource, user)


def respond(
    obj: Obj, status: int = 200, warnings: list[str] | None = None, media_type: str = "application/json"
) -> web.Response:
    """An object as a response, with Warning headers."""
    body = encode(obj) if media_type == "application/json" else yaml.safe_dump(obj, sort_keys=False).encode()
    response = web.Response(status=status, body=body, content_type=media_type)
    for text in warnings or ():
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')
    return response


def _flag(query: Any, name: str) -> bool:
    return query.get(name, "") in _TRUE


def _include(query: Any) -> str:
    return str(query.get("includeObject", "") or "Metadata")


def render(
    resource: Resource,
    stored: Obj,
    accepted: Accepted,
    query: Any,
    status: int = 200,
    warnings: list[str] | None = None,
) -> web.Response:
    """A stored object in the form that the caller accepts."""
    served = resource.to_served(stored)
    api_version = f"{accepted.group}/{accepted.version}"
    if accepted.kind == "Table":
        meta = {"resourceVersion": served["metadata"].get("resourceVersion", "")}
        served = table(resource, [stored], meta, _include(query), api_version)
    elif accepted.kind == "PartialObjectMetadata":
        served = tables.partial_metadata(served, api_version)
    return respond(served, status, warnings, accepted.media_type)


def table(resource: Resource, stored: list[Obj], meta: Obj, include: str, api_version: str) -> Obj:
    """A Table of stored objects."""
    return tables.table(resource, stored, meta, include, True, api_version)


def write_options(request: web.Request, user: User) -> WriteOptions:
    """The options of a write. Raises ApiError 400 or 422 for a bad value."""
    query = request.query
    dry_run = query.getall("dryRun", [])
    if any(value != "All" for value in dry_run):
        raise errors.ApiError(422, "Invalid", f'dryRun: Unsupported value: "{dry_run[0]}": supported values: "All"')
    validation = query.get("fieldValidation") or "Warn"
    if validation not in ("Strict", "Warn", "Ignore"):
        supported = '"Ignore", "Strict", "Warn"'
        raise errors.ApiError(
            422, "Invalid", f'fieldValidation: Unsupported value: "{validation}": supported values: {supported}'
        )
    manager = query.get("fieldManager", "")
    if len(manager) > _MAX_MANAGER_LENGTH:
        raise errors.ApiError(422, "Invalid", "fieldManager: Too long: may not be more than 128 bytes")
    if not manager:
        manager = request.headers.get("User-Agent", "").split("/")[0][:_MAX_MANAGER_LENGTH] or "unknown"
    return WriteOptions(user, manager, bool(dry_run), validation, _flag(query, "force"))


def delete_options(query: Any, body: Any) -> DeleteOptions:
    """metav1.DeleteOptions from the body, or from the query when there is none."""
    body = body if isinstance(body, dict) else {}
    if body.get("kind") not in (None, "DeleteOptions"):
        raise errors.bad_request(f"expected DeleteOptions, got {body.get('kind')}")
    conditions = body.get("preconditions") or {}
    grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
    propagation = body.get("propagationPolicy", query.get("propagationPolicy"))
    orphan = body.get("orphanDependents", query.get("orphanDependents"))
    if propagation not in (None, "Background", "Foreground", "Orphan"):
        supported = '"Foreground", "Background", "Orphan"'
        what = f'propagationPolicy: Unsupported value: "{propagation}": supported values: {supported}'
        text = f'DeleteOptions.meta.k8s.io "" is invalid: {what}'
        raise errors.ApiError(422, "Invalid", text)
    if propagation is None and orphan is not None:
        propagation = "Orphan" if orphan in (True, "true") else "Background"
    dry_run = body.get("dryRun") or query.getall("dryRun", [])
    return DeleteOptions(
        int(grace) if grace is not None else None,
        propagation,
        conditions.get("uid"),
        conditions.get("resourceVersion"),
        bool(dry_run),
    )


def list_options(query: Any, resource: Resource, info: RequestInfo) -> ListOptions:
    """metav1.ListOptions from the query. Raises ApiError 400."""
    fields = query.get("fieldSelector", "")
    if info.name and info.verb == "watch":  # the deprecated /watch/.../NAME paths
        fields = f"metadata.name={info.name}"
    try:
        limit = int(query.get("limit") or 0)
        timeout = int(query["timeoutSeconds"]) if query.get("timeoutSeconds") else None
    except ValueError as error:
        raise errors.bad_request(str(error)) from None
    return ListOptions(
        selectors.parse(query.get("labelSelector", ""), fields, resource.fields),
        limit,
        query.get("continue", ""),
        query.get("resourceVersion", ""),
        query.get("resourceVersionMatch", ""),
        timeout,
        _flag(query, "allowWatchBookmarks"),
        _flag(query, "sendInitialEvents"),
        _include(query),
    )


async def _get(
    server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource, user: User
) -> web.StreamResponse:
    accepted = negotiate(request.headers.get("Accept", ""), _OBJECT_KINDS)
    stored = server.operations.current(resource, info.namespace if resource.namespaced else "", info.name)
    return render(resource, stored, accepted, request.query)


async def _list(
    server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource, user: User
) -> web.StreamResponse:
    accepted = negotiate(request.headers.get("Accept", ""), _LIST_KINDS)
    options = list_options(request.query, resource, info)
    entries, meta = server.lister.list(resource, info.namespace, options)
    return _render_list(resource, entries, meta, accepted, options)


def _render_list(
    resource: Resource, entries: list[Entry], meta: Obj, accepted: Accepted, options: ListOptions
) -> web.Response:
    api_version = f"{accepted.group}/{accepted.version}"
    stored = [entry.obj for entry in entries]
    if accepted.kind == "Table":
        return respond(table(resource, stored, meta, options.include, api_version))
    served = [resource.to_served(obj) for obj in stored]
    if accepted.kind.startswith("PartialObjectMetadata"):
        items = [tables.partial_metadata(obj, api_version) for obj in served]
        body: Obj = {"kind": "PartialObjectMetadataList", "apiVersion": api_version, "metadata": meta, "items": items}
        return respond(body)
    if not resource.custom:
        # Lists of built-in kinds carry items without their type, as Go's typed lists do.
        served = [{key: value for key, value in obj.items() if key not in ("apiVersion", "kind")} for obj in served]
    body = {"kind": resource.list_kind, "apiVersion": resource.api_version, "metadata": meta, "items": served}
    return respond(body, media_type=accepted.media_type)


async def _watch(
    server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource, user: User
) -> web.StreamResponse:
    accepted = negotiate(request.headers.get("Accept", "").replace(";stream=watch", ""), _LIST_KINDS)
    options = list_options(request.query, resource, info)
    watcher = Watcher(server.store, resource, info.namespace, options, accepted)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    closer: list[Any] = []

    def on_close(close: Any) -> None:
        closer.append(close)
        server.closers.add(close)

    events: AsyncGenerator[bytes] = watcher.events(on_close)
    try:
        watcher.check()
        await response.prepare(request)
        async for lines in events:
            await response.write(lines)
        await response.write_eof()
    finally:
        await events.aclose()
        for close in closer:
            server.closers.discard(close)
    return response


async def _create(
    server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource, user: User
) -> web.StreamResponse:
    accepted = negotiate(request.headers.get("Accept", ""), _OBJECT_KINDS)
    options = write_options(request, user)
    body = await server.body(request)
    stored = server.operations.create(resource, info.namespace, body, options)
    return render(resource, stored, accepted, request.query, 201, options.warnings)


async def _update(
    server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource, user: User
) -> web.StreamResponse:
    accepted = negotiate(request.headers.get("Accept", ""), _OBJECT_KINDS)
    options = write_options(request, user)
    body = await server.body(request)
    namespace = info.namespace if resource.namespaced else ""
    stored, created = server.operations.update(resource, namespace, info.name, body, options, info.subresource)
    return render(resource, stored, accepted, request.query, 201 if created else 200, options.warnings)


async def _patch(
    server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource, user: User
) -> web.StreamResponse:
    from .server import decode_body

    accepted = negotiate(request.headers.get("Accept", ""), _OBJECT_KINDS)
    options = write_options(request, user)
    known = [patches.JSON_PATCH, patches.MERGE_PATCH, patches.STRATEGIC_PATCH, patches.APPLY_PATCH]
    if not resource.strategy.strategic_merge:
        known.remove(patches.STRATEGIC_PATCH)
    if request.content_type not in known:
        raise errors.unsupported_media_type(request.content_type, known)
    body = decode_body(await request.read(), request.content_type)
    namespace = info.namespace if resource.namespaced else ""
    if request.content_type == patches.APPLY_PATCH:
        if not request.query.get("fieldManager"):
            text = 'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
            raise errors.ApiError(422, "Invalid", text)
        stored, created = apply.apply(
            server.operations, resource, namespace, info.name, body, options, info.subresource
        )
        return render(resource, stored, accepted, request.query, 201 if created else 200, options.warnings)
    if _flag(request.query, "force"):
        text = 'PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch'
        raise errors.ApiError(422, "Invalid", text)
    stored = patch_object(server, resource, namespace, info.name, request.content_type, body, options, info.subresource)
    return render(resource, stored, accepted, request.query, 200, options.warnings)


def patch_object(
    server: ApiServer,
    resource: Resource,
    namespace: str,
    name: str,
    media_type: str,
    patch: Any,
    options: WriteOptions,
    subresource: str,
) -> Obj:
    """Apply a JSON, merge or strategic-merge patch; returns the stored object."""
    operations = server.operations
    current = resource.to_served(operations.current(resource, namespace, name))
    if media_type == patches.JSON_PATCH:
        patched = patches.json_patch(current, patch)
    else:
        if not isinstance(patch, dict):
            raise errors.bad_request("error decoding patch: the patch must be an object")
        if media_type == patches.MERGE_PATCH:
            patched = patches.merge_patch(current, patch)
        else:
            patched = patches.strategic_merge(current, patch, resource.strategy.schema)
    if not isinstance(patched, dict) or not isinstance(patched.get("metadata"), dict):
        raise errors.bad_request("the patch removes metadata")
    if patched["metadata"].get("name") != name:
        text = "field is immutable"
        cause = errors.invalid_value("metadata.name", patched["metadata"].get("name", ""), text)
        raise errors.invalid(resource.group, resource.kind, name, [cause])
    new = operations.decode(resource, patched, options)
    return operations.replace(resource, namespace, name, new, options, subresource)


async def _delete(
    server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource, user: User
) -> web.StreamResponse:
    body = await server.body(request) if request.can_read_body else None
    options = delete_options(request.query, body)
    namespace = info.namespace if resource.namespaced else ""
    if not resource.group:
        current = server.operations.current(resource, namespace, info.name)
        nodes.restrict(user, resource.plural, "", "delete", current)
    obj, gone = server.operations.delete(resource, namespace, info.name, options)
    if not gone or resource.strategy.returns_deleted:
        accepted = negotiate(request.headers.get("Accept", ""), _OBJECT_KINDS)
        return render(resource, obj, accepted, request.query)
    details: Obj = {"name": info.name}
    if resource.group:
        details["group"] = resource.group
    details |= {"kind": resource.plural, "uid": obj["metadata"]["uid"]}
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
    return respond(status)


async def _delete_collection(
    server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource, user: User
) -> web.StreamResponse:
    body = await server.body(request) if request.can_read_body else None
    options = delete_options(request.query, body)
    chosen = list_options(request.query, resource, info)
    entries, meta = server.lister.list(resource, info.namespace, chosen)
    for entry in entries:
        try:
            server.operations.delete(resource, entry.namespace, entry.name, options)
        except errors.ApiError as error:
            if error.code != 404:
                raise
    return _render_list(resource, entries, meta, Accepted(), chosen)


_VERBS = {
    "get": _get,
    "list": _list,
    "watch": _watch,
    "create": _create,
    "update": _update,
    "patch": _patch,
    "delete": _delete,
    "deletecollection": _delete_collection,
}
