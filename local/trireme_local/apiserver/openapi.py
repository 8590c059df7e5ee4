"""OpenAPI v2 and v3 documents: built-in definitions and the schemas of CRDs."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

from . import definitions, errors, openapi_protobuf
from .definitions import KUBERNETES_VERSION, META, Schema
from .registry import REVIEWS, Registry
from .resource import Resource
from .store import Obj, encode

_V2 = "#/definitions/"
_V3 = "#/components/schemas/"
_PATCH_TYPES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
_STRING: Schema = {"type": "string"}


def definition_name(resource: Resource) -> str:
    """The name of a resource's schema in the documents."""
    if not resource.custom:
        return definitions.by_kind()[(resource.group, resource.version, resource.kind)]
    return ".".join([*reversed(resource.group.split(".")), resource.version, resource.kind])


def _gvk(resource: Resource, kind: str) -> list[Obj]:
    return [{"group": resource.group, "kind": kind, "version": resource.version}]


def _custom_schemas(resource: Resource, prefix: str) -> dict[str, Schema]:
    """The published schemas of one version of a CRD: the kind and its list."""
    name = definition_name(resource)
    schema = copy.deepcopy(resource.strategy.schema)
    if prefix == _V2:
        schema = _for_v2(schema)
    typical = definitions.load(prefix)["io.k8s.api.core.v1.ConfigMap"]["properties"]
    properties = {
        "apiVersion": typical["apiVersion"],
        "kind": typical["kind"],
        "metadata": {
            "allOf": [{"$ref": f"{prefix}{definitions.OBJECT_META}"}],
            "description": typical["metadata"]["description"],
        },
    }
    if prefix == _V2:
        properties["metadata"] = {**typical["metadata"], "$ref": f"{prefix}{definitions.OBJECT_META}"}
    properties |= {key: value for key, value in schema.get("properties", {}).items() if key not in properties}
    shown = {**schema, "properties": properties, "x-kubernetes-group-version-kind": _gvk(resource, resource.kind)}
    listed: Schema = {
        "description": f"{resource.kind}List is a list of {resource.kind}",
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": typical["apiVersion"],
            "items": {"type": "array", "items": {"$ref": prefix + name}, "description": f"List of {resource.plural}."},
            "kind": typical["kind"],
            "metadata": {"$ref": f"{prefix}{META}.ListMeta"},
        },
        "x-kubernetes-group-version-kind": _gvk(resource, resource.list_kind),
    }
    return {name: shown, f"{name}List": listed}


