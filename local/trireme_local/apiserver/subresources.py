"""Subresources other than status: log, binding, eviction, scale, token and finalize."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from . import errors, patches, resource_api
from .auth import AUDIENCE, User
from .operations import DeleteOptions
from .request import RequestInfo
from .resource import Resource, now
from .selectors import format_selector, selector_matches
from .store import Entry, Obj
from .tables import json_path

if TYPE_CHECKING:
    from .server import ApiServer

_MIN_TOKEN_SECONDS, _MAX_TOKEN_SECONDS = 600, 2**32


async def handle(
    server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource, user: User
) -> web.StreamResponse:
    """Answer a request to a subresource. Raises ApiError 404, 405 or 501 where there is none."""
    known = {"exec", "attach", "portforward", "proxy", "ephemeralcontainers", "resize"}
    if resource.storage == "/pods" and info.subresource in known:
        raise errors.not_implemented(f"pods/{info.subresource}")
    sub = resource.subresources.get(info.subresource)
    if sub is None:
        raise errors.path_not_found()
    if info.verb not in sub.verbs:
        raise errors.method_not_supported(resource.group, resource.plural, info.verb)
    if info.subresource == "log":
        return await _log(server, request, info, resource)
    if info.subresource == "scale":
        return await _scale(server, request, info, resource, user)
    body = await server.body(request)
    options = resource_api.write_options(request, user)
    if info.subresource == "finalize":
        obj = server.operations.finalize_namespace(resource, info.name, body, options)
        return resource_api.respond(resource.to_served(obj))
    if info.subresource == "token":
        return _token(server, info, resource, body)
    if info.subresource == "binding":
        return _bind(server, info, resource, body, options)
    return _evict(server, request, info, resource, body)


async def _log(server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource) -> web.StreamResponse:
    """Proxy to the node's own API, as a real API server asks the kubelet."""
    pod = server.operations.current(resource, info.namespace, info.name)
    names = [item["name"] for kind in ("initContainers", "containers") for item in pod["spec"].get(kind, ())]
    container = request.query.get("container", "")
    if not container and len(pod["spec"].get("containers", ())) > 1:
        choices = "[" + " ".join(item["name"] for item in pod["spec"]["containers"]) + "]"
        raise errors.bad_request(f"a container name must be specified for pod {info.name}, choose one of: {choices}")
    container = container or pod["spec"]["containers"][0]["name"]
    if container not in names:
        raise errors.bad_request(f"container {container} is not valid for pod {info.name}")
    node_name = pod["spec"].get("nodeName")
    if not node_name:
        if request.query.get("previous") in ("true", "1"):
            raise errors.bad_request(f'previous terminated container "{container}" in pod "{info.name}" not found')
        return web.Response(text="")
    node = server.store.get("/nodes", "", node_name)
    if node is None:
        raise errors.not_found("", "nodes", node_name)
    base = node_url(node.obj)
    url = f"{base}/containerLogs/{info.namespace}/{info.name}/{container}"
    query = {key: value for key, value in request.query.items() if key not in ("container", "pretty")}
    assert server.client is not None
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    try:
        async with server.client.get(url, params=query, timeout=timeout, ssl=False) as answer:
            if answer.status >= 400:
                text = (await answer.text()).strip()
                raise errors.ApiError(answer.status, "NotFound" if answer.status == 404 else "BadRequest", text)
            response = web.StreamResponse(headers={"Content-Type": "text/plain"})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response
    except (aiohttp.ClientConnectorError, TimeoutError) as error:
        raise errors.ApiError(500, "InternalError", f'Get "{url}": {error}') from None


def node_url(node: Obj) -> str:
    """The base URL of a node's own API. Raises ApiError 500 when the node does not tell."""
    status = node.get("status", {})
    addresses = {item["type"]: item["address"] for item in reversed(status.get("addresses") or [])}
    address = addresses.get("InternalIP") or addresses.get("Hostname")
    port = status.get("daemonEndpoints", {}).get("kubeletEndpoint", {}).get("Port")
    if not address or not port:
        name = node["metadata"]["name"]
        raise errors.ApiError(
            500, "InternalError", f"no preferred addresses found for node {name}; known addresses: {addresses}"
        )
    return f"https://{address}:{port}"


