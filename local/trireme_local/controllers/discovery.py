"""Which resources an API server has, by its discovery documents."""

from __future__ import annotations

from trireme_local.kube import ApiException, JsonObject, KubeClient, Resource, is_status


async def _group_versions(client: KubeClient) -> list[str]:
    """v1 and the preferred version of every group."""
    groups = (await client.request("GET", "/apis")).get("groups") or []
    return ["v1", *(group["preferredVersion"]["groupVersion"] for group in groups)]


async def api_resources(client: KubeClient) -> list[tuple[Resource, JsonObject]]:
    """Every resource with its discovery entry, subresources left out. A group that is away is left out."""
    found = []
    for group_version in await _group_versions(client):
        prefix = "/api" if "/" not in group_version else "/apis"
        try:
            document = await client.request("GET", f"{prefix}/{group_version}")
        except ApiException as error:
            if not is_status(error, 404, 503):
                raise
            continue
        for entry in document.get("resources") or []:
            if "/" not in entry["name"]:
                resource = Resource(group_version, entry["name"], entry["kind"], entry["namespaced"])
                found.append((resource, entry))
    return found


async def deletable_resources(client: KubeClient, *, namespaced: bool | None = None) -> list[Resource]:
    """Resources that can be listed, watched and deleted: what garbage collection can keep an eye on."""
    return [
        resource
        for resource, entry in await api_resources(client)
        if {"list", "watch", "delete"} <= set(entry.get("verbs") or [])
        and (namespaced is None or resource.namespaced == namespaced)
    ]
