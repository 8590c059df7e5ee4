"""The HTTP server: authentication, authorization, discovery, and the way to the resource handlers."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from . import discovery, errors, openapi_protobuf, protobuf, resource_api, yaml_body
from .auth import ANONYMOUS, Authenticator, User
from .bootstrap import ensure_system_objects, expire_events, install_hooks, read_by_schema
from .builtins.services import CLUSTER_NETWORK
from .definitions import KUBERNETES_VERSION
from .guards import Guard
from .openapi import OpenApi
from .operations import Operations
from .pki import Pki
from .rbac import Attributes, Authorizer
from .registry import CRD_KEY, Registry
from .request import Accepted, RequestInfo, negotiate, parse_path, selected_name
from .store import Obj, Store, encode
from .watch import Lister

logger = logging.getLogger(__name__)
MAX_BODY_BYTES = 3 * 1024 * 1024
EVENT_TTL_SECONDS = 3600.0
EVENT_SWEEP_SECONDS = 60.0
_VERSION = {
    "major": "1",
    "minor": "32",
    "gitVersion": f"{KUBERNETES_VERSION}+trireme",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "python",
    "compiler": "cpython",
    "platform": "linux/amd64",
}


class ApiServer:
    """One API server over one data directory."""

    def __init__(
        self,
        data_dir: Path,
        address: str = "127.0.0.1",
        service_network: ipaddress.IPv4Network = CLUSTER_NETWORK,
    ) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir
        self.pki = Pki(data_dir / "pki", (address,))
        self.store = Store(data_dir / "state.db")
        self.registry = Registry(self.store)
        self.operations = Operations(self.store, self.registry, service_network)
        self.lister = Lister(self.store)
        self.authenticator = Authenticator(data_dir, self.store, self.pki.signing_key())
        self.authorizer = Authorizer(self.store)
        self.openapi = OpenApi(self.registry)
        self.closers: set[Callable[[], None]] = set()
        self.client: aiohttp.ClientSession | None = None
        install_hooks(self.operations)
        self.operations.guards.append(Guard(self.authorizer).check)
        ensure_system_objects(self.operations)
        for entry in self.store.list(CRD_KEY):
            read_by_schema(self.operations, entry.obj)

    def application(self) -> web.Application:
        """The aiohttp application of this server."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        app.on_startup.append(self._startup)
        app.on_shutdown.append(self._shutdown)
        app.on_cleanup.append(self._cleanup)
        return app

    async def _startup(self, _: web.Application) -> None:
        self.client = aiohttp.ClientSession()
        self._expiry = asyncio.create_task(self._expire_events())

    async def _expire_events(self) -> None:
        """Remove events an hour after they were last written, as a real server's --event-ttl does."""
        while True:
            expire_events(self.operations, EVENT_TTL_SECONDS)
            await asyncio.sleep(EVENT_SWEEP_SECONDS)

    async def _shutdown(self, _: web.Application) -> None:
        for close in tuple(self.closers):
            close()

    async def _cleanup(self, _: web.Application) -> None:
        self._expiry.cancel()
        if self.client is not None:
            await self.client.close()
        self.store.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            user = self._authenticate(request)
            return await self._dispatch(request, user)
        except errors.ApiError as error:
            return _failure(error)
        except web.HTTPRequestEntityTooLarge:
            text = f"Request entity too large: limit is {MAX_BODY_BYTES}"
            return _failure(errors.ApiError(413, "RequestEntityTooLarge", text))
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception as caught:
            logger.exception("%s %s failed", request.method, request.path_qs)
            return _failure(errors.ApiError(500, "InternalError", f"Internal error occurred: {caught}"))

    def _authenticate(self, request: web.Request) -> User:
        header = request.headers.get("Authorization", "")
        if not header:
            return ANONYMOUS
        # Kubernetes' own client for Python writes "bearer" (source: the schemes of RFC 9110 know no case).
        scheme, _, token = header.partition(" ")
        user = self.authenticator.user(token.strip()) if scheme.lower() == "bearer" else None
        if user is None:
            raise errors.unauthorized()
        return self._impersonated(request, user)

    def _impersonated(self, request: web.Request, user: User) -> User:
        name = request.headers.get("Impersonate-User", "")
        groups = tuple(request.headers.getall("Impersonate-Group", []))
        if not name and not groups:
            return user
        wanted = [("users", name, ""), *(("groups", group, "") for group in groups)]
        if name.startswith("system:serviceaccount:") and name.count(":") == 3:
            wanted[0] = ("serviceaccounts", name.split(":")[3], name.split(":")[2])
        for plural, item, namespace in wanted:
            self.authorize(Attributes(user, "impersonate", "", "v1", plural, "", namespace, item))
        if name.startswith("system:serviceaccount:") and not groups:
            groups = ("system:serviceaccounts", f"system:serviceaccounts:{name.split(':')[2]}")
        return User(name, groups=(*groups, "system:authenticated"))

    def authorize(self, wanted: Attributes) -> None:
        """Raise ApiError 403 unless the user may do this."""
        if self.authorizer.allowed(wanted):
            return
        user = wanted.user.name
        if wanted.path:
            why = f'User "{user}" cannot {wanted.verb} path "{wanted.path}"'
            raise errors.ApiError(403, "Forbidden", f"forbidden: {why}", {})
        plural = f"{wanted.resource}/{wanted.subresource}" if wanted.subresource else wanted.resource
        where = f'in the namespace "{wanted.namespace}"' if wanted.namespace else "at the cluster scope"
        why = f'User "{user}" cannot {wanted.verb} resource "{plural}" in API group "{wanted.group}" {where}'
        raise errors.forbidden(wanted.group, wanted.resource, wanted.name, why)

    async def _dispatch(self, request: web.Request, user: User) -> web.StreamResponse:
        query = dict(request.query)
        info = parse_path(request.method, request.path, query)
        if info is None:
            verb = {"POST": "post", "PUT": "put", "PATCH": "patch", "DELETE": "delete"}.get(request.method, "get")
            self.authorize(Attributes(user, verb, path=request.path))
            return self._non_resource(request)
        if not info.verb:
            raise errors.ApiError(405, "MethodNotAllowed", f"{request.method} is not supported")
        namespace = info.name if info.plural == "namespaces" and not info.group else info.namespace
        # A list or watch of one name counts as a request for that name.
        name = info.name or selected_name(query.get("fieldSelector", ""))
        self.authorize(
            Attributes(user, info.verb, info.group, info.version, info.plural, info.subresource, namespace, name)
        )
        return await resource_api.handle(self, request, info, user)

    def _non_resource(self, request: web.Request) -> web.StreamResponse:
        path = request.path.rstrip("/") or "/"
        if request.method not in ("GET", "HEAD"):
            raise errors.path_not_found()
        if path.split("/")[1] in ("healthz", "livez", "readyz"):
            return web.Response(text="ok")
        if path == "/version":
            return _json(_VERSION)
        if path == "/openid/v1/jwks" or path == "/.well-known/openid-configuration":
            raise errors.not_implemented("service account issuer discovery")
        if path.startswith("/openapi"):
            return self._openapi(path, request)
        accepted = negotiate(request.headers.get("Accept", ""), ("APIGroupDiscoveryList",))
        return _json(self._discovery(path, request, accepted), accepted)

    def _discovery(self, path: str, request: web.Request, accepted: Accepted) -> Obj:
        parts = path.strip("/").split("/")
        if path == "/":
            return {"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3",
                              "/readyz", "/version"]}  # fmt: skip
        if accepted.kind and path in ("/api", "/apis"):
            return discovery.aggregated(self.registry, path == "/api", accepted)
        if path == "/api":
            return discovery.api_versions(request.host)
        if path == "/apis":
            return discovery.group_list(self.registry)
        if parts[0] == "api" and len(parts) == 2:
            return discovery.resource_list(self.registry, "", parts[1])
        if parts[0] == "apis" and len(parts) == 2:
            return discovery.group(self.registry, parts[1])
        if parts[0] == "apis" and len(parts) == 3:
            return discovery.resource_list(self.registry, parts[1], parts[2])
        raise errors.path_not_found()

    def _openapi(self, path: str, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "*/*")
        form = "application/json"
        if "json" not in accept and "*/*" not in accept:
            if path != "/openapi/v2" or openapi_protobuf.MEDIA_TYPE not in accept:
                raise errors.not_acceptable((form,))
            form = openapi_protobuf.CONTENT_TYPE
        if path == "/openapi/v2":
            body = self.openapi.v2(protobuf=form == openapi_protobuf.CONTENT_TYPE)
        elif path == "/openapi/v3":
            body = self.openapi.v3_index()
        elif path.startswith("/openapi/v3/api/"):
            body = self.openapi.v3("", path.rsplit("/", 1)[-1])
        elif path.startswith("/openapi/v3/apis/") and path.count("/") == 5:
            body = self.openapi.v3(path.split("/")[4], path.split("/")[5])
        else:
            raise errors.path_not_found()
        return web.Response(body=body, headers={"Content-Type": form})

    async def body(self, request: web.Request) -> Any:
        """The decoded JSON or YAML body of a request. Raises ApiError 400 or 415."""
        media = request.content_type if "Content-Type" in request.headers else "application/json"
        return decode_body(await request.read(), media)