def _bind(server: ApiServer, info: RequestInfo, resource: Resource, body: Any, options: Any) -> web.Response:
    target = (body or {}).get("target") or {}
    if target.get("kind", "Node") not in ("", "Node") or not target.get("name"):
        cause = (
            errors.required("target.name")
            if not target.get("name")
            else errors.unsupported_value("target.kind", target["kind"], ("Node", "<empty>"))
        )
        raise errors.invalid("", "Binding", info.name, [cause])
    old = server.operations.current(resource, info.namespace, info.name)
    wanted_uid = ((body or {}).get("metadata") or {}).get("uid")
    why = ""
    if wanted_uid and wanted_uid != old["metadata"]["uid"]:
        why = f"Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {old['metadata']['uid']}"
    elif old["metadata"].get("deletionTimestamp"):
        why = f"pod {info.name} is being deleted, cannot be assigned to a host"
    elif old["spec"].get("nodeName"):
        why = f'pod {info.name} is already assigned to node "{old["spec"]["nodeName"]}"'
    elif old["spec"].get("schedulingGates"):
        why = f"pod {info.name} has non-empty .spec.schedulingGates"
    if why:
        raise errors.conflict("", "pods/binding", info.name, why)
    new = copy.deepcopy(old)
    new["spec"]["nodeName"] = target["name"]
    new["metadata"].setdefault("annotations", {}).update((body.get("metadata") or {}).get("annotations") or {})
    if not new["metadata"]["annotations"]:
        del new["metadata"]["annotations"]
    conditions = new.setdefault("status", {}).setdefault("conditions", [])
    kept = [item for item in conditions if item["type"] != "PodScheduled"]
    scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now()}
    new["status"]["conditions"] = [*kept, scheduled]
    server.operations.replace(resource, info.namespace, info.name, new, options, "binding")
    return resource_api.respond(
        {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201
    )


def _evict(server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource, body: Any) -> web.Response:
    """Delete the pod unless a disruption budget forbids it now (429)."""
    body = body or {}
    pod = server.operations.current(resource, info.namespace, info.name)
    options = resource_api.delete_options(request.query, body.get("deleteOptions") or {})
    phase = pod.get("status", {}).get("phase")
    budgets = [
        entry
        for entry in server.store.list("policy/poddisruptionbudgets", info.namespace)
        if selector_matches(entry.obj.get("spec", {}).get("selector"), pod["metadata"].get("labels") or {})
    ]
    if phase not in ("Succeeded", "Failed", "Pending") and not pod["metadata"].get("deletionTimestamp") and budgets:
        if len(budgets) > 1:
            text = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            raise errors.ApiError(500, "InternalError", text)
        budget = budgets[0]
        if not _unhealthy_may_go(pod, budget.obj):
            _require_room(budget)
            if not options.dry_run:
                new = copy.deepcopy(budget.obj)
                new["status"]["disruptionsAllowed"] -= 1
                new["status"].setdefault("disruptedPods", {})[info.name] = now()
                server.store.put("policy/poddisruptionbudgets", budget.namespace, budget.name, new)
    if not options.dry_run:
        _disruption_target(server, resource, pod)
    current = DeleteOptions(options.grace_seconds, options.propagation, options.uid, options.version, options.dry_run)
    server.operations.delete(resource, info.namespace, info.name, current)
    return resource_api.respond(
        {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201
    )


def _unhealthy_may_go(pod: Obj, budget: Obj) -> bool:
    """Whether a pod that is not ready may be evicted whatever its budget allows.

    Source: EvictionREST.Create of k8s.io/kubernetes/pkg/registry/core/pod/storage.
    """
    conditions = pod.get("status", {}).get("conditions") or []
    if any(item["type"] == "Ready" and item["status"] == "True" for item in conditions):
        return False
    if budget.get("spec", {}).get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    status = budget.get("status", {})
    healthy, desired = int(status.get("currentHealthy", 0)), int(status.get("desiredHealthy", 0))
    return healthy >= desired > 0


def _require_room(budget: Entry) -> None:
    """Raise ApiError (429) where a budget allows no disruption now, or nobody has counted its pods yet."""
    status = budget.obj.get("status", {})
    counted = status.get("observedGeneration", 0) >= budget.obj["metadata"].get("generation", 0)
    if counted and status.get("disruptionsAllowed", 0) > 0:
        return
    message = (
        f"The disruption budget {budget.name} needs {status.get('desiredHealthy', 0)} healthy pods "
        f"and has {status.get('currentHealthy', 0)} currently"
    )
    details = {"causes": [{"reason": "DisruptionBudget", "message": message}]}
    text = "Cannot evict pod as it would violate the pod's disruption budget."
    raise errors.ApiError(429, "TooManyRequests", text, details, {"Retry-After": "10"})


def _disruption_target(server: ApiServer, resource: Resource, pod: Obj) -> None:
    """Tell the pod's owner why it goes, as a real API server does before it deletes."""
    new = copy.deepcopy(pod)
    conditions = new.setdefault("status", {}).setdefault("conditions", [])
    kept = [item for item in conditions if item["type"] != "DisruptionTarget"]
    target = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
        "lastProbeTime": None,
        "lastTransitionTime": now(),
    }
    new["status"]["conditions"] = [*kept, target]
    meta = pod["metadata"]
    server.store.put(resource.storage, meta["namespace"], meta["name"], new)


def _token(server: ApiServer, info: RequestInfo, resource: Resource, body: Any) -> web.Response:
    body = body or {}
    account = server.operations.current(resource, info.namespace, info.name)
    spec = body.get("spec") or {}
    seconds = spec.get("expirationSeconds") or 3600
    if not _MIN_TOKEN_SECONDS <= seconds <= _MAX_TOKEN_SECONDS:
        low = seconds < _MIN_TOKEN_SECONDS
        text = (
            "may not specify a duration less than 10 minutes"
            if low
            else "may not specify a duration larger than 2^32 seconds"
        )
        cause = errors.invalid_value("spec.expirationSeconds", seconds, text)
        raise errors.invalid("authentication.k8s.io", "TokenRequest", info.name, [cause])
    bound = spec.get("boundObjectRef")
    if bound is not None:
        bound = dict(bound) | {"uid": _bound_uid(server, info, bound)}
    audiences = spec.get("audiences") or [AUDIENCE]
    token, expires = server.authenticator.service_account_token(account, seconds, audiences, bound)
    from datetime import UTC, datetime

    review: Obj = {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": info.name, "namespace": info.namespace, "creationTimestamp": now()},
        "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": bound},
        "status": {
            "token": token,
            "expirationTimestamp": datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
    }
    return resource_api.respond(review, 201)


def _bound_uid(server: ApiServer, info: RequestInfo, bound: Obj) -> str:
    storages = {"Pod": "/pods", "Secret": "/secrets", "Node": "/nodes"}
    kind, name = bound.get("kind", ""), bound.get("name", "")
    if kind not in storages:
        raise errors.bad_request(f"cannot bind token for object of type {bound.get('apiVersion')}, Kind={kind}")
    entry = server.store.get(storages[kind], "" if kind == "Node" else info.namespace, name)
    if entry is None:
        raise errors.not_found("", storages[kind][1:], name)
    uid: str = entry.obj["metadata"]["uid"]
    if bound.get("uid") and bound["uid"] != uid:
        why = (
            f"the UID in the bound object reference ({bound['uid']}) does not match the UID in record. "
            "The object might have been deleted and then recreated"
        )
        raise errors.conflict("", storages[kind][1:], name, why)
    return uid


def _scale_of(resource: Resource, obj: Obj) -> Obj:
    paths = resource.scale_paths
    meta = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")

    def first(path: str, default: Any) -> Any:
        found = json_path(obj, path) if path else []
        return found[0] if found else default

    status: Obj = {"replicas": first(paths["statusReplicasPath"], 0)}
    if selector := first(paths.get("labelSelectorPath", ""), ""):
        status["selector"] = format_selector(selector) if isinstance(selector, dict) else selector
    replicas = first(paths["specReplicasPath"], None)
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: meta[key] for key in kept if key in meta},
        "spec": {"replicas": replicas} if replicas is not None else {},
        "status": status,
    }