def _for_v2(schema: Any) -> Any:
    """OpenAPI v2 knows no oneOf, anyOf, not or nullable; a real server drops them too."""
    if isinstance(schema, list):
        return [_for_v2(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    shown = {}
    for key, value in schema.items():
        if key == "properties":
            shown[key] = {name: _for_v2(sub) for name, sub in value.items()}
        elif key not in ("oneOf", "anyOf", "allOf", "not", "nullable", "x-kubernetes-validations"):
            shown[key] = _for_v2(value)
    if schema.get("nullable"):
        shown.pop("type", None)
    if schema.get("x-kubernetes-preserve-unknown-fields") and schema.get("type") == "object":
        shown.pop("properties", None) if not schema.get("properties") else None
    return shown


def _path_of(resource: Resource, named: bool) -> str:
    base = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    middle = "/namespaces/{namespace}" if resource.namespaced else ""
    return f"{base}{middle}/{resource.plural}" + ("/{name}" if named else "")


def _parameters(names: tuple[str, ...], v3: bool) -> list[Obj]:
    def one(name: str) -> Obj:
        kind: Schema = {"type": "boolean"} if name == "force" else _STRING
        shown: Obj = {"name": name, "in": "query", "uniqueItems": True}
        return shown | ({"schema": kind} if v3 else kind)

    return [one(name) for name in names]


def _operation(resource: Resource, action: str, v3: bool) -> Obj:
    reference = {"$ref": (_V3 if v3 else _V2) + definition_name(resource)}
    content = {"content": {"application/json": {"schema": reference}}} if v3 else {"schema": reference}
    shown: Obj = {
        "operationId": f"{action}{resource.group.title().replace('.', '')}{resource.version.title()}{resource.kind}",
        "responses": {"200": {"description": "OK", **content}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": _gvk(resource, resource.kind)[0],
    }
    if not v3:
        shown["produces"] = ["application/json", "application/yaml"]
        shown["schemes"] = ["https"]
    if action in ("post", "put", "patch"):
        names = ("dryRun", "fieldManager", "fieldValidation") + (("force",) if action == "patch" else ())
        shown["parameters"] = _parameters(names, v3)
        types = list(_PATCH_TYPES) if action == "patch" else ["application/json", "application/yaml"]
        if resource.custom and action == "patch":
            types.remove("application/strategic-merge-patch+json")
        body = {"$ref": (_V3 if v3 else _V2) + f"{META}.Patch"} if action == "patch" else reference
        if v3:
            shown["requestBody"] = {"content": {kind: {"schema": body} for kind in types}}
        else:
            shown["consumes"] = types
            shown["parameters"].append({"name": "body", "in": "body", "required": True, "schema": body})
    return shown


def _paths(resources: list[Resource], v3: bool) -> dict[str, Obj]:
    paths: dict[str, Obj] = {}
    for resource in resources:
        common = [{"name": "name", "in": "path", "required": True} | ({"schema": _STRING} if v3 else _STRING)]
        space = [{"name": "namespace", "in": "path", "required": True} | ({"schema": _STRING} if v3 else _STRING)]
        spaces = space if resource.namespaced else []
        collection: Obj = {"get": _operation(resource, "list", v3), "parameters": spaces}
        item: Obj = {"get": _operation(resource, "get", v3), "parameters": common + spaces}
        if "create" in resource.verbs:
            collection["post"] = _operation(resource, "post", v3)
        for verb, action in (("update", "put"), ("patch", "patch"), ("delete", "delete")):
            if verb in resource.verbs:
                item[action] = _operation(resource, action, v3)
        paths[_path_of(resource, False)] = collection
        paths[_path_of(resource, True)] = item
        if "status" in resource.subresources:
            paths[_path_of(resource, True) + "/status"] = {
                **{action: _operation(resource, action, v3) for action in ("get", "put", "patch")},
                "parameters": common + spaces,
            }
    return paths


def _referenced(schema: Any, found: set[str]) -> None:
    """Names of all built-in definitions that a schema reaches."""
    if isinstance(schema, dict):
        if isinstance(reference := schema.get("$ref"), str):
            name = reference.rsplit("/", 1)[-1]
            if name not in found and name in definitions.load(_V3):
                found.add(name)
                _referenced(definitions.load(_V3)[name], found)
        for value in schema.values():
            _referenced(value, found)
    elif isinstance(schema, list):
        for value in schema:
            _referenced(value, found)


class OpenApi:
    """The documents, kept until the set of resources changes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._generation = -1
        self._cache: dict[str, bytes] = {}

    def _kept(self, key: str, make: Any) -> bytes:
        if self._generation != self._registry.generation:
            self._cache.clear()
            self._generation = self._registry.generation
        if key not in self._cache:
            made = make()
            self._cache[key] = made if isinstance(made, bytes) else encode(made)
        return self._cache[key]

    def _info(self) -> Obj:
        return {"title": "Kubernetes", "version": KUBERNETES_VERSION}

    def v2(self, protobuf: bool = False) -> bytes:
        """The Swagger 2.0 document of everything, in JSON or (in part) in protobuf."""

        def make() -> Obj:
            shown = dict(definitions.load(_V2))
            for resource in self._registry.all():
                if resource.custom:
                    shown |= _custom_schemas(resource, _V2)
            shown[f"{META}.Patch"] = {"type": "object", "description": "Patch is provided to give a concrete name."}
            paths = _paths(list(self._registry.all()), v3=False)
            return {"swagger": "2.0", "info": self._info(), "paths": paths, "definitions": shown}

        if protobuf:
            return self._kept("v2 protobuf", lambda: openapi_protobuf.document(make()))
        return self._kept("v2", make)

    def v3_index(self) -> bytes:
        """The list of OpenAPI v3 documents, each with the hash of its content."""

        def make() -> Obj:
            found = {}
            names = [("", "v1"), *((g, v) for g, versions in self._registry.groups().items() for v in versions)]
            for group, version in names:
                path = f"apis/{group}/{version}" if group else "api/v1"
                digest = hashlib.sha512(self.v3(group, version)).hexdigest().upper()
                found[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
            return {"paths": found}

        return self._kept("v3", make)

    def v3(self, group: str, version: str) -> bytes:
        """The OpenAPI 3.0 document of one group and version. Raises ApiError 404."""

        def make() -> Obj:
            resources = self._registry.in_version(group, version)
            if not resources and not (group in REVIEWS and version == "v1"):
                raise errors.path_not_found()
            names: set[str] = {
                f"{META}.{name}" for name in ("Status", "DeleteOptions", "Patch", "ListMeta", "ObjectMeta")
            }
            schemas: dict[str, Schema] = {}
            for resource in resources:
                if resource.custom:
                    schemas |= _custom_schemas(resource, _V3)
                else:
                    names |= {definition_name(resource)}
                    if (listed := definition_name(resource) + "List") in definitions.load(_V3):
                        names.add(listed)
            for _, kind, _ in REVIEWS.get(group, ()):
                names.add(definitions.by_kind()[(group, version, kind)])
            reached = set(names)
            for name in names:
                _referenced(definitions.load(_V3).get(name, {}), reached)
            for schema in list(schemas.values()):
                _referenced(schema, reached)
            schemas |= {name: definitions.load(_V3)[name] for name in reached if name in definitions.load(_V3)}
            schemas[f"{META}.Patch"] = {"type": "object", "description": "Patch is provided to give a concrete name."}
            return {
                "openapi": "3.0.0",
                "info": self._info(),
                "paths": _paths(resources, v3=True),
                "components": {"schemas": schemas},
            }

        return self._kept(f"{group}/{version}", make)
