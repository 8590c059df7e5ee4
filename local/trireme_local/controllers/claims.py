"""Which objects belong to a controller: by their controller reference, adopted and released by labels.

Source: k8s.io/kubernetes/pkg/controller.BaseControllerRefManager.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from trireme_local.kube import STRATEGIC_PATCH, ApiException, JsonObject, KubeClient, Resource, is_status
from trireme_local.selectors import label_selector_matches


def controller_of(obj: JsonObject) -> JsonObject | None:
    """The owner reference that says `controller`, None without one."""
    references = obj["metadata"].get("ownerReferences") or []
    return next((item for item in references if item.get("controller")), None)


def controller_reference(owner: JsonObject, resource: Resource) -> JsonObject:
    """The reference by which `owner`, an object of `resource`, controls another object."""
    return {
        "apiVersion": resource.group_version,
        "kind": resource.kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


@dataclass
class Claim:
    """What an owner owns, and what must be written to make that so."""

    owned: list[JsonObject] = field(default_factory=list)
    adopt: list[JsonObject] = field(default_factory=list)
    release: list[JsonObject] = field(default_factory=list)


def claim(owner: JsonObject, candidates: Iterable[JsonObject]) -> Claim:
    """Sort the objects of the owner's namespace by whether they are its own."""
    found = Claim()
    selector, uid = owner["spec"]["selector"], owner["metadata"]["uid"]
    owner_goes = bool(owner["metadata"].get("deletionTimestamp"))
    for obj in candidates:
        reference = controller_of(obj)
        matches = label_selector_matches(selector, obj["metadata"].get("labels"))
        if reference is not None:
            if reference["uid"] != uid:
                continue
            if matches:
                found.owned.append(obj)
            elif not owner_goes:
                found.release.append(obj)
        elif matches and not owner_goes and not obj["metadata"].get("deletionTimestamp"):
            found.adopt.append(obj)
    return found


class Claims:
    """Writes adoptions and releases of objects of one resource."""

    def __init__(self, client: KubeClient, owner_resource: Resource, resource: Resource) -> None:
        self._client = client
        self._owner_resource, self._resource = owner_resource, resource

    async def settle(self, owner: JsonObject, candidates: Iterable[JsonObject]) -> list[JsonObject]:
        """Adopt and release as labels say; the objects that the owner owns then. Raises `ApiException`."""
        found = claim(owner, candidates)
        for obj in found.release:
            gone = {"$patch": "delete", "uid": owner["metadata"]["uid"]}
            await self._patch(obj, gone)
        if found.adopt and await self._still_there(owner):
            reference = controller_reference(owner, self._owner_resource)
            for obj in found.adopt:
                adopted = await self._patch(obj, reference)
                if adopted is not None:
                    found.owned.append(adopted)
        return found.owned

    async def _still_there(self, owner: JsonObject) -> bool:
        """The cache may not know yet that the owner is on its way out or has been replaced: ask the API server."""
        metadata = owner["metadata"]
        try:
            fresh = await self._client.get(self._owner_resource, metadata["namespace"], metadata["name"])
        except ApiException as error:
            if is_status(error, 404):
                return False
            raise
        return bool(fresh["metadata"]["uid"] == metadata["uid"] and not fresh["metadata"].get("deletionTimestamp"))

    async def _patch(self, obj: JsonObject, reference: JsonObject) -> JsonObject | None:
        """The object with a changed owner reference, None when it is gone or has been replaced."""
        metadata = obj["metadata"]
        body = {"metadata": {"uid": metadata["uid"], "ownerReferences": [reference]}}
        try:
            return await self._client.patch(
                self._resource, metadata["namespace"], metadata["name"], body, content_type=STRATEGIC_PATCH
            )
        except ApiException as error:
            # 422: somebody else's reference says `controller` by now.
            if is_status(error, 404, 409, 422):
                return None
            raise