async def _scale(
    server: ApiServer, request: web.Request, info: RequestInfo, resource: Resource, user: User
) -> web.StreamResponse:
    from .server import decode_body

    namespace = info.namespace if resource.namespaced else ""
    if info.verb == "get":
        found = _scale_of(resource, server.operations.current(resource, namespace, info.name))
        if "replicas" not in found["spec"]:
            where = resource.scale_paths["specReplicasPath"]
            text = f'Internal error occurred: the spec replicas field "{where}" does not exist'
            raise errors.ApiError(500, "InternalError", text)
        return resource_api.respond(found)
    options = resource_api.write_options(request, user)
    # Read first: between the object's current state and the write of the next one nothing else may run.
    raw = await request.read()
    current = server.operations.current(resource, namespace, info.name)
    scale = _scale_of(resource, current)
    if info.verb == "patch":
        wanted = _patched_scale(resource, scale, request.content_type, decode_body(raw, request.content_type))
    else:
        # kubectl's client of scales names no type.
        wanted = decode_body(raw, request.content_type if "Content-Type" in request.headers else "application/json")
    if not isinstance(wanted, dict):
        raise errors.bad_request("the body is not a Scale")
    meta, spec = wanted.get("metadata") or {}, wanted.get("spec") or {}
    if (name := meta.get("name", "" if info.verb == "update" else info.name)) != info.name:
        text = f"the name of the object ({name}) does not match the name on the URL ({info.name})"
        raise errors.bad_request(text)
    replicas = spec.get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        cause = errors.invalid_value("spec.replicas", replicas, "must be greater than or equal to 0")
        raise errors.invalid("autoscaling", "Scale", info.name, [cause])
    new = copy.deepcopy(current)
    target = new
    *parents, last = resource.scale_paths["specReplicasPath"].lstrip(".").split(".")
    for part in parents:
        target = target.setdefault(part, {})
    target[last] = replicas
    for key in ("uid", "resourceVersion"):
        if meta.get(key):
            new["metadata"][key] = meta[key]
    stored = server.operations.replace(resource, namespace, info.name, new, options)
    return resource_api.respond(_scale_of(resource, stored))


def _patched_scale(resource: Resource, scale: Obj, media_type: str, patch: Any) -> Any:
    """The Scale that a patch asks for. Raises ApiError 415 for a kind of patch that is not there."""
    # A Scale holds no list: a strategic-merge patch of it is a merge patch.
    merging = [patches.MERGE_PATCH] if resource.custom else [patches.MERGE_PATCH, patches.STRATEGIC_PATCH]
    if media_type == patches.JSON_PATCH:
        return patches.json_patch(scale, patch)
    if media_type in merging:
        return patches.merge_patch(scale, patch)
    raise errors.unsupported_media_type(media_type, (patches.JSON_PATCH, *merging))
