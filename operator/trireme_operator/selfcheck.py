"""Whether the operator may do what it must, and whether the cluster has this version's CRDs.

Both are asked again and again, since both are mended while the operator runs. What is wrong is said once in the log,
and in readiness and metrics as long as it lasts; the operator goes on with what it can do.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from trireme.resources import GROUP, all_kinds
from trireme.resources.crdgen import SCHEMA_DIGEST, crd, crd_name
from trireme_operator import permissions
from trireme_operator.apply.api import Api, ApiError, path_of
from trireme_operator.permissions import CRD_GROUP, CRDS, Permission

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 300.0
RETRY_SECONDS = 15.0
"""While something is wrong: whoever mends it watches."""


class SelfCheck:
    """What was found out last."""

    def __init__(
        self,
        api: Api,
        namespaces: Iterable[str],
        lease_namespace: str,
        on_change: Callable[[], None] = lambda: None,
        *,
        may_lack_nodes: bool = False,
    ) -> None:
        """`may_lack_nodes`: what lies in no namespace it may be without, as with `namespaces` (empty: all) it may."""
        self._api = api
        self._namespaces = tuple(namespaces)
        self._may_lack_nodes = may_lack_nodes or bool(self._namespaces)
        self._lease_namespace = lease_namespace
        self._on_change = on_change
        self._wake = asyncio.Event()
        self._expected = {info.plural: _digest(crd(info)) for info in all_kinds()}
        self.looked = False
        """Whether the API server has told this operator's permissions."""
        self.missing: dict[Permission, list[str]] = {}
        """Permissions that the operator does not have, and the namespaces where; "" is the whole cluster."""
        self.mismatched: dict[str, bool] = {}
        """Plural -> whether its CRD is another version's; without an entry it is not known."""

    def problem(self) -> str:
        """Why the operator cannot do all that it should; "" when it can."""
        needed = sorted(p for p in self.missing if not self._spared(p))
        parts = [f"missing permission: {', '.join(map(str, needed))}"] if needed else []
        if other := sorted(plural for plural, differs in self.mismatched.items() if differs):
            parts.append(f"CRDs of another version: {', '.join(f'{plural}.{GROUP}' for plural in other)}")
        return "; ".join(parts)

    def may(self, group: str, resource: str, *verbs: str) -> bool:
        """Whether none of the verbs on a resource is known to be missing anywhere."""
        return not any(Permission(group, resource, verb) in self.missing for verb in verbs)

    def wake(self) -> None:
        """Look again soon: the API server has just refused something."""
        self._wake.set()

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            self._wake.clear()
            await self.look()
            wrong = self.missing or any(self.mismatched.values())
            try:
                async with asyncio.timeout(RETRY_SECONDS if wrong else INTERVAL_SECONDS):
                    await self._wake.wait()
                    await asyncio.sleep(1.0)  # refusals come in numbers
            except TimeoutError:
                pass

    async def look(self) -> None:
        """Ask once; what cannot be asked now stays as it was."""
        for info in all_kinds():
            # Not what is known to be refused: the refusal would have it look again at once, for ever.
            if Permission(CRD_GROUP, CRDS, "get", crd_name(info)) not in self.missing:
                await self._look_at_crd(info.plural, crd_name(info))
        try:
            missing = await self._missing()
        except ApiError as error:
            log.debug("own permissions: %s", error)
        else:
            self._tell_permissions(missing)

    async def _look_at_crd(self, plural: str, name: str) -> None:
        try:
            self._tell_crd(plural, _annotated(await self._api.get(path_of(CRD_GROUP, "v1", CRDS, None, name))))
        except ApiError as error:
            if error.status == 403:
                self.mismatched.pop(plural, None)
            log.debug("CRD of %s: %s", plural, error)

    def _spared(self, permission: Permission) -> bool:
        return self._may_lack_nodes and permission in permissions.clusterwide()

    async def _missing(self) -> dict[Permission, list[str]]:
        """Raises ApiError."""
        asked = [(p, place) for p in permissions.namespaced() for place in self._namespaces or ("",)]
        asked += [(p, "") for p in permissions.clusterwide()]
        asked += [(p, self._lease_namespace) for p in permissions.leader_election()]
        found: dict[Permission, list[str]] = {}
        for permission, place in sorted(asked):
            if not await self._allowed(permission, place):
                found.setdefault(permission, []).append(place)
        return found

    async def _allowed(self, permission: Permission, namespace: str) -> bool:
        resource, _, subresource = permission.resource.partition("/")
        wanted = {
            "group": permission.group,
            "resource": resource,
            "subresource": subresource,
            "verb": permission.verb,
            "name": permission.name,
            "namespace": namespace,
        }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {name: value for name, value in wanted.items() if value}},
        }
        answer = await self._api.create(path_of("authorization.k8s.io", "v1", "selfsubjectaccessreviews"), body)
        return bool((answer.get("status") or {}).get("allowed"))

    def _tell_permissions(self, missing: dict[Permission, list[str]]) -> None:
        for permission in sorted(missing.keys() - self.missing.keys()):
            where = ", ".join(place or "the whole cluster" for place in missing[permission])
            level = logging.INFO if self._spared(permission) else logging.WARNING
            log.log(level, "missing permission: %s (in %s)", permission, where)
        for permission in sorted(self.missing.keys() - missing.keys()):
            log.info("permission is there now: %s", permission)
        changed = missing != self.missing
        self.missing, self.looked = missing, True
        if changed:
            self._on_change()
            self.wake()  # CRDs that can be read now

    def _tell_crd(self, plural: str, digest: str) -> None:
        differs = digest != self._expected[plural]
        if differs and not self.mismatched.get(plural):
            log.warning(
                "CRD %s.%s is of another version than this operator (schema %s, not %s): fields that only one of them "
                "knows are lost; apply the CRDs of this version, or run the operator of theirs",
                plural,
                GROUP,
                digest or "without a digest",
                self._expected[plural],
            )
        if self.mismatched.get(plural) and not differs:
            log.info("CRD %s.%s is this version's now", plural, GROUP)
        self.mismatched[plural] = differs


def _digest(manifest: dict[str, Any]) -> str:
    return str(manifest["metadata"]["annotations"][SCHEMA_DIGEST])


def _annotated(manifest: dict[str, Any]) -> str:
    return str((manifest["metadata"].get("annotations") or {}).get(SCHEMA_DIGEST, ""))