def decode_body(raw: bytes, media: str) -> Any:
    """Decode JSON or YAML bytes. Raises ApiError 400 or 415."""
    try:
        if media == "application/json" or media.endswith("+json"):
            return yaml_body.load_json(raw) if raw else None
        if media in ("application/yaml", "application/apply-patch+yaml"):
            return yaml_body.load(raw)
        if media == protobuf.MEDIA_TYPE:
            return protobuf.decode(raw)
    except (ValueError, yaml.YAMLError) as error:
        text = f"couldn't get version/kind; json parse error: {error}"
        raise errors.bad_request(text) from None
    raise errors.unsupported_media_type(media, ("application/json", "application/yaml"))


def _failure(error: errors.ApiError) -> web.Response:
    return web.Response(
        status=error.code, body=encode(error.status()), content_type="application/json", headers=error.headers
    )


def _json(body: Obj, accepted: Accepted | None = None, status: int = 200) -> web.Response:
    form = accepted or Accepted()
    raw = encode(body) if form.media_type == "application/json" else yaml.safe_dump(body).encode()
    return web.Response(status=status, body=raw, headers={"Content-Type": form.content_type})


def is_loopback(address: str) -> bool:
    """Whether an address is only reachable from this computer."""
    return ipaddress.ip_address(address).is_loopback


__all__ = ["ApiServer", "RequestInfo", "decode_body", "is_loopback"]
