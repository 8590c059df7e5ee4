"""Discovery: /api and /apis, as separate documents and aggregated."""

from __future__ import annotations

from . import errors
from .registry import REVIEWS, Registry
from .request import Accepted
from .resource import Resource
from .store import Obj


def _response_kind(kind: str, group: str, version: str) -> Obj:
    return {"group": group, "version": version, "kind": kind}


def _api_resources(resource: Resource) -> list[Obj]:
    shown: Obj = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": sorted(resource.verbs),
    }
    if resource.short_names:
        shown["shortNames"] = list(resource.short_names)
    if resource.categories:
        shown["categories"] = list(resource.categories)
    found = [shown]
    for name, sub in sorted(resource.subresources.items()):
        item: Obj = {
            "name": f"{resource.plural}/{name}",
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": sub.kind,
            "verbs": sorted(sub.verbs),
        }
        if sub.version:
            item |= {"group": sub.group, "version": sub.version}
        found.append(item)
    return found


def resource_list(registry: Registry, group: str, version: str) -> Obj:
    """The APIResourceList of one group and version. Raises ApiError 404."""
    found = [item for resource in registry.in_version(group, version) for item in _api_resources(resource)]
    if version == "v1":
        for plural, kind, namespaced in REVIEWS.get(group, ()):
            found.append(
                {
                    "name": plural,
                    "singularName": kind.lower(),
                    "namespaced": namespaced,
                    "kind": kind,
                    "verbs": ["create"],
                }
            )
    if not found:
        raise errors.path_not_found()
    # As on a real server, the list of the core group alone does not say its own version.
    head = {"apiVersion": "v1", "groupVersion": f"{group}/{version}"} if group else {"groupVersion": version}
    return {"kind": "APIResourceList", **head, "resources": found}


def _group(name: str, versions: list[str]) -> Obj:
    shown = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": shown, "preferredVersion": shown[0]}


def group(registry: Registry, name: str) -> Obj:
    """The APIGroup of one group. Raises ApiError 404."""
    versions = registry.groups().get(name)
    if not versions:
        raise errors.path_not_found()
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)}


def group_list(registry: Registry) -> Obj:
    """The APIGroupList of /apis."""
    groups = [_group(name, versions) for name, versions in registry.groups().items()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def api_versions(host: str) -> Obj:
    """The APIVersions of /api."""
    addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": host}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}


def _aggregated_resource(resource: Resource) -> Obj:
    # Built-in kinds leave out the group and version that the list is about, custom ones repeat it.
    own = (resource.group, resource.version) if resource.custom else ("", "")
    shown: Obj = {
        "resource": resource.plural,
        "responseKind": _response_kind(resource.kind, *own),
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": sorted(resource.verbs),
    }
    if resource.short_names:
        shown["shortNames"] = list(resource.short_names)
    if resource.categories:
        shown["categories"] = list(resource.categories)
    if resource.subresources:
        shown["subresources"] = [
            {
                "subresource": name,
                "responseKind": _response_kind(sub.kind, *((sub.group, sub.version) if sub.version else own)),
                "verbs": sorted(sub.verbs),
            }
            for name, sub in sorted(resource.subresources.items())
        ]
    return shown


def _aggregated_version(registry: Registry, group_name: str, version: str) -> Obj:
    found = [_aggregated_resource(resource) for resource in registry.in_version(group_name, version)]
    if version == "v1":
        for plural, kind, namespaced in REVIEWS.get(group_name, ()):
            found.append(
                {
                    "resource": plural,
                    "responseKind": _response_kind(kind, "", ""),
                    "scope": "Namespaced" if namespaced else "Cluster",
                    "singularResource": kind.lower(),
                    "verbs": ["create"],
                }
            )
    return {"version": version, "resources": found, "freshness": "Current"}


def aggregated(registry: Registry, core: bool, accepted: Accepted) -> Obj:
    """The APIGroupDiscoveryList of /api or /apis."""
    groups = {"": ["v1"]} if core else registry.groups()
    items = [
        {
            "metadata": {"name": name, "creationTimestamp": None} if name else {"creationTimestamp": None},
            "versions": [_aggregated_version(registry, name, version) for version in versions],
        }
        for name, versions in groups.items()
    ]
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"{accepted.group}/{accepted.version}",
        "metadata": {},
        "items": items,
    }
